package door

import (
	"context"
	"slices"
	"time"
)

// callContext ends when the client goes away, another trainer takes over, the
// server closes, or the longest wait is over; its cause says which. Who waits
// while another rank says to be busy waits on, and once more after that.
func (s *Server) callContext(ctx, session context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	armed := make(chan struct{})
	var patience *time.Timer
	busy := false // at the last look
	patience = time.AfterFunc(s.waitMax, func() {
		<-armed
		switch {
		case ctx.Err() != nil: // it was answered
		case s.othersBusy():
			busy = true
			patience.Reset(s.waitMax)
		case busy: // until a moment ago: it has its time to come now
			busy = false
			patience.Reset(s.waitMax)
		default:
			cancel(errWaitedOut)
		}
	})
	close(armed)
	ctx, done := endingWith(ctx, session)
	return ctx, func() {
		done()
		patience.Stop()
		cancel(nil)
	}
}

// othersBusy asks whether another rank says to be busy.
func (s *Server) othersBusy() bool {
	reports, _ := s.gather(s.ctx, "")
	return slices.ContainsFunc(reports, func(r nodeReport) bool { return r.Busy != nil && r.Rank.Rank != s.rank })
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
