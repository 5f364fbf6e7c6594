package replica

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

const replays = "replaying it before anybody is served"

// runBuild starts a lone node on dir with a build's name, makes it do something,
// and stops it. It returns what was logged.
func runBuild(t *testing.T, dir, build string, do func(*Node)) (string, error) {
	t.Helper()
	var logged bytes.Buffer
	log := slog.New(slog.NewTextHandler(&logged, nil))
	d, err := OpenDataDir(dir, DataDirOptions{})
	require.NoError(t, err)
	defer d.Close()
	nw, err := NewNetwork(ListenOptions{Listen: "127.0.0.1:0", Node: d.Node(), Log: log})
	require.NoError(t, err)
	n, err := Open(Config{World: 1, Dir: d, Network: nw, Logger: log, Build: build,
		Timing: Timing{Hello: 20 * time.Millisecond, Election: 50 * time.Millisecond}})
	if err != nil {
		return logged.String(), err
	}
	if do != nil {
		do(n)
	}
	require.NoError(t, n.Close(context.Background()))
	return logged.String(), nil
}

// train makes a few calls in a round of its own.
func train(t *testing.T) func(*Node) {
	return func(n *Node) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for n.State().Lineage == "" {
			changed := n.Changed()
			select {
			case <-changed:
			case <-ctx.Done():
				t.Fatal("no log was founded")
			}
		}
		_, err := n.Register(ctx, Registration{World: 1, Incarnation: incarnation(0, n.cfg.Dir.Boots()), Fingerprint: "x", Mode: "keyed"})
		require.NoError(t, err)
		for _, args := range []fsm.Args{fsm.Configure{Slots: slots("a", "b")}, fsm.StepEpoch{Epoch: 0}, fsm.StepEpoch{Epoch: 1}} {
			key := fsm.NextKey(n.State(), "main", "", args)
			_, err := n.Decide(ctx, fsm.Call{Key: key, Args: args})
			require.NoError(t, err)
		}
	}
}

// A build replays what another one left, once.
func TestNewBuildVerifiesTheHistory(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, verifiedFileName)
	starts := []struct {
		what, build string
		before      func()
		replays     bool
		warns       string
	}{
		{what: "the first start", build: "one"},
		{what: "the same build", build: "one"},
		{what: "another one", build: "two", replays: true},
		{what: "that again", build: "two"},
		{what: "and back", build: "one", replays: true},
		{what: "a build that does not know the file", build: ""},
		{what: "after which the last one cannot vouch", build: "one", replays: true},
		{what: "the file is gone", build: "one", before: func() { require.NoError(t, os.Remove(name)) }, replays: true},
		{what: "it is garbled", build: "one", before: func() { require.NoError(t, os.WriteFile(name, []byte(`{"format":`), 0o600)) }, replays: true, warns: "JSON"},
		{what: "it is newer", build: "one", before: func() { require.NoError(t, os.WriteFile(name, []byte(`{"format":2}`), 0o600)) }, replays: true, warns: "expected format 1, got 2"},
		{what: "it is huge", build: "one", before: func() { require.NoError(t, os.Truncate(name, 1<<40)) }, replays: true, warns: "expected a file of at most"},
		{what: "it is a pipe", build: "one", before: func() {
			require.NoError(t, os.Remove(name))
			require.NoError(t, syscall.Mkfifo(name, 0o600))
		}, replays: true, warns: "expected a file"},
		{what: "all is well", build: "one"},
	}
	for _, s := range starts {
		if s.before != nil {
			s.before()
		}
		logged, err := runBuild(t, dir, s.build, train(t))
		require.NoError(t, err, s.what)
		require.Equal(t, s.replays, strings.Contains(logged, replays), "%s:\n%s", s.what, logged)
		require.Equal(t, s.replays, strings.Contains(logged, "the history is verified"), s.what)
		require.Equal(t, s.warns != "", strings.Contains(logged, "it is not known which build"), s.what)
		require.Contains(t, logged, s.warns, s.what)
	}
}

// rewriteHistory replaces dir's history by one in which change was at every
// record. The chain is made anew.
func rewriteHistory(t *testing.T, dir string, change func(*events.Record), images map[uint64][]byte) {
	t.Helper()
	name := filepath.Join(dir, "history.db")
	o := events.HistoryOptions{Logger: slog.New(slog.DiscardHandler)}
	old, err := events.OpenHistory(name, o)
	require.NoError(t, err)
	made, err := events.OpenHistory(name+".new", o)
	require.NoError(t, err)
	head, _, _ := old.Head()
	var chain events.Digest
	require.NoError(t, old.Range(1, head, func(r events.Record) error {
		var call *events.CallID
		if e, err := events.Decode(r.Entry); err == nil && e.Kind == events.KindCall {
			call = &events.CallID{Round: e.Key.Round, Model: e.Key.Model, Call: e.Key.Call}
		}
		change(&r)
		chain = events.Chain(chain, r.Index, r.Entry)
		r.Chain = chain
		return made.Append(r, call)
	}))
	for index, image := range images {
		require.NoError(t, made.PutImage(index, image))
	}
	require.NoError(t, old.Close())
	require.NoError(t, made.Close())
	require.NoError(t, os.Rename(name+".new", name))
}

