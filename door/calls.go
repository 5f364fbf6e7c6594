package door

import (
	"context"
	"errors"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/internal/riders"
)

// call is one numbered call of the trainer.
type call struct {
	*api.Call
	slot string
	args fsm.Args
}

// answered is the last answer of a track.
type answered struct {
	key     events.Key
	index   uint64
	body    any // *api.Decision, *api.Done or *api.Fence
	problem *api.Problem
}

func (a *answered) result() (any, error) {
	if a.problem != nil {
		return nil, a.problem
	}
	return a.body, nil
}

// numbered answers one numbered call, the same on every rank.
func (s *Server) numbered(ctx context.Context, c call) (any, error) {
	ses, p := s.sessions.find(c.Session)
	if p != nil {
		return nil, p
	}
	t, p := ses.opened(c.Model)
	if p != nil {
		return nil, p
	}
	ctx, done := s.callContext(ctx, ses.ctx)
	defer done()
	if p := t.lock(ctx); p != nil {
		return nil, p
	}
	defer t.unlock()

	a, p := s.answerCall(ctx, t, c)
	op := c.args.Op()
	if p != nil {
		s.metrics.answered(op, nil, p)
		return nil, p
	}
	s.metrics.answered(op, a.body, a.problem)
	return a.result()
}

func (s *Server) answerCall(ctx context.Context, t *track, c call) (*answered, *api.Problem) {
	key := fsm.NextKey(t.cursor, t.model, c.slot, c.args)
	if t.last != nil && c.Call.Call == t.last.key.Call {
		return s.repeat(ctx, t, c, key)
	}
	if p := standing(s.replica.State(), t.round); p != nil {
		return nil, p
	}
	if c.Call.Call != key.Call || c.Fence != key.Fence {
		return nil, problemf(events.CodeInvalidInput, "model %s: expected call %d after %d fences (or the last call once more), got call %d after %d: number calls and fences without a gap",
			t.model, key.Call, key.Fence, c.Call.Call, c.Fence)
	}
	list := observations(t.observed.Board(), c.Observations)
	index, p := s.indexOf(ctx, t, fsm.Call{Key: key, Site: c.Site, Observations: list, Args: c.args})
	if p != nil {
		return nil, p
	}
	e, p := s.entry(index)
	if p != nil {
		return nil, p
	}
	if key != *e.Key {
		return nil, s.mismatch(ctx, key, c.Site, e, index)
	}
	next, p := s.stateAfter(ctx, t.cursor, index)
	if p != nil {
		return nil, p
	}
	a := s.answer(t, e, index, next, c, list)
	t.observed.Land()
	t.cursor, t.last = next, a
	s.ledger.answered(api.LastCall{Rank: s.rank, Key: key, Site: c.Site})
	return a, nil
}

// observations merges lists, the oldest first: an entry holds one of each slot
// then, however many the client sent.
func observations(lists ...[]api.Observation) []fsm.Observation {
	merged := riders.Merge(lists...)
	out := make([]fsm.Observation, len(merged))
	for i := range merged {
		out[i] = merged[i].FSM()
	}
	return out
}

// repeat answers a call that was answered already, for a client that lost the
// answer.
func (s *Server) repeat(ctx context.Context, t *track, c call, next events.Key) (*answered, *api.Problem) {
	key := t.last.key
	key.Fence, key.Op, key.Slot, key.Args = c.Fence, next.Op, next.Slot, next.Args
	if key.Slot != t.last.key.Slot {
		key.Seed = next.Seed
	}
	if step, ok := c.args.(fsm.StepEpoch); ok {
		key.Epoch = step.Epoch
	}
	if key == t.last.key {
		return t.last, nil
	}
	e, p := s.entry(t.last.index)
	if p != nil {
		return nil, p
	}
	if p := standing(s.replica.State(), t.round); p != nil {
		return nil, p
	}
	return nil, s.mismatch(ctx, key, c.Site, e, t.last.index)
}

// standing says why calls of a round are welcome no longer; nil if they are.
func standing(head *fsm.State, round uint64) *api.Problem {
	switch {
	case head.Round.Number != round:
		return problemf(events.CodeNotAuthority, "this trainer belongs to round %d, but round %d is open: the trainers of all ranks have connected anew; end this process", round, head.Round.Number)
	case head.Round.Fault != nil:
		return roundFaulted(head.Round.Fault)
	}
	return nil
}

// indexOf returns the index of the entry of a call. Rank 0's call becomes one;
// any other rank's waits for it.
func (s *Server) indexOf(ctx context.Context, t *track, c fsm.Call) (uint64, *api.Problem) {
	if s.rank != 0 {
		return s.await(ctx, t, c.Key, c.Site)
	}
	done := s.waiting(ctx, waitDecision, &c.Key, c.Site)
	defer done()
	began := time.Now()
	index, err := s.replica.Decide(ctx, c)
	s.metrics.decide.Observe(time.Since(began).Seconds())
	switch {
	case err == nil:
		return index, nil
	case ctx.Err() != nil:
		return 0, ended(ctx, func() *api.Problem {
			return problemf(events.CodeDecisionTimeout, "rank 0's %s is not in the log after %s (%v): see esperd status, and repeat the call under the same number",
				describe(c.Key, c.Site), s.waitMax, err)
		})
	}
	if p := standing(s.replica.State(), t.round); p != nil {
		return 0, p
	}
	var wrong *fsm.KeyError
	if errors.As(err, &wrong) {
		s.log.Error("a call of rank 0 did not become an entry", "key", c.Key.String(), "error", err)
	}
	return 0, problemOf(err)
}
