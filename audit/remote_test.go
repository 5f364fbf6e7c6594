package audit

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/door"
	"github.com/esperd/esperd/door/doortest"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	replicas "github.com/esperd/esperd/replica"
)

// served is a history behind a real admin door.
type served struct {
	*doortest.Node
	rank    int
	ranks   int
	history *events.History
	state   *fsm.State
}

func (s *served) Status() replicas.Status {
	index, chain, _ := s.history.Head()
	return replicas.Status{Identity: replicas.Identity{Node: nodeOf(s.rank), Rank: uint64(s.rank), World: uint64(s.ranks), Run: s.state.Run, Lineage: s.state.Lineage},
		Phase: replicas.PhaseMember, Role: "follower", Index: index, Chain: chain, CompleteFrom: 1, Durability: "durable", LogStore: "wal"}
}
func (s *served) State() *fsm.State { return s.state }
func (s *served) Records(from, to uint64, fn func(events.Record) error) error {
	return s.history.Range(from, to, fn)
}
func (s *served) ChainAt(index uint64) (events.Digest, error) { return s.history.ChainAt(index) }

func (s *served) Entry(index uint64) (e *events.Entry, r events.Record, err error) {
	err = s.history.Range(index, index, func(got events.Record) (err error) {
		r = got
		e, err = events.Decode(got.Entry)
		return err
	})
	return e, r, err
}

// serve opens an admin door on a directory and returns its URL, behind a proxy
// that counts what it sends.
func serve(t testing.TB, dir string, rank, ranks int, state *fsm.State, sent *atomic.Int64) string {
	h, err := events.OpenHistory(filepath.Join(dir, historyName), events.HistoryOptions{NoSync: true, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, h.Close()) })
	sockets, err := os.MkdirTemp("", "audit")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(sockets) })
	d, err := door.Open(door.Options{Replica: &served{doortest.New("run", ranks).Node(rank), rank, ranks, h, state}, Socket: filepath.Join(sockets, "s"),
		Logger: slog.New(slog.DiscardHandler), Version: "test"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Close(context.Background())) }) // t.Context has ended by then
	to, err := url.Parse("http://" + d.AdminAddr())
	require.NoError(t, err)
	proxy := httputil.NewSingleHostReverseProxy(to)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	proxy.Transport = transport
	proxy.Director = func(r *http.Request) { r.URL.Scheme, r.URL.Host, r.Host = to.Scheme, to.Host, to.Host }
	proxy.ModifyResponse = func(r *http.Response) error {
		sent.Add(400) // headers, and the request
		r.Body = &counted{r.Body, sent}
		return nil
	}
	p := httptest.NewServer(proxy)
	t.Cleanup(p.Close)
	return p.URL
}

type counted struct {
	io.ReadCloser
	n *atomic.Int64
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	c.n.Add(int64(n))
	return n, err
}

func TestRemote(t *testing.T) {
	l := newLog(t, 21, "run", 3)
	l.train(3000)
	var sent atomic.Int64
	var dirs, urls []string
	at := uint64(1234)
	wrong := decoded(t, l.entries[at-1])
	for wrong.Key == nil || wrong.Key.Slot == "" || wrong.Events[0].Observed == nil {
		at++
		wrong = decoded(t, l.entries[at-1])
	}
	wrong.Events[0].Observed.Metrics.Accuracy++
	for rank := range 3 {
		r := &replica{rank: rank, entries: l.entries}
		if rank == 2 {
			r.applied = map[uint64]*events.Entry{at: wrong}
		}
		dirs = append(dirs, r.write(t, t.TempDir()))
		urls = append(urls, serve(t, dirs[rank], rank, 3, l.state, &sent))
	}
	r := auditOf(t, urls[0], urls[1])
	require.Equal(t, Consistent, r.Outcome, text(r))
	require.EqualValues(t, 3000, r.Places[0].Compared)
	require.Less(t, sent.Load(), int64(20_000), "bytes for two that agree")

	require.NoError(t, os.Chmod(filepath.Join(dirs[0], historyName), 0o400))
	r = auditOf(t, dirs[0], urls[1])
	require.Equal(t, Consistent, r.Outcome, "%s", text(r))
	require.True(t, r.Places[0].Live)

	for _, places := range [][]string{{urls[0], urls[2]}, {dirs[0], urls[2]}, {urls[2]}, {dirs[2], urls[0]}} {
		r = auditOf(t, places...)
		require.Len(t, r.Findings, 1, "%v: %s", places, text(r))
		require.Equal(t, VerdictApply, r.Findings[0].Verdict)
		require.Equal(t, at, r.Findings[0].Index)
		require.EqualValues(t, 2, *r.Findings[0].AtFault[0].Rank)
	}
	r = Run(t.Context(), Config{Places: urls[:2], Full: true})
	require.Equal(t, Consistent, r.Outcome, text(r))
	require.EqualValues(t, 3000, r.Places[1].Replayed)
}

// URLs of two runs are checked each by itself, and nothing is said to agree.
func TestRemoteOfTwoRuns(t *testing.T) {
	var sent atomic.Int64
	var urls []string
	for i, run := range []string{"one", "other"} {
		l := newLog(t, uint64(23+i), run, 2)
		l.train(50)
		urls = append(urls, serve(t, (&replica{entries: l.entries}).write(t, t.TempDir()), 0, 2, l.state, &sent))
	}
	r := auditOf(t, urls...)
	require.Equal(t, 2, r.Status, text(r))
	require.Zero(t, r.Agreed.Index)
	for i := range urls {
		require.EqualValues(t, 50, r.Places[i].Replayed)
		require.Contains(t, r.Coverage[i], "entries 1 to 50 replayed")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r = Run(ctx, Config{Places: urls})
	require.Equal(t, 2, r.Status)
	require.Contains(t, r.Places[0].Problem, "interrupted")
	require.NotContains(t, r.Places[0].Problem, "is it running")
}

// A URL that does not answer, or answers nonsense, is named, and nothing hangs.
func TestRemoteThatMisbehaves(t *testing.T) {
	release := make(chan struct{})
	var answers sync.Map // of a path
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if body, ok := answers.Load(r.URL.Path); ok {
			fmt.Fprint(w, body)
			return
		}
		<-release
	}))
	defer s.Close()
	defer close(release)
	l := newLog(t, 22, "run", 2)
	l.train(50)
	dir := (&replica{entries: l.entries}).write(t, t.TempDir())
	look := func() *Report {
		return Run(t.Context(), Config{Places: []string{dir, s.URL}, Options: Options{Timeout: 200 * time.Millisecond}})
	}
	for path, body := range map[string]string{"": "", "/v1/state": `{"index":50,"run":"run","lineage":"` + l.state.Lineage + `"}`, "/v1/chain": `{"from":1,"to":50}`} {
		answers.Store(path, body)
		r := look()
		require.NotEqual(t, Consistent, r.Outcome, text(r))
		require.EqualValues(t, 50, r.Places[0].Replayed)
	}
	answers.Store("/v1/state", "nonsense")
	require.Equal(t, 2, look().Status)
}
