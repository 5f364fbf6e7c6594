package replica

import (
	"bytes"
	"io"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// logOf makes raft entries as a leader would: a log founded by node n, then
// further members.
func logOf(t *testing.T, members int) []*raft.Log {
	t.Helper()
	state := fsm.New()
	var out []*raft.Log
	for i := range members {
		e := &events.Entry{Version: 1, Kind: events.KindMembership, Node: "n", Predecessor: state.Index, Bookkeeping: state.Bookkeeping(), Time: 1,
			Events: []events.Event{{NodeJoined: &events.NodeJoined{Node: events.NodeID(rune('a' + i)), Version: 1}}}}
		if i == 0 {
			e.Kind = events.KindFound
			e.Events = []events.Event{{Founded: &events.Founded{Run: "r", Lineage: "l"}}}
		}
		b, err := events.Encode(e)
		require.NoError(t, err)
		state, _, err = fsm.Apply(state, e)
		require.NoError(t, err)
		out = append(out, &raft.Log{Index: uint64(i) + 3, Term: 2, Data: b})
	}
	return out
}

func openMachine(t *testing.T, dir string) (*machine, *events.History) {
	t.Helper()
	h, err := events.OpenHistory(filepath.Join(dir, "history.db"), events.HistoryOptions{Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	m, err := newMachine(slog.New(slog.DiscardHandler), h, 0)
	require.NoError(t, err)
	return m, h
}

// A snapshot from the leader is durable with its image: a crash right after it
// leaves a node that starts.
func TestCrashAfterSnapshotInstall(t *testing.T) {
	logs := logOf(t, 5)
	leader, h := openMachine(t, t.TempDir())
	defer h.Close()
	for _, l := range logs {
		require.Empty(t, leader.Apply(l).(applied).refused)
	}
	snap, err := leader.Snapshot()
	require.NoError(t, err)
	var sink memSink
	require.NoError(t, snap.Persist(&sink))

	dir := t.TempDir()
	m, h2 := openMachine(t, dir)
	require.NoError(t, m.Restore(io.NopCloser(&sink.Buffer)))
	require.NoError(t, h2.Abandon())
	m, h2 = openMachine(t, dir)
	defer h2.Close()
	require.Equal(t, leader.state().Bookkeeping(), m.state().Bookkeeping())
	require.EqualValues(t, 5, m.state().Index)
}

type memSink struct{ bytes.Buffer }

func (*memSink) ID() string    { return "x" }
func (*memSink) Cancel() error { return nil }
func (*memSink) Close() error  { return nil }

// A replica that lost an entry knows it at the next one.
func TestLostEntryIsADivergence(t *testing.T) {
	logs := logOf(t, 4)
	m, h := openMachine(t, t.TempDir())
	defer h.Close()
	m.Apply(logs[0])
	res := m.Apply(logs[2]).(applied) // logs[1] is lost
	require.Contains(t, res.refused, "lacks entries")
	phase, err := m.trouble()
	require.Equal(t, PhaseDiverged, phase)
	var diverged *fsm.DivergedError
	require.ErrorAs(t, err, &diverged)
	require.EqualValues(t, 2, diverged.Index)
	index, _, _ := h.Head()
	require.EqualValues(t, 2, index, "it goes on storing")
	_, err = m.Snapshot()
	require.Error(t, err)
}

// The stand-in for the entry at a snapshot never becomes an entry: what the
// snapshot covers is dropped from the log.
func TestAnchorDropsWhatASnapshotCovers(t *testing.T) {
	store := raft.NewInmemStore()
	for i := uint64(1); i <= 7; i++ {
		require.NoError(t, store.StoreLog(&raft.Log{Index: i, Term: 1}))
	}
	anchor, snapshots, err := newAnchor(&Stores{Log: store, Snapshots: raft.NewInmemSnapshotStore()}, discard, t.Context().Done())
	require.NoError(t, err)
	sink, err := snapshots.Create(1, 5, 3, raft.Configuration{}, 1, nil)
	require.NoError(t, err)
	require.NoError(t, sink.Close())

	var l raft.Log
	require.NoError(t, anchor.GetLog(5, &l))
	require.EqualValues(t, 3, l.Term, "a conflicting entry gives way to the snapshot's term")
	require.NoError(t, anchor.dropCovered())
	require.ErrorIs(t, anchor.GetLog(4, &l), raft.ErrLogNotFound)
	require.NoError(t, anchor.GetLog(5, &l))
	require.EqualValues(t, 3, l.Term)
	require.NoError(t, anchor.GetLog(6, &l))
	require.EqualValues(t, 1, l.Term)
}
