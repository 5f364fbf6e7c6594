package door

import (
	"context"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/internal/riders"
)

const nameMax = 256 // bytes, as package fsm has it

// call is one numbered call of the trainer.
type call struct {
	*api.Call
	slot string
	args fsm.Args

	unreadable string // what is wrong with a resume's mark; empty if nothing is
}

// answered is the last answer of a track.
type answered struct {
	key     events.Key
	index   uint64
	body    any // *api.Decision, *api.Done or *api.Fence
	problem *api.Problem
	slots   *fenceSlots // what the fence's list is made of, for each client that asks; nil: it has one, or is no fence
}

// result is the answer for a client that has kept the slots of the fence at
// since; 0: of none.
func (a *answered) result(since uint64) (any, error) {
	if a.problem != nil {
		return nil, a.problem
	}
	if f, ok := a.body.(*api.Fence); ok && a.slots != nil {
		whole := *f
		whole.Slots, whole.Since = a.slots.list(since)
		return &whole, nil
	}
	return a.body, nil
}

// numbered answers one numbered call, the same on every rank.
func (s *Server) numbered(ctx context.Context, c call) (any, error) {
	if len(c.slot) > nameMax || !utf8.ValidString(c.slot) { // it could not stand in an entry
		return nil, problemf(events.CodeInvalidInput, "slot: expected a name of at most %d bytes of UTF-8, got %.64q", nameMax, c.slot)
	}
	ses, t, p := s.track(c.Session, c.Model)
	if p != nil {
		return nil, p
	}
	missing := s.forRank0()
	if c.args.Op() == events.OpResume {
		missing = s.forMarks(c.Model)
	}
	ctx, done := s.callContext(ctx, ses.ctx, missing)
	defer done()
	if p := t.lock(ctx); p != nil {
		return nil, p
	}
	defer t.unlock()

	a, p := s.answerCall(ctx, t, c)
	op := c.args.Op()
	if p != nil {
		s.metrics.answered(op, nil, p)
		return nil, s.evidence(ctx, p, t.model)
	}
	s.metrics.answered(op, a.body, a.problem)
	return a.result(c.Since)
}

func (s *Server) answerCall(ctx context.Context, t *track, c call) (*answered, *api.Problem) {
	key := fsm.NextKey(t.cursor, t.model, c.slot, c.args)
	key.Call = t.next // a follower's own number
	if t.last != nil && c.Call.Call+1 == t.next {
		return s.repeat(ctx, t, c, key)
	}
	if p := standing(s.replica.State(), t.round); p != nil {
		return nil, p
	}
	if p := s.diverged(); p != nil && t.tells.Load() == nil {
		return nil, p
	}
	key.Fence = t.fences
	if c.Call.Call != key.Call || c.Fence != key.Fence {
		return nil, problemf(events.CodeInvalidInput, "model %s: expected call %d after %d fences (or the last call once more), got call %d after %d: number calls and fences without a gap",
			t.model, key.Call, key.Fence, c.Call.Call, c.Fence)
	}
	if p := s.permitted(t, c); p != nil {
		return nil, p
	}
	if p := s.deserted(ctx, t, key, c.Site); p != nil {
		return nil, p
	}
	if t.tells.Load() != nil {
		if c.unreadable != "" {
			return nil, unreadable(&offer{Rank: s.rank, Sum: c.args.(fsm.Resume).Sum, Reason: c.unreadable})
		}
		return s.tell(t, c, key), nil
	}
	s.settleAttested(ctx, t, c.args.Op())
	list := observations(t.observed.Board(), c.Observations)
	whole := fsm.Call{Key: key, Site: c.Site, Observations: list, Args: c.args}
	m, p := s.match(ctx, t, whole, c.unreadable)
	if p != nil {
		return nil, p
	}
	a := s.answer(t, m, c, list)
	a.key = key
	t.observed.Land()
	t.land(m, a)
	s.ledger.answered(api.LastCall{Rank: s.rank, Key: key, Site: c.Site})
	return a, nil
}

// permitted refuses calls that the round's mode has no place for. Their numbers
// stay free.
func (s *Server) permitted(t *track, c call) *api.Problem {
	op := c.args.Op()
	switch {
	case t.mode == events.ModeFollow && s.rank != 0 && !op.Fence():
		return problemf(events.CodeNotAuthority, "%s%s: in the mode follow rank 0 alone makes this call, and this is rank %d: put it under `if rank == 0`, and apply the changes that the next fence returns (or connect with mode keyed on all ranks)",
			op, at(c.Site), s.rank)
	case t.mode != events.ModeObserve && c.Outcomes != nil:
		return problemf(events.CodeInvalidInput, "%s: outcomes belong to the mode observe, and round %d is in the mode %s: leave them out", op, t.round, t.mode)
	}
	return nil
}

