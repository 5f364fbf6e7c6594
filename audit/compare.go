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

// limit is the last entry of a history that is whole, and that the log still has
// which is compared.
func (h *history) limit() uint64 {
	if h.left > 0 {
		return min(h.good, h.left)
	}
	return h.good
}

// parting is where histories that agreed so far do not any more.
type parting struct {
	index  uint64
	agreed Point
	groups []sameGroup // the expected one first
}

// sameGroup is the histories with one value.
type sameGroup struct {
	value   events.Digest
	members []*history
}

// comparison is what comparing histories of one log gave.
type comparison struct {
	agreed   Point // of those that agreed longest
	partings []parting
	best     []*history // those that were never the odd ones out
}

// compare finds where histories part, again and again among those that go on as
// expected. A place that cannot be asked any more is left out, and says so.
func compare(ctx context.Context, hs []*history) comparison {
	out := comparison{best: slices.Clone(hs)}
	active, low := slices.Clone(hs), uint64(0)
	for _, h := range hs {
		low = max(low, h.about.From-1)
	}
	leave := func(list []*history, gone func(*history) bool) []*history {
		return slices.DeleteFunc(slices.Clone(list), gone)
	}
	if len(hs) == 1 {
		out.agreed = Point{hs[0].good, hs[0].chain}
	}
	for len(active) > 1 && ctx.Err() == nil {
		high := slices.MinFunc(active, func(a, b *history) int { return cmp.Compare(a.limit(), b.limit()) }).limit()
		if high < low { // it ends before another one begins
			active = leave(active, func(h *history) bool { return h.limit() < low })
			continue
		}
		p, err := partingIn(ctx, active, low, high)
		if odd, ok := errors.AsType[*placeError](err); ok {
			odd.history.stop(odd.error)
			gone := func(h *history) bool { return h == odd.history }
			active, out.best = leave(active, gone), leave(out.best, gone)
			continue
		}
		for _, h := range active {
			h.compared = max(h.compared, p.index)
		}
		if len(p.groups) == 1 {
			if low = p.index; len(out.partings) == 0 {
				out.agreed = Point{p.index, p.groups[0].value}
			}
			active = leave(active, func(h *history) bool { return h.limit() <= high })
			continue
		}
		if len(out.partings) == 0 {
			out.agreed = p.agreed
		}
		out.partings = append(out.partings, p)
		active, low = p.groups[0].members, p.index
		out.best = leave(out.best, func(h *history) bool {
			return slices.ContainsFunc(p.groups[1:], func(g sameGroup) bool { return slices.Contains(g.members, h) })
		})
	}
	return out
}

// partingIn returns where histories part that agree at low; one group at high if
// they do not up to there.
func partingIn(ctx context.Context, hs []*history, low, high uint64) (parting, error) {
	groups, err := groupAt(ctx, hs, high)
	if err != nil || len(groups) == 1 {
		return parting{index: high, groups: groups}, err
	}
	out := parting{}
	if out.index, err = firstParting(ctx, hs, low, high); err != nil {
		return out, err
	}
	if out.groups, err = groupAt(ctx, hs, out.index); err != nil {
		return out, err
	}
	for _, h := range hs { // the link before a history that begins there is known to all or none
		if l, err := h.place.Link(ctx, out.index-1); err == nil {
			out.agreed = Point{out.index - 1, l.Chain}
			break
		}
	}
	return out, nil
}

// groupAt groups histories by their link at an index, the expected one first:
// one whose entries follow from each other, what most hold, what fewer entries
// are refused in, what rank 0 holds, the first.
func groupAt(ctx context.Context, hs []*history, index uint64) ([]sameGroup, error) {
	var out []sameGroup
	for _, h := range hs {
		l, err := h.place.Link(ctx, index)
		if err != nil {
			return nil, &placeError{h, err}
		}
		i := slices.IndexFunc(out, func(g sameGroup) bool { return g.value == l.Chain })
		if i < 0 {
			i, out = len(out), append(out, sameGroup{value: l.Chain})
		}
		out[i].members = append(out[i].members, h)
	}
	slices.SortStableFunc(out, func(a, b sameGroup) int {
		x, y := a.standing(), b.standing()
		return slices.Compare(x[:], y[:])
	})
	return out, nil
}

