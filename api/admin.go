package api

import (
	"encoding/json"
	"time"

	"github.com/esperd/esperd/events"
)

// State answers GET /v1/state: what this node knows, also without quorum.
type State struct {
	Run     string        `json:"run_id"`
	Lineage string        `json:"lineage"`
	Node    events.NodeID `json:"node"`
	Rank    uint64        `json:"rank"`
	World   uint64        `json:"world_size"`
	Version string        `json:"version" doc:"of esperd"`

	Phase        string        `json:"phase" enum:"joining,member,diverged,failed" doc:"joining: not yet part of a log"`
	Role         string        `json:"role" enum:"leader,follower,candidate,none"`
	Voter        bool          `json:"voter"`
	Leader       events.NodeID `json:"leader,omitempty"`
	Quorum       bool          `json:"quorum" doc:"a leader is known: what follows is current up to its last heartbeat; false: it is what this node knew last"`
	Index        uint64        `json:"index" doc:"of the last entry applied here"`
	Chain        events.Digest `json:"chain"`
	Bookkeeping  events.Digest `json:"bookkeeping"`
	CompleteFrom uint64        `json:"complete_from" doc:"first index of the history that is here without a gap"`
	Durability   string        `json:"durability" enum:"durable,relaxed" doc:"relaxed: this node syncs neither log nor votes, so that a crash of its machine or a power loss may lose decisions which trainers have acted on"`
	LogStore     string        `json:"log_store" enum:"boltdb,wal" doc:"how this node keeps the log on disk until a snapshot covers it"`
	Problem      string        `json:"problem,omitempty" doc:"what keeps this node from serving"`

	Divergence *StateDivergence `json:"divergence,omitempty" doc:"what this node found out about its state, if it has diverged"`

	Rival    string   `json:"rival,omitempty" doc:"another log of this run that has a leader, too, and what to do"`
	Evidence []string `json:"evidence,omitempty" doc:"directories with earlier histories that this node kept aside"`

	Archive *Archive `json:"archive,omitempty" doc:"the copy of the log that rank 0's esperd keeps elsewhere; absent: none"`

	Ancestors []events.Ancestor `json:"ancestors,omitempty" doc:"logs that this one continues, the latest last"`

	Round    *Round           `json:"round,omitempty"`
	Models   []Model          `json:"models"`
	Requests []PendingRequest `json:"requests" doc:"what waits for its model's next fence"`
}

// Archive is a copy of the log that grows at checkpoints.
type Archive struct {
	File     string `json:"file,omitempty" doc:"absent: not written yet"`
	Index    uint64 `json:"index" doc:"of the last entry that is there"`
	Failures uint64 `json:"failures" doc:"how often it could not be written, since this esperd was started"`
	Problem  string `json:"problem,omitempty" doc:"why the last try failed"`
}

// PendingRequest is a request with its place.
type PendingRequest struct {
	Index uint64 `json:"index"`
	events.Requested
}

// Round is the current run of the trainers.
type Round struct {
	Number      uint64               `json:"number"`
	Fingerprint string               `json:"fingerprint"`
	Members     []events.Member      `json:"members"`
	Fault       *events.RoundFaulted `json:"fault,omitempty"`
}

// Model is one model's lifecycle at this node's head.
type Model struct {
	Name       string        `json:"name"`
	Generation uint64        `json:"generation"`
	Epoch      int64         `json:"epoch"`
	Calls      uint64        `json:"calls" doc:"numbered calls in this round"`
	Lifecycle  events.Digest `json:"lifecycle"`
	Slots      []Slot        `json:"slots"`
}

// Slot is one slot, in answers of both doors.
type Slot struct {
	Name         string             `json:"name"`
	Stage        events.Stage       `json:"stage"`
	Alpha        float64            `json:"alpha"`
	Germinations uint64             `json:"germinations"`
	Seed         uint64             `json:"seed,omitempty"`
	SeedID       string             `json:"seed_id,omitempty"`
	Blueprint    string             `json:"blueprint,omitempty"`
	Frozen       bool               `json:"frozen,omitempty"`
	Algorithm    string             `json:"algorithm,omitempty"`
	Controller   *events.Controller `json:"controller,omitempty"`
	Metrics      *events.Metrics    `json:"metrics,omitempty"`
}

