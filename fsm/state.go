package fsm

import (
	"cmp"
	"slices"
	"strings"

	"github.com/esperd/esperd/events"
)

// State is everything that the log says, after the entry at Index. It is
// immutable; Apply makes the next one.
type State struct {
	Index uint64 // of the last entry; 0: none yet

	// Bookkeeping.
	Run       string
	Lineage   string
	Parent    *events.Parent
	Ancestors []events.Ancestor // logs that this one continues, the latest last
	Nodes     []Node            // by ID
	Round     Round             // Number 0: none yet
	Cursors   []Cursor          // by model
	Sources   []Source          // by node
	Requests  []Request         // pending, in log order
	Votes     []Vote            // on seeds of this round, by model, slot and seed

	// Lifecycle.
	Models []*Model // by name

	// What the bookkeeping digest adds up, kept so that an entry costs only
	// what it touches.
	nodesSum, cursorsSum, sourcesSum, requestsSum, votesSum setSum
	roundLeaf                                               events.Digest
	sealed                                                  seal // the bookkeeping digest
}

// Node is a node that takes part.
type Node struct {
	ID      events.NodeID `cbor:"1,keyasint"`
	Version uint64        `cbor:"2,keyasint"` // newest entry version it knows
	Host    string        `cbor:"3,keyasint,omitempty"`
}

// Round is the current run of the trainers.
type Round struct {
	Number      uint64               `cbor:"1,keyasint,omitempty"`
	Fingerprint string               `cbor:"2,keyasint,omitempty"`
	Members     []events.Member      `cbor:"3,keyasint,omitempty"` // in rank order
	Fault       *events.RoundFaulted `cbor:"4,keyasint,omitempty"` // nil: calls are welcome

	// Disagreements counts each rank's shadow verdicts in this round; nil: none.
	Disagreements []uint64 `cbor:"5,keyasint,omitempty"`

	// The same of the calls that were not rank 0's in a round that went on:
	// made in another order, made by one of the two alone, and with another
	// outcome.
	Misplaced []uint64 `cbor:"6,keyasint,omitempty"`
	Missing   []uint64 `cbor:"7,keyasint,omitempty"`
	Differing []uint64 `cbor:"8,keyasint,omitempty"`

	// Ended counts how often each rank's trainer has closed its session.
	Ended []uint64 `cbor:"9,keyasint,omitempty"`

	// Attesting counts the fences at which a rank's device had another content
	// than most ranks'.
	Attesting []uint64 `cbor:"10,keyasint,omitempty"`
}

// Tally is what a rank's reports of one round come to.
type Tally struct {
	Disagreements uint64 // own verdicts that were not rank 0's
	Misplaced     uint64 // calls in another order than rank 0's
	Missing       uint64 // calls that one of the two made alone
	Differing     uint64 // own outcomes that were not rank 0's
	Ended         uint64 // how often the trainer has closed its session
	Attesting     uint64 // fences at which its device had another content than most ranks'
}

// Tally returns a rank's counters.
func (r Round) Tally(rank uint64) Tally {
	of := func(counts []uint64) uint64 {
		if rank >= uint64(len(counts)) {
			return 0
		}
		return counts[rank]
	}
	return Tally{of(r.Disagreements), of(r.Misplaced), of(r.Missing), of(r.Differing), of(r.Ended), of(r.Attesting)}
}

// Mode returns the mode of the round's trainers, which is rank 0's; empty before
// the first round.
func (r Round) Mode() events.TrainerMode {
	if len(r.Members) == 0 {
		return ""
	}
	return cmp.Or(r.Members[0].Mode, events.ModeKeyed)
}

// Authority returns the node that holds rank 0, the only one that decides
// calls; empty before the first round.
func (r Round) Authority() events.NodeID {
	if len(r.Members) == 0 {
		return ""
	}
	return r.Members[0].Node
}

// Cursor is the high-water mark of rank 0's numbered calls of one model. It is
// not part of what a rewind restores.
type Cursor struct {
	Model string `cbor:"1,keyasint"`
	Round uint64 `cbor:"2,keyasint"`
	Calls uint64 `cbor:"3,keyasint"`           // numbered calls in the round: the next one is call number Calls
	Fence uint64 `cbor:"4,keyasint,omitempty"` // fences among them

	// Residency is how many ranks' votes a germinated seed needs in this round
	// before it may train; 0: none.
	Residency uint64 `cbor:"5,keyasint,omitempty"`

	leaf events.Digest
}

// Source is the high-water mark of one node's reports and requests.
type Source struct {
	Node     events.NodeID `cbor:"1,keyasint"`
	Sequence uint64        `cbor:"2,keyasint"`

	Requests     uint64 `cbor:"3,keyasint,omitempty"` // number of the last one
	RequestIndex uint64 `cbor:"4,keyasint,omitempty"` // and its entry, for one that is sent again
}

// Model is one model's lifecycle: what a mark restores.
type Model struct {
	Name       string
	Generation uint64
	Config     *Config
	Epoch      int64  // last stepped; -1: none
	FenceN     int64  // argument of the last fence; -1: none
	Tick       uint64 // ticks so far
	Slots      slotVec
	slotsSum   setSum
	due        []int32 // slots of a draft that slotsSum lacks
	sealed     seal
}

