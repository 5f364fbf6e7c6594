package replica

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// enqueueTimeout bounds only how long raft may take to accept a proposal.
const enqueueTimeout = 10 * time.Second

// errRetry says that the outcome of a proposal is unknown or that the state
// moved on under it: look again, and decide again if the key is not there.
var errRetry = errors.New("decide again")

// Decide puts rank 0's call into the log, once, and returns its index when the
// entry is applied here. A call that is in the log already is found, not
// decided again; whether it is the same call the caller compares by its key.
// During a handover of leadership it waits.
//
// Errors: not-authority, round-faulted, unavailable (ctx ended; the outcome is
// unknown and the call can be repeated), order-mismatch (a number that does not
// follow), config-mismatch (a node is too old for the call).
func (n *Node) Decide(ctx context.Context, c fsm.Call) (uint64, error) {
	if err := n.takeTurn(ctx); err != nil {
		return 0, err
	}
	defer n.endTurn()
	id := events.CallID{Round: c.Key.Round, Model: c.Key.Model, Call: c.Key.Call}
	for {
		if i, ok, err := n.Find(id); ok || err != nil {
			return i, err
		}
		if err := n.mayDecide(c.Key); err != nil {
			return 0, err
		}
		if err := n.lead(ctx); err != nil {
			return 0, err
		}
		s := n.State()
		if i, ok, err := n.Find(id); ok || err != nil {
			return i, err // became known with the barrier
		}
		if err := n.mayDecide(c.Key); err != nil {
			return 0, err
		}
		evs, err := fsm.Decide(s, c)
		if err != nil {
			return 0, err
		}
		key := c.Key
		i, err := n.propose(ctx, s, &events.Entry{Kind: events.KindCall, Key: &key, Site: c.Site, Events: evs})
		if !errors.Is(err, errRetry) {
			return i, err
		}
	}
}

// mayDecide says whether a call of this round is this node's to decide.
func (n *Node) mayDecide(k events.Key) error {
	phase, problem := n.machine.trouble()
	s := n.State()
	switch {
	case phase == PhaseDiverged:
		return errorf(events.CodeDiverged, "this node decides nothing: %v", problem)
	case phase == PhaseFailed:
		return errorf(events.CodeUnavailable, "this node has stopped: %v", problem)
	case k.Round != s.Round.Number:
		return errorf(events.CodeNotAuthority, "the call belongs to round %d, but the round is %d now: its trainers have been replaced", k.Round, s.Round.Number)
	case s.Round.Fault != nil:
		return errorf(events.CodeRoundFaulted, "round %d is faulted: connect again on all ranks to open the next one", k.Round)
	case s.Round.Authority() != n.id:
		return errorf(events.CodeNotAuthority, "rank 0 of round %d is on node %s, this is node %s", s.Round.Number, s.Round.Authority(), n.id)
	}
	return nil
}

// propose writes one entry that was decided on s.
func (n *Node) propose(ctx context.Context, s *fsm.State, e *events.Entry) (uint64, error) {
	b, err := seal(s, n.id, e)
	if err != nil {
		return 0, err
	}
	f := n.raft.Apply(b, enqueueTimeout)
	if err := f.Error(); err != nil {
		return 0, n.proposalFailed(ctx, err)
	}
	res := f.Response().(applied)
	if res.refused != "" {
		n.log.Warn("an entry came too late and was refused by every replica", "kind", e.Kind, "index", res.index, "reason", res.refused)
		return 0, errRetry
	}
	return res.index, nil
}