// Ranks answers GET /v1/ranks.
type Ranks struct {
	Ranks []Rank `json:"ranks" doc:"in rank order"`
}

// Rank is one rank as its own node tells it.
type Rank struct {
	Rank          uint64        `json:"rank"`
	Node          events.NodeID `json:"node,omitempty"`
	Address       string        `json:"address,omitempty"`
	Host          string        `json:"host,omitempty"`
	Version       string        `json:"version,omitempty"`
	Phase         string        `json:"phase,omitempty" doc:"joining, member, diverged or failed"`
	Problem       string        `json:"problem,omitempty" doc:"what keeps the node from serving"`
	Role          string        `json:"role,omitempty"`
	Voter         bool          `json:"voter"`
	Index         uint64        `json:"index"`
	Chain         events.Digest `json:"chain"`
	Bookkeeping   events.Digest `json:"bookkeeping"`
	Session       bool          `json:"session" doc:"a trainer of the current round is connected"`
	Disagreements uint64        `json:"disagreements" doc:"own verdicts that were not rank 0's"`
	Last          *LastCall     `json:"last,omitempty" doc:"last answered call of the model asked for, or else of any"`
	Recent        []LastCall    `json:"recent,omitempty" doc:"last answered calls of that model, newest first"`
	Waiting       []Arrival     `json:"waiting,omitempty"`
	Busy          *Busy         `json:"busy,omitempty" doc:"what its trainer said to be doing"`
	Misplaced     uint64        `json:"misplaced" doc:"calls in another order than rank 0's, in a round that went on (ordering warn, mode observe)"`
	MissingCalls  uint64        `json:"missing_calls" doc:"calls that either this rank or rank 0 made alone, likewise"`
	Differing     uint64        `json:"differing" doc:"outcomes of its own that were not rank 0's (mode observe)"`
	Attesting     uint64        `json:"attesting,omitempty" doc:"fences at which its device held something else than most ranks' did"`
	Unreachable   string        `json:"unreachable,omitempty" doc:"why its node could not be asked"`
}

// Arrivals answers GET /v1/arrivals: who waits for which call, and who is
// missing.
type Arrivals struct {
	Waiting     []Arrival     `json:"waiting"`
	Unattested  []Unattested  `json:"unattested,omitempty" doc:"attestations that ranks have left out in this round, the last ones"`
	Unreachable []Unreachable `json:"unreachable" doc:"nodes that could not be asked"`
}

// Unattested is a fence at which some ranks handed in what their devices hold,
// and some have not.
type Unattested struct {
	Model   string   `json:"model"`
	Index   uint64   `json:"index" doc:"of the fence's entry"`
	Missing []uint64 `json:"missing" doc:"ranks that have not"`
	Seconds float64  `json:"seconds" doc:"since the first one did"`
	Over    bool     `json:"over,omitempty" doc:"the others were compared without them"`
}

// Arrival is one rank that waits in a call or for a round.
type Arrival struct {
	Rank    uint64      `json:"rank"`
	What    string      `json:"what" enum:"round,decision,marks" doc:"round: for the other ranks' trainers; decision: for rank 0's call; marks: rank 0, for the other ranks' resume"`
	Key     *events.Key `json:"key,omitempty"`
	Site    string      `json:"site,omitempty"`
	Seconds float64     `json:"seconds" doc:"how long it has waited"`
	Missing []uint64    `json:"missing,omitempty" doc:"ranks it waits for"`
	Busy    []Busy      `json:"busy,omitempty" doc:"what those of them do that have said so"`
}

// Busy is what a rank's trainer said to be doing instead of calling.
type Busy struct {
	Rank    uint64  `json:"rank"`
	Reason  string  `json:"reason"`
	Seconds float64 `json:"seconds" doc:"left"`
}

