package door

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
)

func aMinute(o *Options) { o.WaitMax = time.Minute }

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
		"when it should be back":    {func(b *bench) { b.busy(0, "evaluation", 600) }, 10 * time.Minute},
		"the last word counts":      {func(b *bench) { b.busy(0, "evaluation", 600); b.busy(0, "checkpoint", 120) }, 2 * time.Minute},
		"busy no more":              {func(b *bench) { b.busy(0, "evaluation", 600); b.busy(0, "", 0) }, time.Minute},
		"busy for less than a wait": {func(b *bench) { b.busy(0, "evaluation", 30) }, time.Minute},
		"its own word":              {func(b *bench) { b.busy(1, "evaluation", 600) }, time.Minute},
		"any other rank":            {func(b *bench) { b.busy(2, "evaluation", 600) }, 10 * time.Minute},
		"closed": {func(b *bench) {
			b.busy(0, "evaluation", 600)
			status, _ := b.post(b.t.Context(), 0, "/v1/close", api.CloseRequest{Session: incarnation(0)})
			require.Equal(b.t, 200, status)
		}, time.Minute},
		"again": {func(b *bench) {
			b.busy(0, "evaluation", 120)
			go func() {
				time.Sleep(90 * time.Second)
				b.busy(0, "it takes longer", 300)
			}()
		}, 7 * time.Minute}, // the first look after 6:30
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
		require.Equal(t, 5*time.Minute, time.Since(began))
	})
}

// A call whose caller has gone does not ask for who is busy any more.
func TestNobodyAsksForACallerThatHasGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 2, aMinute)
		defer b.close()
		b.connect()
		b.busy(0, "evaluation", 600)
		ctx, done := b.servers[1].callContext(t.Context(), t.Context())
		time.Sleep(3 * time.Minute)
		require.NoError(t, ctx.Err())
		done()
		require.Error(t, ctx.Err())
		time.Sleep(time.Hour)
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
