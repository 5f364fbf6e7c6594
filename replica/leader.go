package replica

import (
	"context"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// What a leader does beside deciding, one step at a time, each time it hears
// from somebody: found the log, mend the membership (membership.go says how), and
// hand leadership to rank 0's node.

// term is the last term of leadership, and when it began.
type term struct {
	number uint64
	since  time.Time
}

func (n *Node) watchLeadership() {
	leads := n.raft.LeaderCh()
	tick := time.NewTicker(n.cfg.Timing.Hello)
	defer tick.Stop()
	for {
		select {
		case <-n.ctx.Done():
			return
		case is := <-leads:
			n.barrier.need()
			n.log.Info("leadership", "leads", is)
		case <-n.roster.wake:
		case <-tick.C:
		}
		for n.raft.State() == raft.Leader && n.ctx.Err() == nil {
			if now := n.raft.CurrentTerm(); now != n.term.number {
				n.term = term{now, time.Now()} // nobody said hello to this node while it did not lead
			}
			if again, err := n.leaderStep(); err != nil {
				n.log.Warn("a leader's step failed; trying again", "error", err)
				break
			} else if !again {
				break
			}
		}
	}
}

// leaderStep does the first thing that is due and reports whether it did one.
func (n *Node) leaderStep() (bool, error) {
	ctx, cancel := context.WithTimeout(n.ctx, 4*n.cfg.Timing.Election)
	defer cancel()
	if phase, _ := n.machine.trouble(); phase == PhaseDiverged || phase == PhaseFailed {
		return n.resign(ctx)
	}
	if n.State().Lineage == "" {
		return true, n.write(ctx, func(*fsm.State) (*events.Entry, error) { return n.founding() })
	}
	v := n.view()
	if c, due := v.next(); due && (c.kind != changeVotes || n.mayVote(ctx, c.peer)) {
		return true, n.change(ctx, c)
	} else if due {
		return false, nil
	}
	if to, ok := v.first(); ok {
		return n.handTo(ctx, to)
	}
	return false, nil
}

// view is what this leader knows of the membership now.
func (n *Node) view() *view {
	now, s := time.Now(), n.State()
	v := &view{self: n.id, servers: n.servers(), peers: n.fellows(), nodes: s.Nodes, round: s.Round, index: s.Index,
		replaced: n.freshness(), gone: n.cfg.Timing.Gone}
	v.silent = func(id events.NodeID) time.Duration {
		since := n.term.since
		if p, ok := n.roster.last(id); ok && p.seen.After(since) {
			since = p.seen
		}
		return now.Sub(since)
	}
	return v
}

// mayVote looks whether a node is there now and has nearly everything: a voter
// that ends with the start before would cost a quorum.
func (n *Node) mayVote(ctx context.Context, p peer) bool {
	s, alive := n.statusAt(ctx, p.Address)
	return p.Node == n.id || alive && s.Node == p.Node && s.RaftLast+caughtUpWithin >= n.raft.LastIndex()
}

// change makes one change of the membership.
func (n *Node) change(ctx context.Context, c change) error {
	id, address := raft.ServerID(c.node), raft.ServerAddress(c.address)
	log := n.log.With("node", c.node, "why", c.why)
	switch c.kind {
	case changeJoins:
		return n.writeMembership(ctx, events.Event{NodeJoined: &events.NodeJoined{Node: c.node, Version: c.peer.Version, Host: c.peer.Host}})
	case changeLeaves:
		return n.writeMembership(ctx, events.Event{NodeLeft: &events.NodeLeft{Node: c.node, Reason: c.why}})
	case changeAdmitted:
		log.Info("admitting a node", "peer_rank", c.peer.Rank, "address", c.address)
		return n.raft.AddNonvoter(id, address, 0, enqueueTimeout).Error()
	case changeVotes:
		log.Info("a node votes from now on", "peer_rank", c.peer.Rank)
		if s, ok := server(n.members(), c.node); ok {
			address = s.Address // as it is: raft must not change it
		}
		return n.voted(n.raft.AddVoter(id, address, 0, enqueueTimeout))
	case changeDemoted:
		log.Info("a node votes no longer")
		return n.raft.DemoteVoter(id, 0, enqueueTimeout).Error()
	default:
		log.Warn("removing a node", "address", c.address)
		return n.raft.RemoveServer(id, 0, enqueueTimeout).Error()
	}
}

// voted waits until a node votes. Raft v1.7.3 sends the entry before it counts the
// node among the voters, and leaves out an answer that comes in between; where that
// one is needed for the majority, nothing would be decided before the next entry.
// So there is one.
func (n *Node) voted(f raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	for {
		select {
		case err := <-done:
			return err
		case <-time.After(n.cfg.Timing.Hello):
			n.raft.Barrier(enqueueTimeout)
		}
	}
}

// write proposes an entry that only the leader makes; entry nil: nothing to do.
func (n *Node) write(ctx context.Context, make func(*fsm.State) (*events.Entry, error)) error {
	if err := n.takeTurn(ctx); err != nil {
		return err
	}
	defer n.endTurn()
	for {
		if err := n.lead(ctx); err != nil {
			return err
		}
		if phase, problem := n.machine.trouble(); phase == PhaseDiverged || phase == PhaseFailed {
			return errorf(events.CodeDiverged, "this node writes no entries: %v", problem)
		}
		s := n.State()
		e, err := make(s)
		if err != nil || e == nil {
			return err
		}
		if _, err = n.propose(ctx, s, e); err != errRetry {
			return err
		}
	}
}

// members is raft's newest membership, committed or not.
func (n *Node) members() raft.Configuration { return n.raft.GetConfiguration().Configuration() }

func server(c raft.Configuration, id events.NodeID) (raft.Server, bool) {
	i := slices.IndexFunc(c.Servers, func(s raft.Server) bool { return s.ID == raft.ServerID(id) })
	if i < 0 {
		return raft.Server{}, false
	}
	return c.Servers[i], true
}

func (n *Node) writeMembership(ctx context.Context, ev events.Event) error {
	return n.write(ctx, func(*fsm.State) (*events.Entry, error) {
		return &events.Entry{Kind: events.KindMembership, Events: []events.Event{ev}}, nil
	})
}

// resign hands leadership to any voter: this node must not write.
func (n *Node) resign(ctx context.Context) (bool, error) {
	for _, p := range n.roster.fresh(n.freshness()) {
		if n.raft.State() != raft.Leader {
			break
		}
		if _, err := n.handTo(ctx, p); err != nil {
			return false, err
		}
	}
	return false, nil
}

// handTo gives leadership to a node once it votes and has everything: it is told
// to stand for election now (TimeoutNow, Ongaro's thesis 3.10). Raft's own
// LeadershipTransferToServer is not used, since in v1.7.3 it can stay "in
// progress" for ever when the target falls silent, and the node then refuses
// every proposal (found by test/sim).
func (n *Node) handTo(ctx context.Context, to peer) (bool, error) {
	if to.Node == n.id {
		return false, nil
	}
	if s, ok := server(n.members(), to.Node); !ok || s.Suffrage != raft.Voter {
		return false, nil
	}
	if err := n.takeTurn(ctx); err != nil {
		return false, err
	}
	defer n.endTurn()
	if err := n.lead(ctx); err != nil {
		return false, err
	}
	if a, alive := n.statusAt(ctx, to.Address); !alive || a.Node != to.Node || a.Diverged || a.RaftLast < n.raft.LastIndex() {
		return false, nil // it could not win an election yet, or may not write: the next look tells
	}
	n.log.Info("handing leadership over", "node", to.Node, "peer_rank", to.Rank)
	req := &raft.TimeoutNowRequest{RPCHeader: n.nudge.header}
	err := n.net.Transport().TimeoutNow(raft.ServerID(to.Node), raft.ServerAddress(to.Address), req, &raft.TimeoutNowResponse{})
	for n.raft.State() == raft.Leader && ctx.Err() == nil && n.pause(ctx, nil, 5*time.Millisecond) == nil {
	}
	return false, err
}

// leaderName names the leader for people.
func (n *Node) leaderName() string {
	address, id := n.raft.LeaderWithID()
	if id == "" {
		return "unknown"
	}
	return string(id) + " at " + hostOf(string(address))
}