// Unreachable is a node that did not answer.
type Unreachable struct {
	Node    events.NodeID `json:"node,omitempty"`
	Address string        `json:"address"`
	Reason  string        `json:"reason"`
}

// Events answers GET /v1/events without follow.
type Events struct {
	Entries []Entry `json:"entries"`
	Next    uint64  `json:"next" doc:"from of the next page; 0: the end was reached"`
	Head    uint64  `json:"head"`
}

// Entry is one log entry with its place. When following, each line is one.
type Entry struct {
	Index   uint64        `json:"index"`
	Chain   events.Digest `json:"chain"`
	Refused string        `json:"refused,omitempty" doc:"why every replica refused the entry"`
	events.Entry
}

// Divergences answers GET /v1/divergences.
type Divergences struct {
	State    []StateDivergence    `json:"state" doc:"replicas that have stopped since a state was not the one that an entry was decided on, theirs or the writer's"`
	Verdicts []VerdictCount       `json:"verdicts" doc:"own verdicts that were not rank 0's, by rank"`
	Devices  []VerdictCount       `json:"devices,omitempty" doc:"fences at which a rank's device held something else than most ranks' did, by rank"`
	Attested []Attested           `json:"attested,omitempty" doc:"the last 100 of those, as the log has them: who, what, and which tensors"`
	Fault    *events.RoundFaulted `json:"fault,omitempty" doc:"why the round is over"`
}

// Attested is a comparison of devices that found ranks to differ, with its place.
type Attested struct {
	Entry uint64 `json:"entry" doc:"that records it; index is that of the fence"`
	events.Attested
}

// StateDivergence is a digest that does not fit, as the replica tells it that
// found it.
type StateDivergence struct {
	Rank  uint64        `json:"rank" doc:"of the replica that tells this"`
	Node  events.NodeID `json:"node"`
	Index uint64        `json:"index" doc:"of the entry that does not fit its state; its last one, if it was found without another entry"`
	First uint64        `json:"first,omitempty" doc:"the first entry after which a state was wrong; 0: not known"`
	Which string        `json:"which" enum:"lifecycle,bookkeeping,index" doc:"the digest that differs; index: entries are missing"`
	Model string        `json:"model,omitempty"`
	Want  events.Digest `json:"want" doc:"the digest that the entry was decided on"`
	Got   events.Digest `json:"got" doc:"that of this replica's state"`

	Replay        events.Digest `json:"replay" doc:"what this replica's history gives"`
	Fault         string        `json:"fault" enum:",self,writer,undecided" doc:"whose state is wrong; empty: the history is still being replayed"`
	AtFault       events.NodeID `json:"at_fault,omitempty" doc:"node whose state is wrong"`
	AtFaultRank   *uint64       `json:"at_fault_rank,omitempty"`
	Reason        string        `json:"reason"`
	Writer        events.NodeID `json:"writer,omitempty" doc:"node that wrote the entry"`
	WriterRank    *uint64       `json:"writer_rank,omitempty"`
	Version       string        `json:"version,omitempty" doc:"esperd of this replica"`
	WriterVersion string        `json:"writer_version,omitempty" doc:"esperd of the writer, if it answered"`
	Since         time.Time     `json:"since"`
}

// VerdictCount counts one rank's disagreements, or differences, in the current
// round.
type VerdictCount struct {
	Rank  uint64 `json:"rank"`
	Count uint64 `json:"count"`
}

// Health answers GET /healthz, and GET /readyz of a node that is ready.
type Health struct {
	Status  string `json:"status" enum:"ok"`
	Version string `json:"version"`
}

// UnmarshalJSON keeps the embedded entry's own decoding from hiding Index.
func (e *Entry) UnmarshalJSON(b []byte) error {
	type place struct {
		Index   uint64        `json:"index"`
		Chain   events.Digest `json:"chain"`
		Refused string        `json:"refused"`
	}
	var p place
	if err := json.Unmarshal(b, &p); err != nil {
		return err
	}
	e.Index, e.Chain, e.Refused = p.Index, p.Chain, p.Refused
	return json.Unmarshal(b, &e.Entry)
}
