package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// Config says what to audit.
type Config struct {
	Places  []string
	Options Options
	Full    bool   // also download and replay what two esperds agree on
	Since   uint64 // findings that the log itself records about entries before are only counted
	Version string // of this esperd

	// Progress is told how many entries of all that are to be read are done; nil:
	// nobody.
	Progress func(place string, done, of uint64)
}

// auditor is one audit on its way.
type auditor struct {
	cfg      Config
	hs       []*history // as given
	replayed *history   // the first that is whole; nil: none yet
	nodes    map[events.NodeID]nodeFacts
}

// Run audits places. Whatever it meets is in the report; it has no other error.
func Run(ctx context.Context, cfg Config) *Report {
	a := &auditor{cfg: cfg}
	for _, name := range cfg.Places {
		h := &history{about: &About{Place: name}, recorded: recorder{before: cfg.Since}}
		if h.place, h.opened = Open(ctx, name, cfg.Options); h.opened == nil {
			h.about = h.place.About()
			defer h.place.Close()
		}
		a.hs = append(a.hs, h)
	}
	a.verifyAll(ctx)
	a.knowNodes()
	return a.report(ctx, a.compareAll)
}

// report makes a report of what was verified, of which compare says who agrees
// with whom.
func (a *auditor) report(ctx context.Context, compare func(context.Context, []*history) comparison) *Report {
	r := &Report{Version: ReportVersion, Findings: []Finding{}, Branches: []Branch{}, Own: []OwnCount{}, Coverage: []string{},
		Build: thisBuild(a.cfg.Version), Reproduce: reproduce(a.cfg)}
	one, others := a.oneLog()
	for _, h := range others {
		h.stop(fmt.Errorf("it holds run %q, lineage %.12s, and not run %q, lineage %.12s: not compared", h.about.Run, h.about.Lineage, one[0].about.Run, one[0].about.Lineage))
	}
	var c comparison
	if len(one) > 0 {
		r.Run, r.Lineage = one[0].about.Run, one[0].about.Lineage
		c = compare(ctx, one)
	}
	if r.Agreed = c.agreed; len(one) == 1 && len(others) > 0 {
		r.Agreed = Point{} // with nobody
	}
	a.collect(ctx, r, c)
	a.cover(ctx, r, one)
	return r
}

// verifyAll verifies every history that has to be. One at a time: each is read,
// decoded and applied by all processors.
func (a *auditor) verifyAll(ctx context.Context) {
	local := slices.ContainsFunc(a.hs, func(h *history) bool { return h.opened == nil && h.about.Kind != "esperd" })
	type log struct{ run, lineage string }
	holders := map[log]int{}
	for _, h := range a.hs {
		if h.opened == nil {
			holders[log{h.about.Run, h.about.Lineage}]++
		}
	}
	longest := slices.Clone(a.hs) // first: the others may turn out to be the same
	slices.SortStableFunc(longest, func(x, y *history) int { return cmp.Compare(y.about.Head, x.about.Head) })
	for _, h := range longest {
		switch {
		case h.opened != nil:
		case h.about.Kind != "esperd" || a.cfg.Full || !local && holders[log{h.about.Run, h.about.Lineage}] == 1:
			a.verify(ctx, h)
		default: // its chain and digests are compared with the others'
			h.good, h.chain, h.asked = h.about.Head, h.about.HeadChain, true
		}
	}
}

func (a *auditor) verify(ctx context.Context, h *history) {
	h.asked = false
	progress := func(done uint64) {
		if a.cfg.Progress != nil {
			a.cfg.Progress(h.about.Place, done, h.about.Head)
		}
	}
	if a.replayed == nil || !verifySame(ctx, h, a.replayed, progress) {
		verify(ctx, h, progress)
	}
	if a.replayed == nil && h.faultless() {
		a.replayed = h
	}
	h.identify()
}

// identify: what the entries say counts, not what is noted beside them.
func (h *history) identify() {
	if h.state != nil && h.state.Lineage != "" {
		h.about.Run, h.about.Lineage = h.state.Run, lineageAt(h.state, h.good)
	}
}

// lineageAt is that of a log at an entry, of which s is a later state.
func lineageAt(s *fsm.State, index uint64) string {
	for _, before := range s.Ancestors {
		if before.Index >= index {
			return before.Lineage
		}
	}
	return s.Lineage
}

// knowNodes learns from the logs which rank a node has.
func (a *auditor) knowNodes() {
	a.nodes = map[events.NodeID]nodeFacts{}
	for _, h := range a.hs {
		for id, facts := range h.recorded.nodes {
			known := a.nodes[id]
			if facts.rank != nil {
				known.rank = facts.rank
			}
			known.host = cmp.Or(known.host, facts.host)
			a.nodes[id] = known
		}
	}
	for _, h := range a.hs {
		if known := a.nodes[h.about.Node]; h.about.Rank == nil && h.about.Node != "" {
			h.about.Rank = known.rank
		}
	}
}

func (a *auditor) party(h *history) Party {
	return Party{Rank: h.about.Rank, Node: h.about.Node, Host: a.nodes[h.about.Node].host, Place: h.about.Place}
}

// oneLog returns the histories of the log that most of them hold.
func (a *auditor) oneLog() (one, others []*history) {
	type log struct{ run, lineage string }
	members := map[log][]*history{}
	var first []log
	for _, h := range a.hs {
		if h.opened != nil || h.good < h.about.From {
			continue // nothing of it could be read
		}
		id := log{h.about.Run, h.about.Lineage}
		if members[id] == nil {
			first = append(first, id)
		}
		members[id] = append(members[id], h)
	}
	for _, id := range slices.Clone(first) { // a log that was recovered holds the one before, up to there
		i := slices.IndexFunc(members[id], func(h *history) bool { return h.state != nil })
		if i < 0 {
			continue
		}
		for _, before := range members[id][i].state.Ancestors {
			old := log{id.run, before.Lineage}
			if before.Index == 0 || old == id {
				continue
			}
			for _, h := range members[old] {
				h.left = before.Index
				members[id] = append(members[id], h)
			}
			delete(members, old)
			first = slices.DeleteFunc(first, func(l log) bool { return l == old })
		}
	}
	slices.SortStableFunc(first, func(x, y log) int { return cmp.Compare(len(members[y]), len(members[x])) })
	for i, id := range first {
		if i == 0 {
			one = members[id]
		} else {
			others = append(others, members[id]...)
		}
	}
	return one, others
}

// compareAll compares the entries, and where somebody's replay is not known, the
// digests after them.
func (a *auditor) compareAll(ctx context.Context, one []*history) comparison {
	c := compare(ctx, one)
	for _, h := range one {
		if !h.asked {
			continue
		}
		i := slices.IndexFunc(one, func(o *history) bool { return o != h && !o.asked && o.replayed > 0 && o.stopped == nil })
		if i < 0 {
			i = slices.IndexFunc(one, func(o *history) bool { return o != h })
		}
		if i < 0 {
			continue
		}
		other := one[i]
		to := min(h.compared, other.compared)
		for _, p := range c.partings {
			to = min(to, p.index-1)
		}
		from := max(h.about.From, other.about.From)
		at, err := firstOtherDigest(ctx, h, other, from, to)
		if odd, ok := errors.AsType[*placeError](err); ok {
			odd.history.stop(odd.error)
			continue
		}
		if at == 0 {
			h.digested = to
			continue
		}
		for _, x := range []*history{h, other} { // whose replay is another is at fault
			if x.asked {
				a.verify(ctx, x)
			}
		}
		a.knowNodes()
	}
	return c
}
