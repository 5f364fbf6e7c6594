package audit

import (
	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// ReportVersion is the version of the report's JSON. Fields are added under the
// same version; a field that changes or goes makes a new one.
const ReportVersion = 1

// A Verdict says what kind of difference was found.
type Verdict string

// The verdicts.
const (
	VerdictPayload Verdict = "payload" // the same call, with other content
	VerdictOrder   Verdict = "order"   // the same calls, in another order
	VerdictMissing Verdict = "missing" // a call or entry that others have
	VerdictExtra   Verdict = "extra"   // one that no other has
	VerdictApply   Verdict = "apply"   // the same entry, applied to another state
	VerdictDevice  Verdict = "device"  // the same state, and other parameters on the device
	VerdictCorrupt Verdict = "corrupt" // the bytes on disk are not what was written
)

// The outcomes of an audit.
const (
	Consistent = "consistent" // status 0
	Diverged   = "diverged"   // status 1
	Incomplete = "incomplete" // status 2: nothing differs in what could be checked
)

// Where a finding comes from.
const (
	SourceEntries  = "entries"  // two histories hold different entries
	SourceReplay   = "replay"   // a history's digests are not those of its replay
	SourceStore    = "store"    // the bytes of one place
	SourceRecorded = "recorded" // the log says so itself
)

// Report is what an audit found. Findings are in the order of their index; the
// first is where it began.
type Report struct {
	Version   int         `json:"esperd_audit"` // ReportVersion
	Outcome   string      `json:"outcome"`
	Status    int         `json:"status"` // exit status
	Run       string      `json:"run,omitempty"`
	Lineage   string      `json:"lineage,omitempty"`
	Places    []Checked   `json:"places"` // as given
	Agreed    Point       `json:"agreed"` // up to here all compared places hold the same
	Findings  []Finding   `json:"findings"`
	More      int         `json:"more_findings,omitempty"` // that are not listed
	Branches  []Branch    `json:"branches"`
	Own       []OwnCount  `json:"own_verdicts"` // gate verdicts of other ranks that were not rank 0's: no divergence
	Coverage  []string    `json:"coverage"`
	Build     Build       `json:"build"`
	Reproduce string      `json:"reproduce"` // the command that finds the same
	Skipped   uint64      `json:"recorded_before_since,omitempty"`
	Around    []api.Entry `json:"around"` // entries around the first finding
}

// Point is a place in the log.
type Point struct {
	Index uint64        `json:"index"`
	Chain events.Digest `json:"chain,omitzero"`
}

// Checked is one place, and how far it was checked.
type Checked struct {
	Place    string        `json:"place"`
	Kind     string        `json:"kind,omitempty"` // directory, export or esperd
	Rank     *uint64       `json:"rank,omitempty"`
	Node     events.NodeID `json:"node,omitempty"`
	Host     string        `json:"host,omitempty"`
	Esperd   string        `json:"esperd,omitempty"` // version, where the place says it
	Run      string        `json:"run,omitempty"`
	Lineage  string        `json:"lineage,omitempty"`
	Live     bool          `json:"live,omitempty"` // an esperd has it open
	From     uint64        `json:"from"`
	Head     uint64        `json:"head"`             // when it was opened
	Chained  uint64        `json:"chain_checked_to"` // entries read and checked against the chain; 0: none
	Replayed uint64        `json:"replayed_to"`      // and replayed
	Compared uint64        `json:"compared_to"`      // with another place

	ReplayedFrom uint64        `json:"replayed_from,omitempty"` // entries before were compared with a place that was replayed; absent: from
	Chain        events.Digest `json:"chain,omitzero"`          // at chain_checked_to
	Problem      string        `json:"problem,omitempty"`       // why not all could be checked
	Notes        []string      `json:"notes,omitempty"`         // what else to know
	Evidence     *Evidence     `json:"evidence,omitempty"`      // what its esperd found out about its state while it ran
	SameAs       string        `json:"same_as,omitempty"`       // the place that was replayed: this one holds the same bytes and digests
}

// Group is the ranks that have one value.
type Group struct {
	Value    string   `json:"value"`
	Expected bool     `json:"expected"`
	Ranks    []uint64 `json:"ranks"`
	Places   []string `json:"places"`
	Tensors  []string `json:"tensors,omitempty"` // device: that differ from the expected ones, as slot/tensor
}

// Party is somebody at fault.
type Party struct {
	Rank  *uint64       `json:"rank,omitempty"`
	Node  events.NodeID `json:"node,omitempty"`
	Host  string        `json:"host,omitempty"`
	Place string        `json:"place,omitempty"`
}

// Site is where a rank called from, and what it would have decided itself.
type Site struct {
	Rank    uint64          `json:"rank"`
	Call    *events.Key     `json:"call,omitempty"`
	Site    string          `json:"site,omitempty"`
	Verdict *events.Verdict `json:"verdict,omitempty"`
	Outcome *events.Outcome `json:"outcome,omitempty"`
}

// Finding is one difference.
type Finding struct {
	Verdict Verdict `json:"verdict"`
	Source  string  `json:"source"`
	Index   uint64  `json:"index"` // 0: of no entry
	What    string  `json:"what"`  // in a sentence
	Agreed  Point   `json:"agreed"`

	Kind        *events.Kind `json:"kind,omitempty"` // of the entry, and what it is about
	Round       uint64       `json:"round,omitempty"`
	Model       string       `json:"model,omitempty"`
	Generation  uint64       `json:"generation,omitempty"`
	Epoch       *int64       `json:"epoch,omitempty"`
	Slot        string       `json:"slot,omitempty"`
	Seed        uint64       `json:"seed,omitempty"`
	Shard       string       `json:"shard,omitempty"` // device: only ranks of one shard are compared
	StageBefore string       `json:"stage_before,omitempty"`
	StageAfter  string       `json:"stage_after,omitempty"`

	Differences []Difference `json:"differences,omitempty"`
	More        int          `json:"more_differences,omitempty"`
	Groups      []Group      `json:"groups,omitempty"`
	AtFault     []Party      `json:"at_fault"`
	Sites       []Site       `json:"sites,omitempty"`
}

// Branch is where the log goes on from another point than its last entry.
type Branch struct {
	Index uint64 `json:"index"` // of the entry that says so
	Kind  string `json:"kind"`  // BranchContinues, ...
	Run   string `json:"run,omitempty"`
	From  Point  `json:"from"`
	// Lineage and Model are of what is continued.
	Lineage string `json:"lineage,omitempty"`
	Model   string `json:"model,omitempty"`

	// LeftFrom and LeftTo are the entries whose effects on the model were left.
	LeftFrom uint64 `json:"left_from,omitempty"`
	LeftTo   uint64 `json:"left_to,omitempty"`
}

// The kinds of branches.
const (
	BranchContinues = "continues" // this log was founded with another log's state
	BranchRecovered = "recovered" // it goes on under a new lineage, since its quorum was lost
	BranchRewound   = "rewound"   // a model went back to a mark of this log
	BranchAdopted   = "adopted"   // a model took over a mark of a log that is lost
)

// OwnCount counts one rank's own verdicts that were not rank 0's.
type OwnCount struct {
	Rank  uint64 `json:"rank"`
	Count uint64 `json:"count"`
}

// Build is the esperd that audits.
type Build struct {
	Esperd string `json:"version"`
	Entry  uint64 `json:"entry_version"`
	Go     string `json:"go"`
}

// setDifferences lists the first fields.
func (f *Finding) setDifferences(d []Difference) {
	f.Differences, f.More = d, 0
	if len(d) > differencesMax {
		f.Differences, f.More = d[:differencesMax], len(d)-differencesMax
	}
}