// seal completes an entry that a node decided on s, and encodes it. The entry is
// applied to a copy first, so that none which cannot be applied enters the log.
func seal(s *fsm.State, node events.NodeID, e *events.Entry) ([]byte, error) {
	e.Version = events.VersionOf(e)
	if known := entryVersion(s); e.Version > known && e.Kind != events.KindRecover { // all nodes of before are gone with it
		return nil, errorf(events.CodeConfigMismatch, "this %s needs log format %d, but %s knows only format %d: upgrade esperd on that node", e.Kind, e.Version, oldestNode(s), known)
	}
	e.Node, e.Round, e.Predecessor = node, s.Round.Number, s.Index
	e.Bookkeeping = s.Bookkeeping()
	if e.Key != nil {
		e.Lifecycle = s.Lifecycle(e.Key.Model)
	}
	e.Time = time.Now().UnixNano()
	b, err := events.Encode(e)
	if err != nil {
		return nil, fmt.Errorf("encoding a %s entry: %w", e.Kind, err)
	}
	copied, err := events.Decode(b)
	if err != nil {
		return nil, fmt.Errorf("a %s entry does not decode again: %w", e.Kind, err)
	}
	if _, out, err := fsm.Apply(s, copied); err != nil {
		return nil, fmt.Errorf("a %s entry cannot be applied: %w", e.Kind, err)
	} else if out.Refused != "" {
		return nil, fmt.Errorf("a %s entry would be refused: %s", e.Kind, out.Refused)
	}
	return b, nil
}

// entryVersion is the newest that every node of the log can read.
func entryVersion(s *fsm.State) uint64 {
	v := events.Version
	for _, n := range s.Nodes {
		v = min(v, max(n.Version, 1))
	}
	return v
}

// oldestNode names the node that knows the least.
func oldestNode(s *fsm.State) string {
	oldest := slices.MinFunc(s.Nodes, func(a, b fsm.Node) int { return cmp.Compare(a.Version, b.Version) })
	return fmt.Sprintf("node %s (%s)", oldest.ID, cmp.Or(oldest.Host, "host unknown"))
}

// proposalFailed waits a moment before the next try: leadership has to settle,
// or the disk to have space again.
func (n *Node) proposalFailed(ctx context.Context, err error) error {
	if errors.Is(err, raft.ErrRaftShutdown) {
		return errorf(events.CodeUnavailable, "this esperd is shutting down; start it again and repeat the call")
	}
	n.barrier.need()
	n.log.Warn("a proposal has an unknown outcome; looking again", "error", err)
	select {
	case <-ctx.Done():
		return errorf(events.CodeUnavailable, "the log did not take the entry (%v) and the caller's time is up: repeat the call under the same number", err)
	case <-n.ctx.Done():
		return errorf(events.CodeUnavailable, "this esperd is shutting down; start it again and repeat the call")
	case <-time.After(10 * time.Millisecond):
		return errRetry
	}
}

// lead returns when this node leads and has applied everything that earlier
// leaders committed.
func (n *Node) lead(ctx context.Context) error {
	for {
		if n.raft.State() == raft.Leader {
			if !n.barrier.needed() {
				return nil
			}
			if err := n.raft.Barrier(enqueueTimeout).Error(); err == nil {
				n.barrier.passed()
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return errorf(events.CodeUnavailable, "this node does not lead (its role is %s, the leader is %s) and the caller's time is up: repeat the call under the same number", lower(n.raft.State().String()), n.leaderName())
		case <-n.ctx.Done():
			return errorf(events.CodeUnavailable, "this esperd is shutting down; start it again and repeat the call")
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (n *Node) takeTurn(ctx context.Context) error {
	select {
	case n.deciding <- struct{}{}:
		return nil
	case <-ctx.Done():
		return errorf(events.CodeUnavailable, "another decision is in flight and the caller's time is up: repeat the call under the same number")
	case <-n.ctx.Done():
		return errorf(events.CodeUnavailable, "this esperd is shutting down; start it again and repeat the call")
	}
}

func (n *Node) endTurn() { <-n.deciding }

// barrier remembers whether a leader has yet to wait for what its predecessors
// committed.
type barrier struct {
	mu   sync.Mutex
	done bool
}

func (b *barrier) need() {
	b.mu.Lock()
	b.done = false
	b.mu.Unlock()
}

func (b *barrier) needed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.done
}

func (b *barrier) passed() {
	b.mu.Lock()
	b.done = true
	b.mu.Unlock()
}
