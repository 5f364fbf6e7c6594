package sim

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// schedules is how many seeds the test command plays; ESPERD_SIM_SCHEDULES sets
// another number, ESPERD_SIM_SEED plays one seed with its log, and
// ESPERD_SIM_LOGS names a directory that keeps the logs of those that failed.
const schedules = 2000

// wentBack and foundedAnew count what the schedules came to: checked resumes, and
// logs that began with a mark.
var wentBack, foundedAnew atomic.Int64

// A schedule lives for a fifth of a second, so most of what it leaves is garbage
// that nobody has to look at.
func init() { debug.SetGCPercent(800) }

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
	t.Cleanup(func() { // after all of them
		t.Logf("%d resumes of marks, %d logs founded anew", wentBack.Load(), foundedAnew.Load())
		if n >= 100 && !t.Failed() && (wentBack.Load() < int64(n) || foundedAnew.Load() == 0) {
			t.Error("too few of them to show anything")
		}
	})
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
		for _, h := range w.job() {
			require.NoError(t, h.start())
		}
		for rank := range uint64(ranksMax) {
			trainers.Go(func() { j.run(ctx, rank) })
		}
		plan := &schedule{t: t, ctx: ctx, w: w, j: j, r: r, running: &trainers}
		plan.play()
		require.NoError(t, w.heal(), "seed %d", seed)
		for ctx.Err() == nil && !j.over() {
			plan.giveWay()
			sleep(ctx, 100*time.Millisecond)
		}
		trainers.Wait()
		require.NoError(t, ctx.Err(), "seed %d: the trainers did not finish: %v", seed, j.doing)
		settling, stop := context.WithTimeout(ctx, 5*time.Minute)
		defer stop()
		require.NoError(t, w.settle(settling), "seed %d", seed)
		check(t, w, j, seed)
	})
}
