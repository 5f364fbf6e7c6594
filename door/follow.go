package door

import (
	"context"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// matchFence matches a fence of a rank that only fences, in the mode follow,
// with rank 0's next one. What rank 0 called before it is skipped.
func (s *Server) matchFence(ctx context.Context, t *track, c fsm.Call) (*matched, *api.Problem) {
	m := &matched{}
	waiting := c.Key
	for k := t.cursor.Cursor(t.model).Calls; m.entry == nil; k++ {
		waiting.Call = k
		index, p := s.await(ctx, t.round, waiting, c.Site)
		if p != nil {
			return nil, p
		}
		e, p := s.entry(index)
		if p != nil {
			return nil, p
		}
		if e.Key.Op.Fence() {
			m.index, m.entry = index, e
		} else {
			m.skipped = append(m.skipped, placed{index, e})
		}
	}
	own := c.Key
	own.Call = m.entry.Key.Call // numbers are each rank's own
	if own != *m.entry.Key {
		return nil, s.mismatch(ctx, own, c.Site, m.entry, m.index)
	}
	var p *api.Problem
	m.after, p = s.stateAfter(ctx, t.cursor, m.index)
	return m, p
}

// ownVerdict moves the shadow to the entry of a call and returns what this rank
// would have decided. Entries in between that answered no call of this rank are
// followed on the way: in the mode follow, what was observed counts for the
// first of them, since rank 0 decides on what was measured before.
func (s *Server) ownVerdict(t *track, m *matched, c call, list []fsm.Observation) *events.Verdict {
	sh := t.shadow
	if sh == nil {
		return nil
	}
	if m.index <= sh.at { // ordering warn: a later call of rank 0 was made here before
		sh.late = append(sh.late, list...)
		if v, ok := c.args.(fsm.Verdict); ok {
			return &v.Verdict
		}
		return nil
	}
	list, sh.late = append(sh.late, list...), nil
	for _, e := range m.skipped {
		if e.index <= sh.at {
			continue
		}
		own := sh.follow(e.entry, e.index, list, asked(e.entry))
		list = nil
		if own != nil && t.mode == events.ModeFollow {
			s.disagree(e.entry, e.index, c.Site, own)
		}
	}
	return sh.follow(m.entry, m.index, list, c.args)
}

// asked tells from an entry what rank 0 asked for, where a gate decided it; nil
// for any other call.
func asked(e *events.Entry) fsm.Args {
	for i := range e.Events {
		if ev := e.Events[i].GateEvaluated; ev != nil && !ev.Own && e.Key.Op == events.OpAdvance {
			return fsm.Advance{Target: &ev.Target, Strict: true}
		}
	}
	return nil
}

// disagree has the log told of an own verdict that is not the decided one.
func (s *Server) disagree(e *events.Entry, index uint64, site string, own *events.Verdict) {
	if decided := verdictOf(e); decided == nil || decided.Passed == own.Passed {
		return
	}
	s.metrics.disagreements.Inc()
	s.replica.Report(events.Event{ShadowVerdict: &events.ShadowVerdict{Rank: s.rank, Index: index, Key: *e.Key, Site: site, Verdict: *own}})
}
