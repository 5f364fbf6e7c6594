package door

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// anew connects a new trainer of a rank, in the background.
func (b *bench) anew(ctx context.Context, rank int) <-chan int {
	status := make(chan int, 1)
	go func() {
		code, _ := b.post(ctx, rank, "/v1/session", api.SessionRequest{Protocol: 1, Rank: uint64(rank), WorldSize: uint64(len(b.servers)), Incarnation: incarnation(7 + rank)})
		status <- code
	}()
	return status
}

func (b *bench) steps(rank int, call, fence uint64, epoch int64) <-chan int {
	status := make(chan int, 1)
	go func() {
		code, _ := b.step(b.t.Context(), rank, call, fence, epoch)
		status <- code
	}()
	return status
}

func (b *bench) over() bool { return b.log.Node(0).State().Round.Fault != nil }

// A trainer of rank 0 whose process nobody can see was started anew. The rank
// that waits for the one before it would not connect anew by itself.
func TestRank0LeavesARoundInWhichAnotherRankWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 3)
		defer b.close()
		b.connect()
		newcomer := b.anew(t.Context(), 0)
		time.Sleep(time.Minute)
		require.False(t, b.over(), "nobody waits for its calls")
		began := time.Now()
		waits := b.steps(1, 1, 0, 0)
		time.Sleep(DefaultWarnAfter - time.Second)
		require.False(t, b.over(), "it has just begun to wait")
		require.Equal(t, 409, <-waits)
		require.LessOrEqual(t, time.Since(began), 2*DefaultWarnAfter)
		f := b.log.Node(0).State().Round.Fault
		require.Equal(t, []any{events.CodeUnavailable, uint64(0)}, []any{f.Code, f.Rank})
		require.Equal(t, "a new trainer of its rank waits for a round since 00:00:00 (host host0)", f.Reason)
		others := []<-chan int{b.anew(t.Context(), 1), b.anew(t.Context(), 2)}
		require.Equal(t, []int{200, 200, 200}, []int{<-newcomer, <-others[0], <-others[1]})
		require.Equal(t, uint64(2), b.log.Node(0).State().Round.Number)
		time.Sleep(time.Hour)
		require.False(t, b.over())
	})
}

func TestWhereANewcomerOfRank0EndsNoRound(t *testing.T) {
	for name, during := range map[string]func(b *bench){
		"all connect anew, one after the other": func(b *bench) {
			b.anew(b.t.Context(), 0)
			time.Sleep(10 * time.Minute)
			b.anew(b.t.Context(), 1)
			time.Sleep(time.Minute)
		},
		"another rank's": func(b *bench) {
			b.anew(b.t.Context(), 1)
			b.steps(2, 1, 0, 0)
			time.Sleep(10 * time.Minute)
		},
		"the one before calls": func(b *bench) {
			b.anew(b.t.Context(), 0)
			for i := range uint64(100) { // every 4 seconds
				waits := b.steps(1, i+1, i, int64(i))
				time.Sleep(DefaultWarnAfter * 4 / 5)
				require.Equal(b.t, 200, <-b.steps(0, i+1, i, int64(i)))
				require.Equal(b.t, 200, <-waits)
			}
		},
		"the one before is busy": func(b *bench) {
			b.busy(0, "evaluation", 600)
			b.anew(b.t.Context(), 0)
			b.steps(1, 1, 0, 0)
			time.Sleep(9 * time.Minute)
		},
		"its call is under way": func(b *bench) {
			b.log.Node(0).Hold()
			b.steps(0, 1, 0, 0)
			b.steps(1, 1, 0, 0)
			b.anew(b.t.Context(), 0)
			time.Sleep(10 * time.Minute)
			b.log.Node(0).Release()
		},
		"it goes": func(b *bench) {
			ctx, cancel := context.WithCancel(b.t.Context())
			b.anew(ctx, 0)
			time.Sleep(time.Minute)
			cancel()
			b.steps(1, 1, 0, 0)
			time.Sleep(10 * time.Minute)
		},
		"the call is in the log": func(b *bench) {
			b.log.Node(1).Hold()
			require.Equal(b.t, 200, <-b.steps(0, 1, 0, 0))
			b.anew(b.t.Context(), 0)
			b.steps(1, 1, 0, 0)
			time.Sleep(10 * time.Minute)
			b.log.Node(1).Release()
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, 3)
				b.connect()
				during(b)
				require.False(t, b.over())
				b.close()
			})
		})
	}
}
