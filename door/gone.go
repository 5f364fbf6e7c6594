package door

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// rememberedMax is longer than a leader remembers who has asked for a round.
const rememberedMax = 10 * time.Second

// graceMax is for how long a goodbye may be on its way when the process that said
// it has ended: the two come by different ways.
const (
	graceMax  = 300 * time.Millisecond
	graceLook = 10 * time.Millisecond
)

const unsaid = "process %d ended without closing its session"

// watch waits for the end of the process that a session belongs to. One that
// did not say goodbye has died, and the other ranks would wait for it.
func (s *Server) watch(ses *session, pid int) {
	if ses.process() != nil {
		return
	}
	p, err := openProcess(pid)
	if errors.Is(err, os.ErrProcessDone) { // it died while its round was opened
		s.work.Go(func() {
			if !s.parts(s.ctx, ses) {
				s.gone(s.ctx, ses.incarnation, fmt.Sprintf(unsaid, pid))
			}
		})
		return
	}
	if err != nil {
		s.blind.Do(func() {
			s.log.Warn("the trainer's process cannot be watched: when it dies without closing its session, nobody notices, and the other ranks wait for it as long as a call may wait", "error", err)
		})
		return
	}
	s.attend(ses, p)
}

func (s *Server) attend(ses *session, p *process) {
	if !ses.adopt(p) {
		p.close() // this one is watched already
		return
	}
	s.work.Go(func() {
		defer p.close()
		err := p.wait(ses.ctx)
		if err != nil && !p.ended() || s.parts(ses.ctx, ses) {
			return
		}
		ses.release()
		ctx, done := context.WithTimeout(s.ctx, rememberedMax)
		defer done()
		if s.listed(ctx, ses.incarnation) {
			s.gone(s.ctx, ses.incarnation, fmt.Sprintf(unsaid, p.pid))
		}
	})
}

// parts reports whether a trainer whose process has ended has said goodbye, or
// does so in a moment.
func (s *Server) parts(ctx context.Context, ses *session) bool {
	ctx, done := context.WithTimeout(ctx, graceMax)
	defer done()
	for !ses.closed.Load() {
		select {
		case <-time.After(graceLook):
		case <-ctx.Done():
			return ses.closed.Load()
		}
	}
	return true
}

