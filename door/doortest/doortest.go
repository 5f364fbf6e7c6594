// Package doortest is a replica without a network, a disk or raft, for tests of
// the doors and of their clients: one log in memory, decided and applied by
// package fsm, which any number of nodes in one process share. faults.go has what
// tests do to a node.
package doortest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/replica"
)

// Log is one log and the nodes that share it, one a rank.
type Log struct {
	mu      sync.Mutex
	entries []*events.Entry // entry i is at index i+1
	records []events.Record
	states  []*fsm.State // after entry i, from 0
	calls   map[events.CallID]uint64
	arrived map[uint64]replica.Registration
	nodes   []*Node

	recording bool // reports enter the log
}

// Node is one rank's view of the log. It implements door.Replica.
type Node struct {
	log      *Log
	status   replica.Status
	applied  uint64
	held     bool
	corrupt  *fsm.State // what State answers, if set
	changed  chan struct{}
	reports  []events.Event
	refusing error // what Decide and Fault answer; nil: they work
	losing   int   // how many decisions are made and not answered
	handlers map[string]func(context.Context, []byte) (any, error)
}

// New founds a log with a node for each rank of the world.
func New(run string, world int) *Log {
	l := &Log{calls: map[events.CallID]uint64{}, arrived: map[uint64]replica.Registration{}, states: []*fsm.State{fsm.New()}}
	found := []events.Event{{Founded: &events.Founded{Run: run, Lineage: "00000000000000000000000000000001"}}}
	for rank := range uint64(world) {
		n := &Node{log: l, changed: make(chan struct{}), handlers: map[string]func(context.Context, []byte) (any, error){}}
		n.status = replica.Status{Identity: replica.Identity{Node: events.NodeID(fmt.Sprintf("%032x", rank+1)), Rank: rank, World: uint64(world),
			Run: run, Address: fmt.Sprintf("rank%d:7400", rank), Host: fmt.Sprintf("host%d", rank)},
			Phase: replica.PhaseMember, Role: "follower", Leader: events.NodeID(fmt.Sprintf("%032x", 1)), CompleteFrom: 1, Durability: "durable", LogStore: "wal", RaftStats: map[string]string{"term": "2", "last_log_index": "9"}}
		l.nodes = append(l.nodes, n)
		found = append(found, events.Event{NodeJoined: &events.NodeJoined{Node: n.status.Node, Version: events.Version, Host: n.status.Host}})
	}
	l.nodes[0].status.Role, l.nodes[0].status.Voter = "leader", true
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := l.append(&events.Entry{Kind: events.KindFound, Events: found}); err != nil {
		panic(err) // a constant of this file is wrong
	}
	return l
}

// Node returns the node of a rank.
func (l *Log) Node(rank int) *Node { return l.nodes[rank] }

func (l *Log) head() *fsm.State { return l.states[len(l.states)-1] }

// append completes, encodes, decodes and applies an entry, as replica does.
func (l *Log) append(e *events.Entry) (uint64, error) {
	s := l.head()
	e.Version, e.Node, e.Round, e.Predecessor = events.Version, l.nodes[0].status.Node, s.Round.Number, s.Index
	e.Bookkeeping, e.Time = s.Bookkeeping(), time.Now().UnixNano()
	if e.Key != nil {
		e.Lifecycle = s.Lifecycle(e.Key.Model)
	}
	b, err := events.Encode(e)
	if err != nil {
		return 0, err
	}
	if e, err = events.Decode(b); err != nil {
		return 0, err
	}
	next, out, err := fsm.Apply(s, e)
	if err != nil {
		return 0, err
	}
	if out.Refused != "" {
		return 0, fmt.Errorf("the entry is refused: %s", out.Refused)
	}
	var prev events.Digest
	if len(l.records) > 0 {
		prev = l.records[len(l.records)-1].Chain
	}
	l.entries = append(l.entries, e)
	rec := events.Record{Index: next.Index, Chain: events.Chain(prev, next.Index, b), Bookkeeping: next.Bookkeeping(), Entry: bytes.Clone(b)}
	if e.Key != nil {
		rec.Lifecycle = next.Lifecycle(e.Key.Model)
	}
	l.records = append(l.records, rec)
	l.states = append(l.states, next)
	if e.Key != nil {
		l.calls[events.CallID{Round: e.Key.Round, Model: e.Key.Model, Call: e.Key.Call}] = next.Index
	}
	for _, n := range l.nodes {
		if !n.held {
			n.advance(next.Index)
		}
	}
	return next.Index, nil
}

// advance is called with the log's lock held.
func (n *Node) advance(index uint64) {
	n.applied = index
	n.wake()
}

