package replica

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// view is what a leader decides the membership on.
type view struct {
	self    events.NodeID
	servers []raft.Server                     // raft's newest configuration, with the addresses of now
	peers   []peer                            // heard of lately, by rank; this node is among them
	silent  func(events.NodeID) time.Duration // since its last hello, or since this node leads
	nodes   []fsm.Node                        // of the log
	round   fsm.Round                         // the open one
	index   uint64                            // of the last entry

	replaced, gone time.Duration // how long a node is silent before it counts as that
}

// caughtUpWithin is how many entries a node may lack to become a voter.
const caughtUpWithin = 64

// change is one change of the membership.
type change struct {
	kind    changeKind
	node    events.NodeID
	address string
	peer    peer // what the node said, where it lives
	why     string
}

type changeKind int

const (
	changeRemoved  changeKind = iota // from raft
	changeLeaves                     // the log
	changeJoins                      // the log, or has another version or host now
	changeAdmitted                   // to raft, without a vote
	changeVotes
	changeDemoted
)

// next returns the first change that is due. Raft makes one at a time, and none
// is proposed after which the voters that live on would not be a majority: that is
// what lets a world shrink, lose nodes for good and change its voters without
// ever waiting for a node that is not there.
func (v *view) next() (change, bool) {
	for _, look := range []func() (change, bool){v.removal, v.leave, v.admission, v.vote, v.demotion} {
		if c, due := look(); due {
			return c, true
		}
	}
	return change{}, false
}

func (v *view) peer(id events.NodeID) (peer, bool) {
	i := slices.IndexFunc(v.peers, func(p peer) bool { return p.Node == id })
	if i < 0 {
		return peer{}, false
	}
	return v.peers[i], true
}

func (v *view) lives(id events.NodeID) bool {
	_, heard := v.peer(id)
	return heard || id == v.self
}

func (v *view) server(id events.NodeID) (raft.Server, bool) {
	return server(raft.Configuration{Servers: v.servers}, id)
}

func (v *view) votes(id events.NodeID) bool {
	s, ok := v.server(id)
	return ok && s.Suffrage == raft.Voter
}

func (v *view) inRound(id events.NodeID) bool {
	return slices.ContainsFunc(v.round.Members, func(m events.Member) bool { return m.Node == id })
}

func (v *view) voters() int {
	n := 0
	for _, s := range v.servers {
		if s.Suffrage == raft.Voter {
			n++
		}
	}
	return n
}

// holds reports whether the voters on which this start of the job can rely are a
// majority when one more node votes, or one less; empty: no node. A process of
// another start, this one's perhaps, lives and is about to end.
func (v *view) holds(more, less events.NodeID) bool {
	voting, alive, world := 0, 0, v.world()
	for _, s := range v.servers {
		id := events.NodeID(s.ID)
		if id == less || s.Suffrage != raft.Voter && id != more {
			continue
		}
		voting++
		if p, heard := v.peer(id); heard && sameStart(p.hello, world) {
			alive++
		}
	}
	return 2*alive > voting
}

// removal drops a node that is silent and not needed: one whose rank or address a
// new node has taken, since its disk was lost, or one that the open round goes
// without. Nodes of the round may come back to it. Who is removed and comes back
// all the same is admitted again.
func (v *view) removal() (change, bool) {
	for _, s := range v.servers {
		id := events.NodeID(s.ID)
		if v.lives(id) {
			continue
		}
		why := ""
		switch silent := v.silent(id); {
		case silent >= v.replaced && v.isReplaced(id, string(s.Address)):
			why = "replaced"
		case silent >= v.gone && v.round.Number > 0 && !v.inRound(id):
			why = "gone"
		}
		if why != "" && v.holds("", id) {
			return change{kind: changeRemoved, node: id, address: string(s.Address), why: why}, true
		}
	}
	return change{}, false
}

// isReplaced reports whether a living node has a node's rank or address. One of
// the open round has not: after a restart its nodes may have changed places.
func (v *view) isReplaced(id events.NodeID, address string) bool {
	rank := slices.IndexFunc(v.round.Members, func(m events.Member) bool { return m.Node == id })
	return slices.ContainsFunc(v.peers, func(p peer) bool {
		return !v.inRound(p.Node) && (sameHost(p.Address, address) || rank >= 0 && p.Rank == uint64(rank))
	})
}

// leave takes nodes out of the log that raft has no more: they would hold back
// the format of its entries.
func (v *view) leave() (change, bool) {
	for _, node := range v.nodes {
		if _, listed := v.server(node.ID); !listed && !v.lives(node.ID) {
			why := "gone"
			if v.inRound(node.ID) {
				why = "replaced"
			}
			return change{kind: changeLeaves, node: node.ID, why: why}, true
		}
	}
	return change{}, false
}

