package sim

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// schedule is what befalls one world: one fault after the other, drawn from the
// seed.
type schedule struct {
	t       *testing.T
	ctx     context.Context
	w       *world
	j       *job
	r       *rand.Rand
	running *sync.WaitGroup // what has to end before the world does

	wiped    bool
	restarts int
}

// faults are drawn with equal chances. Each gets one of the job's hosts.
var faults = []func(*schedule, *host){
	(*schedule).partition,
	(*schedule).powerCut,
	(*schedule).powerCutAtWrite,
	(*schedule).slowDisk,
	(*schedule).cutLink,
	(*schedule).slowNetwork,
	(*schedule).loseDisk,
	(*schedule).restart,
	(*schedule).restart,
}

func (s *schedule) play() {
	lost, all := s.r.IntN(16), s.r.IntN(24)
	for i := range 3 + s.r.IntN(6) {
		if i == lost {
			s.loseQuorum()
		}
		if i == all {
			s.loseAll()
		}
		s.pause(4000)
		job := s.w.job()
		h := job[s.r.IntN(len(job))]
		faults[s.r.IntN(len(faults))](s, h)
	}
}

// pause sleeps for up to so many milliseconds.
func (s *schedule) pause(most int) {
	end := time.Now().Add(time.Duration(s.r.IntN(most)) * time.Millisecond)
	for time.Now().Before(end) && sleep(s.ctx, min(time.Until(end), 500*time.Millisecond)) {
		s.giveWay()
	}
}

// giveWay does what the processes do whose nodes' run goes on as another log.
func (s *schedule) giveWay() {
	for _, h := range s.w.job() {
		h.giveWay(s.t)
	}
}

func (s *schedule) partition(h *host) {
	s.w.net.Isolate(h.addr)
	s.pause(8000)
	if h.alive() != nil {
		h.reconnect()
	}
}

func (s *schedule) powerCut(h *host) {
	require.NoError(s.t, h.crash())
	s.pause(8000)
	h.reconnect()
	require.NoError(s.t, h.start())
}

func (s *schedule) powerCutAtWrite(h *host) {
	d := h.current()
	d.mu.Lock()
	d.crashAt = d.writes + 1 + s.r.IntN(20)
	d.mu.Unlock()
	s.pause(4000)
	if h.alive() == nil {
		require.NoError(s.t, h.bury())
		h.reconnect()
		require.NoError(s.t, h.start())
	}
}

func (s *schedule) slowDisk(h *host) {
	d := h.current()
	d.mu.Lock()
	d.delay = time.Duration(s.r.IntN(300)) * time.Millisecond
	d.mu.Unlock()
}

// cutLink cuts one link, or one direction of it.
func (s *schedule) cutLink(h *host) {
	job := s.w.job()
	other := job[s.r.IntN(len(job))]
	if other == h {
		return
	}
	s.w.net.Cut(h.addr, other.addr)
	if s.w.every > 0 {
		// Raft cannot find out where a follower stands that has compacted its log
		// further than the leader knows, which a lost direction brings about where
		// snapshots are this frequent.
		s.w.net.Cut(other.addr, h.addr)
	}
}

func (s *schedule) slowNetwork(*host) {
	delay := time.Duration(s.r.IntN(40)) * time.Millisecond
	s.w.net.SetDelay(func(string, string) time.Duration { return delay })
}

// loseDisk replaces one host's disk, once, where the others can do without, and
// restarts the job, as its user would.
func (s *schedule) loseDisk(h *host) {
	if s.wiped || len(s.w.job()) == 2 && h == s.w.job()[0] {
		return
	}
	s.wiped = true
	s.steady("before a disk is to be lost")
	require.NoError(s.t, h.crash())
	h.wipe()
	h.reconnect()
	require.NoError(s.t, h.start())
	if !s.j.begin(len(s.w.job())) {
		s.j.outlived = true // no round will open with the new node
	}
	s.await("after a disk was lost") // the world repairs its membership before the next fault may hit
}

// steady heals everything and waits until the world is as it should be, and every
// rank has the whole history: what others have of it may be lost next.
func (s *schedule) steady(when string) {
	require.NoError(s.t, s.w.heal())
	s.await(when)
	for _, h := range s.w.job() {
		for h.alive().Status().CompleteFrom != 1 {
			require.True(s.t, sleep(s.ctx, 100*time.Millisecond), "%s host %d does not get its history", when, h.id)
		}
	}
}

func (s *schedule) await(when string) {
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Minute)
	defer cancel()
	for {
		why := s.w.misshapen()
		if first := s.w.job()[0].alive(); why == "" && first.State().Round.Number > 0 {
			return
		}
		s.giveWay()
		if !sleep(ctx, 100*time.Millisecond) {
			require.Empty(s.t, why, "%s the world does not settle", when)
			s.t.Fatalf("%s no round opens: %v", when, s.j.doing)
		}
	}
}
