package door

import (
	"context"
	"slices"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// stretch is what a rank with ordering "warn" has called since its last fence.
// A call is matched by its operation, its slot and how often that was called
// since then, so that calls in another order than rank 0's get the right
// answers.
type stretch struct {
	from *fsm.State // at that fence

	entries []placed // rank 0's calls since then, in its order, as far as they were looked at
	first   uint64   // number of the first of them
	taken   []bool   // which of the entries answered a call

	made map[occurrence]int // calls made here so far
	seen map[string]uint64  // germinations of a slot after the last call of it made here
	last map[string]uint64  // number of the latest of rank 0's calls of a slot that answered one
}

type occurrence struct {
	op   events.Op
	slot string
}

func newStretch(from *fsm.State, model string) *stretch {
	return &stretch{from: from, first: from.Cursor(model).Calls, made: map[occurrence]int{}, seen: map[string]uint64{}, last: map[string]uint64{}}
}

// land takes note of an answered call. A fence begins the next stretch.
func (st *stretch) land(model string, m *matched) {
	k := m.entry.Key
	if k.Op.Fence() {
		*st = *newStretch(m.after, model)
		return
	}
	st.made[occurrence{k.Op, k.Slot}]++
	st.taken[k.Call-st.first] = true
	st.last[k.Slot] = max(st.last[k.Slot], k.Call)
	if slot := m.after.Model(model).Slot(k.Slot); slot != nil {
		st.seen[k.Slot] = slot.Germinations
	}
}

// untaken returns the entries before the one at position at that answered no call.
func (st *stretch) untaken(at int) []placed {
	var out []placed
	for i, e := range st.entries[:at] {
		if !st.taken[i] {
			out = append(out, e)
		}
	}
	return out
}

// look returns rank 0's call at a position of the stretch, waiting for it.
func (s *Server) look(ctx context.Context, t *track, at int, key events.Key, site string) (placed, *api.Problem) {
	st := t.stretch
	if at < len(st.entries) {
		return st.entries[at], nil
	}
	key.Call = st.first + uint64(at)
	index, p := s.await(ctx, t.round, key, site)
	if p != nil {
		return placed{}, p
	}
	e, p := s.entry(index)
	if p != nil {
		return placed{}, p
	}
	st.entries, st.taken = append(st.entries, placed{index, e}), append(st.taken, false)
	return placed{index, e}, nil
}

// matchOccurrence matches a call with rank 0's call of the same operation, slot
// and occurrence in the stretch. One in another place is recorded; one that
// rank 0 did not make before its fence has no answer, and ends the round.
func (s *Server) matchOccurrence(ctx context.Context, t *track, c fsm.Call) (*matched, *api.Problem) {
	st, want := t.stretch, occurrence{c.Key.Op, c.Key.Slot}
	for at, seen := 0, 0; ; at++ {
		e, p := s.look(ctx, t, at, c.Key, c.Site)
		if p != nil {
			return nil, p
		}
		k := e.entry.Key
		switch {
		case k.Op.Fence() && !c.Key.Op.Fence():
			return nil, s.mismatch(ctx, t.own(c.Key, e), c.Site, e.entry, e.index)
		case k.Op.Fence():
			return s.takeFence(ctx, t, c, e, st.untaken(at))
		case occurrence{k.Op, k.Slot} != want:
		case seen < st.made[want]:
			seen++
		default:
			return s.take(ctx, t, c, e, st.untaken(at))
		}
	}
}

// take answers a call from the entry at e; earlier are the entries before it
// that this rank has not called yet.
func (s *Server) take(ctx context.Context, t *track, c fsm.Call, e placed, earlier []placed) (*matched, *api.Problem) {
	own := t.own(c.Key, e)
	if slices.ContainsFunc(earlier, func(l placed) bool { return l.entry.Key.Slot == own.Slot }) {
		own.Seed = e.entry.Key.Seed // a call of the slot that was left out may have been a germination
	}
	if own == *e.entry.Key && own.Call < t.stretch.last[own.Slot] {
		// Calls of one slot in another order are not the same calls: the answer
		// would lead the slot back to where it was.
		own.Call = t.next
	}
	if own != *e.entry.Key {
		return nil, s.mismatch(ctx, own, c.Site, e.entry, e.index)
	}
	after, p := s.stateAfter(ctx, t.stretch.from, e.index)
	if p != nil {
		return nil, p
	}
	if len(earlier) > 0 {
		own.Call = earlier[0].entry.Key.Call // it stands in that one's place
		s.record(events.CodeOrderMismatch, own, c.Site, earlier[0])
	}
	return &matched{index: e.index, entry: e.entry, after: after, skipped: earlier}, nil
}

// takeFence answers a fence. What rank 0 called in the stretch and this rank did
// not is recorded; its effects come with the fence.
func (s *Server) takeFence(ctx context.Context, t *track, c fsm.Call, e placed, missing []placed) (*matched, *api.Problem) {
	own := t.own(c.Key, e)
	if own != *e.entry.Key {
		return nil, s.mismatch(ctx, own, c.Site, e.entry, e.index)
	}
	after, p := s.stateAfter(ctx, t.stretch.from, e.index)
	if p != nil {
		return nil, p
	}
	for _, m := range missing {
		s.record(events.CodeMissingCall, own, c.Site, m)
	}
	return &matched{index: e.index, entry: e.entry, after: after, skipped: missing}, nil
}

// own is the key of this rank's call for comparison with rank 0's.
func (t *track) own(k events.Key, e placed) events.Key {
	k.Call = e.entry.Key.Call // numbers are each rank's own
	k.Seed = t.stretch.germinations(t.model, k.Slot)
	return k
}

// germinations is the count in the key of this rank's next call of a slot: only
// calls of the slot change it between two fences.
func (st *stretch) germinations(model, slot string) uint64 {
	if n, ok := st.seen[slot]; ok {
		return n
	}
	if sl := st.from.Model(model).Slot(slot); sl != nil {
		return sl.Germinations
	}
	return 0
}

// record tells the log of a call that is not rank 0's, in a round that goes on.
func (s *Server) record(code events.Code, got events.Key, site string, e placed) {
	s.log.Warn("this rank's call is not rank 0's; the round goes on", "code", code, "index", e.index,
		"got", got.String(), "got_site", site, "want", e.entry.Key.String(), "want_site", e.entry.Site)
	s.metrics.mismatches.WithLabelValues(string(code)).Inc()
	s.replica.Report(events.Event{Mismatched: &events.Mismatched{Rank: s.rank, Code: code, Index: e.index,
		Got: got, GotSite: site, Want: *e.entry.Key, WantSite: e.entry.Site}})
}

// retake brings a stretch back to where a reconnecting client was in it, and
// returns the state there.
func (s *Server) retake(ctx context.Context, t *track, indexes []uint64) (*fsm.State, *api.Problem) {
	st := t.stretch
	cursor := st.from
	for _, index := range indexes {
		e, p := s.named(t, index)
		if p != nil {
			return nil, p
		}
		at := -1
		if e != nil && e.Key.Call >= st.first && !e.Key.Op.Fence() {
			if at, p = s.lookUpTo(ctx, t, *e.Key); p != nil {
				return nil, p
			}
		}
		if at < 0 || st.taken[at] {
			return nil, problemf(events.CodeInvalidInput, "matched: expected calls of model %s between the fence of entry %d and the next one, each once, got entry %d: send the indexes of the answers since the last fence", t.model, st.from.Index, index)
		}
		after, p := s.stateAfter(ctx, st.from, index)
		if p != nil {
			return nil, p
		}
		st.land(t.model, &matched{index: index, entry: e, after: after})
		if index > cursor.Index {
			cursor = after
		}
	}
	return cursor, nil
}

// lookUpTo returns the position of a call in the stretch; -1: a fence comes
// before it.
func (s *Server) lookUpTo(ctx context.Context, t *track, key events.Key) (int, *api.Problem) {
	place := int(key.Call - t.stretch.first)
	for at := min(place, len(t.stretch.entries)); ; at++ { // no fence is among those that were looked at before
		e, p := s.look(ctx, t, at, key, "")
		switch {
		case p != nil:
			return 0, p
		case e.entry.Key.Op.Fence():
			return -1, nil
		case at == place:
			return at, nil
		}
	}
}