// listed reports whether a round lists a trainer, as soon as one does. One that
// has died while it waited for its round may still be put into it, for as long as
// the leader remembers it.
func (s *Server) listed(ctx context.Context, incarnation string) bool {
	for {
		changed := s.replica.Changed()
		if incarnationOf(s.replica.State(), s.rank) == incarnation {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// gone ends the round because a trainer is gone that the others wait for. In the
// mode observe they do not.
func (s *Server) gone(ctx context.Context, incarnation, how string) {
	state := s.replica.State()
	round := state.Round
	if round.Number == 0 || round.Fault != nil || round.Mode() == events.ModeObserve || incarnationOf(state, s.rank) != incarnation {
		return
	}
	last := s.lastCall(round.Number)
	want := last
	if rank0 := s.lastOfRank0(last.Key.Model); rank0 != nil {
		if want = *rank0; s.rank == 0 {
			last = want
		}
	}
	node, _ := state.Node(s.node)
	s.fault(ctx, events.RoundFaulted{Round: round.Number, Code: events.CodeUnavailable, Rank: s.rank, Node: s.node, Index: state.Index,
		Got: last.Key, GotSite: last.Site, Want: want.Key, WantSite: want.Site,
		Reason: fmt.Sprintf("%s (host %s)", how, cmp.Or(node.Host, "unknown"))})
}

// lastCall is the last answered call of this rank's trainer in a round.
func (s *Server) lastCall(round uint64) api.LastCall {
	if recent := s.ledger.recent(""); len(recent) > 0 && recent[0].Key.Round == round {
		return recent[0]
	}
	return api.LastCall{Rank: s.rank, Key: events.Key{Round: round, Model: api.DefaultModel, Op: events.OpConfigure, Epoch: -1}}
}

// farewell looks, before the doors close, whether the trainer has died a moment
// ago: nobody will look afterwards.
func (s *Server) farewell(ctx context.Context) {
	ses := s.sessions.served()
	if ses == nil || ses.closed.Load() {
		return
	}
	if p := ses.process(); p != nil && p.ended() && !s.parts(ctx, ses) {
		s.gone(ctx, ses.incarnation, fmt.Sprintf(unsaid, p.pid))
	}
}

// TrainerFailed ends the round because who ran the trainer saw it fail, even if it
// closed its session before.
func (s *Server) TrainerFailed(ctx context.Context, how string) {
	if ses := s.sessions.served(); ses != nil {
		s.gone(ctx, ses.incarnation, how)
	}
}

// noMore answers a call that waits for one of rank 0 after rank 0's trainer has
// ended in order: all that it called is in the log by then.
func (s *Server) noMore(ctx context.Context, state *fsm.State, key events.Key, site string) *api.Problem {
	if s.rank == 0 || key.Op == "" || state.Round.Tally(0).Ended == 0 {
		return nil
	}
	id := events.CallID{Round: key.Round, Model: key.Model, Call: key.Call}
	if _, ok, err := s.replica.Find(id); ok || err != nil {
		return nil // applied a moment ago
	}
	last := "made no call of this model"
	n := state.Cursor(key.Model).Calls
	index, ok, err := s.replica.Find(events.CallID{Round: key.Round, Model: key.Model, Call: n - 1})
	if n > 0 && ok && err == nil {
		if e, p := s.entry(index); p == nil {
			last = "made " + describe(*e.Key, e.Site) + " last"
			if state.Round.Mode() != events.ModeObserve {
				s.misfit(ctx, events.CodeOrderMismatch, key, site, e, index)
			}
		}
	}
	p := problemf(events.CodeOrderMismatch, "rank %d is at %s, but rank 0's trainer has ended in order, and %s: this call is one more than rank 0 made; %s",
		s.rank, describe(key, site), last, connectAgain)
	p.Got, p.GotSite, p.Last, p.Recent = &key, site, s.lastOfRanks(ctx, key.Model), s.ledger.recent(key.Model)
	return p
}

// second says why a trainer may not connect now: another process of its rank is
// alive, and in the round that is open.
func (s *Server) second(pid int, incarnation string) *api.Problem {
	ses := s.sessions.served()
	if ses == nil || pid <= 0 || ses.is(incarnation) || ses.closed.Load() {
		return nil
	}
	p := ses.process()
	state := s.replica.State()
	if p == nil || p.pid == pid || p.ended() || state.Round.Fault != nil || incarnationOf(state, s.rank) != ses.incarnation {
		return nil
	}
	return problemf(events.CodeNotAuthority, "process %d is the trainer of rank %d since %s, alive and in round %d, and this is process %d: expected one trainer on this socket; end the other one, or give this one an esperd of its own (ESPERD_SOCKET)",
		p.pid, s.rank, ses.since.Format("15:04:05"), state.Round.Number, pid)
}

// abandoned is asked again and again while a trainer of rank 0 waits for a round,
// and returns when to ask next. It ends the round that is open when nobody makes
// its calls any more: another rank waits for one, rank 0 has made none since the
// newcomer is there, and it cannot be seen whether the one before it has ended.
func (s *Server) abandoned(ctx context.Context, newcomer *session, pid int) func() time.Duration {
	calls := callsOf(s.replica.State())
	return func() time.Duration {
		state := s.replica.State()
		listed, before := incarnationOf(state, s.rank), calls
		calls = callsOf(state)
		if state.Round.Number == 0 || state.Round.Fault != nil || newcomer.is(listed) || calls != before {
			return s.warnAfter
		}
		if ses := s.sessions.served(); ses.is(listed) {
			switch p := ses.process(); {
			case p != nil && p.pid != pid: // its end will be seen
				return s.warnAfter
			case p == nil && ses.busyNow(s.rank) != nil: // it may be another one, and alive
				return s.warnAfter
			}
		}
		if reports, _ := s.gather(ctx, ""); ctx.Err() == nil && s.inVain(reports, state.Round.Number) {
			s.gone(ctx, listed, "a new trainer of its rank waits for a round since "+newcomer.since.Format("15:04:05"))
		}
		return s.warnAfter
	}
}

// inVain reports whether another rank waits, and not since a moment ago, for a
// call of rank 0 in a round, and no such call is under way.
func (s *Server) inVain(reports []nodeReport, round uint64) bool {
	waits := false
	for _, r := range reports {
		for _, a := range r.Waiting {
			if a.What == waitRound || a.Key == nil || a.Key.Round != round {
				continue
			}
			if r.Rank.Rank == s.rank {
				return false
			}
			_, made, err := s.replica.Find(events.CallID{Round: round, Model: a.Key.Model, Call: a.Key.Call})
			waits = waits || !made && err == nil && a.Seconds >= s.warnAfter.Seconds()
		}
	}
	return waits
}

// callsOf counts the calls of the round that is open.
func callsOf(state *fsm.State) [2]uint64 {
	n := [2]uint64{state.Round.Number}
	for _, c := range state.Cursors {
		n[1] += c.Calls
	}
	return n
}

// comesBack says why a trainer may not come back: it has said goodbye, which the
// other ranks know, or will in a moment.
func (s *Server) comesBack(incarnation string) *api.Problem {
	state, ses := s.replica.State(), s.sessions.served()
	if state.Round.Fault != nil || incarnationOf(state, s.rank) != incarnation ||
		!(ses.is(incarnation) && ses.closed.Load()) && state.Round.Tally(s.rank).Ended == 0 {
		return nil
	}
	return problemf(events.CodeNotAuthority, "this trainer closed its session of round %d, and the other ranks expect no further call of it: connect anew on all ranks, with a new incarnation", state.Round.Number)
}

// busyOf lists what the missing ranks of a wait say to be doing.
func busyOf(reports []nodeReport, missing []uint64) []api.Busy {
	var out []api.Busy
	for _, r := range reports {
		if r.Busy != nil && slices.Contains(missing, r.Rank.Rank) {
			out = append(out, *r.Busy)
		}
	}
	return out
}
