package replica

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

const (
	reportDelay   = 100 * time.Millisecond // reports wait for company, decisions go first
	reportsAtOnce = 64                     // a verdict is at most 140 KB, an entry at most 16 MiB
)

// reports are what one node tells the leader, numbered from its boot on, so
// that none is recorded twice.
type reports struct {
	Node  events.NodeID  `cbor:"1,keyasint"`
	First uint64         `cbor:"2,keyasint"` // sequence number of Items[0]
	Items []events.Event `cbor:"3,keyasint"`
}

// outbox keeps reports until the leader has them in the log.
type outbox struct {
	mu    sync.Mutex
	first uint64 // sequence number of items[0]
	items []events.Event
	wake  chan struct{}
	empty chan struct{} // closed while nothing waits
}

// init starts the numbering above everything that earlier boots used.
func (o *outbox) init(boots uint64) {
	o.first = boots<<32 + 1
	o.wake = make(chan struct{}, 1)
	o.empty = make(chan struct{})
	close(o.empty)
}

func (o *outbox) add(v events.Event) {
	o.mu.Lock()
	if len(o.items) == 0 {
		o.empty = make(chan struct{})
	}
	o.items = append(o.items, v)
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

func (o *outbox) batch(node events.NodeID) reports {
	o.mu.Lock()
	defer o.mu.Unlock()
	k := min(len(o.items), reportsAtOnce)
	return reports{Node: node, First: o.first, Items: o.items[:k:k]}
}

func (o *outbox) sent(k int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.first += uint64(k)
	o.items = o.items[k:]
	if len(o.items) == 0 {
		close(o.empty)
	}
}

func (o *outbox) waiting() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return uint64(len(o.items))
}

func (o *outbox) drained() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.empty
}

// Report queues what this rank has to tell (fsm.Reports) for the log and returns
// at once. It arrives at least once and is recorded once. What no entry can hold is
// left out: no leader would ever take it, nor what comes after it.
func (n *Node) Report(ev events.Event) {
	e := &events.Entry{Kind: events.KindReport, Events: []events.Event{ev}}
	e.Version = events.VersionOf(e)
	if _, err := events.Encode(e); err != nil {
		n.log.Error("a bug in esperd: a report that no entry can hold is left out", "error", err)
		return
	}
	n.outbox.add(ev)
}

func (n *Node) sendReports() {
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-n.outbox.wake:
		}
		if n.wait(reportDelay) != nil {
			return
		}
		for batch := n.outbox.batch(n.id); len(batch.Items) > 0; batch = n.outbox.batch(n.id) {
			err := n.callLeader(n.ctx, "report", batch, nil)
			if err == nil {
				n.outbox.sent(len(batch.Items))
				continue
			}
			n.log.Debug("reports wait", "count", len(batch.Items), "error", err)
			if n.wait(reportDelay) != nil {
				return
			}
		}
	}
}

func (n *Node) wait(d time.Duration) error {
	return n.pause(n.ctx, nil, d)
}

// onReport is the leader's side: what is new goes into one entry.
func (n *Node) onReport(ctx context.Context, req []byte) (any, error) {
	var r reports
	if err := unmarshalPeer(req, &r); err != nil {
		return nil, errorf(events.CodeInvalidInput, "reports that do not decode: %v", err)
	}
	if n.raft.State() != raft.Leader {
		return nil, errNotLeader
	}
	return nil, n.write(ctx, func(s *fsm.State) (*events.Entry, error) {
		e, dropped := r.entry(s)
		if dropped > 0 {
			n.log.Warn("reports that an older node could not read are dropped: upgrade esperd on it", "count", dropped, "older", oldestNode(s))
		}
		return e, nil
	})
}

// entry holds those of the reports that are new and that every node can read; nil
// if there are none. Were the others kept until there is no older node, they
// would hold up all that come after them.
func (r *reports) entry(s *fsm.State) (e *events.Entry, dropped int) {
	e = &events.Entry{Kind: events.KindReport}
	known, readable := s.Source(r.Node).Sequence, entryVersion(s)
	for i, ev := range r.Items {
		v := fsm.Reports(&ev)
		switch {
		case v == nil || r.First+uint64(i) <= known || v.Round == s.Round.Number && v.Rank >= uint64(len(s.Round.Members)):
		case events.VersionOf(&events.Entry{Events: []events.Event{ev}}) > readable:
			dropped++
		default:
			e.Events = append(e.Events, ev)
		}
	}
	if len(e.Events) == 0 {
		return nil, dropped
	}
	e.Events = append(e.Events, events.Event{Reported: &events.Reported{Node: r.Node, Sequence: r.First + uint64(len(r.Items)) - 1}})
	return e, dropped
}