func (n *Node) wake() {
	close(n.changed)
	n.changed = make(chan struct{})
}

// Reports returns what was reported here.
func (n *Node) Reports() []events.Event {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	return slices.Clone(n.reports)
}

// Verdicts returns the shadow verdicts that were reported here.
func (n *Node) Verdicts() []events.ShadowVerdict {
	var out []events.ShadowVerdict
	for _, ev := range n.Reports() {
		if ev.ShadowVerdict != nil {
			out = append(out, *ev.ShadowVerdict)
		}
	}
	return out
}

// Status implements door.Replica.
func (n *Node) Status() replica.Status {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	st, s := n.status, n.log.states[n.applied]
	st.Index, st.Lineage = n.applied, s.Lineage
	if n.applied > 0 {
		st.Chain = n.log.records[n.applied-1].Chain
	}
	return st
}

// State implements door.Replica.
func (n *Node) State() *fsm.State {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	if n.corrupt != nil {
		return n.corrupt
	}
	return n.log.states[n.applied]
}

// Changed implements door.Replica.
func (n *Node) Changed() <-chan struct{} {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	return n.changed
}

// Entry implements door.Replica.
func (n *Node) Entry(index uint64) (*events.Entry, events.Record, error) {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	if index == 0 || index > uint64(len(n.log.entries)) {
		return nil, events.Record{}, fmt.Errorf("entry %d: %w", index, events.ErrNotFound)
	}
	return n.log.entries[index-1], n.log.records[index-1], nil
}

