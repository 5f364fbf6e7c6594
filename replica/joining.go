package replica

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/esperd/esperd/events"
)

// joiningWarnAfter is how long a node waits for the others without a word.
const joiningWarnAfter = 5 * time.Second

// joining is what a node without a leader waits for.
type joining struct {
	mu        sync.Mutex
	began     time.Time // no leader is known since then; zero: one is
	warned    string
	complaint string
	silent    map[string]string // host -> why it did not let this node in
	problems  map[string]string // host -> what it finds wrong with this node
}

// led notes that a leader is known. What others find wrong is of the past then.
func (j *joining) led(leader string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.began, j.warned = time.Time{}, ""
	clear(j.silent)
	maps.DeleteFunc(j.problems, func(host, _ string) bool { return host != hostOf(leader) })
}

// note keeps how an address answered.
func (j *joining) note(address string, err error, problem string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.silent == nil {
		j.silent, j.problems = map[string]string{}, map[string]string{}
	}
	host := hostOf(address)
	delete(j.silent, host)
	delete(j.problems, host)
	var refused *PeerError
	switch {
	case errors.As(err, &refused):
		j.silent[host] = fmt.Sprintf("%s says: %s", host, refused.Text)
	case err != nil:
		j.silent[host] = fmt.Sprintf("no answer from %s: %v", host, err)
	case problem != "":
		j.problems[host] = problem
	}
}

// complain reports whether a text is another than the last one.
func (j *joining) complain(text string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	changed := text != j.complaint
	j.complaint = text
	return changed
}

// texts returns a map's values, each once.
func texts(of map[string]string) []string {
	var out []string
	for _, text := range of {
		if !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	slices.Sort(out)
	return out
}

// waitsFor says, for people, what keeps a node from serving; empty: nothing.
func (n *Node) waitsFor(phase Phase) string {
	n.joining.mu.Lock()
	waited := time.Duration(0)
	if !n.joining.began.IsZero() {
		waited = time.Since(n.joining.began)
	}
	silent, problems := texts(n.joining.silent), texts(n.joining.problems)
	n.joining.mu.Unlock()
	part := phase == PhaseMember || len(n.members().Servers) > 0
	switch {
	case phase == PhaseJoining && !part:
		return n.waitsToJoin(append(silent, problems...))
	case part && waited >= joiningWarnAfter:
		return n.waitsForQuorum(problems)
	case phase == PhaseJoining:
		return "it waits for a leader"
	}
	return strings.Join(problems, "; ")
}

func (n *Node) waitsToJoin(silent []string) string {
	var missing []uint64
	peers := n.roster.fresh(n.freshness())
	silent = append(silent, leaderless(peers)...)
	for rank := range n.cfg.World {
		if !slices.ContainsFunc(peers, func(p peer) bool { return p.Rank == rank }) {
			missing = append(missing, rank)
		}
	}
	switch {
	case n.cfg.Rank == 0 && len(missing) > 0:
		return strings.Join(append([]string{fmt.Sprintf("it waits for the esperds of ranks %v", missing)}, silent...), "; ")
	case len(silent) > 0:
		return "it waits to be let into the log; " + strings.Join(silent, "; ")
	}
	return "it waits for the other ranks' esperds, or for a leader to let it in"
}

// leaderless tells of peers that have the run's log where nobody leads it, so that
// they cannot let anybody in.
func leaderless(peers []peer) (out []string) {
	for _, p := range peers {
		if p.Lineage != "" && !p.Led {
			out = append(out, fmt.Sprintf("rank %d (host %s) has log %s of this run up to entry %d, which has no leader: its own esperd status says which voters that lacks, and `esperd recover` goes on from it if those are gone for good", p.Rank, p.Host, p.Lineage, p.Index))
		}
	}
	slices.Sort(out)
	return out
}

// waitsForQuorum names the voters that a node which is part of a log waits for.
func (n *Node) waitsForQuorum(problems []string) string {
	fresh := n.roster.fresh(n.freshness())
	voting, missing := 0, []string(nil)
	for _, s := range n.servers() {
		if s.Suffrage != raft.Voter {
			continue
		}
		voting++
		id := events.NodeID(s.ID)
		if id == n.id || slices.ContainsFunc(fresh, func(p peer) bool { return p.Node == id }) {
			continue
		}
		text := fmt.Sprintf("%s, last at %s", id, hostOf(string(s.Address)))
		if p, known := n.roster.last(id); known {
			text += fmt.Sprintf(" (rank %d, host %s)", p.Rank, p.Host)
		}
		missing = append(missing, text)
	}
	s := n.State()
	id := n.identity(s)
	log := fmt.Sprintf("no leader: this node has the log of run %q, lineage %s, up to entry %d, whose voters decide by %d of %d", id.Run, id.Lineage, s.Index, voting/2+1, voting)
	if voting-len(missing) > voting/2 {
		return strings.Join(append([]string{log + "; enough of them are there, and are electing one"}, problems...), "; ")
	}
	log += "; missing: " + strings.Join(missing, "; ") + ". Start their esperds on their data directories again; if those are gone for good, `esperd recover` goes on from the longest copy that is left"
	return strings.Join(append([]string{log}, problems...), "; ")
}

// warnWaiting tells an operator what the node waits for, when that takes long
// and whenever it changes.
func (n *Node) warnWaiting() {
	n.joining.mu.Lock()
	if n.joining.began.IsZero() {
		n.joining.began = time.Now()
	}
	due := time.Since(n.joining.began) >= joiningWarnAfter
	n.joining.mu.Unlock()
	if !due {
		return
	}
	phase, _ := n.machine.trouble()
	why := n.waitsFor(phase)
	n.joining.mu.Lock()
	due = why != n.joining.warned
	n.joining.warned = why
	n.joining.mu.Unlock()
	switch {
	case !due || why == "":
	case len(n.members().Servers) > 0:
		n.log.Warn("no leader is known", "why", why)
	default:
		n.log.Warn("not part of the log yet", "why", why)
	}
}
