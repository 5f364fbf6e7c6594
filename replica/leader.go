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
// from somebody: found the log, admit newcomers, follow moved addresses, drop
// replaced nodes, keep the voters few, and hand leadership to rank 0's node.

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
	peers := n.roster.fresh(n.freshness())
	for _, step := range []func(context.Context, []peer) (bool, error){n.dropReplaced, n.admit, n.balanceVoters, n.handOver} {
		if did, err := step(ctx, peers); did || err != nil {
			return did, err
		}
	}
	return false, nil
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

// admit lets a node into raft and into the log, and follows its address.
func (n *Node) admit(ctx context.Context, peers []peer) (bool, error) {
	conf := n.members()
	for _, p := range peers {
		if known, ok := n.State().Node(p.Node); !ok || known.Version != p.Version || known.Host != p.Host {
			// First, so that it is sent nothing newer than it can read.
			ev := events.Event{NodeJoined: &events.NodeJoined{Node: p.Node, Version: p.Version, Host: p.Host}}
			return true, n.writeMembership(ctx, ev)
		}
		s, ok := server(conf, p.Node)
		id, address := raft.ServerID(p.Node), raft.ServerAddress(p.Address)
		switch {
		case !ok:
			n.log.Info("admitting a node", "node", p.Node, "peer_rank", p.Rank, "address", p.Address)
			return true, n.raft.AddNonvoter(id, address, 0, enqueueTimeout).Error()
		case s.Address != address && s.Suffrage == raft.Voter:
			return true, n.raft.AddVoter(id, address, 0, enqueueTimeout).Error()
		case s.Address != address:
			return true, n.raft.AddNonvoter(id, address, 0, enqueueTimeout).Error()
		}
	}
	return false, nil
}

func (n *Node) writeMembership(ctx context.Context, ev events.Event) error {
	return n.write(ctx, func(*fsm.State) (*events.Entry, error) {
		return &events.Entry{Kind: events.KindMembership, Events: []events.Event{ev}}, nil
	})
}

// dropReplaced removes silent nodes whose rank or address another, living node
// has taken: their disk was lost, and they never come back under this identity.
// One that does all the same is admitted again.
func (n *Node) dropReplaced(ctx context.Context, peers []peer) (bool, error) {
	members := n.State().Round.Members
	replaced := func(id events.NodeID, address string) bool {
		if slices.ContainsFunc(peers, func(p peer) bool { return p.Node == id }) {
			return false
		}
		rank := slices.IndexFunc(members, func(m events.Member) bool { return m.Node == id })
		return slices.ContainsFunc(peers, func(p peer) bool { return sameHost(p.Address, address) || rank >= 0 && p.Rank == uint64(rank) })
	}
	conf := n.members()
	for _, s := range conf.Servers {
		if replaced(events.NodeID(s.ID), string(s.Address)) {
			n.log.Warn("removing a node that another one has replaced", "node", s.ID, "address", s.Address)
			return true, n.raft.RemoveServer(s.ID, 0, enqueueTimeout).Error()
		}
	}
	for _, node := range n.State().Nodes {
		_, listed := server(conf, node.ID)
		lives := slices.ContainsFunc(peers, func(p peer) bool { return p.Node == node.ID })
		if !listed && !lives {
			return true, n.writeMembership(ctx, events.Event{NodeLeft: &events.NodeLeft{Node: node.ID, Reason: "replaced"}})
		}
	}
	return false, nil
}

// balanceVoters keeps the voters few: rank 0's node first, then who votes
// already, then by rank.
func (n *Node) balanceVoters(_ context.Context, peers []peer) (bool, error) {
	conf := n.members()
	votes := func(id events.NodeID) bool {
		s, ok := server(conf, id)
		return ok && s.Suffrage == raft.Voter
	}
	wanted := voters(int(n.cfg.World)) // not of the servers: a replaced one may still be among them
	order := slices.Clone(peers)
	slices.SortStableFunc(order, func(a, b peer) int {
		first := func(p peer) int {
			switch {
			case p.Rank == 0:
				return 0
			case votes(p.Node):
				return 1
			}
			return 2
		}
		return first(a) - first(b)
	})
	have := 0
	for _, s := range conf.Servers {
		if s.Suffrage == raft.Voter {
			have++
		}
	}
	index := n.State().Index
	for i, p := range order {
		caughtUp := p.Index+64 >= index
		if i < wanted && !votes(p.Node) && caughtUp && (have < wanted || p.Rank == 0) {
			n.log.Info("a node votes from now on", "node", p.Node, "peer_rank", p.Rank)
			return true, n.raft.AddVoter(raft.ServerID(p.Node), raft.ServerAddress(p.Address), 0, enqueueTimeout).Error()
		}
	}
	for i := len(order) - 1; i >= wanted && have > wanted; i-- {
		if p := order[i]; p.Node != n.id && votes(p.Node) {
			n.log.Info("a node votes no longer", "node", p.Node, "peer_rank", p.Rank)
			return true, n.raft.DemoteVoter(raft.ServerID(p.Node), 0, enqueueTimeout).Error()
		}
	}
	return false, nil
}

// handOver gives leadership to rank 0's node once it votes and has everything:
// it is told to stand for election now (TimeoutNow, Ongaro's thesis 3.10). Raft's
// own LeadershipTransferToServer is not used, since in v1.7.3 it can stay "in
// progress" for ever when the target falls silent, and the node then refuses
// every proposal (found by test/sim).
func (n *Node) handOver(ctx context.Context, peers []peer) (bool, error) {
	if len(peers) == 0 || peers[0].Rank != 0 {
		return false, nil
	}
	return n.handTo(ctx, peers[0])
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
	var a statusAnswer
	ask, cancel := context.WithTimeout(ctx, n.cfg.Timing.Election)
	defer cancel()
	if err := n.net.Call(ask, to.Address, "status", nil, &a); err != nil || a.Node != to.Node || a.RaftLast < n.raft.LastIndex() {
		return false, nil // it could not win an election yet: the next look tells
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
