package sim

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// schedules is how many seeds the test command plays; ESPERD_SIM_SCHEDULES sets
// another number, ESPERD_SIM_SEED plays one seed with its log, and
// ESPERD_SIM_LOGS names a directory that keeps the logs of those that failed.
const schedules = 1000

func TestSchedules(t *testing.T) {
	if seed := os.Getenv("ESPERD_SIM_SEED"); seed != "" {
		n, err := strconv.ParseUint(seed, 10, 64)
		require.NoError(t, err)
		play(t, n, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})))
		return
	}
	n := schedules
	if s := os.Getenv("ESPERD_SIM_SCHEDULES"); s != "" {
		var err error
		n, err = strconv.Atoi(s)
		require.NoError(t, err)
	}
	for seed := range uint64(n) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			play(t, seed, nil)
		})
	}
}

// play runs one schedule in simulated time and checks every invariant.
func play(t *testing.T, seed uint64, log *slog.Logger) {
	dir, err := tempDir()
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	if logs := os.Getenv("ESPERD_SIM_LOGS"); logs != "" { // the interleaving does not come from the seed
		name := filepath.Join(logs, fmt.Sprintf("seed-%d.log", seed))
		f, err := os.Create(name)
		require.NoError(t, err)
		defer func() {
			require.NoError(t, f.Close())
			if !t.Failed() {
				require.NoError(t, os.Remove(name))
			}
		}()
		log = slog.New(slog.NewTextHandler(f, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	synctest.Test(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(seed, 1))
		size := uint64(2 + r.IntN(4))
		w := newWorld(size, dir, []uint64{0, 16}[r.IntN(2)], log)
		j := newJob(w, seed, 2, 12+r.IntN(20))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		var trainers sync.WaitGroup
		defer func() { // also when a check fails: nothing may outlive the bubble
			cancel()
			trainers.Wait()
			require.NoError(t, w.close())
		}()
		for _, h := range w.hosts {
			require.NoError(t, h.start())
		}
		for _, h := range w.hosts {
			trainers.Go(func() { j.run(ctx, h.rank) })
		}
		faults(t, ctx, w, j, r)
		require.NoError(t, w.heal(), "seed %d", seed)
		trainers.Wait()
		require.NoError(t, ctx.Err(), "seed %d: the trainers did not finish: %v", seed, j.doing)
		settling, stop := context.WithTimeout(ctx, 5*time.Minute)
		defer stop()
		require.NoError(t, w.settle(settling), "seed %d", seed)
		check(t, w, j, seed)
	})
}

// faults plays the schedule's faults, one after the other.
func faults(t *testing.T, ctx context.Context, w *world, j *job, r *rand.Rand) {
	wiped := false
	for range 3 + r.IntN(6) {
		sleep(ctx, time.Duration(r.IntN(4000))*time.Millisecond)
		h := w.hosts[r.IntN(len(w.hosts))]
		switch r.IntN(7) {
		case 0: // partition
			w.net.Isolate(h.addr)
			sleep(ctx, time.Duration(r.IntN(8000))*time.Millisecond)
			if h.alive() != nil {
				h.reconnect()
			}
		case 1: // power cut
			require.NoError(t, h.crash())
			sleep(ctx, time.Duration(r.IntN(8000))*time.Millisecond)
			h.reconnect()
			require.NoError(t, h.start())
		case 2: // power cut at a write
			d := h.current()
			d.mu.Lock()
			d.crashAt = d.writes + 1 + r.IntN(20)
			d.mu.Unlock()
			sleep(ctx, time.Duration(r.IntN(4000))*time.Millisecond)
			if h.alive() == nil {
				require.NoError(t, h.bury())
				h.reconnect()
				require.NoError(t, h.start())
			}
		case 3: // slow disk
			d := h.current()
			d.mu.Lock()
			d.delay = time.Duration(r.IntN(300)) * time.Millisecond
			d.mu.Unlock()
		case 4: // one link, or one direction of it
			if other := w.hosts[r.IntN(len(w.hosts))]; other != h {
				w.net.Cut(h.addr, other.addr)
				if w.every > 0 {
					// Raft cannot find out where a follower stands that has
					// compacted its log further than the leader knows, which a
					// lost direction brings about where snapshots are this
					// frequent.
					w.net.Cut(other.addr, h.addr)
				}
			}
		case 5: // slow network
			delay := time.Duration(r.IntN(40)) * time.Millisecond
			w.net.SetDelay(func(string, string) time.Duration { return delay })
		case 6: // a lost disk, where the others can do without
			if !wiped && (len(w.hosts) > 2 || h.rank != 0) {
				wiped = true
				loseDisk(t, ctx, w, j, h)
			}
		}
	}
}

// loseDisk replaces one host's disk when all others are there, and restarts the
// job, as its user would.
func loseDisk(t *testing.T, ctx context.Context, w *world, j *job, h *host) {
	require.NoError(t, w.heal())
	deadline, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for deadline.Err() == nil {
		founded := true
		for _, other := range w.hosts {
			n := other.alive()
			founded = founded && n != nil && n.State().Round.Number > 0
		}
		if founded && w.settledEnough() {
			break
		}
		sleep(deadline, 100*time.Millisecond)
	}
	require.NoError(t, deadline.Err(), "the world did not come up before the disk was to be lost")
	require.NoError(t, h.crash())
	h.wipe()
	h.reconnect()
	require.NoError(t, h.start())
	j.restarted()
	// The world repairs its membership before the next fault may hit.
	for deadline.Err() == nil && w.hosts[0].alive().Status().Role != "leader" {
		sleep(deadline, 100*time.Millisecond)
	}
	for deadline.Err() == nil && !w.settledEnough() {
		sleep(deadline, 100*time.Millisecond)
	}
	require.NoError(t, deadline.Err(), "the world did not repair itself after rank %d lost its disk", h.rank)
}

// settledEnough reports whether every node is a member and close to the head.
func (w *world) settledEnough() bool {
	var low, high uint64
	voters := 0
	for i, h := range w.hosts {
		n := h.alive()
		if n == nil {
			return false
		}
		s := n.Status()
		if s.Phase != "member" {
			return false
		}
		if i == 0 || s.Index < low {
			low = s.Index
		}
		high = max(high, s.Index)
		if s.Voter {
			voters++
		}
	}
	return high-low < 8 && (len(w.hosts) < 3 || voters == 3)
}

// requests are those of the log, by entry; Action is empty for one that is done.
type requests map[uint64]events.Requested

// follow checks that a request is there once, by number and by what it asks for,
// and that the next fence ends it.
func (r requests) follow(index uint64, e *events.Entry) error {
	for i := range e.Events {
		ev := &e.Events[i]
		switch {
		case ev.Requested != nil:
			for at, other := range r {
				same := other.Slot == ev.Requested.Slot && other.Seed == ev.Requested.Seed && other.Action == ev.Requested.Action
				if same || other.Node == ev.Requested.Node && other.Number == ev.Requested.Number {
					return fmt.Errorf("entry %d asks for what entry %d asked for already", index, at)
				}
			}
			r[index] = *ev.Requested
		case ev.RequestDone != nil:
			done, ok := r[ev.RequestDone.Request]
			if !ok || done.Action == "" {
				return fmt.Errorf("entry %d ends request %d, which does not wait", index, ev.RequestDone.Request)
			}
			done.Action = ""
			r[ev.RequestDone.Request] = done
		case fsm.Closes(ev) && r.waiting() > 0:
			return fmt.Errorf("entry %d is a fence, and %d requests wait on", index, r.waiting())
		}
	}
	return nil
}

func (r requests) waiting() int {
	n := 0
	for _, q := range r {
		if q.Action != "" {
			n++
		}
	}
	return n
}

// check compares all histories and everything that was acknowledged.
func check(t *testing.T, w *world, j *job, seed uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	require.NoError(t, j.broken, "seed %d", seed)
	head := w.hosts[0].alive().Status().Index
	authority := events.NodeID("")
	state, requests := fsm.New(), requests{}
	for i := uint64(1); i <= head; i++ {
		e, rec, err := w.hosts[0].alive().Entry(i)
		require.NoError(t, err)
		for _, h := range w.hosts[1:] {
			_, other, err := h.alive().Entry(i)
			require.NoError(t, err, "seed %d: rank %d", seed, h.rank)
			require.True(t, bytes.Equal(rec.Entry, other.Entry), "seed %d: entry %d differs on rank %d", seed, i, h.rank)
			require.Equal(t, rec.Bookkeeping, other.Bookkeeping, "seed %d: entry %d, rank %d", seed, i, h.rank)
			require.Equal(t, rec.Lifecycle, other.Lifecycle, "seed %d: entry %d, rank %d", seed, i, h.rank)
		}
		next, out, err := fsm.Apply(state, e)
		require.NoError(t, err)
		if out.Refused == "" && e.Kind == events.KindCall {
			require.Equal(t, authority, e.Node, "seed %d: entry %d was decided by a node that is not rank 0's", seed, i)
		}
		if out.Refused == "" {
			require.NoError(t, requests.follow(i, e), "seed %d", seed)
		}
		state, authority = next, next.Round.Authority()
	}
	require.Equal(t, requests.waiting(), len(state.Requests), "seed %d", seed)
	for index, slot := range j.asked {
		require.Contains(t, requests, index, "seed %d: a request was acknowledged and is lost", seed)
		require.Equal(t, slot, requests[index].Slot, "seed %d: entry %d", seed, index)
	}
	seen := map[events.CallID]uint64{}
	for id, index := range j.acked {
		at, ok, err := w.hosts[0].alive().Find(id)
		require.NoError(t, err)
		require.True(t, ok, "seed %d: call %+v was acknowledged and is lost", seed, id)
		require.Equal(t, index, at, "seed %d: call %+v was acknowledged at another index", seed, id)
		seen[id]++
	}
	require.NotEmpty(t, seen)
}