// admission lets nodes into the log and into raft. A node that moves keeps the
// address that it has in raft: v1.7.3 changes it under the hands of those who
// replicate (a data race, found by test/sim); whereabouts.go knows better.
func (v *view) admission() (change, bool) {
	for _, p := range v.peers {
		c := change{node: p.Node, address: p.Address, peer: p}
		known := slices.ContainsFunc(v.nodes, func(n fsm.Node) bool { return n.ID == p.Node && n.Version == p.Version && n.Host == p.Host })
		_, listed := v.server(p.Node)
		switch {
		case !known: // first, so that it is sent nothing newer than it can read
			c.kind = changeJoins
		case !listed:
			c.kind, c.why = changeAdmitted, "it said hello"
		default:
			continue
		}
		return c, true
	}
	return change{}, false
}

// world returns the size and start that most of the living nodes were started
// with: a process of the start before may still be among them. Older nodes do not
// tell their start; they count for each.
func (v *view) world() hello {
	count := func(a peer) int {
		n := 0
		for _, b := range v.peers {
			if sameStart(a.hello, b.hello) {
				n++
			}
		}
		return n
	}
	if len(v.peers) == 0 {
		return hello{World: uint64(len(v.round.Members))}
	}
	return slices.MaxFunc(v.peers, func(a, b peer) int {
		return cmp.Or(cmp.Compare(count(a), count(b)), cmp.Compare(a.World, b.World), strings.Compare(a.Start, b.Start))
	}).hello
}

// order is who should vote, the first first: rank 0's node, who votes already,
// the others by rank, and last the nodes of another start. Of two nodes with one
// rank the open round's goes first.
func (v *view) order() []peer {
	world := v.world()
	class := func(p peer) int {
		switch {
		case !sameStart(p.hello, world):
			return 3
		case p.Rank == 0:
			return 0
		case v.votes(p.Node):
			return 1
		}
		return 2
	}
	preferred := func(p peer) int {
		switch {
		case p.Rank < uint64(len(v.round.Members)) && v.round.Members[p.Rank].Node == p.Node:
			return 0
		case v.votes(p.Node):
			return 1
		}
		return 2
	}
	out := slices.DeleteFunc(slices.Clone(v.peers), func(p peer) bool {
		_, listed := v.server(p.Node)
		return !listed
	})
	slices.SortFunc(out, func(a, b peer) int {
		return cmp.Or(cmp.Compare(class(a), class(b)), cmp.Compare(a.Rank, b.Rank), cmp.Compare(preferred(a), preferred(b)), cmp.Compare(a.Node, b.Node))
	})
	return out
}

// targets are the nodes that should vote: few, and only living ones.
func (v *view) targets() []peer {
	order := v.order()
	return order[:min(len(order), voters(int(v.world().World)))]
}

// first returns rank 0's node, which should lead.
func (v *view) first() (peer, bool) {
	order := v.order()
	if len(order) == 0 || order[0].Rank != 0 {
		return peer{}, false
	}
	return order[0], true
}

// vote makes a voter: of rank 0's node, where there are too few, and in the place
// of one that is gone.
func (v *view) vote() (change, bool) {
	targets, have, wanted := v.targets(), v.voters(), voters(int(v.world().World))
	for i, p := range targets {
		if v.votes(p.Node) || p.Index+caughtUpWithin < v.index {
			continue
		}
		why := ""
		switch {
		case i == 0 && p.Rank == 0:
			why = "it is rank 0's"
		case have < wanted:
			why = "voters are missing"
		case have == wanted && v.goneVoter() != "":
			why = "a voter is gone"
		}
		if why != "" && v.holds(p.Node, "") {
			return change{kind: changeVotes, node: p.Node, address: p.Address, peer: p, why: why}, true
		}
	}
	return change{}, false
}

// goneVoter returns a voter that is gone; empty: none is.
func (v *view) goneVoter() events.NodeID {
	for _, s := range v.servers {
		if id := events.NodeID(s.ID); s.Suffrage == raft.Voter && !v.lives(id) && v.silent(id) >= v.gone {
			return id
		}
	}
	return ""
}

func isTarget(targets []peer, id events.NodeID) bool {
	return slices.ContainsFunc(targets, func(p peer) bool { return p.Node == id })
}

// demotion takes votes where there are too many: from who is gone, then, once all
// vote that should, from who lives. One that is silent for a moment is left.
func (v *view) demotion() (change, bool) {
	targets := v.targets()
	if v.voters() <= voters(int(v.world().World)) {
		return change{}, false
	}
	if id := v.goneVoter(); id != "" && v.holds("", id) {
		return change{kind: changeDemoted, node: id, why: "it is gone"}, true
	}
	if slices.ContainsFunc(targets, func(p peer) bool { return !v.votes(p.Node) }) {
		return change{}, false
	}
	order := v.order()
	for i := len(order) - 1; i >= 0; i-- {
		id := order[i].Node
		if v.votes(id) && id != v.self && !isTarget(targets, id) && v.holds("", id) {
			return change{kind: changeDemoted, node: id, why: "there are enough voters"}, true
		}
	}
	return change{}, false
}
