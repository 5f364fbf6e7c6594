package door

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// How often rank 0 asks for the others' marks, and they for what became of theirs:
// soon where all come at once, as a governor's ranks do.
const (
	gatherMin = 100 * time.Microsecond
	gatherMax = 250 * time.Millisecond
	heedMin   = 10 * time.Millisecond // only a verdict comes this way

	// lingerMax is how long rank 0 keeps a verdict from its own trainer, which may
	// end because of it, until the others have heard it.
	lingerMax = 3 * gatherMax
)

// concludedError ends a wait in a resume: the ranks' marks are not the same.
type concludedError struct{ problem *api.Problem }

func (e *concludedError) Error() string { return e.problem.Detail }

// resumeHere is a resume that goes back to one mark on every rank: rank 0 gathers
// the marks of all and makes its call an entry when they are equal, and the others
// wait for that entry, or for the verdict that there will be none.
func (s *Server) resumeHere(ctx context.Context, t *track, c fsm.Call, why string) (*matched, *api.Problem) {
	args := c.Args.(fsm.Resume)
	own := t.offerOf(s.rank, c.Key, c.Site, args.Mark, args.Sum, why)
	if why != "" && s.rank != 0 { // rank 0, which ends each try for all, finds the offer where it is
		return nil, unreadable(own)
	}
	bring := s.bring
	if s.rank == 0 {
		bring = s.gatherMarks
	}
	m, p := bring(ctx, t, c, own)
	if p == nil || p.Code() != events.CodeUnavailable { // which a client repeats
		t.offer.Store(nil)
	}
	return m, p
}

func unreadable(own *offer) *api.Problem {
	p := problemf(events.CodeMarkMismatch, "resume: rank %d brought %s; nothing was changed", own.Rank, own.Reason)
	p.Marks = []api.OfferedMark{{Ranks: []uint64{own.Rank}, Epoch: -1, Sum: &own.Sum, Reason: own.Reason}}
	return p
}

// bring waits, on another rank than 0, until rank 0's call is in the log, or the
// marks are known to differ.
func (s *Server) bring(ctx context.Context, t *track, c fsm.Call, own *offer) (*matched, *api.Problem) {
	rank0 := s.replica.State().Round.Authority()
	waits, cancel := context.WithCancelCause(ctx)
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		for pause := heedMin; ; pause = min(2*pause, gatherMax) {
			select {
			case <-waits.Done():
				return
			case <-time.After(pause):
			}
			if p := s.verdictOn(waits, own, rank0); p != nil {
				cancel(&concludedError{p})
				return
			}
		}
	}()
	m, p := s.matchEntry(waits, t, c)
	cancel(nil)
	<-heard
	if p != nil && p.Code() == events.CodeRoundFaulted { // rank 0's trainer may have ended because of the verdict
		ctx, done := context.WithTimeout(ctx, evidenceMax)
		defer done()
		if verdict := s.verdictOn(ctx, own, rank0); verdict != nil {
			return nil, verdict
		}
	}
	return m, p
}

// gatherMarks is rank 0's resume.
func (s *Server) gatherMarks(ctx context.Context, t *track, c fsm.Call, own *offer) (*matched, *api.Problem) {
	_, made, err := s.replica.Find(events.CallID{Round: c.Key.Round, Model: c.Key.Model, Call: c.Key.Call})
	if err != nil {
		return nil, problemOf(err)
	}
	if !made { // else before this esperd was started
		if p := s.gatherAll(ctx, t, c, own); p != nil {
			return nil, p
		}
		args := c.Args.(fsm.Resume)
		var p *api.Problem
		if args.Held, p = s.holds(ctx, args.Mark, t.round); p != nil {
			return nil, p
		}
		c.Args = args
	}
	return s.matchEntry(ctx, t, c)
}

