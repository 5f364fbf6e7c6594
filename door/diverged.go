package door

import (
	"context"
	"maps"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/replica"
)

// verdictMax is how long a call waits for the verdict on this rank's replica, so
// that its answer can say whose state is wrong.
const (
	verdictMax  = 10 * time.Second
	verdictLook = 50 * time.Millisecond
)

const askRecheck = "recheck"

// diverged says why this rank's replica answers no calls: its state is not the
// log's. nil: it is, or that is being looked at.
func (s *Server) diverged() *api.Problem {
	d := s.replica.Divergence()
	if d == nil || !d.Known() && time.Since(d.Since) < verdictMax {
		return nil
	}
	p := problemf(events.CodeDiverged, "this rank's replica has diverged and answers no calls any more: %s; esperd status and esperd audit say more, on any rank", d.Text())
	p.Fault = s.ownFault(s.replica.State())
	return p
}

// verdict waits until it is known whose state is wrong, for the answer to a call
// that this rank's replica does not decide any more. failed is that answer where it
// does not become known in time.
func (s *Server) verdict(ctx context.Context, failed *api.Problem) *api.Problem {
	ctx, done := context.WithTimeout(ctx, verdictMax)
	defer done()
	for {
		changed := s.replica.Changed()
		if p := s.diverged(); p != nil {
			return p
		}
		select {
		case <-changed:
		case <-time.After(verdictLook): // not everything about it wakes who waits for entries
		case <-ctx.Done():
			return failed
		}
	}
}

// ownFault is why the round is over for this rank's trainer: by the log, or
// because this replica cannot follow the log any more.
func (s *Server) ownFault(head *fsm.State) *events.RoundFaulted {
	d, round := s.replica.Divergence(), head.Round
	if round.Fault != nil || !d.Known() || round.Number == 0 || round.Mode() == events.ModeObserve {
		return round.Fault
	}
	f := &events.RoundFaulted{Round: round.Number, Code: events.CodeDiverged, Rank: s.rank, Node: d.Node, Index: d.Index, Reason: d.Text()}
	if d.Rank != nil {
		f.Rank = *d.Rank
	}
	last := s.lastCall(round.Number)
	f.Got, f.GotSite, f.Want, f.WantSite = last.Key, last.Site, last.Key, last.Site
	if rank0 := s.lastOfRank0(last.Key.Model); rank0 != nil {
		f.Want, f.WantSite = rank0.Key, rank0.Site
	}
	return f
}

// watchDivergence tells the trainers when this replica has diverged: its own
// without the log, which is not applied here any more; the others by an entry,
// unless the entries are what is wrong, which every right replica finds by itself.
func (s *Server) watchDivergence() {
	for {
		changed := s.replica.Changed()
		if s.replica.Divergence().Known() {
			break
		}
		select {
		case <-changed:
		case <-s.ctx.Done():
			return
		}
	}
	d, head := s.replica.Divergence(), s.replica.State()
	s.words.alarm(s.replica.Status().Index + 1)
	s.metrics.diverged.Set(float64(d.Index))
	if f := s.ownFault(head); f != nil && head.Round.Fault == nil && d.Fault != replica.BlameWriter {
		s.fault(s.ctx, *f)
	}
}

// compareStates compares what ranks hold after the same entry. Entries carry digests, so
// that a difference shows at the next one by itself; this is for the last one. It
// is no vote: every replica then compares its state with its own history.
func (s *Server) compareStates(reports []nodeReport) {
	byIndex := map[uint64]*nodeReport{}
	for i := range reports {
		r := &reports[i]
		if r.Phase != string(replica.PhaseMember) || r.Lifecycles == nil {
			continue
		}
		other := byIndex[r.Index]
		if other == nil {
			byIndex[r.Index] = r
			continue
		}
		if r.Chain != other.Chain || r.Bookkeeping == other.Bookkeeping && maps.Equal(r.Lifecycles, other.Lifecycles) {
			continue
		}
		if s.rechecking.CompareAndSwap(false, true) {
			s.log.Error("replicas have different states after the same entry: each compares its own with its history", "index", r.Index, "one", other.Node, "other", r.Node)
			s.work.Go(s.recheckAll)
		}
		return
	}
}

// recheckMax is for a replay of millions of entries.
const recheckMax = 2 * time.Minute

func (s *Server) recheckAll() {
	defer s.rechecking.Store(false)
	ctx, cancel := context.WithTimeout(s.ctx, recheckMax)
	defer cancel()
	for _, a := range s.replica.Ask(ctx, askRecheck, "") {
		if a.Err != nil {
			s.log.Warn("a node did not compare its state with its history", "node", a.Node, "error", a.Err)
		}
	}
	if err := s.replica.Recheck(ctx); err != nil {
		s.log.Warn("this node's state cannot be compared with its history", "error", err)
	}
}

func (s *Server) answerRecheck(ctx context.Context, _ []byte) (any, error) {
	return nil, s.replica.Recheck(ctx)
}

// divergenceOf is the replica's finding as the API has it.
func (s *Server) divergenceOf(d *replica.Divergence) *api.StateDivergence {
	return &api.StateDivergence{Rank: s.rank, Node: s.node, Index: d.Index, First: d.First, Which: d.Which, Model: d.Model,
		Want: d.Entry, Got: d.Live, Replay: d.Replay, Fault: string(d.Fault), AtFault: d.Node, AtFaultRank: d.Rank, Reason: d.Reason,
		Writer: d.Writer, WriterRank: d.WriterRank, Version: d.Version, WriterVersion: d.WriterVersion, Since: d.Since}
}
