package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/esperd/esperd/api"
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

// shown around the first finding.
const (
	shownBefore = 15
	shownAfter  = 5
	shownBytes  = 64 << 10 // a longer entry is shown without its events
	sitesWithin = 256      // entries after one in which ranks report about it
)

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
		h := &history{about: &About{Place: name}}
		if h.place, h.opened = Open(ctx, name, cfg.Options); h.opened == nil {
			h.about = h.place.About()
			defer h.place.Close()
		}
		a.hs = append(a.hs, h)
	}
	a.verifyAll(ctx)
	a.knowNodes()
	r := &Report{Version: ReportVersion, Findings: []Finding{}, Branches: []Branch{}, Own: []OwnCount{}, Coverage: []string{},
		Build: thisBuild(cfg.Version), Reproduce: reproduce(cfg)}
	one, others := a.oneLog()
	for _, h := range others {
		h.stop(fmt.Errorf("it holds run %q, lineage %.12s, and not run %q, lineage %.12s: not compared", h.about.Run, h.about.Lineage, one[0].about.Run, one[0].about.Lineage))
	}
	var c comparison
	if len(one) > 0 {
		r.Run, r.Lineage = one[0].about.Run, one[0].about.Lineage
		c = a.compareAll(ctx, one)
	}
	r.Agreed = c.agreed
	a.collect(ctx, r, c)
	a.cover(ctx, r, one)
	return r
}

