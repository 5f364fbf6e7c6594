package door

import (
	"cmp"
	"context"
	"math"
	"sync/atomic"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

const (
	tellMax   = 4096 // calls that may wait for the log
	tellRetry = time.Second
)

// teller records what a trainer of the mode observe tells, behind its back: the
// trainer is answered at once and waits for nothing. On rank 0 its calls become
// entries; on the others they are compared with rank 0's, which says what a
// broadcast would have made of them.
type teller struct {
	model string
	calls chan told
	at    *fsm.State  // rank 0's cursor of the model, as far as this rank's calls were compared
	lost  bool        // where between two fences that is cannot be said
	deaf  atomic.Bool // nothing is recorded any more

	parted map[string][4]float64 // by slot, what was reported last: both stages and alphas
}

type told struct {
	call
	list []fsm.Observation
	done chan struct{} // not nil: no call, but a question when those before it are recorded
	gap  bool          // no call: the trainer could not tell of some that it made
}

// newTeller starts to record for a track, whose place is known. It ends with the
// session.
func (s *Server) newTeller(t *track) *teller {
	w := &teller{model: t.model, calls: make(chan told, tellMax), at: t.cursor, parted: map[string][4]float64{}}
	round, ctx := t.round, t.ctx
	s.work.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case x := <-w.calls:
				if x.done != nil {
					close(x.done)
					continue
				}
				if x.gap {
					w.lost = s.rank != 0 // its next calls are none that can be placed before the next fence
					continue
				}
				if w.deaf.Load() {
					continue
				}
				if p := s.recordCall(ctx, w, round, x); p != nil && ctx.Err() == nil {
					w.deaf.Store(true)
					s.log.Warn("what this trainer does is not recorded any more in this round", "model", w.model, "reason", p.Detail)
				}
			}
		}
	})
	return w
}

// restoreTold lets a trainer go on that was connected to an earlier esperd
// process. What that one had not recorded is lost.
func (s *Server) restoreTold(ctx context.Context, t *track, req *api.SessionRequest) *api.Problem {
	if p := s.applied(ctx, req.FenceIndex); p != nil {
		return p
	}
	at := s.replica.State()
	if at.Model(t.model) == nil {
		return noModel(at, t.model)
	}
	if s.rank != 0 { // about where this rank was, if both make the same calls
		index, ok, err := s.replica.Find(events.CallID{Round: t.round, Model: t.model, Call: *req.Answered})
		if err != nil {
			return problemOf(err)
		}
		if ok {
			var p *api.Problem
			if at, p = s.stateAt(ctx, index); p != nil {
				return p
			}
		}
	}
	s.open(t, place{next: *req.Answered + 1, fences: req.Fences, cursor: at, fenced: at.Model(t.model), fencedAt: at.Index})
	t.tells.Load().missed() // what was told meanwhile
	return nil
}

// tell takes a call and echoes it.
func (s *Server) tell(t *track, c call, key events.Key) *answered {
	list := observations(t.observed.Board(), c.Observations)
	t.observed.Land()
	w := t.tells.Load()
	select {
	case w.calls <- told{call: c, list: list}:
	default:
		if !w.deaf.Swap(true) {
			s.log.Error("the log has not taken what this trainer told: it is not recorded any more in this round, and training goes on",
				"model", t.model, "waiting_calls", tellMax)
		}
	}
	a := &answered{key: key, body: s.echo(t, c)}
	t.before = t.place
	t.next++
	if key.Op.Fence() {
		t.fences++
	}
	t.last = a
	return a
}

// echo answers a call with the trainer's own outcome; index 0 says that it is
// not from the log.
func (s *Server) echo(t *track, c call) any {
	own := events.Outcome{Slot: c.slot, Stage: events.StageDormant}
	for _, o := range c.Outcomes {
		if o.Slot == c.slot {
			own = o
			break
		}
	}
	switch c.args.(type) {
	case fsm.StepEpoch, fsm.Fence, fsm.Reset, fsm.Resume:
		f := &api.Fence{Epoch: -1, Changes: []api.Change{}, Slots: []api.Slot{}}
		if step, ok := c.args.(fsm.StepEpoch); ok {
			f.Epoch = step.Epoch
		}
		for _, o := range c.Outcomes {
			f.Slots = append(f.Slots, api.Slot{Name: o.Slot, Stage: o.Stage, Alpha: finite(o.Alpha)})
		}
		return f
	case fsm.Advance, fsm.Verdict:
		d := &api.Decision{Verdict: listed(events.Verdict{}), Slot: c.slot, Stage: own.Stage, Agreed: true}
		if v, ok := c.args.(fsm.Verdict); ok {
			d.Verdict = listed(v.Verdict)
		}
		if own.Passed != nil {
			d.Passed = *own.Passed
		}
		return d
	default:
		return &api.Done{Slot: c.slot, Stage: own.Stage, Alpha: finite(own.Alpha)}
	}
}

func finite(n events.Num) float64 {
	if !n.Finite() {
		return 0
	}
	return float64(n)
}

