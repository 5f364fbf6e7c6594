package door_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/door"
	"github.com/esperd/esperd/door/doortest"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/gates"
)

func TestMain(m *testing.M) {
	if socket := os.Getenv(asTrainer); socket != "" {
		if err := beTrainer(socket); !errors.Is(err, io.EOF) {
			panic(err)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// job is a world of ranks in one process: a log, and a door for each rank.
type job struct {
	t     testing.TB
	log   *doortest.Log
	dir   string
	doors []*door.Server
	logs  []*lines
}

// lines collects what one door logs.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newJob opens a door for each rank. t.TempDir would be too long for a socket.
func newJob(t testing.TB, world int, change ...func(*door.Options)) *job {
	t.Helper()
	dir, err := os.MkdirTemp("", "door")
	require.NoError(t, err)
	j := &job{t: t, log: doortest.New("run-1", world), dir: dir, doors: make([]*door.Server, world), logs: make([]*lines, world)}
	t.Cleanup(func() {
		for rank := range world {
			j.stop(rank)
		}
		require.NoError(t, os.RemoveAll(dir))
	})
	for rank := range world {
		j.logs[rank] = &lines{}
		j.start(rank, change...)
	}
	return j
}

func (j *job) socket(rank int) string { return filepath.Join(j.dir, fmt.Sprintf("%d.sock", rank)) }

func (j *job) start(rank int, change ...func(*door.Options)) {
	j.t.Helper()
	o := door.Options{Replica: j.log.Node(rank), Socket: j.socket(rank), Version: "test",
		Logger: slog.New(slog.NewJSONHandler(j.logs[rank], nil))}
	for _, c := range change {
		c(&o)
	}
	var err error
	j.doors[rank], err = door.Open(o)
	require.NoError(j.t, err)
}

func (j *job) stop(rank int) {
	if j.doors[rank] != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		require.NoError(j.t, j.doors[rank].Close(ctx))
		j.doors[rank] = nil
	}
}

// permissive gates pass on nothing but gradient health.
func permissive() *events.GateConfig {
	g := gates.Defaults()
	g.Permissive, g.MinBlendingEpochs = true, 0
	return &g
}

func options(rank, world int) client.Options {
	return client.Options{Rank: uint64(rank), World: uint64(world), Gates: permissive(),
		Slots: []api.SlotRequest{{Name: "r0c0"}, {Name: "r0c1"}}}
}

// connect connects a trainer to each rank, all at once.
func (j *job) connect(change ...func(*client.Options)) []*client.Client {
	j.t.Helper()
	world := len(j.doors)
	trainers, errs := make([]*client.Client, world), make([]error, world)
	var wg sync.WaitGroup
	for rank := range world {
		wg.Go(func() {
			o := options(rank, world)
			for _, c := range change {
				c(&o)
			}
			trainers[rank], errs[rank] = client.Connect(j.ctx(), j.socket(rank), o)
		})
	}
	wg.Wait()
	for rank, err := range errs {
		require.NoError(j.t, err, "rank %d", rank)
		j.t.Cleanup(func() { trainers[rank].Close() })
	}
	return trainers
}

// waiting returns once the trainer of a rank waits in a call.
func (j *job) waiting(rank int) {
	j.t.Helper()
	j.waitingFor(rank, "decision")
}

// waitingFor returns once a trainer of a rank waits for a round or a decision.
func (j *job) waitingFor(rank int, what string) {
	j.t.Helper()
	a := client.NewAdmin(j.socket(rank))
	defer a.Close()
	require.Eventually(j.t, func() bool {
		arrivals, err := a.Arrivals(j.ctx())
		require.NoError(j.t, err)
		return slices.ContainsFunc(arrivals.Waiting, func(w api.Arrival) bool { return w.Rank == uint64(rank) && w.What == what })
	}, 5*time.Second, time.Millisecond)
}

// ctx ends long after every test has.
func (j *job) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	j.t.Cleanup(cancel)
	return ctx
}

func accuracy(v float64) api.Readings {
	return api.Readings{Accuracy: api.Value(events.Num(v)), Health: api.Value(events.Num(0.9))}
}

func problem(t *testing.T, err error) *client.Problem {
	t.Helper()
	var p *client.Problem
	require.ErrorAs(t, err, &p)
	return p
}

func TestAllRanksGetTheSameAnswers(t *testing.T) {
	j := newJob(t, 2)
	trainers := j.connect()
	ctx := j.ctx()
	var answers [2][]any
	for rank, c := range trainers {
		add := func(v any, err error) {
			require.NoError(t, err)
			answers[rank] = append(answers[rank], v)
		}
		add(c.Germinate(ctx, "r0c0", api.GerminateRequest{Blueprint: "conv"}))
		c.Observe("r0c0", accuracy(50))
		add(c.Advance(ctx, "r0c0"))
		add(c.StepEpoch(ctx, 0))
		c.Observe("r0c0", accuracy(60))
		add(c.Advance(ctx, "r0c0"))
		add(c.StepEpoch(ctx, 1))
		add(c.Fence(ctx, 3))
	}
	for i := range answers[0] {
		require.Equal(t, answers[0][i], answers[1][i])
	}
	d := answers[0][3].(*api.Decision)
	require.True(t, d.Passed)
	require.Equal(t, events.StageBlending, d.Stage)
	f := answers[0][4].(*api.Fence)
	require.Len(t, f.Changes, 1)
	require.Equal(t, api.Change{Slot: "r0c0", Seed: 1, Blueprint: "conv", From: events.StageTraining, To: events.StageBlending, Alpha: f.Changes[0].Alpha}, f.Changes[0])
	require.Positive(t, f.Changes[0].Alpha)
	require.Empty(t, answers[0][5].(*api.Fence).Changes)
}
