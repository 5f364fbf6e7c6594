package recovery

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/replica"
)

// A Plan says which survivor is continued, and what speaks against it.
type Plan struct {
	Survivors []*Survivor
	Chosen    *Survivor // nil: none can be
	Peers     []replica.PeerStatus
	Against   []Reason
}

// A Reason speaks against a recovery.
type Reason struct {
	Why   string `json:"why"`
	Final bool   `json:"final"` // --force does not help
}

// Choose plans with what was found. from names the directory to continue, in
// place of the one that this would choose; "": none.
func Choose(survivors []*Survivor, from string) *Plan {
	p := &Plan{Survivors: survivors}
	var candidates []*Survivor
	for _, s := range survivors {
		if s.Kept != nil {
			candidates = append(candidates, s)
		}
	}
	if len(candidates) == 0 {
		p.against(true, "none of the directories can be continued: recover from another rank's directory, or, if there is none, start all ranks with empty directories and resume a checkpoint's mark")
		return p
	}
	p.Chosen = slices.MaxFunc(candidates, compare)
	if from != "" {
		i := slices.IndexFunc(candidates, func(s *Survivor) bool { return s.Dir == from })
		if i < 0 {
			p.Chosen = nil
			p.against(true, "%s, which --from names, cannot be continued", from)
			return p
		}
		p.Chosen = candidates[i]
	}
	for _, other := range candidates {
		p.compare(other, from != "")
	}
	if d := p.Chosen.Kept.Dropped; d != nil {
		p.against(false, "entries %d to %d of %s would be dropped: %s wrote the first of them on a state that the entries before it do not give. One of the two computed wrongly, that node or this build: make sure which by esperd audit with a build that you trust", d.From, d.To, p.Chosen.Dir, d.Who())
	}
	return p
}

func (p *Plan) against(final bool, format string, args ...any) {
	p.Against = append(p.Against, Reason{Why: fmt.Sprintf(format, args...), Final: final})
}

// compare orders survivors: a log that continues another one is after it, and so
// is one that took for decided what the other has otherwise, at the end that is in
// raft's log alone; then comes raft's own order, by the term of the last entry and
// its index. An entry that was committed is in the greatest of those that are
// left, if it is in any.
func compare(a, b *Survivor) int {
	switch {
	case continues(a, b):
		return 1
	case continues(b, a):
		return -1
	case overrules(a, b) != overrules(b, a): // a directory without a raft log does not tell its term
		if overrules(a, b) {
			return 1
		}
		return -1
	case a.Kept.RaftProblem == nil && b.Kept.RaftProblem == nil && a.Kept.RaftTerm != b.Kept.RaftTerm:
		return cmp.Compare(a.Kept.RaftTerm, b.Kept.RaftTerm)
	}
	return cmp.Compare(a.Kept.State.Index, b.Kept.State.Index)
}

// continues reports whether a's log goes on where b's was lost.
func continues(a, b *Survivor) bool {
	return slices.ContainsFunc(a.Kept.State.Ancestors, func(l events.Ancestor) bool { return l.Lineage == b.Kept.State.Lineage })
}

// overrules reports whether a took an entry for decided that b has otherwise.
func overrules(a, b *Survivor) bool {
	return a.Kept.State.Lineage == b.Kept.State.Lineage && parted(a.Kept, b.Kept, min(a.Kept.Committed, b.Kept.State.Index)) > 0
}

// compare looks for what a directory says otherwise than the chosen one. What
// raft's log alone has may differ: it was not yet decided.
func (p *Plan) compare(other *Survivor, told bool) {
	c, o := p.Chosen.Kept, other.Kept
	switch {
	case other == p.Chosen:
		return
	case o.State.Run != c.State.Run:
		p.against(true, "%s is of run %q, %s of run %q: name the directories of one run", other.Dir, o.State.Run, p.Chosen.Dir, c.State.Run)
		return
	case o.State.Lineage != c.State.Lineage && !continues(p.Chosen, other) && !told:
		p.against(false, "%s is of log %s, %s of log %s, and neither continues the other: name the one to go on with by --from", other.Dir, o.State.Lineage, p.Chosen.Dir, c.State.Lineage)
		return
	case o.State.Lineage != c.State.Lineage:
		return
	}
	if i := parted(c, o, min(c.Committed, o.Committed)); i > 0 && !told {
		p.against(false, "%s and %s contradict each other from entry %d on, though both took it for decided: compare them (each esperd shows its entries alone, too), and name the one to go on with by --from", p.Chosen.Dir, other.Dir, i)
	} else if i := parted(c, o, min(c.State.Index, o.Committed)); i > 0 && !told {
		p.against(false, "%s took other entries for decided, from entry %d on, than those at the end of %s, which are from raft's log: look at both, and name the one to go on with by --from", other.Dir, i, p.Chosen.Dir)
	} else if !told && o.Committed > c.State.Index {
		p.against(false, "%s has entries up to %d, which were decided, and %s ends at %d: look at both, and name the one to go on with by --from", other.Dir, o.Committed, p.Chosen.Dir, c.State.Index)
	}
}

