package replica

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/esperd/esperd/events"
)

// How a world comes together: every node says hello to the leader it knows, or
// to the addresses it was given (rank 0's), again and again. Rank 0's node
// founds a log only when all ranks of the world said that their directories are
// empty (founding.go); otherwise whoever is part of a log leads the newcomer to
// its leader, who admits it (leader.go).
//
// A job that is started again may have its ranks elsewhere. All its nodes still
// have rank 0's address, and whoever listens there, part of the log or not,
// tells those who know no leader where the others are: so the survivors of the
// world before find each other, and elect one.

func (n *Node) freshness() time.Duration { return 4 * n.cfg.Timing.Hello }

func (n *Node) self() hello {
	h, _ := n.machine.now()
	id := n.identity(h.state)
	if id.Lineage == "" { // its log is not applied yet, but it has one: it must not be taken for a new node
		id.Run, id.Lineage = cmp.Or(n.cfg.Dir.Run(), id.Run), n.cfg.Dir.Lineage()
	}
	return hello{Node: n.id, Rank: id.Rank, World: id.World, Run: id.Run, Lineage: id.Lineage, Address: n.net.Addr(),
		Host: id.Host, Version: events.Version, Index: h.index, Empty: n.empty, Process: n.process, Start: n.cfg.Start, Led: n.led()}
}

func (n *Node) sayHello() {
	for {
		every := n.cfg.Timing.Hello
		if !n.helloOnce() {
			every /= 4 // the sooner the others are found, the sooner somebody leads
		}
		if n.wait(every) != nil {
			return
		}
	}
}

// helloOnce reports whether a leader is known.
func (n *Node) helloOnce() bool {
	me := n.self()
	n.roster.note(me)
	n.greetOtherLogs(me)
	if n.raft.State() == raft.Leader {
		n.joining.led(me.Address)
		n.rememberPeers()
		n.greetAll(me, n.strangers())
		return true
	}
	leader, _ := n.raft.LeaderWithID()
	me.Seeks = n.seeks()
	if leader != "" && n.greet(me, string(leader)) {
		n.joining.led(string(leader))
		n.rememberPeers()
		if !containsHost(n.cfg.Join, string(leader)) {
			n.greetAll(me, n.cfg.Join) // rank 0's node may have nobody else to learn of the log from
		}
		return true
	}
	me.Seeks = true
	n.greetAll(me, slices.Concat(n.cfg.Join, n.roster.hinted(), n.addresses()))
	n.warnWaiting()
	if me.Lineage == "" && me.Rank == 0 {
		n.maybeFound(me)
	}
	return false
}

// strangers are the join addresses at which nobody is known to this leader: an
// emptied node there knows nobody whom it could ask.
func (n *Node) strangers() []string {
	var known, out []string
	for _, p := range n.roster.fresh(n.freshness()) {
		known = append(known, p.Address)
	}
	for _, address := range n.cfg.Join {
		if !containsHost(known, address) {
			out = append(out, address)
		}
	}
	return out
}

func containsHost(list []string, address string) bool {
	return slices.ContainsFunc(list, func(a string) bool { return sameHost(a, address) })
}

// addresses are the other voters', as they were last heard of: one of them leads.
func (n *Node) addresses() []string {
	var out []string
	for _, s := range n.servers() {
		if s.Suffrage == raft.Voter && s.ID != raft.ServerID(n.id) {
			out = append(out, string(s.Address))
		}
	}
	return out
}

// greetAll greets at once, since one that does not answer takes its time.
func (n *Node) greetAll(me hello, addresses []string) {
	var wg sync.WaitGroup
	asked := []string{hostOf(me.Address)}
	for _, address := range addresses {
		if slices.Contains(asked, address) || slices.Contains(asked, hostOf(address)) {
			continue
		}
		asked = append(asked, address)
		wg.Go(func() { n.greet(me, address) })
	}
	wg.Wait()
}

// greet says hello to one address, follows its pointer to the leader, and
// reports whether the leader was reached. A refusal ends a node that is not yet
// part of a log, since its settings contradict the others', and one whose
// directory is a copy.
func (n *Node) greet(me hello, address string) bool {
	ctx, cancel := context.WithTimeout(n.ctx, max(n.cfg.Timing.Hello, time.Second))
	defer cancel()
	var w welcome
	err := n.net.Call(ctx, address, "hello", me, &w)
	n.joining.note(address, err, w.Problem)
	var refused *PeerError
	switch {
	case errors.As(err, &refused) && (refused.Code == codeCopied || refused.Code == events.CodeConfigMismatch && me.Lineage == ""):
		n.machine.fail(errors.New(refused.Text))
		return false
	case errors.As(err, &refused) && refused.Code == events.CodeConfigMismatch:
		if n.joining.complain(refused.Text) {
			n.log.Error("refused by a peer", "peer", address, "error", refused.Text)
		}
		return false
	case err != nil:
		n.unanswered(address, err)
		return false
	}
	if w.Problem != "" && n.joining.complain(w.Problem) {
		n.log.Warn("a peer sees a problem", "peer", address, "problem", w.Problem)
	}
	if n.meets(me, address, w) {
		return false
	}
	n.roster.learn(w.Known)
	n.roster.hint(w.Leader)
	if w.Leader == "" || sameHost(w.Leader, address) || me.Lineage != "" {
		return sameHost(w.Leader, address)
	}
	return n.net.Call(ctx, w.Leader, "hello", me, &w) == nil
}

// unanswered tells an operator, once, of what trying again does not help.
func (n *Node) unanswered(address string, err error) {
	level := slog.LevelDebug
	if secret, ok := errors.AsType[*SecurityError](err); ok && n.joining.complain(secret.Text) {
		level = slog.LevelWarn
	}
	n.log.Log(n.ctx, level, "no answer to hello", "peer", hostOf(address), "error", err)
}