// verifyAll verifies every history that has to be. One at a time: each is read,
// decoded and applied by all processors.
func (a *auditor) verifyAll(ctx context.Context) {
	local := slices.ContainsFunc(a.hs, func(h *history) bool { return h.opened == nil && h.about.Kind != "esperd" })
	open := 0
	for _, h := range a.hs {
		if h.opened == nil {
			open++
		}
	}
	longest := slices.Clone(a.hs) // first: the others may turn out to be the same
	slices.SortStableFunc(longest, func(x, y *history) int { return cmp.Compare(y.about.Head, x.about.Head) })
	for _, h := range longest {
		switch {
		case h.opened != nil:
		case h.about.Kind != "esperd" || a.cfg.Full || !local && open == 1:
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
	if h.state != nil && h.state.Lineage != "" { // what the entries say counts, not what is noted beside them
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

// collect makes the report's findings.
func (a *auditor) collect(ctx context.Context, r *Report, c comparison) {
	parted := map[*history]uint64{} // where the odd ones out went another way
	for i := range c.partings {
		p := &c.partings[i]
		r.Findings = append(r.Findings, p.findings(ctx, a)...)
		for _, g := range p.groups[1:] {
			for _, h := range g.members {
				parted[h] = p.index
			}
		}
	}
	for _, h := range a.hs {
		at, odd := parted[h]
		for _, f := range mergeImages(h.faults) {
			if odd && f.verdict != VerdictCorrupt && f.index+1 >= at {
				continue // it follows from the entries that this place has
			}
			a.addFault(ctx, r, h, f)
		}
	}
	if best := longest(c.best); best != nil {
		r.Skipped = best.recorded.since(a.cfg.Since)
		r.Findings = append(r.Findings, best.recorded.findings...)
		r.More = best.recorded.more
		r.Branches = append(r.Branches, best.recorded.branches...)
		for rank, n := range best.recorded.own {
			if n > 0 {
				r.Own = append(r.Own, OwnCount{uint64(rank), n})
			}
		}
	}
	dropTold(r)
	slices.SortStableFunc(r.Findings, func(x, y Finding) int { return cmp.Compare(x.Index, y.Index) })
	if len(r.Findings) > 0 {
		first := &r.Findings[0]
		for i := range r.Findings {
			r.Findings[i].fillAgreed(ctx, c.best)
		}
		r.Agreed = first.Agreed
		r.Around = a.around(ctx, c.best, first.Index)
	}
	if r.Around == nil {
		r.Around = []api.Entry{}
	}
}

// dropTold leaves out what the log tells of a divergence that the audit has found
// by itself, with more about it.
func dropTold(r *Report) {
	found := slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Source == SourceReplay && f.Verdict == VerdictApply })
	r.Findings = slices.DeleteFunc(r.Findings, func(f Finding) bool {
		return found && f.Source == SourceRecorded && f.Verdict == VerdictApply
	})
}

// longest is the history of which most is replayed.
func longest(hs []*history) *history {
	var out *history
	for _, h := range hs {
		if h.replayed > 0 && (out == nil || h.replayed > out.replayed) {
			out = h
		}
	}
	return out
}

// mergeImages lets a wrong state image say in which fields an entry was applied
// wrongly, instead of being a finding of its own.
func mergeImages(list []fault) []fault {
	var out []fault
	for _, f := range list {
		if f.which != whichImage {
			out = append(out, f)
		}
	}
	for _, f := range list {
		if f.which != whichImage {
			continue
		}
		i := slices.IndexFunc(out, func(o fault) bool { return o.verdict == VerdictApply && o.node == "" && o.index <= f.index })
		if i < 0 {
			out = append(out, f)
		} else if out[i].fields == nil {
			out[i].fields = f.fields
			if f.index > out[i].index {
				out[i].what += fmt.Sprintf("; the fields are those of its state after entry %d", f.index)
			}
		}
	}
	return out
}

// addFault makes a finding of what is wrong with one history by itself. Several
// places may blame one node.
func (a *auditor) addFault(ctx context.Context, r *Report, h *history, f fault) {
	culprit := a.party(h)
	if f.node != "" && f.node != h.about.Node {
		culprit = Party{Rank: a.nodes[f.node].rank, Node: f.node, Host: a.nodes[f.node].host}
		for _, other := range a.hs {
			if other.about.Node == f.node {
				culprit.Place = other.about.Place
			}
		}
	}
	source := SourceReplay
	if f.verdict == VerdictCorrupt {
		source = SourceStore
	}
	for i := range r.Findings {
		old := &r.Findings[i]
		if old.Source == source && old.Index == f.index && old.Verdict == f.verdict && len(old.AtFault) == 1 && samePlaceOrNode(old.AtFault[0], culprit) {
			if len(old.Differences) == 0 {
				old.setDifferences(f.fields)
				old.slotOfDifferences()
			}
			return
		}
	}
	out := Finding{Verdict: f.verdict, Source: source, Index: f.index, What: f.what, AtFault: []Party{culprit}, Model: f.model}
	out.setDifferences(f.fields)
	if f.verdict != VerdictCorrupt && f.index > 0 && f.index <= h.limit() {
		a.context(ctx, h, &out)
		out.Groups = a.digestGroups(ctx, f)
	}
	out.slotOfDifferences()
	r.Findings = append(r.Findings, out)
}

func samePlaceOrNode(a, b Party) bool {
	return a.Node != "" && a.Node == b.Node || a.Place != "" && a.Place == b.Place
}

// context fills in what the entry of a fault is about.
func (a *auditor) context(ctx context.Context, h *history, f *Finding) {
	list := h.entriesAt(ctx, f.Index, 1)
	if len(list) == 0 {
		return
	}
	model := f.Model
	f.ofEntry(list[0].entry)
	f.Model = cmp.Or(model, f.Model)
	if before, err := stateAt(ctx, h.place, f.Index-1); err == nil {
		f.stages(before, list[0].entry)
	}
	f.Sites = a.sites(ctx, h, f.Index)
}

// slotOfDifferences prefers the slot of the first field that differs, such as
// main.r0c1.seed.amplitude.alpha, to that of the call.
func (f *Finding) slotOfDifferences() {
	if f.Source != SourceReplay {
		return
	}
	for _, d := range f.Differences {
		rest, ok := strings.CutPrefix(d.Field, f.Model+".")
		if slot, _, found := strings.Cut(rest, "."); ok && found {
			if slot != f.Slot {
				f.Slot, f.Seed, f.StageBefore, f.StageAfter = slot, 0, "", ""
			}
			return
		}
	}
}

// digestGroups groups the places by the digest that a fault is about.
func (a *auditor) digestGroups(ctx context.Context, f fault) []Group {
	if f.which != "lifecycle" && f.which != "bookkeeping" {
		return nil
	}
	var out []Group
	for _, h := range a.hs {
		if h.opened != nil || h.limit() < f.index || f.index < h.about.From {
			continue
		}
		l, err := h.place.Link(ctx, f.index)
		if err != nil {
			continue
		}
		got := l.Bookkeeping
		if f.which == "lifecycle" {
			got = l.Lifecycle
		}
		value := fmt.Sprintf("%s digest %s", f.which, got.Short())
		i := slices.IndexFunc(out, func(g Group) bool { return g.Value == value })
		if i < 0 {
			i, out = len(out), append(out, Group{Value: value, Expected: got == f.want, Ranks: []uint64{}})
		}
		out[i].add(h)
	}
	return out
}

// sites gathers where ranks called from, and what they would have decided.
func (a *auditor) sites(ctx context.Context, h *history, index uint64) []Site {
	var out []Site
	for _, p := range h.entriesAt(ctx, index, sitesWithin) {
		if p.index == index && p.entry.Key != nil {
			out = append(out, Site{Rank: 0, Call: p.entry.Key, Site: p.entry.Site})
			for i := range p.entry.Events {
				if g := p.entry.Events[i].GateEvaluated; g != nil {
					out[0].Verdict = &g.Verdict
				}
			}
		}
		for i := range p.entry.Events {
			if v := p.entry.Events[i].ShadowVerdict; v != nil && v.Index == index {
				out = append(out, Site{Rank: v.Rank, Call: &v.Key, Site: v.Site, Verdict: &v.Verdict})
			}
		}
	}
	return out
}

// fillAgreed says what was the same before.
func (f *Finding) fillAgreed(ctx context.Context, best []*history) {
	if f.Agreed.Index > 0 || f.Index <= 1 {
		return
	}
	for _, h := range best {
		if f.Index-1 <= h.limit() && f.Index >= h.about.From {
			if l, err := h.place.Link(ctx, f.Index-1); err == nil {
				f.Agreed = Point{f.Index - 1, l.Chain}
				return
			}
		}
	}
}

// around shows the entries around an index.
func (a *auditor) around(ctx context.Context, best []*history, index uint64) []api.Entry {
	var out []api.Entry
	from := index - min(index-min(index, 1), shownBefore)
	for _, h := range best {
		if h.limit() < from {
			continue
		}
		for _, p := range h.entriesAt(ctx, from, index+shownAfter-from+1) {
			e := api.Entry{Index: p.index, Chain: p.chain, Entry: *p.entry}
			if e.Events == nil || p.size > shownBytes {
				e.Events = []events.Event{}
			}
			if e.Predecessor != p.index-1 {
				e.Refused = fmt.Sprintf("decided on entry %d, but follows entry %d", e.Predecessor, p.index-1)
			}
			out = append(out, e)
		}
		if len(out) > 0 {
			break
		}
	}
	return out
}
