package door

import (
	"context"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/replica"
)

// Replica is what the doors need of this rank's node. *replica.Node is one.
type Replica interface {
	Status() replica.Status

	// State is the state after the last entry applied here; Changed is closed
	// when there is a newer one or the node's phase has changed (ask for it
	// before looking at State).
	State() *fsm.State
	Changed() <-chan struct{}

	// Entry reads one entry of the history, decoded, with its place.
	Entry(index uint64) (*events.Entry, events.Record, error)
	// Records calls fn with the records from..to of the history, each checked
	// against the chain. ChainAt returns the link after an entry, also the last
	// one before the history begins here.
	Records(from, to uint64, fn func(events.Record) error) error
	ChainAt(index uint64) (events.Digest, error)
	// Find returns the index of the entry of a numbered call, false while it is
	// not applied here.
	Find(id events.CallID) (uint64, bool, error)
	// StateAt rebuilds the state after the entry at index, which is applied
	// here already.
	StateAt(ctx context.Context, index uint64) (*fsm.State, error)

	// Register announces a trainer and waits until a round with exactly this
	// incarnation is open. Its number is returned.
	Register(ctx context.Context, r replica.Registration) (round uint64, err error)
	// Decide puts rank 0's call into the log, once: a call that is there
	// already is found, not decided again. It waits for leadership if need be
	// and returns when the entry is applied here.
	Decide(ctx context.Context, c fsm.Call) (index uint64, err error)
	// Fault ends the round for all ranks and returns when the fault is applied
	// here. A round that is faulted already is no error.
	Fault(ctx context.Context, f events.RoundFaulted) error
	// Ended tells the log, by one try, that this rank's trainer ended in order.
	Ended(ctx context.Context, e events.TrainerEnded) error
	// Divergence is what this replica found out about its state; nil: it is the
	// log's. Recheck compares it with what the history gives.
	Divergence() *replica.Divergence
	Recheck(ctx context.Context) error
	// Report queues what this rank has to tell for the log and returns at once.
	Report(ev events.Event)
	// Request puts a request into the log and returns when it is applied here;
	// one that is pending already is found.
	Request(ctx context.Context, r events.Requested) (index uint64, err error)

	// Ask puts a question to every other node, for as long as ctx lasts, AskNode
	// to one; Handle answers those of others.
	Ask(ctx context.Context, method string, question any) []replica.Answer
	AskNode(ctx context.Context, node events.NodeID, method string, question any) replica.Answer
	Handle(method string, answer func(ctx context.Context, question []byte) (any, error))
}