// parted is the first entry up to a given one that two logs have otherwise; 0:
// none.
func parted(a, b *replica.Kept, to uint64) uint64 {
	from := max(a.Links.From, b.Links.From)
	for i := from; i <= to; i++ {
		x, _ := a.Links.At(i)
		y, _ := b.Links.At(i)
		if x != y {
			return i
		}
	}
	return 0
}

// members are the chosen one's log's, as its raft log has them, else another
// directory's of the same log; nil: not known.
func (p *Plan) members() []replica.Member {
	for _, s := range slices.Concat([]*Survivor{p.Chosen}, p.Survivors) {
		if s.Kept != nil && s.Kept.State.Lineage == p.Chosen.Kept.State.Lineage && len(s.Kept.Members) > 0 {
			return s.Kept.Members
		}
	}
	return nil
}

// Addresses are where the members of the chosen one's log were, this node's own
// included: another may be there now.
func (p *Plan) Addresses() []string {
	if p.Chosen == nil {
		return nil
	}
	var all []string
	for _, m := range p.members() {
		all = append(all, m.Address)
	}
	var out []string
	for _, address := range slices.Concat(all, p.Chosen.Peers) {
		if !slices.Contains(out, address) {
			out = append(out, address)
		}
	}
	return out
}

// Heard adds what was heard at the peers' addresses.
func (p *Plan) Heard(peers []replica.PeerStatus) {
	p.Peers = peers
	if p.Chosen == nil {
		return
	}
	run, lineage, index := p.Chosen.Kept.State.Run, p.Chosen.Kept.State.Lineage, p.Chosen.Kept.State.Index
	for i := range peers {
		a := &peers[i]
		switch {
		case a.Refused():
			p.against(false, "at %s there is an esperd that does not let this one ask: %v", a.Address, a.Err)
		case a.Err != nil:
		case a.Run != "" && a.Run != run: // another job has the address now
		case a.Lineage == lineage && p.Chosen.Kept.Dropped != nil:
			p.against(true, "rank %d's node %s at %s is up in the log whose end would be dropped: stop all esperds of that log first", a.Rank, a.Node, a.Address)
		case a.Leader != "" && a.Lineage == lineage:
			p.against(true, "the world is healthy: rank %d's node %s at %s follows a leader, node %s; start this rank's esperd, with an empty directory if this one is damaged", a.Rank, a.Node, a.Address, a.Leader)
		case a.Leader != "":
			p.against(true, "the run goes on already, as log %s: rank %d's node %s at %s follows a leader, node %s; start this rank's esperd: it keeps its directory aside and joins", a.Lineage, a.Rank, a.Node, a.Address, a.Leader)
		case a.Lineage == lineage && a.Index > index:
			p.against(false, "rank %d's node %s at %s has this log up to entry %d, and %s only up to %d: stop that esperd and recover from its directory", a.Rank, a.Node, a.Address, a.Index, p.Chosen.Dir, index)
		}
	}
	p.quorum(peers)
}

// quorum refuses where those who answer, and those whose directories are here
// and in order, can go on by themselves.
func (p *Plan) quorum(peers []replica.PeerStatus) {
	voters := 0
	var there []string
	for _, m := range p.members() {
		if !m.Voter {
			continue
		}
		voters++
		if slices.ContainsFunc(peers, func(a replica.PeerStatus) bool { return a.Err == nil && a.Node == m.Node }) {
			there = append(there, "the node at "+m.Address)
			continue
		}
		for _, s := range p.Survivors {
			if s.Kept != nil && s.Node == m.Node && s.Kept.RaftProblem == nil {
				there = append(there, s.Dir)
				break
			}
		}
	}
	if voters == 0 && len(peers) == 0 && len(p.Chosen.Kept.State.Nodes) > 1 {
		p.against(false, "%s does not tell where the other %d nodes of its log are, so that nobody could be asked whether the world is healthy: name one by --join or --url", p.Chosen.Dir, len(p.Chosen.Kept.State.Nodes)-1)
	}
	if voters > 0 && len(there) > voters/2 && p.Chosen.Kept.Dropped == nil {
		p.against(true, "nothing needs to be recovered: %d of %d voters are here (%s), which is a majority; start their esperds, and the world goes on", len(there), voters, strings.Join(there, ", "))
	}
}

// Missing are the voters of which nothing is left here.
func (p *Plan) Missing() []replica.Member {
	var out []replica.Member
	for _, m := range p.members() {
		here := func(s *Survivor) bool { return s.Node == m.Node && s.Kept != nil }
		if m.Voter && !slices.ContainsFunc(p.Survivors, here) {
			out = append(out, m)
		}
	}
	return out
}

// Refused are the reasons that stand, with and without --force.
func (p *Plan) Refused(force bool) []Reason {
	return slices.DeleteFunc(slices.Clone(p.Against), func(r Reason) bool { return force && !r.Final })
}