// recordCall puts one call into the log, or compares it with rank 0's.
func (s *Server) recordCall(ctx context.Context, w *teller, round uint64, x told) *api.Problem {
	if s.rank != 0 {
		return s.compareTold(ctx, w, round, x)
	}
	c := fsm.Call{Key: fsm.NextKey(w.at, w.model, x.slot, x.args), Site: x.Site, Observations: x.list, Args: x.args, Outcomes: x.Outcomes}
	if c.Key.Round != round {
		return standing(s.replica.State(), round)
	}
	if resume, ok := c.Args.(fsm.Resume); ok {
		var p *api.Problem
		if resume.Held, p = s.holds(ctx, resume.Mark, round); p != nil {
			return p
		}
		c.Args = resume
	}
	for {
		index, err := s.replica.Decide(ctx, c)
		if err == nil {
			e, p := s.entry(index)
			if p == nil {
				w.at, p = s.stateAfter(ctx, w.at, index)
			}
			if p != nil {
				return p
			}
			if *e.Key != c.Key { // of an earlier esperd process, which was not applied here yet
				c.Key = fsm.NextKey(w.at, w.model, x.slot, x.args)
				continue
			}
			s.ledger.answered(api.LastCall{Rank: s.rank, Key: c.Key, Site: x.Site})
			return nil
		}
		if p := problemOf(err); p.Code() != events.CodeUnavailable || standing(s.replica.State(), round) != nil {
			return p // trying again would not help
		}
		select {
		case <-ctx.Done():
			return problemOf(err)
		case <-time.After(tellRetry):
		}
	}
}

// compareTold moves over rank 0's calls as far as this rank's call goes, and
// records where the two are not the same: they would have given a slot another
// one's verdict, or have hung, or have parted.
func (s *Server) compareTold(ctx context.Context, w *teller, round uint64, x told) *api.Problem {
	if w.lost && !x.args.Op().Fence() {
		return nil
	}
	if x.args.Op() == events.OpResume {
		clear(w.parted)
	}
	for {
		key := fsm.NextKey(w.at, w.model, x.slot, x.args)
		index, p := s.awaitQuietly(ctx, round, key, x.Site)
		if p != nil {
			return p
		}
		e, p := s.entry(index)
		if p != nil {
			return p
		}
		theirs, p := s.stateAfter(ctx, w.at, index)
		if p != nil {
			return p
		}
		here := placed{index, e}
		switch order := x.before(e); {
		case w.lost && order < 0:
			return nil
		case w.lost && (order > 0 || key.Op != e.Key.Op):
			w.at = theirs
			continue
		case order < 0: // this rank alone makes it
			s.record(events.CodeMissingCall, key, x.Site, here)
			return nil
		case order > 0: // rank 0 alone made it
			s.record(events.CodeMissingCall, key, x.Site, here)
			w.at = theirs
			continue
		}
		if key != *e.Key {
			s.record(events.CodeOrderMismatch, key, x.Site, here)
		} else {
			s.compareOutcomes(w, theirs, here, x)
		}
		w.at, w.lost = theirs, false
		s.ledger.answered(api.LastCall{Rank: s.rank, Key: key, Site: x.Site})
		return nil
	}
}

// before says which of two calls comes first, this one (-1) or rank 0's (1): one
// that is no fence comes before a fence, and of two fences that are numbered
// alike the lower one. 0: they stand in one place.
func (x told) before(e *events.Entry) int {
	own, theirs := x.args.Op().Fence(), e.Key.Op.Fence()
	switch args := x.args.(type) {
	case fsm.StepEpoch:
		if e.Key.Op == events.OpStepEpoch {
			return cmp.Compare(args.Epoch, e.Key.Epoch)
		}
	case fsm.Fence:
		for i := range e.Events {
			if f := e.Events[i].Fenced; f != nil {
				return cmp.Compare(args.N, f.N)
			}
		}
	}
	switch {
	case own && !theirs:
		return 1
	case theirs && !own:
		return -1
	}
	return 0
}

// compareOutcomes records where this rank's outcome of a call is not rank 0's,
// once for as long as the two stay as they are.
func (s *Server) compareOutcomes(w *teller, theirs *fsm.State, e placed, x told) {
	m := theirs.Model(w.model)
	for _, own := range x.Outcomes {
		slot := m.Slot(own.Slot)
		if slot == nil {
			continue
		}
		want := events.Outcome{Slot: own.Slot, Stage: slot.Stage(), Passed: passedIn(e.entry, own.Slot)}
		if slot.Seed != nil {
			want.Alpha = events.Num(slot.Seed.Amplitude.Alpha)
		}
		gate := own.Passed != nil && want.Passed != nil && *own.Passed != *want.Passed
		if !gate && own.Stage == want.Stage && (own.Stage == events.StageDormant || sameAlpha(own.Alpha, want.Alpha)) {
			delete(w.parted, own.Slot)
			continue
		}
		parted := [4]float64{float64(own.Stage), finite(own.Alpha), float64(want.Stage), finite(want.Alpha)}
		if !gate && w.parted[own.Slot] == parted {
			continue
		}
		w.parted[own.Slot] = parted
		s.replica.Report(events.Event{OutcomeDiffers: &events.OutcomeDiffers{Rank: s.rank, Index: e.index, Key: *e.entry.Key, Site: x.Site, Got: own, Want: want}})
	}
}

// alphaTolerance is what two machines' exp and cos may differ by.
const alphaTolerance = 1e-9

// sameAlpha compares as far as it can: what is no number was not recorded.
func sameAlpha(own, want events.Num) bool {
	return !own.Finite() || math.Abs(float64(own-want)) <= alphaTolerance
}

func passedIn(e *events.Entry, slot string) *bool {
	for i := range e.Events {
		if f := e.Events[i].Fact; f != nil && f.Slot == slot {
			return f.Passed
		}
	}
	return nil
}

// missed takes note, behind the calls that were told before, that the trainer
// could not tell of some that it made.
func (w *teller) missed() {
	select {
	case w.calls <- told{gap: true}:
	default: // it is deaf
	}
}

// flush waits until what was told so far is recorded, as long as ctx lasts.
func (w *teller) flush(ctx context.Context) {
	done := make(chan struct{})
	select {
	case w.calls <- told{done: done}:
	default:
		return // it is deaf
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}