// Records implements door.Replica.
func (n *Node) Records(from, to uint64, fn func(events.Record) error) error {
	for i := from; i <= min(to, n.State().Index); i++ {
		_, r, err := n.Entry(i)
		if err == nil {
			err = fn(r)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ChainAt implements door.Replica.
func (n *Node) ChainAt(index uint64) (events.Digest, error) {
	if index == 0 {
		return events.Digest{}, nil
	}
	_, r, err := n.Entry(index)
	return r.Chain, err
}

// Find implements door.Replica.
func (n *Node) Find(id events.CallID) (uint64, bool, error) {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	index, ok := n.log.calls[id]
	if !ok || index > n.applied {
		return 0, false, nil
	}
	return index, true, nil
}

// StateAt implements door.Replica.
func (n *Node) StateAt(_ context.Context, index uint64) (*fsm.State, error) {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	if index > n.applied {
		return nil, &replica.Error{Code: events.CodeUnavailable, Reason: fmt.Sprintf("entry %d is not applied here", index)}
	}
	return n.log.states[index], nil
}

// Register implements door.Replica: the round opens when all ranks are there.
func (n *Node) Register(ctx context.Context, r replica.Registration) (uint64, error) {
	for {
		n.log.mu.Lock()
		if round := n.log.states[n.applied].Round; round.Number > 0 && round.Members[r.Rank].Incarnation == r.Incarnation {
			n.log.mu.Unlock()
			return round.Number, nil
		}
		n.log.arrived[r.Rank] = r
		if len(n.log.arrived) == len(n.log.nodes) {
			err := n.log.openRound(r.Fingerprint)
			n.log.mu.Unlock()
			if err != nil {
				return 0, err
			}
			continue
		}
		changed := n.changed
		n.log.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			n.log.mu.Lock()
			if n.log.arrived[r.Rank].Incarnation == r.Incarnation { // not a newer trainer's
				delete(n.log.arrived, r.Rank)
			}
			n.log.mu.Unlock()
			return 0, ctx.Err()
		}
	}
}

func (l *Log) openRound(fingerprint string) error {
	ev := &events.RoundOpened{Round: l.head().Round.Number + 1, Fingerprint: fingerprint}
	for rank, n := range l.nodes {
		r := l.arrived[uint64(rank)]
		ev.Members = append(ev.Members, events.Member{Rank: r.Rank, Node: n.status.Node, Incarnation: r.Incarnation, Mode: r.Mode})
	}
	l.arrived = map[uint64]replica.Registration{}
	_, err := l.append(&events.Entry{Kind: events.KindRound, Events: []events.Event{{RoundOpened: ev}}})
	return err
}

// Decide implements door.Replica. Like the real one, it decides on what is
// applied here: one that is held waits.
func (n *Node) Decide(ctx context.Context, c fsm.Call) (uint64, error) {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	for n.held {
		changed := n.changed
		n.log.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		n.log.mu.Lock()
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
	}
	if n.refusing != nil {
		return 0, n.refusing
	}
	if index, ok := n.log.calls[events.CallID{Round: c.Key.Round, Model: c.Key.Model, Call: c.Key.Call}]; ok {
		return index, nil
	}
	evs, err := fsm.Decide(n.log.head(), c)
	if err != nil {
		return 0, err
	}
	key := c.Key
	index, err := n.log.append(&events.Entry{Kind: events.KindCall, Key: &key, Site: c.Site, Events: evs})
	if err == nil && n.losing > 0 {
		n.losing--
		return 0, &replica.Error{Code: events.CodeUnavailable, Reason: "the outcome is unknown: repeat the call under the same number"}
	}
	return index, err
}

// Fault implements door.Replica.
func (n *Node) Fault(_ context.Context, f events.RoundFaulted) error {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	if n.refusing != nil {
		return n.refusing
	}
	if n.log.head().Round.Fault != nil {
		return nil
	}
	_, err := n.log.append(&events.Entry{Kind: events.KindFault, Events: []events.Event{{RoundFaulted: &f}}})
	if errors.Is(err, events.ErrMalformed) {
		return &replica.Error{Code: events.CodeInvalidInput, Reason: err.Error()}
	}
	return err
}

// Divergence implements door.Replica.
func (n *Node) Divergence() *replica.Divergence {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	return n.status.Divergence
}

// Recheck implements door.Replica: a node that holds another state than the log's
// finds that out.
func (n *Node) Recheck(context.Context) error {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	if n.corrupt != nil && n.status.Divergence == nil {
		n.diverge(replica.BlameSelf, n.applied)
	}
	return nil
}

// Report implements door.Replica.
func (n *Node) Report(ev events.Event) {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	n.reports = append(n.reports, ev)
	if n.log.recording {
		if _, err := n.log.append(&events.Entry{Kind: events.KindReport, Events: []events.Event{ev}}); err != nil {
			panic(err) // the door has reported what no log can hold
		}
	}
}

// Record makes what is reported from now on enter the log at once.
func (l *Log) Record() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.recording = true
}

// Ended implements door.Replica.
func (n *Node) Ended(_ context.Context, e events.TrainerEnded) error {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	if n.refusing != nil {
		return n.refusing
	}
	_, err := n.log.append(&events.Entry{Kind: events.KindReport, Events: []events.Event{{TrainerEnded: &e}}})
	return err
}

// Request implements door.Replica.
func (n *Node) Request(_ context.Context, r events.Requested) (uint64, error) {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	if n.refusing != nil {
		return 0, n.refusing
	}
	r.Node = n.status.Node
	asked, pending, refused := fsm.DecideRequest(n.log.head(), r)
	switch {
	case refused != nil:
		return 0, &replica.Error{Code: refused.Code, Reason: refused.Reason}
	case pending != nil:
		return pending.Index, nil
	}
	return n.log.append(&events.Entry{Kind: events.KindRequest, Events: []events.Event{{Requested: asked}}})
}

// WriteReports puts what this node reported into the log, as a leader would.
func (n *Node) WriteReports() error {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	e := &events.Entry{Kind: events.KindReport, Events: slices.Clone(n.reports)}
	_, err := n.log.append(e)
	return err
}

// Handle implements door.Replica.
func (n *Node) Handle(method string, answer func(context.Context, []byte) (any, error)) {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	n.handlers[method] = answer
}

// Ask implements door.Replica.
func (n *Node) Ask(ctx context.Context, method string, question any) []replica.Answer {
	var out []replica.Answer
	for _, other := range n.log.nodes {
		if other != n {
			out = append(out, other.asked(ctx, method, question))
		}
	}
	return out
}

// AskNode implements door.Replica.
func (n *Node) AskNode(ctx context.Context, id events.NodeID, method string, question any) replica.Answer {
	for _, other := range n.log.nodes {
		if other.status.Node == id {
			return other.asked(ctx, method, question)
		}
	}
	return replica.Answer{Node: id, Err: fmt.Errorf("there is no node %s", id)}
}

func (n *Node) asked(ctx context.Context, method string, question any) replica.Answer {
	n.log.mu.Lock()
	handler := n.handlers[method]
	n.log.mu.Unlock()
	a := replica.Answer{Node: n.status.Node, Address: n.status.Address}
	if handler == nil {
		a.Err = fmt.Errorf("nobody answers at %s", a.Address)
	} else {
		a.Body, a.Err = ask(ctx, handler, question)
	}
	return a
}

func ask(ctx context.Context, handler func(context.Context, []byte) (any, error), question any) ([]byte, error) {
	q, err := events.Marshal(question)
	if err != nil {
		return nil, err
	}
	answer, err := handler(ctx, q)
	if err != nil {
		return nil, err
	}
	return events.Marshal(answer)
}