// seal is a digest, once what it is of will not change any more.
type seal struct {
	done   bool
	digest events.Digest
}

// Config is a model's configuration, shared by all states of a generation.
type Config struct {
	Slots  []events.SlotConfig
	index  map[string]int // looked up, never iterated
	digest events.Digest
}

// Slot returns the index of the named slot.
func (c *Config) Slot(name string) (int, bool) {
	i, ok := c.index[name]
	return i, ok
}

// Slot holds at most one seed.
type Slot struct {
	Germinations uint64 // seeds that this slot has had in this generation
	Seed         *Seed  // nil: DORMANT
	leaf         events.Digest
	due          bool // leaf is yet to be computed
}

// Stage returns the stage of the slot's seed, DORMANT without one.
func (s *Slot) Stage() events.Stage {
	if s.Seed == nil {
		return events.StageDormant
	}
	return s.Seed.Stage
}

// Active returns the seed whose module is present, nil in cooldown or without a
// seed.
func (s *Slot) Active() *Seed {
	if s.Seed == nil || s.Seed.Stage.Cooldown() {
		return nil
	}
	return s.Seed
}

// Seed is a seed's record, an events.SeedRecord. It outlives the module by the
// cooldown.
type Seed struct {
	Count     uint64  `cbor:"1,keyasint,omitempty"` // the slot's germination count when it germinated
	ID        string  `cbor:"2,keyasint,omitempty"`
	Blueprint string  `cbor:"3,keyasint,omitempty"`
	Blend     string  `cbor:"4,keyasint,omitempty"`
	Tempo     int64   `cbor:"5,keyasint,omitempty"`
	Target    float64 `cbor:"6,keyasint,omitempty"`

	Stage     events.Stage     `cbor:"7,keyasint,omitempty"`
	Previous  events.Stage     `cbor:"8,keyasint,omitempty"`
	Amplitude events.Amplitude `cbor:"9,keyasint,omitempty"`
	Metrics   events.Metrics   `cbor:"10,keyasint,omitempty"`

	BlendAccuracy *events.Num `cbor:"11,keyasint,omitempty"` // when blending began; nil: it has not
	Pending       *Reason     `cbor:"12,keyasint,omitempty"` // of the scheduled prune that is running
	Pruned        *Reason     `cbor:"13,keyasint,omitempty"` // of the prune that put it into cooldown

	Absent bool `cbor:"14,keyasint,omitempty"` // not every rank has made room for it yet: it does not train
}

// Reason is why a seed is or will be pruned, and who asked.
type Reason = events.PruneReason

// Frozen reports whether the seed's parameters do not learn: its alpha ramps
// down.
func (s *Seed) Frozen() bool { return s.Amplitude.Controller.Mode == events.ModeDown }

// Isolated reports whether the gradient of the seed's input is cut off from the
// host: from TRAINING on, until it is pruned.
func (s *Seed) Isolated() bool {
	return s.Stage >= events.StageTraining && s.Stage <= events.StageFossilized
}

// Gated reports whether a per-sample gate module exists.
func (s *Seed) Gated() bool {
	return s.Stage >= events.StageBlending && s.Stage <= events.StageFossilized &&
		s.Amplitude.Algorithm == events.AlgorithmGate
}

// Model returns the named model, nil if it was never configured.
func (s *State) Model(name string) *Model {
	i, ok := slices.BinarySearchFunc(s.Models, name, func(m *Model, n string) int { return strings.Compare(m.Name, n) })
	if !ok {
		return nil
	}
	return s.Models[i]
}

// Cursor returns the high-water mark of the named model in the current round;
// zero calls if it made none.
func (s *State) Cursor(model string) Cursor {
	i, ok := slices.BinarySearchFunc(s.Cursors, model, func(c Cursor, n string) int { return strings.Compare(c.Model, n) })
	if !ok || s.Cursors[i].Round != s.Round.Number {
		return Cursor{Model: model, Round: s.Round.Number}
	}
	return s.Cursors[i]
}

// Source returns the high-water marks of a node.
func (s *State) Source(node events.NodeID) Source {
	i, ok := slices.BinarySearchFunc(s.Sources, node, func(c Source, n events.NodeID) int { return strings.Compare(string(c.Node), string(n)) })
	if !ok {
		return Source{Node: node}
	}
	return s.Sources[i]
}

// Node returns a node's record.
func (s *State) Node(id events.NodeID) (Node, bool) {
	i, ok := slices.BinarySearchFunc(s.Nodes, id, func(c Node, n events.NodeID) int { return strings.Compare(string(c.ID), string(n)) })
	if !ok {
		return Node{}, false
	}
	return s.Nodes[i], true
}

// Slot returns the named slot, nil if the model has none of that name.
func (m *Model) Slot(name string) *Slot {
	i, ok := m.Config.Slot(name)
	if !ok {
		return nil
	}
	return m.Slots.At(i)
}
