package replica

import (
	"fmt"

	"github.com/esperd/esperd/events"
)

// Registration is one trainer that connected, as its node tells the leader.
type Registration struct {
	Rank        uint64 `cbor:"1,keyasint"`
	World       uint64 `cbor:"2,keyasint"`
	Incarnation string `cbor:"3,keyasint"`
	Fingerprint string `cbor:"4,keyasint"`
	Mode        string `cbor:"5,keyasint"`
}

// Identity is who this node is.
type Identity struct {
	Node    events.NodeID
	Rank    uint64
	World   uint64
	Run     string // empty until the log is founded or joined
	Lineage string // likewise
	Address string // of the peers' door
	Host    string
}

// Phase says how far a node is.
type Phase string

// The phases of a node.
const (
	PhaseJoining  Phase = "joining"  // not yet part of a log
	PhaseMember   Phase = "member"   // applies the log
	PhaseDiverged Phase = "diverged" // stores the log; its state is frozen
	PhaseFailed   Phase = "failed"   // met an entry that it cannot read; the process must stop
)

// Status is what a node knows about itself.
type Status struct {
	Identity
	Phase        Phase
	Problem      string // what keeps it from serving, for people
	Role         string // "leader", "follower", "candidate" or "none"
	Voter        bool
	Leader       events.NodeID // empty: none known
	Index        uint64        // of the last applied entry
	Chain        events.Digest
	CompleteFrom uint64
	HistoryLag   int    // records that are not yet on disk
	Durability   string // "durable" or "relaxed"
	LogStore     string // "boltdb" or "wal"; empty in simulated clusters
	RaftStats    map[string]string

	Rival      string      // another log of the run that is led, too, for people
	Divergence *Divergence // what is known of why the phase is diverged

	Evidence []string // earlier histories that were kept aside from this directory
}

// Answer is one node's answer to a question that was put to all.
type Answer struct {
	Node    events.NodeID
	Address string
	Body    []byte // CBOR
	Err     error
}

// Error is a failure with the code that a user scripts against.
type Error struct {
	Code   events.Code
	Reason string
}

func (e *Error) Error() string { return e.Reason }

func errorf(code events.Code, format string, args ...any) *Error {
	return &Error{Code: code, Reason: fmt.Sprintf(format, args...)}
}