// deserted ends the round when rank 0 makes a call that another rank certainly
// does not make: its trainer has closed its session, with all of its calls
// answered from what was in the log until now.
func (s *Server) deserted(ctx context.Context, t *track, key events.Key, site string) *api.Problem {
	if s.rank != 0 || t.mode == events.ModeObserve || t.mode == events.ModeFollow && !key.Op.Fence() {
		return nil
	}
	state := s.replica.State()
	for _, m := range state.Round.Members {
		if m.Rank == 0 || state.Round.Tally(m.Rank).Ended == 0 {
			continue
		}
		last := api.LastCall{Key: events.Key{Round: t.round, Model: t.model, Op: events.OpConfigure, Epoch: -1}}
		for _, l := range s.lastOfRanks(ctx, t.model) {
			if l.Rank == m.Rank {
				last = l
			}
		}
		f := events.RoundFaulted{Round: t.round, Code: events.CodeUnavailable, Rank: m.Rank, Node: m.Node, Index: state.Index,
			Got: last.Key, GotSite: last.Site, Want: key, WantSite: site,
			Reason: fmt.Sprintf("it closed its session in order, and rank 0 goes on with %s", describe(key, site))}
		s.fault(ctx, f)
		return roundFaulted(&f)
	}
	return nil
}

// matched is rank 0's entry that answers a call, with the state after it.
type matched struct {
	index uint64
	entry *events.Entry
	after *fsm.State

	// skipped are the entries of the model before it that answered no call of
	// this rank; the first of them may be any, the others follow without a gap.
	skipped []placed
}

type placed struct {
	index uint64
	entry *events.Entry
}

// match finds the entry that answers a call; for a resume, once all ranks have
// brought the same mark.
func (s *Server) match(ctx context.Context, t *track, c fsm.Call, unreadable string) (*matched, *api.Problem) {
	if c.Key.Op == events.OpResume {
		return s.resumeHere(ctx, t, c, unreadable)
	}
	t.offer.Store(nil) // of a resume that the trainer has given up
	return s.matchEntry(ctx, t, c)
}

// matchEntry finds it as the session's mode and ordering want it.
func (s *Server) matchEntry(ctx context.Context, t *track, c fsm.Call) (*matched, *api.Problem) {
	switch {
	case s.rank == 0 || t.mode == events.ModeKeyed && !t.warns:
		return s.matchNumber(ctx, t, c)
	case t.mode == events.ModeFollow:
		return s.matchFence(ctx, t, c)
	default:
		return s.matchOccurrence(ctx, t, c)
	}
}

// matchNumber matches a call with the entry of its number: rank 0's own becomes
// one.
func (s *Server) matchNumber(ctx context.Context, t *track, c fsm.Call) (*matched, *api.Problem) {
	index, p := s.indexOf(ctx, t, c)
	if p != nil {
		return nil, p
	}
	e, p := s.entry(index)
	if p != nil {
		return nil, p
	}
	if c.Key != *e.Key {
		return nil, s.mismatch(ctx, c.Key, c.Site, e, index)
	}
	after, p := s.stateAfter(ctx, t.cursor, index)
	if p != nil {
		return nil, p
	}
	return &matched{index: index, entry: e, after: after}, nil
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
	if t.tells.Load() != nil { // nothing of it is in the log, and nothing ends because of it
		return nil, problemf(events.CodeInvalidInput, "model %s: %s is another call than the one that was answered under that number, %s: number calls without a gap",
			t.model, describe(key, c.Site), describe(t.last.key, ""))
	}
	e, p := s.entry(t.last.index)
	if p != nil {
		return nil, p
	}
	key.Call = e.Key.Call // numbers may be each rank's own
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
		return s.await(ctx, t.round, c.Key, c.Site)
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
	if failed := problemOf(err); failed.Code() == events.CodeDiverged {
		return 0, s.verdict(ctx, failed)
	}
	var wrong *fsm.KeyError
	if errors.As(err, &wrong) {
		s.log.Error("a call of rank 0 did not become an entry", "key", c.Key.String(), "error", err)
	}
	return 0, problemOf(err)
}
