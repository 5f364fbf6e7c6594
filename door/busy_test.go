package door

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
)

func aMinute(o *Options) { o.WaitMax = time.Minute }

// aMinuteAfter is when a wait of a minute ends, that of a rank which is busy until
// busy: a minute after the last look before, every sixteenth of a minute.
func aMinuteAfter(busy time.Duration) time.Duration {
	const every = time.Minute / looksInAWait
	return (busy-1)/every*every + time.Minute
}

func (b *bench) busy(rank int, reason string, seconds float64) {
	b.t.Helper()
	status, body := b.post(b.t.Context(), rank, "/v1/busy", api.BusyRequest{Session: incarnation(rank), Reason: reason, Seconds: seconds})
	require.Equal(b.t, 200, status, body)
}

func TestABusyRankIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 3, aMinute)
		defer b.close()
		b.connect()
		b.busy(0, "evaluation", 600)
		began := time.Now()
		go func() {
			time.Sleep(5 * time.Minute)
			waiting := b.servers[2].arrivals(t.Context()).Waiting
			require.Len(t, waiting, 1)
			require.Equal(t, []api.Busy{{Rank: 0, Reason: "evaluation", Seconds: 300}}, waiting[0].Busy)
			ranks := b.servers[2].ranks(t.Context(), "")
			require.Equal(t, &api.Busy{Rank: 0, Reason: "evaluation", Seconds: 300}, ranks.Ranks[0].Busy)
			require.Nil(t, ranks.Ranks[1].Busy)
			time.Sleep(3 * time.Minute)
			status, body := b.step(t.Context(), 0, 1, 0, 0)
			require.Equal(t, 200, status, body)
		}()
		status, body := b.step(t.Context(), 1, 1, 0, 0)
		require.Equal(t, 200, status, body)
		require.Equal(t, 8*time.Minute, time.Since(began))
		synctest.Wait()
	})
}

func TestAWaitForABusyRankEnds(t *testing.T) {
	for name, tc := range map[string]struct {
		say  func(*bench)
		ends time.Duration
	}{
		"when it should be back":     {func(b *bench) { b.busy(0, "evaluation", 600) }, aMinuteAfter(10 * time.Minute)},
		"the last word counts":       {func(b *bench) { b.busy(0, "evaluation", 600); b.busy(0, "checkpoint", 120) }, aMinuteAfter(2 * time.Minute)},
		"busy no more":               {func(b *bench) { b.busy(0, "evaluation", 600); b.busy(0, "", 0) }, time.Minute},
		"busy for less than a wait":  {func(b *bench) { b.busy(0, "evaluation", 30) }, aMinuteAfter(30 * time.Second)},
		"for less than until a look": {func(b *bench) { b.busy(0, "evaluation", 3) }, time.Minute},
		"its own word":               {func(b *bench) { b.busy(1, "evaluation", 600) }, time.Minute},
		"any other rank":             {func(b *bench) { b.busy(2, "evaluation", 600) }, time.Minute},
		"again": {func(b *bench) {
			b.busy(0, "evaluation", 120)
			go func() {
				time.Sleep(90 * time.Second)
				b.busy(0, "it takes longer", 300)
			}()
		}, aMinuteAfter(390 * time.Second)},
		"late": {func(b *bench) {
			go func() {
				time.Sleep(59 * time.Second)
				b.busy(0, "evaluation", 300)
			}()
		}, aMinuteAfter(359 * time.Second)},
		"withdrawn": {func(b *bench) {
			b.busy(0, "evaluation", 600)
			go func() {
				time.Sleep(200 * time.Second)
				b.busy(0, "", 0)
			}()
		}, aMinuteAfter(200 * time.Second)},
		"silent": {func(b *bench) {
			b.busy(0, "evaluation", 600)
			b.log.Node(0).Handle(askLedger, func(context.Context, []byte) (any, error) { return nil, errors.New("it does not answer") })
		}, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, 3, aMinute)
				defer b.close()
				b.connect()
				began := time.Now()
				tc.say(b)
				status, body := b.step(t.Context(), 1, 1, 0, 0)
				require.Equal(t, 504, status, body)
				require.Contains(t, body, "decision-timeout")
				require.Equal(t, tc.ends, time.Since(began))

				status, _ = b.step(t.Context(), 0, 1, 0, 0)
				require.Equal(t, 200, status)
				status, body = b.step(t.Context(), 1, 1, 0, 0)
				require.Equal(t, 200, status, body)
			})
		})
	}
}

