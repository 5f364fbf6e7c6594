package door

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/door/doortest"
	"github.com/esperd/esperd/events"
)

// bench is a world of servers without doors, whose handlers are called
// directly: nothing in it waits for the system, so its clock can be simulated.
type bench struct {
	t       testing.TB
	log     *doortest.Log
	servers []*Server
	muxes   []http.Handler
	lines   []*syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newBench(t testing.TB, world int, change ...func(*Options)) *bench {
	b := &bench{t: t, log: doortest.New("run-1", world)}
	for rank := range world {
		lines := &syncBuffer{}
		o := Options{Replica: b.log.Node(rank), Logger: slog.New(slog.NewTextHandler(lines, nil))}
		for _, c := range change {
			c(&o)
		}
		s := newServer(o)
		b.servers, b.lines = append(b.servers, s), append(b.lines, lines)
		b.muxes = append(b.muxes, s.trainerHandler(s.newMux()))
	}
	return b
}

func (b *bench) close() {
	for _, s := range b.servers {
		s.cancel(errClosing)
		s.work.Wait()
	}
}

func (b *bench) post(ctx context.Context, rank int, path string, body any) (int, string) {
	raw, err := json.Marshal(body)
	require.NoError(b.t, err)
	req := httptest.NewRequestWithContext(ctx, http.MethodPost, path, bytes.NewReader(raw))
	req.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	b.muxes[rank].ServeHTTP(w, req)
	return w.Code, w.Body.String()
}

func incarnation(rank int) string { return fmt.Sprintf("%032x", rank+1) }

// connect connects a trainer to each rank of a world that has just begun.
func (b *bench) connect(change ...func(*api.SessionRequest)) {
	var wg sync.WaitGroup
	for rank := range b.servers {
		wg.Go(func() {
			req := api.SessionRequest{Protocol: 1, Rank: uint64(rank), WorldSize: uint64(len(b.servers)), Incarnation: incarnation(rank),
				Slots: []api.SlotRequest{{Name: "r0c0"}}, Site: "train.py:1"}
			for _, c := range change {
				c(&req)
			}
			status, body := b.post(b.t.Context(), rank, "/v1/session", req)
			require.Equal(b.t, 200, status, body)
		})
	}
	wg.Wait()
}

func (b *bench) step(ctx context.Context, rank int, call, fence uint64, epoch int64) (int, string) {
	return b.post(ctx, rank, fmt.Sprintf("/v1/epochs/%d/step", epoch), api.StepRequest{Call: api.Call{
		Session: incarnation(rank), Call: call, Fence: fence, Site: "train.py:88"}})
}

func TestALongWaitIsLoggedOnceAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 2)
		defer b.close()
		b.connect()
		status, body := b.step(t.Context(), 0, 1, 0, 0)
		require.Equal(t, 200, status, body)
		status, _ = b.step(t.Context(), 1, 1, 0, 0)
		require.Equal(t, 200, status)

		began := time.Now()
		status, body = b.step(t.Context(), 1, 2, 1, 1) // rank 0 never makes it
		require.Equal(t, DefaultWaitMax, time.Since(began))
		require.Equal(t, 504, status)
		require.Contains(t, body, "decision-timeout")
		require.Contains(t, body, "rank 1 has waited 15m0s in call 2, step_epoch epoch 1 at train.py:88 for rank 0, which last made call 1, step_epoch epoch 0 at train.py:88")

		log := b.lines[1].String()
		require.Equal(t, 1, strings.Count(log, "waiting for rank 0's call"))
		require.Contains(t, log, "level=WARN")
		require.Contains(t, log, "rank=1 seconds=5 site=train.py:88")
		require.Contains(t, log, "step_epoch epoch 1 (model main.1, round 1, call 2, fence 1)")
		require.Contains(t, log, "missing_ranks=[0]")
		require.Contains(t, log, "last made call 1, step_epoch epoch 0 at train.py:88")

		status, _ = b.step(t.Context(), 0, 2, 1, 1)
		require.Equal(t, 200, status)
		status, body = b.step(t.Context(), 1, 2, 1, 1)
		require.Equal(t, 200, status, "the same call again, after all: %s", body)
		require.Equal(t, 1, strings.Count(b.lines[0].String(), "level="))
		require.Contains(t, b.lines[0].String(), "the trainer's process cannot be watched")
	})
}

func TestARoundThatDoesNotOpenIsLoggedAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 3)
		defer b.close()
		request := func(rank int) (int, string) {
			return b.post(t.Context(), rank, "/v1/session", api.SessionRequest{Protocol: 1, Rank: uint64(rank), WorldSize: 3,
				Incarnation: incarnation(rank), Slots: []api.SlotRequest{{Name: "r0c0"}}})
		}
		go func() {
			time.Sleep(time.Second)
			request(0)
		}()
		status, body := request(1)
		require.Equal(t, 504, status)
		require.Contains(t, body, "the trainers of ranks [2] did not connect within 15m0s")
		require.Contains(t, b.lines[1].String(), "missing_ranks=[2]")
		b.servers[0].cancel(errClosing)
		synctest.Wait()
	})
}

func TestRank0WaitsVisiblyToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		defer b.close()
		b.connect()
		s := b.servers[0]
		done := s.waiting(t.Context(), waitDecision, &events.Key{Op: events.OpFence}, "train.py:3")
		time.Sleep(6 * time.Second)
		waits := s.ledger.arrivals(0)
		require.Len(t, waits, 1)
		require.InDelta(t, 6, waits[0].Seconds, 0.001)
		require.Empty(t, waits[0].Missing)
		require.Contains(t, b.lines[0].String(), "rank 0's call is not in the log yet")
		done()
		waits = s.ledger.arrivals(0)
		require.Empty(t, waits)
	})
}

func TestAServerThatClosesAnswersWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 2)
		defer b.close()
		b.connect()
		go func() {
			time.Sleep(time.Second)
			b.servers[1].cancel(errClosing)
		}()
		status, body := b.step(t.Context(), 1, 1, 0, 0)
		require.Equal(t, 503, status)
		require.Contains(t, body, "this esperd is shutting down; start it again and repeat the call under the same number")
	})
}

func TestAReplicaThatFailsUnnoticedIsLookedAtAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 2)
		defer b.close()
		b.connect()
		b.log.Node(1).Hold()
		status, _ := b.step(t.Context(), 0, 1, 0, 0)
		require.Equal(t, 200, status)
		began := time.Now()
		go func() {
			time.Sleep(10 * time.Second)
			b.log.Node(1).Release()
		}()
		status, _ = b.step(t.Context(), 1, 1, 0, 0)
		require.Equal(t, 200, status)
		require.Equal(t, 10*time.Second, time.Since(began), "a replica that lags is waited for")
	})
}
