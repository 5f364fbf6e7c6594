package doortest

import (
	"time"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/replica"
)

// Hold makes the node apply nothing more, until Release.
func (n *Node) Hold() {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	n.held = true
}

// Behind makes the node one that has applied only the entries up to index, as
// after a restart, and nothing more until Release.
func (n *Node) Behind(index uint64) {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	n.held = true
	n.advance(index)
}

// Release makes the node apply what the log has.
func (n *Node) Release() {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	n.held = false
	n.advance(n.log.head().Index)
}

// Refuse makes Decide and Fault of the node fail; nil makes them work again.
func (n *Node) Refuse(err error) {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	n.refusing = err
}

// Lose makes the next decisions of the node enter the log without an answer, as
// when leadership moves in between.
func (n *Node) Lose(decisions int) {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	n.losing = decisions
}

// Set changes the node's status, as its doors see it.
func (n *Node) Set(change func(*replica.Status)) {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	change(&n.status)
	n.wake()
}

// diverge is called with the log's lock held.
func (n *Node) diverge(fault replica.Blame, index uint64) {
	rank := n.status.Rank
	d := &replica.Divergence{Index: index, First: n.applied, Which: "lifecycle", Model: n.corrupt.Models[0].Name, Live: n.corrupt.Models[0].Digest(),
		Entry: n.log.states[n.applied].Models[0].Digest(), Fault: fault, Since: time.Now(), Reason: "its bits differ"}
	d.Replay = d.Entry
	switch fault {
	case replica.BlameSelf:
		d.Node, d.Rank = n.status.Node, &rank
	case replica.BlameWriter:
		d.Node, d.Rank, d.Replay = n.log.nodes[0].status.Node, new(uint64), d.Live
	}
	n.status.Phase, n.status.Problem, n.status.Divergence = replica.PhaseDiverged, d.Text(), d
	n.wake()
}

// Corrupt freezes the node in a state that is not the log's: one slot's record
// differs. The next entry told it, and whose fault that is.
func (n *Node) Corrupt(fault replica.Blame) {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	n.held, n.corrupt = true, corrupted(n.log.states[n.applied])
	n.diverge(fault, n.applied+1)
}

// Rot lets the node go on as a member with a state that is not the log's.
func (n *Node) Rot() {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	n.held, n.corrupt = true, corrupted(n.log.states[n.applied])
	n.wake()
}

// corrupted returns the state with a seed that no other replica has.
func corrupted(s *fsm.State) *fsm.State {
	model := s.Models[0]
	args := fsm.Germinate{Blueprint: "rot", Blend: "linear", Tempo: 1, Algorithm: events.AlgorithmAdd}
	key := fsm.NextKey(s, model.Name, model.Config.Slots[0].Name, args)
	evs, err := fsm.Decide(s, fsm.Call{Key: key, Args: args})
	if err != nil {
		panic(err) // the test has no free slot
	}
	e := &events.Entry{Version: events.Version, Kind: events.KindCall, Node: s.Round.Authority(), Round: s.Round.Number, Predecessor: s.Index,
		Key: &key, Lifecycle: s.Lifecycle(model.Name), Bookkeeping: s.Bookkeeping(), Events: evs}
	next, _, err := fsm.Apply(s, e)
	if err != nil {
		panic(err)
	}
	rotten := *s
	rotten.Models = next.Models
	return &rotten
}
