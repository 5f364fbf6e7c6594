package replica

import (
	"context"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/esperd/esperd/events"
)

// codeCopied ends the node that gets it, whatever it is part of. Only peers see
// it.
const codeCopied events.Code = "copied"

// onHello answers another node's hello.
func (n *Node) onHello(ctx context.Context, req []byte) (any, error) {
	var h hello
	if err := unmarshalPeer(req, &h); err != nil {
		return nil, errorf(events.CodeInvalidInput, "a hello that does not decode: %v", err)
	}
	if err := h.check(); err != nil {
		return nil, err
	}
	me := n.self()
	if err := contradiction(me, h); err != nil {
		return nil, err
	}
	if strange(me, h) {
		return n.onStranger(me, h)
	}
	if err := n.checkCopied(ctx, me, h); err != nil {
		return nil, err
	}
	problem, err := n.checkClaim(ctx, me, h)
	if err != nil {
		return nil, err
	}
	n.roster.note(h)
	if h.Lineage != "" {
		n.roster.hint(h.Address)
	}
	leader, _ := n.raft.LeaderWithID()
	w := welcome{Run: me.Run, Lineage: me.Lineage, Leader: string(leader), Problem: problem}
	if h.Seeks {
		w.Known = n.roster.known()
	}
	return w, nil
}

// contradiction names what two nodes of one world may not differ in. While there
// is no log yet that is for good; a newcomer that a log's node takes for one of
// another start waits: that node is of the start before and about to end, or the
// newcomer is at the door of another job. Nodes of one log may be of different
// starts: they tell each other where the others are.
func contradiction(me, h hello) error {
	founding := me.Lineage == "" && h.Lineage == ""
	switch {
	case me.Run != "" && h.Run != "" && me.Run != h.Run:
		return errorf(events.CodeConfigMismatch, "run id: node %s (rank %d) has %q, node %s (rank %d) has %q; give every rank the same --run-id, and each run its own data directories", me.Node, me.Rank, me.Run, h.Node, h.Rank, h.Run)
	case h.Lineage != "" || sameStart(me, h):
		return nil
	case founding && (me.Start == h.Start || me.Start == "" || h.Start == ""):
		return errorf(events.CodeConfigMismatch, "world size: node %s (rank %d) has %d, node %s (rank %d) has %d; give every rank the same --world-size", me.Node, me.Rank, me.World, h.Node, h.Rank, h.World)
	}
	return errorf(events.CodeUnavailable, "node %s (rank %d of %d%s) was not started together with this one, %s (rank %d of %d%s): it waits until this one has ended, or was started with the same world size and round; if they are two jobs, give each a MASTER_PORT or --listen of its own",
		h.Node, h.Rank, h.World, inStart(h.Start), me.Node, me.Rank, me.World, inStart(me.Start))
}

func inStart(start string) string {
	if start == "" {
		return ""
	}
	return fmt.Sprintf(", round %q", start)
}

// checkCopied refuses a node that is alive elsewhere, too: its directory was
// copied, and both would vote. One that has only moved does not answer any more
// where it was. Nodes without a process in their hello are of an older esperd.
func (n *Node) checkCopied(ctx context.Context, me, h hello) error {
	if h.Node == me.Node && h.Process == me.Process {
		return nil // by way of its own address
	}
	before, known := n.roster.last(h.Node)
	if !known {
		s, member := server(raft.Configuration{Servers: n.servers()}, h.Node)
		if !member {
			return nil
		}
		before.Address = string(s.Address)
	}
	if h.Process == "" || known && before.Process == h.Process || sameHost(before.Address, h.Address) {
		return nil
	}
	other := me.Process
	if h.Node != me.Node {
		s, alive := n.statusAt(ctx, hostOf(before.Address)) // whatever is there, not where the node is now
		if !alive || s.Node != h.Node {
			return nil
		}
		other = s.Process
	}
	if other == "" || other == h.Process {
		return nil
	}
	return errorf(codeCopied, "node %s is alive at %s and at %s (host %s, rank %d): its data directory was copied, and a node that is there twice would vote twice; the second one ends: move its directory aside and start it with an empty one",
		h.Node, hostOf(before.Address), hostOf(h.Address), h.Host, h.Rank)
}

func (n *Node) statusAt(ctx context.Context, address string) (s statusAnswer, alive bool) {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Timing.Hello)
	defer cancel()
	err := n.net.Call(ctx, address, "status", nil, &s)
	return s, err == nil
}

// checkClaim looks for a second living node for one rank. A node that does not
// answer any more has lost its claim: its disk was replaced. Where no log exists
// a second one is a mistake in somebody's settings. Later it may be a process of
// the start before that has not ended yet: a newcomer waits for its end, and a
// node that is part of the log is only told. It is needed for a quorum, and the
// trainers of a round are told apart by their start.
func (n *Node) checkClaim(ctx context.Context, me, h hello) (problem string, err error) {
	other, taken := peer{hello: me}, h.Rank == me.Rank && h.Node != me.Node
	if !taken {
		other, taken = n.roster.claim(h, n.freshness())
		if taken {
			var s statusAnswer
			s, taken = n.statusAt(ctx, other.Address)
			taken = taken && s.Node == other.Node
		}
	}
	if !taken {
		return "", nil
	}
	text := fmt.Sprintf("rank %d is claimed by two nodes: %s at %s (host %s) and %s at %s (host %s)", h.Rank, other.Node, hostOf(other.Address), other.Host, h.Node, hostOf(h.Address), h.Host)
	switch {
	case h.Lineage != "":
		return text + "; stop one, or correct its --rank", nil
	case me.Lineage != "" || other.Lineage != "":
		return "", errorf(events.CodeUnavailable, "%s; the second one waits for the end of the first: stop one, or correct its --rank", text)
	}
	return "", errorf(events.CodeConfigMismatch, "%s; stop one, or correct its --rank", text)
}
