package replica

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// A run may have another log than the one of this directory: it was recovered
// from another copy when the quorum was lost, or founded anew. A node whose own
// log has no leader any more gives way to one that has: it fails with an
// *OtherLogError, and whoever opened it sets the directory aside and opens it
// again, empty. Two logs that both have leaders are for people to part.

// OtherLogError says that the run goes on as another log than this directory's.
type OtherLogError struct {
	Dir         string
	Mine, Other string // lineages
	Leader      string // address of the other's
}

// Error tells what to do where nobody does it.
func (e *OtherLogError) Error() string {
	return fmt.Sprintf("the run goes on as log %s (leader at %s), and data directory %s is of log %s, which has no leader: this directory is to be kept aside, and this node to join as a new one", e.Other, hostOf(e.Leader), e.Dir, e.Mine)
}

// giveWayAfter is for how many hellos the other log has to be led, and this one
// not: far longer than an election takes.
const giveWayAfter = 8

// others are the logs of the same run that nodes with another lineage told of.
type others struct {
	mu  sync.Mutex
	met map[string]*otherLog // by lineage
}

type otherLog struct {
	address string // somebody to ask
	seen    time.Time
	since   time.Time // it has been led, and this node's own log not; zero: not so
	rival   string    // leader's address, where both are led; empty: they are not
}

func (o *others) note(lineage string, change func(*otherLog)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.met == nil {
		o.met = map[string]*otherLog{}
	}
	l := o.met[lineage]
	if l == nil {
		if len(o.met) >= 16 { // peers are hostile, too
			return
		}
		l = &otherLog{}
		o.met[lineage] = l
	}
	l.seen = time.Now()
	change(l)
}

// addresses are whom to ask about other logs, those not heard of lately left out.
func (o *others) addresses(within time.Duration) []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []string
	for lineage, l := range o.met {
		if time.Since(l.seen) > within {
			delete(o.met, lineage)
		} else if l.address != "" {
			out = append(out, l.address)
		}
	}
	slices.Sort(out)
	return out
}

// rival names a log that is led beside this one's.
func (o *others) rival() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out string
	for lineage, l := range o.met {
		if l.rival != "" && (out == "" || lineage < out) {
			out = lineage
		}
	}
	if out == "" {
		return ""
	}
	return fmt.Sprintf("log %s of the same run is led, too, at %s: esperd status at both tells which is wanted; stop the esperds of the other, move their data directories aside, and start them again, and they join the one that is left", out, hostOf(o.met[out].rival))
}

// strange reports whether a peer is of another log of the same run.
func strange(me, peer hello) bool {
	return me.Lineage != "" && peer.Lineage != "" && me.Lineage != peer.Lineage && (me.Run == "" || peer.Run == "" || me.Run == peer.Run)
}

// fellows are the peers heard of lately that may be part of this log. One of
// another log may have said hello before this node knew its own.
func (n *Node) fellows() []peer {
	me := hello{Lineage: n.State().Lineage}
	return slices.DeleteFunc(n.roster.fresh(n.freshness()), func(p peer) bool { return strange(me, p.hello) })
}

// led reports whether this node's log has a leader, so that it goes on. A voter
// that came back alone leads itself, and is not led until it opens a round.
func (n *Node) led() bool {
	leader, _ := n.raft.LeaderWithID()
	return leader != "" && !n.alone()
}

func (n *Node) alone() bool {
	voters := 0
	for _, s := range n.members().Servers {
		if s.Suffrage == raft.Voter {
			voters++
		}
	}
	return n.raft.State() == raft.Leader && voters == 1 && len(n.roster.fresh(n.freshness())) <= 1 && !n.opened.Load()
}

// ancestors are the lineages that a log continues.
func ancestors(s *fsm.State) []string {
	var out []string
	for _, a := range s.Ancestors {
		out = append(out, a.Lineage)
	}
	return out
}

// onStranger answers the hello of a node of another log, which is not to be
// admitted. What becomes of the two, the one that asks decides: this node asks
// it, too.
func (n *Node) onStranger(me, h hello) (any, error) {
	n.others.note(h.Lineage, func(l *otherLog) { l.address = h.Address })
	s := n.State()
	leader, _ := n.raft.LeaderWithID()
	if n.led() && h.Led && !slices.Contains(ancestors(s), h.Lineage) {
		return nil, errorf(events.CodeConfigMismatch, "lineage: node %s (rank %d) is part of log %s, node %s (rank %d) of log %s, and both have a leader; stop those of the wrong one, and move their data directories aside", me.Node, me.Rank, me.Lineage, h.Node, h.Rank, h.Lineage)
	}
	return welcome{Run: me.Run, Lineage: me.Lineage, Leader: string(leader), Ancestors: ancestors(s)}, nil
}

// greetOtherLogs asks those who told of other logs.
func (n *Node) greetOtherLogs(me hello) {
	for _, address := range n.others.addresses(n.freshness()) {
		if !sameHost(address, me.Address) {
			n.greet(me, address)
		}
	}
}

// meets deals with a welcome from a node of another log; false: it is of this one.
func (n *Node) meets(me hello, address string, w welcome) bool {
	if !strange(me, hello{Run: w.Run, Lineage: w.Lineage}) {
		return false
	}
	leader, _ := n.raft.LeaderWithID()
	mine := leader != ""
	if slices.Contains(w.Ancestors, me.Lineage) {
		// A voter alone gives way to what continues its log, and so does a replica
		// that cannot apply its own any further.
		_, phase := n.machine.now()
		mine = n.led() && phase != PhaseDiverged
	}
	var due, clash bool
	n.others.note(w.Lineage, func(l *otherLog) {
		l.address = address
		was := l.rival
		l.rival = ""
		switch {
		case w.Leader == "":
			l.since = time.Time{}
		case mine:
			l.since, l.rival = time.Time{}, w.Leader
			clash = was == ""
		case l.since.IsZero():
			l.since = time.Now()
			n.log.Warn("the run goes on as another log, and this directory's log has no leader: unless it gets one, this node keeps the directory aside and joins as a new one", "other", w.Lineage, "mine", me.Lineage, "leader", hostOf(w.Leader))
		default:
			due = time.Since(l.since) >= giveWayAfter*n.cfg.Timing.Hello
		}
	})
	if clash {
		n.log.Error("two logs of one run have leaders: "+n.others.rival(), "mine", me.Lineage)
	}
	if due {
		n.machine.fail(&OtherLogError{Dir: n.cfg.Dir.Path(""), Mine: me.Lineage, Other: w.Lineage, Leader: w.Leader})
	}
	return true
}

// Failure is why the node stopped applying; nil while it has not.
func (n *Node) Failure() error {
	phase, err := n.machine.trouble()
	if phase != PhaseFailed {
		return nil
	}
	return err
}