// Where a build gets another state than was recorded, it does not start, and
// says from which entry on.
func TestNewBuildFindsAPlantedDifference(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*events.Record)
		image  uint64 // the entry at which the image is that of another state
		says   []string
	}{
		"the bookkeeping": {change: func(r *events.Record) {
			if r.Index == 4 {
				r.Bookkeeping[0] ^= 1
			}
		}, says: []string{"entry 4 is the first that differs", "expected bookkeeping digest"}},
		"the lifecycle": {change: func(r *events.Record) {
			if r.Index == 5 {
				r.Lifecycle[31] ^= 1
			}
		}, says: []string{"entry 5 is the first that differs", "expected lifecycle digest", "of model main"}},
		"what an entry does": {change: func(r *events.Record) { // as if the other build had decided so
			e, err := events.Decode(r.Entry)
			if err == nil && r.Index == 4 {
				e.Events = e.Events[:0]
				e.Events = append(e.Events, events.Event{EpochStepped: &events.EpochStepped{Epoch: 7}})
				if b, err := events.Encode(e); err == nil {
					r.Entry = b
				}
			}
		}, says: []string{"entry 4 is the first that differs"}},
		"an entry that this build cannot read": {change: func(r *events.Record) {
			if r.Index == 4 {
				r.Entry = []byte{0xa1, 0x01, 0x18, 0x63}
			}
		}, says: []string{"entry 4 is the first that differs", "an entry that this build can read"}},
		"a kept state": {change: func(*events.Record) {}, image: 5, says: []string{"entry 5 is the first that differs", "a kept state"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			var images map[uint64][]byte
			_, err := runBuild(t, dir, "one", func(n *Node) {
				train(t)(n)
				if c.image > 0 {
					s, err := n.StateAt(t.Context(), c.image-1)
					require.NoError(t, err)
					b, err := s.Image()
					require.NoError(t, err)
					images = map[uint64][]byte{c.image: b}
				}
			})
			require.NoError(t, err)
			rewriteHistory(t, dir, c.change, images)
			before := read(t, dir)
			for _, build := range []string{"two", "three"} {
				_, err = runBuild(t, dir, build, nil)
				require.Error(t, err)
				for _, words := range append(c.says, dir, "this build ("+build+")", "by: one", "got ", "start this rank with the build that it had before") {
					require.ErrorContains(t, err, words)
				}
			}
			require.Equal(t, before, read(t, dir), "a node that does not start changes nothing")
		})
	}
}

// read returns what must stay as it is while a node does not start.
func read(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, name := range []string{"history.db", verifiedFileName} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		out[name] = string(b)
	}
	return out
}

// A history with a gap is verified above it, and is not noted as verified.
func TestVerifyAboveAGap(t *testing.T) {
	logs := logOf(t, 9)
	leader, h := openMachine(t, t.TempDir())
	defer h.Close()
	for _, l := range logs[:5] {
		require.Empty(t, leader.Apply(l).(applied).refused)
	}
	snap, err := leader.Snapshot()
	require.NoError(t, err)
	var sink memSink
	require.NoError(t, snap.Persist(&sink))
	m, late := openMachine(t, t.TempDir())
	require.NoError(t, m.Restore(io.NopCloser(&sink.Buffer)))
	for _, l := range logs[5:] {
		require.Empty(t, m.Apply(l).(applied).refused)
	}
	var logged bytes.Buffer
	v := verification{history: late, log: slog.New(slog.NewTextHandler(&logged, nil)), every: 2}
	whole, err := v.run()
	require.NoError(t, err)
	require.False(t, whole)
	require.EqualValues(t, 4, v.count)
	require.Contains(t, logged.String(), "entries are missing here")
	require.Contains(t, logged.String(), `msg="verifying the history" index=7 of=9`)
	require.NoError(t, late.Close())
}

// A replica that had diverged stays evidence: it is no fault of the new build.
func TestVerifyKnownDivergence(t *testing.T) {
	logs := logOf(t, 5)
	m, h := openMachine(t, t.TempDir())
	defer h.Close()
	for i, l := range logs {
		if i != 2 {
			m.Apply(l)
		}
	}
	v := verification{history: h, log: slog.New(slog.DiscardHandler), every: verifyProgress}
	whole, err := v.run()
	require.NoError(t, err)
	require.False(t, whole)
	require.EqualValues(t, 2, v.count)
}
