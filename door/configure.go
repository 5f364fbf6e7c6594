package door

import (
	"context"
	"fmt"
	"slices"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/gates"
)

// configure makes call 0 of a model and opens the track. Rank 0's becomes an
// entry; what another rank was given is compared with what the log has then.
func (s *Server) configure(ctx context.Context, t *track, req *api.SessionRequest) *api.Problem {
	if p := standing(s.replica.State(), t.round); p != nil {
		return p
	}
	m := s.replica.State().Model(t.model)
	marked, p := markedSlots(req, m)
	if p != nil {
		return p
	}
	args := fsm.Configure{Slots: expand(req, m, marked), Residency: req.Residency}
	key := events.Key{Round: t.round, Model: t.model, Op: events.OpConfigure, Epoch: -1}
	if m != nil {
		key.Generation, key.Epoch = m.Generation, m.Epoch
	}
	index, p := s.indexOf(ctx, t, fsm.Call{Key: key, Site: req.Site, Args: args})
	if p != nil {
		return p
	}
	e, p := s.entry(index)
	if p != nil {
		return p
	}
	state, p := s.stateAt(ctx, index)
	if p != nil {
		return p
	}
	if refused(e) != nil || state.Model(t.model) == nil {
		return refusal(e, index)
	}
	if s.rank != 0 {
		key.Generation, key.Epoch = e.Key.Generation, e.Key.Epoch // the log's: a trainer does not say which
		if p := s.compareConfig(ctx, state, key, req, e, index); p != nil {
			return p
		}
	}
	s.open(t, place{next: 1, fences: state.Cursor(t.model).Fence, cursor: state, fenced: state.Model(t.model), fencedAt: index, attested: found(&state.Round)})
	s.ledger.answered(api.LastCall{Rank: s.rank, Key: *e.Key, Site: req.Site})
	return nil
}

// compareConfig lets the state machine compare, as it did for rank 0.
func (s *Server) compareConfig(ctx context.Context, state *fsm.State, key events.Key, req *api.SessionRequest, e *events.Entry, index uint64) *api.Problem {
	args := fsm.Configure{Slots: expand(req, state.Model(key.Model), nil)}
	evs, err := fsm.Decide(state, fsm.Call{Key: fsm.NextKey(state, key.Model, "", args), Args: args})
	if err != nil {
		return problemOf(err)
	}
	r := refused(&events.Entry{Events: evs})
	if theirs := state.Cursor(key.Model).Residency > 0; r == nil && theirs != req.Residency && state.Round.Mode() != events.ModeObserve {
		r = &events.Refused{Reason: fmt.Sprintf("residency is %v on rank 0, %v here; connect with the same on all ranks", theirs, req.Residency)}
	}
	if r == nil {
		return nil
	}
	if state.Round.Mode() != events.ModeObserve { // which ends no round
		s.misfit(ctx, events.CodeConfigMismatch, key, req.Site, e, index)
	}
	p := problemf(events.CodeConfigMismatch, "rank %d%s: %s", s.rank, at(req.Site), r.Reason)
	p.Got, p.GotSite, p.Want, p.WantSite = &key, req.Site, e.Key, e.Site
	return p
}

// markedSlots returns the slots of the mark that a trainer comes with, where they
// are all that says how the model is configured: it names none itself, and the
// log does not know the model.
func markedSlots(req *api.SessionRequest, m *fsm.Model) ([]events.SlotConfig, *api.Problem) {
	if m != nil || req.Slots != nil || len(req.Resume) == 0 {
		return nil, nil
	}
	mark, _, err := events.DecodeMark(req.Resume)
	switch {
	case err != nil:
		return nil, problemf(events.CodeMarkMismatch, "resume: rank %d brought %v; nothing was changed", req.Rank, err)
	case mark.Model != req.Model:
		return nil, problemf(events.CodeMarkMismatch, "resume: the mark is of model %.64q, expected one of model %q: resume each model with its own mark; nothing was changed", mark.Model, req.Model)
	}
	return mark.Slots, nil
}

// expand makes the slots of a configuration from what the trainer gave: a
// slot's own settings, else the model's, else the defaults. A trainer that
// names no slots means those of the log's model m, or else those of its mark,
// with its settings for them; nil: it gave nothing, or there is no model yet.
func expand(req *api.SessionRequest, m *fsm.Model, marked []events.SlotConfig) []events.SlotConfig {
	slots := req.Slots
	if slots == nil {
		switch {
		case m == nil && marked != nil:
			return overrideAll(marked, req)
		case m == nil || req.Gates == nil && req.AutoForward == nil:
			return nil
		}
		return overrideAll(m.Config.Slots, req)
	}
	out := make([]events.SlotConfig, len(slots))
	for i, slot := range slots {
		c := events.SlotConfig{Name: slot.Name, Gates: gates.Defaults(), AutoForward: req.AutoForward, Blueprints: slot.Blueprints}
		if req.Gates != nil {
			c.Gates = *req.Gates
		}
		if slot.Gates != nil {
			c.Gates = *slot.Gates
		}
		if slot.AutoForward != nil {
			c.AutoForward = slot.AutoForward
		}
		c.AutoForward = slices.Sorted(slices.Values(c.AutoForward))
		out[i] = c
	}
	return out
}

func overrideAll(slots []events.SlotConfig, req *api.SessionRequest) []events.SlotConfig {
	out := slices.Clone(slots)
	for i := range out {
		if req.Gates != nil {
			out[i].Gates = *req.Gates
		}
		if req.AutoForward != nil {
			out[i].AutoForward = slices.Sorted(slices.Values(req.AutoForward))
		}
	}
	return out
}
