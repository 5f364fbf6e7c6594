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

// watch waits for the end of the process that a session belongs to. One that
// did not say goodbye has died, and the other ranks would wait for it.
func (s *Server) watch(ses *session, pid int) {
	died := fmt.Sprintf("process %d ended without closing its session", pid)
	p, err := openProcess(pid)
	if errors.Is(err, os.ErrProcessDone) && ses.process() == nil { // it died while its round was opened
		s.work.Go(func() { s.gone(s.ctx, ses, died) })
		return
	}
	if err != nil {
		s.log.Debug("a trainer's process cannot be watched", "pid", pid, "error", err)
		return
	}
	if !ses.adopt(p) {
		p.close() // this one is watched already
		return
	}
	s.work.Go(func() {
		defer p.close()
		if err := p.wait(ses.ctx); (err == nil || p.ended()) && !ses.closed.Load() && s.listed(ses) {
			s.gone(s.ctx, ses, died)
		}
	})
}

// listed reports whether a round lists the session's trainer. One that has died
// while it waited for its round may still be put into it, for as long as the
// leader remembers it.
func (s *Server) listed(ses *session) bool {
	ctx, done := context.WithTimeout(s.ctx, rememberedMax)
	defer done()
	for {
		changed := s.replica.Changed()
		if incarnationOf(s.replica.State(), s.rank) == ses.incarnation {
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
func (s *Server) gone(ctx context.Context, ses *session, how string) {
	state := s.replica.State()
	round := state.Round
	if round.Number == 0 || round.Fault != nil || round.Mode() == events.ModeObserve || incarnationOf(state, s.rank) != ses.incarnation {
		return
	}
	last := api.LastCall{Rank: s.rank, Key: events.Key{Round: round.Number, Model: api.DefaultModel, Op: events.OpConfigure, Epoch: -1}}
	if recent := s.ledger.recent(""); len(recent) > 0 && recent[0].Key.Round == round.Number {
		last = recent[0]
	}
	want := last
	if rank0 := s.lastOfRank0(last.Key.Model); rank0 != nil {
		want = *rank0
	}
	node, _ := state.Node(s.node)
	s.fault(ctx, events.RoundFaulted{Round: round.Number, Code: events.CodeUnavailable, Rank: s.rank, Node: s.node, Index: state.Index,
		Got: last.Key, GotSite: last.Site, Want: want.Key, WantSite: want.Site,
		Reason: fmt.Sprintf("%s (host %s)", how, cmp.Or(node.Host, "unknown"))})
}

// farewell looks, before the doors close, whether the trainer has died a moment
// ago: nobody will look afterwards.
func (s *Server) farewell(ctx context.Context) {
	ses := s.sessions.served()
	if ses == nil || ses.closed.Load() {
		return
	}
	if p := ses.process(); p != nil && p.ended() {
		s.gone(ctx, ses, fmt.Sprintf("process %d ended without closing its session", p.pid))
	}
}

// TrainerFailed ends the round because who ran the trainer saw it fail, even if it
// closed its session before.
func (s *Server) TrainerFailed(ctx context.Context, how string) {
	if ses := s.sessions.served(); ses != nil {
		s.gone(ctx, ses, how)
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
