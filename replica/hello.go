package replica

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// How a world comes together: every node says hello to the leader it knows, or
// to the addresses it was given (rank 0's), again and again. Rank 0's node
// founds a log only when all ranks of the world said that their directories are
// empty; otherwise whoever is part of a log leads the newcomer to its leader,
// who admits it (leader.go).

func (n *Node) freshness() time.Duration { return 4 * n.cfg.Timing.Hello }

func (n *Node) self() hello {
	h, _ := n.machine.now()
	id := n.identity(h.state)
	return hello{Node: n.id, Rank: id.Rank, World: id.World, Run: id.Run, Lineage: id.Lineage, Address: n.net.Addr(),
		Host: id.Host, Version: events.Version, Index: h.index, Empty: n.empty}
}

func (n *Node) sayHello() {
	tick := time.NewTicker(n.cfg.Timing.Hello)
	defer tick.Stop()
	for {
		n.helloOnce()
		select {
		case <-n.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (n *Node) helloOnce() {
	me := n.self()
	n.roster.note(me)
	if n.raft.State() == raft.Leader {
		n.greetStrangers(me)
		return
	}
	leader, _ := n.raft.LeaderWithID()
	if leader != "" && n.greet(me, string(leader)) {
		return
	}
	asked := []string{me.Address}
	for _, address := range slices.Concat(n.cfg.Join, n.roster.hinted(), n.addresses()) {
		if !containsHost(asked, address) {
			asked = append(asked, address)
			n.greet(me, address)
		}
	}
	if me.Lineage == "" {
		n.warnJoining()
	}
	if me.Lineage == "" && me.Rank == 0 {
		n.maybeFound(me)
	}
}

// greetStrangers lets an emptied node at a join address learn of this leader:
// it knows nobody whom it could ask.
func (n *Node) greetStrangers(me hello) {
	var known []string
	for _, p := range n.roster.fresh(n.freshness()) {
		known = append(known, p.Address)
	}
	for _, address := range n.cfg.Join {
		if !containsHost(known, address) {
			n.greet(me, address)
		}
	}
}

func containsHost(list []string, address string) bool {
	return slices.ContainsFunc(list, func(a string) bool { return sameHost(a, address) })
}

// addresses are the voters': one of them leads.
func (n *Node) addresses() []string {
	var out []string
	for _, s := range n.members().Servers {
		if s.Suffrage == raft.Voter && s.ID != raft.ServerID(n.id) {
			out = append(out, string(s.Address))
		}
	}
	return out
}

// greet says hello to one address, follows its pointer to the leader, and
// reports whether the leader was reached. A refusal ends a node that is not yet
// part of a log: its settings contradict the others'.
func (n *Node) greet(me hello, address string) bool {
	ctx, cancel := context.WithTimeout(n.ctx, max(n.cfg.Timing.Hello, time.Second))
	defer cancel()
	var w welcome
	err := n.net.Call(ctx, address, "hello", me, &w)
	if me.Lineage == "" {
		n.joining.note(address, err)
	}
	var refused *PeerError
	switch {
	case errors.As(err, &refused) && refused.Code == events.CodeConfigMismatch:
		if me.Lineage == "" {
			n.machine.fail(errors.New(refused.Text))
		} else {
			n.log.Error("refused by a peer", "peer", address, "error", refused.Text)
		}
		return false
	case err != nil:
		n.unanswered(address, err)
		return false
	}
	n.roster.hint(w.Leader)
	if w.Leader == "" || sameHost(w.Leader, address) || me.Lineage != "" {
		return sameHost(w.Leader, address)
	}
	return n.net.Call(ctx, w.Leader, "hello", me, &w) == nil
}

// unanswered tells an operator, once, of what trying again does not help.
func (n *Node) unanswered(address string, err error) {
	level := slog.LevelDebug
	if secret, ok := errors.AsType[*SecurityError](err); ok && n.complaint != secret.Text {
		level, n.complaint = slog.LevelWarn, secret.Text
	}
	n.log.Log(n.ctx, level, "no answer to hello", "peer", hostOf(address), "error", err)
}

// joiningWarnAfter is how long a node waits for the others without a word.
const joiningWarnAfter = 5 * time.Second

// joining is what a node that is not yet part of a log waits for.
type joining struct {
	mu     sync.Mutex
	began  time.Time
	warned string
	silent map[string]string // address -> why it did not answer
}

func (j *joining) note(address string, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.silent == nil {
		j.silent = map[string]string{}
	}
	delete(j.silent, hostOf(address))
	if err != nil {
		j.silent[hostOf(address)] = err.Error()
	}
}

// waitsFor says, for people, what a joining node waits for.
func (n *Node) waitsFor() string {
	var missing []uint64
	peers := n.roster.fresh(n.freshness())
	for rank := range n.cfg.World {
		if !slices.ContainsFunc(peers, func(p peer) bool { return p.Rank == rank }) {
			missing = append(missing, rank)
		}
	}
	n.joining.mu.Lock()
	defer n.joining.mu.Unlock()
	var silent []string
	for address, why := range n.joining.silent {
		silent = append(silent, fmt.Sprintf("no answer from %s: %s", address, why))
	}
	slices.Sort(silent)
	switch {
	case n.cfg.Rank == 0 && len(missing) > 0:
		return strings.Join(append([]string{fmt.Sprintf("it waits for the esperds of ranks %v", missing)}, silent...), "; ")
	case len(silent) > 0:
		return "it waits to be let into the log; " + strings.Join(silent, "; ")
	}
	return "it waits for the other ranks' esperds, or for a leader to let it in"
}

// warnJoining tells an operator what the node waits for, when that takes long
// and whenever it changes.
func (n *Node) warnJoining() {
	why := n.waitsFor()
	n.joining.mu.Lock()
	if n.joining.began.IsZero() {
		n.joining.began = time.Now()
	}
	due := time.Since(n.joining.began) >= joiningWarnAfter && why != n.joining.warned
	if due {
		n.joining.warned = why
	}
	n.joining.mu.Unlock()
	if due {
		n.log.Warn("not part of the log yet", "why", why)
	}
}

// onHello answers another node's hello.
func (n *Node) onHello(ctx context.Context, req []byte) (any, error) {
	var h hello
	if err := unmarshalPeer(req, &h); err != nil {
		return nil, errorf(events.CodeInvalidInput, "a hello that does not decode: %v", err)
	}
	me := n.self()
	if err := contradiction(me, h); err != nil {
		return nil, err
	}
	if err := n.checkClaim(ctx, me, h); err != nil {
		return nil, err
	}
	n.roster.note(h)
	if h.Lineage != "" {
		n.roster.hint(h.Address)
	}
	leader, _ := n.raft.LeaderWithID()
	return welcome{Run: me.Run, Lineage: me.Lineage, Leader: string(leader)}, nil
}

// contradiction names what two nodes of one world may not differ in.
func contradiction(me, h hello) error {
	switch {
	case me.Run != "" && h.Run != "" && me.Run != h.Run:
		return errorf(events.CodeConfigMismatch, "run id: node %s (rank %d) has %q, node %s (rank %d) has %q; give every rank the same --run-id, and each run its own data directories", me.Node, me.Rank, me.Run, h.Node, h.Rank, h.Run)
	case me.Lineage != "" && h.Lineage != "" && me.Lineage != h.Lineage:
		return errorf(events.CodeConfigMismatch, "lineage: node %s (rank %d) is part of log %s, node %s (rank %d) of log %s; move the data directory of the wrong one aside", me.Node, me.Rank, me.Lineage, h.Node, h.Rank, h.Lineage)
	case me.World != h.World:
		return errorf(events.CodeConfigMismatch, "world size: node %s (rank %d) has %d, node %s (rank %d) has %d; give every rank the same --world-size", me.Node, me.Rank, me.World, h.Node, h.Rank, h.World)
	}
	return nil
}

// checkClaim refuses a second living node for one rank. A node that does not
// answer any more has lost its claim: its disk was replaced.
func (n *Node) checkClaim(ctx context.Context, me, h hello) error {
	other, taken := peer{hello: me}, h.Rank == me.Rank && h.Node != me.Node
	if !taken {
		other, taken = n.roster.claim(h, n.freshness())
		if taken {
			var s statusAnswer
			ctx, cancel := context.WithTimeout(ctx, n.cfg.Timing.Hello)
			err := n.net.Call(ctx, other.Address, "status", nil, &s)
			cancel()
			taken = err == nil && s.Node == other.Node
		}
	}
	if !taken {
		return nil
	}
	return errorf(events.CodeConfigMismatch, "rank %d is claimed by two nodes: %s at %s (host %s) and %s at %s (host %s); stop one, or correct its --rank", h.Rank, other.Node, hostOf(other.Address), other.Host, h.Node, hostOf(h.Address), h.Host)
}

// maybeFound starts the log of a world in which nobody has one: the first
// voters are the largest odd number up to 3 of the nodes, lowest ranks first.
func (n *Node) maybeFound(me hello) {
	peers := n.roster.fresh(n.freshness())
	if uint64(len(peers)) != me.World {
		return
	}
	var conf raft.Configuration
	for i, p := range peers {
		if p.Rank != uint64(i) || !p.Empty || p.Lineage != "" {
			return
		}
		s := raft.Server{Suffrage: raft.Nonvoter, ID: raft.ServerID(p.Node), Address: raft.ServerAddress(p.Address)}
		if i < voters(len(peers)) {
			s.Suffrage = raft.Voter
		}
		conf.Servers = append(conf.Servers, s)
	}
	err := n.raft.BootstrapCluster(conf).Error()
	if err != nil && !errors.Is(err, raft.ErrCantBootstrap) {
		n.log.Error("the log could not be founded; trying again", "error", err)
		return
	}
	n.log.Info("founding a log", "ranks", me.World)
}

// voters is the largest odd number up to 3 of so many nodes.
func voters(nodes int) int {
	if nodes >= 3 {
		return 3
	}
	return 1
}

// founding makes entry 1. The run id is the user's, or made here and logged.
func (n *Node) founding() (*events.Entry, error) {
	run, lineage := n.cfg.Run, make([]byte, 16)
	for _, p := range n.roster.fresh(n.freshness()) {
		if run == "" || p.Rank == 0 && p.Run != "" {
			run = p.Run
		}
	}
	if _, err := rand.Read(lineage); err != nil {
		return nil, fmt.Errorf("making a lineage: %w", err)
	}
	if run == "" {
		run = fsm.MadeRun(hex.EncodeToString(lineage))
	}
	evs := []events.Event{{Founded: &events.Founded{Run: run, Lineage: hex.EncodeToString(lineage)}}}
	for _, p := range n.roster.fresh(n.freshness()) {
		evs = append(evs, events.Event{NodeJoined: &events.NodeJoined{Node: p.Node, Version: p.Version, Host: p.Host}})
	}
	return &events.Entry{Kind: events.KindFound, Events: evs}, nil
}