// Fault ends the round for all ranks and returns when that is applied here. A
// fault that no entry can hold is invalid-input.
func (n *Node) Fault(ctx context.Context, f events.RoundFaulted) error {
	for {
		changed := n.Changed()
		if r := n.State().Round; r.Number != f.Round || r.Fault != nil {
			return nil
		}
		err := n.callLeader(ctx, "fault", f, nil)
		e, ok := errors.AsType[*Error](err)
		if ok && e.Code == events.CodeInvalidInput {
			return err
		}
		if phase, _ := n.machine.trouble(); ok && e.Code == events.CodeDiverged && phase == PhaseDiverged {
			return err // nobody leads who may write: every rank's own node tells its trainer
		}
		if phase, _ := n.machine.trouble(); err == nil && phase == PhaseDiverged {
			return nil // it is in the log, which is not applied here any more
		}
		if err != nil {
			n.log.Warn("the round's fault is not in the log yet; trying again", "error", err)
		}
		if n.pause(ctx, changed, registerEvery) != nil {
			return errorf(events.CodeUnavailable, "the fault of round %d could not be written in time (leader: %s)", f.Round, n.leaderName())
		}
	}
}

func (n *Node) onFault(ctx context.Context, req []byte) (any, error) {
	var f events.RoundFaulted
	if err := unmarshalPeer(req, &f); err != nil {
		return nil, errorf(events.CodeInvalidInput, "a fault that does not decode: %v", err)
	}
	if n.raft.State() != raft.Leader {
		return nil, errNotLeader
	}
	err := n.write(ctx, func(s *fsm.State) (*events.Entry, error) {
		if s.Round.Number != f.Round || s.Round.Fault != nil {
			return nil, nil
		}
		return faultEntry(s, f), nil
	})
	if errors.Is(err, events.ErrMalformed) {
		return nil, errorf(events.CodeInvalidInput, "%v", err)
	}
	return nil, err
}

// Ended tells the log that a trainer ended in order. It tries once: who waits for
// that trainer would be told sooner, and else waits on.
func (n *Node) Ended(ctx context.Context, e events.TrainerEnded) error {
	return n.callLeader(ctx, "ended", e, nil)
}

func (n *Node) onEnded(ctx context.Context, req []byte) (any, error) {
	var e events.TrainerEnded
	if err := unmarshalPeer(req, &e); err != nil {
		return nil, errorf(events.CodeInvalidInput, "an end that does not decode: %v", err)
	}
	if n.raft.State() != raft.Leader {
		return nil, errNotLeader
	}
	return nil, n.write(ctx, func(s *fsm.State) (*events.Entry, error) {
		if s.Round.Number != e.Round || e.Rank >= uint64(len(s.Round.Members)) || s.Round.Tally(e.Rank).Ended > 0 {
			return nil, nil
		}
		return &events.Entry{Kind: events.KindReport, Events: []events.Event{{TrainerEnded: &e}}}, nil
	})
}

// faultEntry leaves out what an older node could not read: that the round is over
// matters more than why.
func faultEntry(s *fsm.State, f events.RoundFaulted) *events.Entry {
	e := &events.Entry{Kind: events.KindFault, Events: []events.Event{{RoundFaulted: &f}}}
	if events.VersionOf(e) > entryVersion(s) {
		f.Reason = ""
		for _, k := range []*events.Key{&f.Got, &f.Want} {
			if k.Op == events.OpReset || k.Op == events.OpResume {
				k.Op = events.OpFence // which they are, too
			}
		}
	}
	return e
}

var errNotLeader = &Error{Code: events.CodeUnavailable, Reason: "this node does not lead"}

// leaderCallTimeout bounds one request to the leader: its host may have
// vanished, and there may be another one by now.
const leaderCallTimeout = 2 * time.Second

// callLeader puts a request to whoever leads, this node included. The error's
// code survives the way.
func (n *Node) callLeader(ctx context.Context, method string, req, resp any) error {
	ctx, cancel := context.WithTimeout(ctx, leaderCallTimeout)
	defer cancel()
	if n.raft.State() == raft.Leader {
		b, err := events.Marshal(req)
		if err != nil {
			return err
		}
		v, err := n.peerHandlers[method](ctx, b)
		if err != nil || resp == nil {
			return err
		}
		if b, err = events.Marshal(v); err != nil {
			return err
		}
		return unmarshalPeer(b, resp)
	}
	address, _ := n.raft.LeaderWithID()
	if address == "" {
		return errorf(events.CodeUnavailable, "no leader is known")
	}
	err := n.net.Call(ctx, string(address), method, req, resp)
	var refused *PeerError
	if errors.As(err, &refused) {
		return &Error{Code: refused.Code, Reason: refused.Text}
	}
	return err
}
