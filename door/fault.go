package door

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/esperd/esperd/events"
)

const (
	faultAnswerMax  = 2 * time.Second  // how long the culprit's answer waits for the entry
	faultTryMax     = 10 * time.Second // one try
	faultRetryMin   = 100 * time.Millisecond
	faultRetryMax   = 5 * time.Second
	faultRefusedMax = 6    // tries, while the node that leads has diverged, too
	reasonMax       = 1024 // bytes of why, where no entry took it as it was
)

// faults remembers the rounds that this node is ending, each once.
type faults struct {
	mu      sync.Mutex
	round   uint64
	written chan struct{} // of that round; closed when nothing is left to do
}

// misfit ends the round: this rank's call did not fit entry e.
func (s *Server) misfit(ctx context.Context, code events.Code, got events.Key, site string, e *events.Entry, index uint64) {
	s.fault(ctx, events.RoundFaulted{Round: got.Round, Code: code, Rank: s.rank, Node: s.node, Index: index,
		Got: got, GotSite: site, Want: *e.Key, WantSite: e.Site})
}

// fault ends the round for all ranks. It waits for a moment only, and goes on
// trying in the background until the fault is in the log or the round is over:
// without it the other ranks would wait in a collective that never completes.
func (s *Server) fault(ctx context.Context, f events.RoundFaulted) {
	s.faults.mu.Lock()
	if s.faults.round != f.Round {
		s.faults.round, s.faults.written = f.Round, make(chan struct{})
		done := s.faults.written
		s.log.Error("asking for the end of the round, for all ranks: "+f.What(), "code", f.Code, "index", f.Index)
		s.work.Go(func() {
			defer close(done)
			s.writeFault(f)
		})
	}
	done := s.faults.written
	s.faults.mu.Unlock()

	patience := time.NewTimer(faultAnswerMax)
	defer patience.Stop()
	select {
	case <-done:
	case <-ctx.Done():
	case <-patience.C:
	}
}

func (s *Server) writeFault(f events.RoundFaulted) {
	bare, refused := false, 0
	for pause := faultRetryMin; ; pause = min(2*pause, faultRetryMax) {
		ctx, cancel := context.WithTimeout(s.ctx, faultTryMax)
		err := s.replica.Fault(ctx, f)
		cancel()
		if err == nil {
			return
		}
		if round := s.replica.State().Round; round.Number != f.Round || round.Fault != nil {
			return
		}
		if problemOf(err).Code() == events.CodeDiverged {
			if refused++; refused == faultRefusedMax {
				s.log.Error("no node leads that may write: every rank's own esperd tells its trainer that the round is over", "round", f.Round, "error", err)
				return
			}
		}
		switch never := problemOf(err).Code() == events.CodeInvalidInput; {
		case never && bare:
			s.log.Error("the end of the round cannot be written", "round", f.Round, "error", err)
			s.faults.forget(f.Round)
			return
		case never:
			s.log.Error("the end of the round cannot be written as it is; trying with less in it", "round", f.Round, "error", err)
			f, bare = bareFault(f), true
			continue
		}
		s.log.Warn("the end of the round is not in the log yet; trying again", "round", f.Round, "error", err)
		select {
		case <-s.ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// bareFault leaves out of a fault what no entry may hold, wherever it came from.
func bareFault(f events.RoundFaulted) events.RoundFaulted {
	clean := func(text string, n int) string { return strings.ToValidUTF8(text[:min(len(text), n)], "?") }
	for _, k := range []*events.Key{&f.Got, &f.Want} {
		k.Model, k.Slot = clean(k.Model, nameMax), clean(k.Slot, nameMax)
	}
	f.GotSite, f.WantSite, f.Reason = "", "", clean(f.Reason, reasonMax)
	return f
}

// forget lets the round be ended by another fault.
func (f *faults) forget(round uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.round == round {
		f.round = 0
	}
}

// settle waits until the end of a round that was asked for is in the log, as long
// as ctx lasts: nobody asks for it again when this server has closed.
func (s *Server) settle(ctx context.Context) {
	s.faults.mu.Lock()
	written := s.faults.written
	s.faults.mu.Unlock()
	if written == nil {
		return
	}
	select {
	case <-written:
	case <-ctx.Done():
		s.log.Warn("closing before the end of the round is in the log: the other ranks may not be told")
	}
}