// standing orders groups, the most credible first.
func (g *sameGroup) standing() [4]int {
	out := [4]int{0, -len(g.members), 0, 1}
	for _, h := range g.members {
		if slices.ContainsFunc(h.faults, func(f fault) bool { return f.verdict != VerdictCorrupt }) {
			out[0] = 1
		}
		out[2] = max(out[2], int(h.refused))
		if h.about.Rank != nil && *h.about.Rank == 0 {
			out[3] = 0
		}
	}
	return out
}

// stop notes why a place is not checked any further.
func (h *history) stop(err error) {
	if h.stopped == nil {
		h.stopped = err
	}
}

// entriesAt reads up to n entries from an index on, as far as they can be read.
func (h *history) entriesAt(ctx context.Context, index uint64, n uint64) []placedEntry {
	var out []placedEntry
	if index < h.about.From {
		index = h.about.From
	}
	_ = h.place.Records(ctx, index, min(h.limit(), index+n-1), func(b *events.Batch) error {
		for i := range b.Records {
			r := &b.Records[i]
			e, err := events.Decode(r.Entry)
			if err != nil {
				return err
			}
			out = append(out, placedEntry{r.Index, r.Chain, len(r.Entry), e})
		}
		b.Release()
		return nil
	}) // what cannot be read is not shown
	return out
}

// placedEntry is an entry with its place.
type placedEntry struct {
	index uint64
	chain events.Digest
	size  int
	entry *events.Entry
}

// findings makes findings of a parting: one for each group that is not as
// expected.
func (p *parting) findings(ctx context.Context, a *auditor) []Finding {
	best := p.groups[0].members[0]
	expected := entriesOf(best.entriesAt(ctx, p.index, 2))
	before, beforeErr := stateAt(ctx, best.place, p.index-1)
	var out []Finding
	for _, g := range p.groups[1:] {
		odd := g.members[0]
		got := entriesOf(odd.entriesAt(ctx, p.index, 2))
		f := Finding{Source: SourceEntries, Index: p.index, Agreed: p.agreed}
		f.Verdict, f.What = classify(expected, got)
		f.Groups = a.groups(p.groups)
		for _, h := range g.members {
			f.AtFault = append(f.AtFault, a.party(h))
		}
		if len(expected) > 0 {
			f.ofEntry(expected[0])
		}
		if len(expected) > 0 && len(got) > 0 {
			f.setDifferences(diffEntries(expected[0], got[0]))
			if f.Verdict == VerdictPayload {
				if slot, seed := slotOf(expected[0], got[0]); slot != "" {
					f.Slot, f.Seed = slot, seed
				}
			}
		}
		if beforeErr == nil && len(expected) > 0 {
			f.stages(before, expected[0])
		}
		f.Sites = append(f.Sites, a.sites(ctx, best, p.index)...)
		out = append(out, f)
	}
	return out
}

func entriesOf(list []placedEntry) []*events.Entry {
	out := make([]*events.Entry, len(list))
	for i := range list {
		out[i] = list[i].entry
	}
	return out
}

// ofEntry fills in what an entry is about.
func (f *Finding) ofEntry(e *events.Entry) {
	kind := e.Kind
	f.Kind, f.Round = &kind, e.Round
	f.about(e.Key)
	for i := 0; f.Slot == "" && i < len(e.Events); i++ {
		f.Slot, f.Seed = slotOfEvent(&e.Events[i])
	}
}

// stages fills in where the slot stood before and after the entry.
func (f *Finding) stages(before *fsm.State, e *events.Entry) {
	stage := func(s *fsm.State) string {
		if m := s.Model(f.Model); m != nil && m.Config != nil {
			if slot := m.Slot(f.Slot); slot != nil {
				return slot.Stage().String()
			}
		}
		return ""
	}
	f.StageBefore = stage(before)
	if after, _, err := fsm.Apply(before, e); err == nil {
		f.StageAfter = stage(after)
	}
}

// groups names the members of groups, by rank.
func (a *auditor) groups(list []sameGroup) []Group {
	out := make([]Group, len(list))
	for i, g := range list {
		out[i] = Group{Value: fmt.Sprintf("chain %s", g.value.Short()), Expected: i == 0, Ranks: []uint64{}}
		for _, h := range g.members {
			out[i].add(h)
		}
	}
	return out
}

func (g *Group) add(h *history) {
	g.Places = append(g.Places, h.about.Place)
	if h.about.Rank != nil {
		g.Ranks = append(g.Ranks, *h.about.Rank)
	}
}