func TestWhoTakesABusyTrainersPlaceIsNotBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 2, aMinute)
		defer b.close()
		b.connect()
		b.busy(0, "evaluation", 600)
		status := make(chan int)
		for rank := range uint64(2) {
			go func() {
				code, _ := b.post(t.Context(), int(rank), "/v1/session", api.SessionRequest{Protocol: 1, Rank: rank, WorldSize: 2, Incarnation: incarnation(7 + int(rank))})
				status <- code
			}()
		}
		require.Equal(t, [2]int{200, 200}, [2]int{<-status, <-status})
		require.Nil(t, b.servers[1].ranks(t.Context(), "").Ranks[0].Busy)
		began := time.Now()
		code, _ := b.post(t.Context(), 1, "/v1/fence", api.FenceRequest{N: 1, Call: api.Call{Session: incarnation(8), Call: 1}})
		require.Equal(t, 504, code)
		require.Equal(t, time.Minute, time.Since(began))
	})
}

func TestARoundIsWaitedForWhileARankIsBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 2, aMinute)
		defer b.close()
		b.connect()
		b.busy(0, "checkpoint", 300)
		began := time.Now()
		status, body := b.post(t.Context(), 1, "/v1/session", api.SessionRequest{Protocol: 1, Rank: 1, WorldSize: 2, Incarnation: incarnation(7)})
		require.Equal(t, 504, status)
		require.Contains(t, body, "the trainers of ranks [0] did not connect")
		require.Equal(t, aMinuteAfter(5*time.Minute), time.Since(began))
	})
}

// Who is there already, and busy in the round before, is not waited for.
func TestARoundIsNotWaitedForBecauseOfWhoIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 3, aMinute)
		defer b.close()
		b.connect()
		b.busy(0, "checkpoint", 300)
		b.busy(1, "its own", 300)
		connect := func(rank int) int {
			status, _ := b.post(t.Context(), rank, "/v1/session", api.SessionRequest{Protocol: 1, Rank: uint64(rank), WorldSize: 3, Incarnation: incarnation(7 + rank)})
			return status
		}
		go func() {
			time.Sleep(time.Second)
			connect(0)
		}()
		began := time.Now()
		require.Equal(t, 504, connect(1))
		require.Equal(t, time.Minute, time.Since(began))
		time.Sleep(time.Minute)
	})
}

// Rank 0 waits for the log, and the log is never busy.
func TestRank0WaitsForNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 2, aMinute)
		defer b.close()
		b.connect()
		b.busy(1, "evaluation", 600)
		b.log.Node(0).Hold()
		began := time.Now()
		status, _ := b.step(t.Context(), 0, 1, 0, 0)
		require.Equal(t, 504, status)
		require.Equal(t, time.Minute, time.Since(began))
	})
}

// A call whose caller has gone does not ask for who is busy any more, and many
// that wait ask together.
func TestHowOftenTheOthersAreAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 2, aMinute)
		defer b.close()
		b.connect()
		b.busy(0, "evaluation", 600)
		var asked atomic.Int64
		s := b.servers[1]
		b.log.Node(0).Handle(askLedger, func(ctx context.Context, question []byte) (any, error) {
			asked.Add(1)
			time.Sleep(askMax / 2)
			return b.servers[0].answerLedger(ctx, question)
		})
		var done []context.CancelFunc
		for range 100 {
			ctx, end := s.callContext(t.Context(), t.Context(), s.forRank0())
			done = append(done, func() {
				require.NoError(t, ctx.Err())
				end()
				require.Error(t, ctx.Err())
			})
		}
		ctx, end := s.callContext(t.Context(), t.Context(), s.forRank0())
		time.Sleep(time.Second)
		end()
		require.Error(t, ctx.Err())
		require.Zero(t, asked.Load(), "it was answered before the first look")
		time.Sleep(3 * time.Minute)
		for _, end := range done {
			end()
		}
		require.InDelta(t, looksInAWait*3, asked.Load(), looksInAWait)
		before := asked.Load()
		time.Sleep(time.Hour)
		require.Equal(t, before, asked.Load())
	})
}

func TestWhatIsNoBusyWord(t *testing.T) {
	b := newBench(t, 1)
	defer b.close()
	b.connect()
	for body, want := range map[string]int{
		`{"session":"` + incarnation(0) + `","reason":"x","seconds":-1}`:       422,
		`{"session":"` + incarnation(0) + `","reason":"x","seconds":604801}`:   422,
		`{"session":"` + incarnation(0) + `","reason":"x","seconds":"NaN"}`:    422,
		`{"session":"` + incarnation(0) + `","seconds":1}`:                     422,
		`{"session":"` + incarnation(5) + `","reason":"x","seconds":1}`:        503,
		`{"session":"` + incarnation(0) + `","reason":"x","seconds":604800}`:   200,
		`{"session":"` + incarnation(0) + `","reason":"","seconds":0.0000001}`: 200,
	} {
		status, answer := b.raw(0, "/v1/busy", body)
		require.Equal(t, want, status, "%s: %s", body, answer)
	}
}

// raw posts a body as it is.
func (b *bench) raw(rank int, path, body string) (int, string) {
	req := httptest.NewRequestWithContext(b.t.Context(), http.MethodPost, path, strings.NewReader(body))
	req.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	b.muxes[rank].ServeHTTP(w, req)
	return w.Code, w.Body.String()
}