// gatherAll returns when every rank has brought the same mark.
func (s *Server) gatherAll(ctx context.Context, t *track, c fsm.Call, own *offer) *api.Problem {
	var missing atomic.Pointer[[]uint64]
	began := time.Now()
	done := s.waitingFor(ctx, waitMarks, &c.Key, c.Site, &missing)
	defer done()
	for pause := gatherMin; ; pause = min(2*pause, gatherMax) {
		state := s.replica.State()
		if p := standing(state, t.round); p != nil {
			return p
		}
		if p := s.health(); p != nil {
			return p
		}
		if p := s.deserted(ctx, t, c.Key, c.Site); p != nil {
			return p
		}
		answers := s.offers(ctx, state.Round.Members, c.Key)
		if p := s.callsOtherwise(ctx, state, answers, c); p != nil {
			return p
		}
		offers, lacking := s.sorted(state.Round.Members, answers, own)
		if len(lacking) == 0 {
			return s.conclude(ctx, offers, own)
		}
		missing.Store(&lacking)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ended(ctx, func() *api.Problem {
				p := problemf(events.CodeDecisionTimeout, "rank 0 has waited %s in %s for the marks of %s; see esperd ranks for where they are, and repeat the call under the same number",
					time.Since(began).Round(time.Millisecond), describe(c.Key, c.Site), ranksText(lacking))
				p.Got, p.GotSite, p.Last = &c.Key, c.Site, s.lastOfRanks(s.ctx, t.model)
				return p
			})
		}
	}
}

// sorted parts the ranks into those that have brought a mark to this try, and
// those that have not.
func (s *Server) sorted(members []events.Member, answers []offerAnswer, own *offer) (offers []*offer, lacking []uint64) {
	for _, m := range members {
		if m.Rank == s.rank {
			offers = append(offers, own)
			continue
		}
		i := slices.IndexFunc(answers, func(a offerAnswer) bool { return a.Rank == m.Rank })
		if i >= 0 {
			if o := answers[i].Offer; o != nil && o.Rank == m.Rank && o.meets(own.Key) && s.verdicts.about(o.ID, false) == nil {
				offers = append(offers, o)
				continue
			}
		}
		lacking = append(lacking, m.Rank)
	}
	return offers, lacking
}

// conclude compares the marks of all ranks.
func (s *Server) conclude(ctx context.Context, offers []*offer, own *offer) *api.Problem {
	p := disagreeing(offers)
	if p == nil {
		return nil
	}
	s.log.Warn("the ranks' marks are not the same: nothing is resumed", "reason", p.Detail)
	d := s.verdicts.pass(p, offers, own)
	select {
	case <-d.changed:
	case <-time.After(lingerMax):
	case <-ctx.Done():
	}
	return p
}

// callsOtherwise ends the round where another rank waits, in the place of rank 0's
// resume, in another call: neither would ever be answered. Whatever matches calls,
// what a rank waits for has rank 0's number.
func (s *Server) callsOtherwise(ctx context.Context, state *fsm.State, answers []offerAnswer, c fsm.Call) *api.Problem {
	for _, a := range answers {
		for _, w := range a.Waits {
			if w.What != waitDecision || w.Key.Call != c.Key.Call || w.Key.Op == events.OpResume || a.Rank >= uint64(len(state.Round.Members)) {
				continue
			}
			f := events.RoundFaulted{Round: c.Key.Round, Code: events.CodeOrderMismatch, Rank: a.Rank, Node: state.Round.Members[a.Rank].Node, Index: state.Index,
				Got: *w.Key, GotSite: w.Site, Want: c.Key, WantSite: c.Site}
			s.fault(ctx, f)
			return roundFaulted(&f)
		}
	}
	return nil
}

// forMarks is who a resume waits for: those who are not in it.
func (s *Server) forMarks(model string) missingOf {
	return func(reports []nodeReport) []uint64 {
		var missing []uint64
		for rank := range s.world {
			if rank != s.rank && !slices.ContainsFunc(reports, func(r nodeReport) bool { return r.Rank.Rank == rank && resumes(r.Waiting, model) }) {
				missing = append(missing, rank)
			}
		}
		return missing
	}
}

func resumes(waits []api.Arrival, model string) bool {
	return slices.ContainsFunc(waits, func(a api.Arrival) bool {
		return a.Key != nil && a.Key.Op == events.OpResume && a.Key.Model == model
	})
}

// nameMissing tells of the ranks that wait in a resume for rank 0, which waits in
// it, too, for whom it does.
func nameMissing(reports []nodeReport) {
	for _, r := range reports {
		for _, first := range r.Waiting {
			if first.What != waitMarks || first.Key == nil {
				continue
			}
			for i := range reports {
				for j := range reports[i].Waiting {
					if w := &reports[i].Waiting[j]; w.What == waitDecision && resumes(reports[i].Waiting[j:j+1], first.Key.Model) {
						w.Missing = first.Missing
					}
				}
			}
		}
	}
}
