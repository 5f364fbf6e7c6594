package door

import (
	"context"
	"slices"
	"time"
)

// How often a wait looks whether who it is for is busy.
const (
	looksInAWait = 16
	lookMin      = time.Second
	lookMax      = time.Minute
)

// missingOf tells, from what the nodes report, for which ranks a wait is; nil: it
// is for none.
type missingOf func([]nodeReport) []uint64

// callContext ends when the client goes away, another trainer takes over, the
// server closes, or the longest wait is over; its cause says which. That wait
// counts from its beginning, or from the last look at which a missing rank said
// to be busy.
func (s *Server) callContext(ctx, session context.Context, missing missingOf) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	ctx, done := endingWith(ctx, session)
	since, every := time.Now(), s.waitMax
	if missing != nil {
		every = min(max(s.waitMax/looksInAWait, lookMin), lookMax, s.waitMax)
	}
	stop := later(ctx, every, func() time.Duration {
		if missing != nil {
			if reports, at := s.askAround(ctx); len(busyOf(reports, missing(reports))) > 0 {
				since = at
			}
		}
		left := s.waitMax - time.Since(since)
		if left <= 0 {
			cancel(errWaitedOut)
		}
		return min(left, every)
	})
	return ctx, func() {
		stop()
		done()
		cancel(nil)
	}
}

// forRank0 is who the others' numbered calls wait for. Rank 0's own wait for the
// log.
func (s *Server) forRank0() missingOf {
	if s.rank == 0 {
		return nil
	}
	return func([]nodeReport) []uint64 { return []uint64{0} }
}

// forRound is who a trainer that connects waits for.
func (s *Server) forRound(reports []nodeReport) []uint64 {
	missing := missingOfRound(reports, s.world)
	return slices.DeleteFunc(missing, func(rank uint64) bool { return rank == s.rank })
}

// looks shares between the waits of this node what the others said a moment ago.
type looks struct {
	turn    chan struct{} // holds one token: one asks at a time
	at      time.Time
	reports []nodeReport
}

func (s *Server) askAround(ctx context.Context) ([]nodeReport, time.Time) {
	l := &s.looks
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, time.Time{}
	}
	defer func() { <-l.turn }()
	if time.Since(l.at) >= lookMin {
		reports, _ := s.gather(ctx, "")
		if ctx.Err() != nil { // not everybody had the time to answer
			return nil, time.Time{}
		}
		l.reports, l.at = reports, time.Now()
	}
	return l.reports, l.at
}

// later calls do after a while, and again after what it returns, until that is 0
// or less, or ctx ends. stop keeps it from beginning.
func later(ctx context.Context, after time.Duration, do func() time.Duration) (stop func() bool) {
	return time.AfterFunc(after, func() {
		for ctx.Err() == nil {
			after := do()
			if after <= 0 {
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(after):
			}
		}
	}).Stop
}

// endingWith returns ctx, which also ends when other does, with its cause.
func endingWith(ctx, other context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(other, func() { cancel(context.Cause(other)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}
