package audit

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// shown around the first finding.
const (
	shownBefore = 15
	shownAfter  = 5
	shownBytes  = 64 << 10 // a longer entry is shown without its events
	sitesWithin = 256      // entries after one in which ranks report about it
)

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
		r.Skipped, r.More = best.recorded.skipped, best.recorded.more
		for _, f := range best.recorded.findings {
			if f.Verdict == VerdictDevice {
				f.fenceOf(ctx, best)
			}
			r.Findings = append(r.Findings, f)
		}
		r.Branches = append(r.Branches, best.recorded.branches...)
		for rank, n := range best.recorded.own {
			if n > 0 {
				r.Own = append(r.Own, OwnCount{uint64(rank), n})
			}
		}
	} else {
		a.askRecorded(ctx, r, c.best)
	}
	dropTold(r)
	sortFindings(r.Findings)
	if len(r.Findings) > 0 {
		for i := range r.Findings {
			r.Findings[i].fillAgreed(ctx, c.best)
		}
		// What a log records is the same in all that hold it.
		if i := slices.IndexFunc(r.Findings, func(f Finding) bool { return f.Source != SourceRecorded }); i >= 0 {
			r.Agreed = r.Findings[i].Agreed
		}
		r.Around = a.around(ctx, c.best, r.Findings[0].Index)
	}
	if r.Around == nil {
		r.Around = []api.Entry{}
	}
}

// sortFindings puts first where it began. A log that differs at a fence comes
// before what a device holds there: the one may be why the other does.
func sortFindings(list []Finding) {
	device := func(f *Finding) int {
		if f.Verdict == VerdictDevice {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(list, func(x, y Finding) int {
		return cmp.Or(cmp.Compare(x.Index, y.Index), cmp.Compare(device(&x), device(&y)))
	})
	for i := range list {
		if list[i].Verdict == VerdictDevice {
			list[i].follows(list[:i])
		}
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

// longest is the history of which most is replayed: the log was read there.
func longest(hs []*history) *history {
	var out *history
	for _, h := range hs {
		if h.replayed > 0 && (out == nil || h.replayed-h.adopted > out.replayed-out.adopted) {
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
