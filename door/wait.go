package door

import (
	"context"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/replica"
)

// lookAgain is how often a waiting call looks at this node's own health, beside
// whenever the log moves.
const lookAgain = time.Second

// await returns the index of rank 0's call under the number in key, as soon as
// it is applied here. It ends early when that call can come no more.
func (s *Server) await(ctx context.Context, round uint64, key events.Key, site string) (uint64, *api.Problem) {
	id := events.CallID{Round: key.Round, Model: key.Model, Call: key.Call}
	if index, ok, err := s.replica.Find(id); ok || err != nil {
		return index, problemOrNil(err)
	}
	began := time.Now()
	done := s.waiting(ctx, waitDecision, &key, site)
	defer func() {
		done()
		s.metrics.wait.Observe(time.Since(began).Seconds())
	}()
	return s.awaitQuietly(ctx, round, key, site)
}

// awaitQuietly is await where no trainer waits.
func (s *Server) awaitQuietly(ctx context.Context, round uint64, key events.Key, site string) (uint64, *api.Problem) {
	id, began := events.CallID{Round: key.Round, Model: key.Model, Call: key.Call}, time.Now()
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	var seen *fsm.State
	for {
		changed := s.replica.Changed()
		index, ok, err := s.replica.Find(id)
		if ok || err != nil {
			return index, problemOrNil(err)
		}
		state := s.replica.State()
		if p := standing(state, round); p != nil {
			return 0, p
		}
		if p := s.noMore(ctx, state, key, site); p != nil {
			return 0, p
		}
		if state == seen { // woken, but not by the log
			if p := s.health(); p != nil {
				return 0, p
			}
		}
		seen = state
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return 0, ended(ctx, func() *api.Problem { return s.timeout(key, site, time.Since(began)) })
		}
	}
}

// health says why this node will apply no further entry.
func (s *Server) health() *api.Problem {
	switch st := s.replica.Status(); st.Phase {
	case replica.PhaseDiverged:
		if s.replica.Divergence() != nil {
			return s.diverged()
		}
		return problemf(events.CodeDiverged, "this rank's replica has diverged and answers no calls any more: %s", st.Problem)
	case replica.PhaseFailed:
		return problemf(events.CodeUnavailable, "this esperd has stopped applying the log: %s", st.Problem)
	}
	return nil
}

func (s *Server) timeout(key events.Key, site string, waited time.Duration) *api.Problem {
	p := problemf(events.CodeDecisionTimeout, "rank %d has waited %s in %s for rank 0, which %s; see esperd ranks for where rank 0 is",
		s.rank, waited.Round(time.Millisecond), describe(key, site), s.lastOfRank0Text(key.Model))
	p.Got, p.GotSite, p.Recent = &key, site, s.ledger.recent(key.Model)
	if last := s.lastOfRank0(key.Model); last != nil {
		p.Last = []api.LastCall{*last}
	}
	return p
}

// lastOfRank0 returns what rank 0 did last of a model in this round, as the log
// has it.
func (s *Server) lastOfRank0(model string) *api.LastCall {
	state := s.replica.State()
	cursor := state.Cursor(model)
	if cursor.Calls == 0 {
		return nil
	}
	index, ok, err := s.replica.Find(events.CallID{Round: state.Round.Number, Model: model, Call: cursor.Calls - 1})
	if !ok || err != nil {
		return nil
	}
	e, p := s.entry(index)
	if p != nil {
		return nil
	}
	return &api.LastCall{Rank: 0, Key: *e.Key, Site: e.Site}
}

func (s *Server) lastOfRank0Text(model string) string {
	if last := s.lastOfRank0(model); last != nil {
		return "last made " + describe(last.Key, last.Site)
	}
	return "has made no call in this round"
}

func problemOrNil(err error) *api.Problem {
	if err == nil {
		return nil
	}
	return problemOf(err)
}
