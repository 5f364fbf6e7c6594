package replica

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"
)

// fakeLeader sends a real follower what a leader would.
type fakeLeader struct {
	t    *testing.T
	node *MemNode
	term uint64
}

func (l *fakeLeader) append(prev, prevTerm, commit uint64, entries ...*raft.Log) bool {
	var resp raft.AppendEntriesResponse
	require.NoError(l.t, l.node.Transport().AppendEntries("follower", "follower", &raft.AppendEntriesRequest{RPCHeader: l.header(), Term: l.term,
		PrevLogEntry: prev, PrevLogTerm: prevTerm, LeaderCommitIndex: commit, Entries: entries}, &resp))
	return resp.Success
}

func (l *fakeLeader) install(index, term uint64) {
	var resp raft.InstallSnapshotResponse
	require.NoError(l.t, l.node.Transport().InstallSnapshot("follower", "follower", &raft.InstallSnapshotRequest{RPCHeader: l.header(), SnapshotVersion: 1,
		Term: l.term, LastLogIndex: index, LastLogTerm: term, Configuration: raft.EncodeConfiguration(raft.Configuration{}), ConfigurationIndex: 1, Size: 4},
		&resp, strings.NewReader("snap")))
	require.True(l.t, resp.Success)
}

func (l *fakeLeader) header() raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("leader"), Addr: []byte("leader")}
}

func (l *fakeLeader) entries(from, to uint64) (out []*raft.Log) {
	for i := from; i <= to; i++ {
		out = append(out, &raft.Log{Index: i, Term: l.term, Type: raft.LogCommand, Data: []byte{byte(i)}})
	}
	return out
}

// TestSnapshotsFromTheLeader installs them around the end of the log of a real
// raft: what is after a snapshot stays, for it was acknowledged, and what is
// before one makes room.
func TestSnapshotsFromTheLeader(t *testing.T) {
	for _, kind := range []string{logStoreBolt, logStoreWAL} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				net := NewMemNetwork()
				l := &fakeLeader{t: t, node: net.Join("leader"), term: 1}
				v := &raftsView{kind: kind, dir: dir, kept: raft.NewInmemSnapshotStore()}
				var fsm *testFSM
				start := func() (stop func()) {
					v.open(t, t)
					fsm = &testFSM{}
					conf := raft.DefaultConfig()
					conf.LocalID, conf.TrailingLogs, conf.Logger = "follower", 2, newRaftLogger(discard)
					follower := net.Join("follower")
					r, err := raft.NewRaft(conf, fsm, v.anchor, v.stable, v.snapshots, follower.Transport())
					require.NoError(t, err)
					return func() {
						require.NoError(t, r.Shutdown().Error())
						require.NoError(t, errors.Join(follower.Close(), v.closer.Close()))
					}
				}
				holds := func(first, last uint64) {
					gotFirst, err := v.store.FirstIndex()
					require.NoError(t, err)
					gotLast, err := v.store.LastIndex()
					require.NoError(t, err)
					require.Equal(t, []uint64{first, last}, []uint64{gotFirst, gotLast})
				}

				stop := start()
				require.True(t, l.append(0, 0, 0, l.entries(1, 10)...))
				l.install(5, 1)
				holds(6, 10)
				require.True(t, l.append(10, 1, 11, l.entries(11, 11)...))
				synctest.Wait()
				require.EqualValues(t, 11, fsm.last, "entries after the snapshot are read back")

				l.term = 2
				l.install(20, 2)
				require.True(t, l.append(20, 2, 20, l.entries(21, 23)...))
				holds(21, 23)
				stop()
				stop = start()
				l.term = 3
				require.True(t, l.append(21, 2, 0, l.entries(22, 22)...), "what conflicts is cut off")
				holds(21, 22)

				l.install(30, 3)
				require.NoError(t, v.anchor.dropCovered())
				stop() // a crash after the log was emptied
				stop = start()
				holds(0, 0)
				require.False(t, l.append(29, 3, 0, l.entries(30, 31)...))
				require.True(t, l.append(30, 3, 0, l.entries(31, 31)...))
				holds(31, 31)
				stop()
				require.NoError(t, l.node.Close())
			})
		})
	}
}

// failingLog fails writes while it is told to.
type failingLog struct {
	*raft.InmemStore
	fails int
}

var errFull = errors.New("no space left on device")

func (f *failingLog) fail() error {
	if f.fails > 0 {
		f.fails--
		return errFull
	}
	return nil
}

func (f *failingLog) StoreLogs(ls []*raft.Log) error {
	if err := f.fail(); err != nil {
		return err
	}
	return f.InmemStore.StoreLogs(ls)
}

func (f *failingLog) DeleteRange(from, to uint64) error {
	if err := f.fail(); err != nil {
		return err
	}
	return f.InmemStore.DeleteRange(from, to)
}

// A cut, and the first write after it, are waited for; nothing else is.
func TestAnchorWaitsAfterACut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &failingLog{InmemStore: raft.NewInmemStore()}
		done := make(chan struct{})
		a := &anchor{LogStore: store, log: discard, done: done}
		write := func(from, to uint64) error {
			return a.StoreLogs((&fakeLeader{term: 1}).entries(from, to))
		}
		require.NoError(t, write(1, 9))
		store.fails = 1
		require.ErrorIs(t, write(10, 10), errFull)
		require.ErrorContains(t, a.trouble(), "this node acknowledges nothing until it can")
		a.index = 3
		store.fails = 1
		require.ErrorIs(t, a.DeleteRange(1, 3), errFull, "what a snapshot covers can go later")

		store.fails = 5
		began := time.Now()
		require.NoError(t, a.DeleteRange(6, 10))
		require.NoError(t, a.trouble())
		require.Equal(t, 5*time.Second, time.Since(began))
		store.fails = 3
		require.NoError(t, write(6, 7))
		require.Equal(t, 8*time.Second, time.Since(began))
		store.fails = 1
		require.ErrorIs(t, write(8, 8), errFull)

		require.NoError(t, a.DeleteRange(7, 8))
		store.fails = 1 << 30
		time.AfterFunc(time.Minute, func() { close(done) })
		require.ErrorIs(t, write(7, 7), errFull, "the node stops")
	})
}

// A log never gets a gap, and nothing is removed for an entry that would make one.
func TestAnchorRefusesAGap(t *testing.T) {
	store := raft.NewInmemStore()
	a := &anchor{LogStore: store, log: discard}
	write := func(index uint64) error { return a.StoreLog(&raft.Log{Index: index, Term: 1}) }
	require.ErrorContains(t, write(2), "entry 2 does not follow the log, which ends at 0, with its newest snapshot at 0")
	for i := uint64(1); i <= 4; i++ {
		require.NoError(t, write(i))
	}
	a.index = 3
	require.ErrorContains(t, write(6), "entry 6 does not follow the log, which ends at 4, with its newest snapshot at 3")
	a.index = 8
	require.ErrorContains(t, write(10), "entry 10 does not follow the log, which ends at 4, with its newest snapshot at 8")
	require.NoError(t, store.GetLog(1, &raft.Log{}))
	require.NoError(t, write(9))
	require.ErrorIs(t, store.GetLog(4, &raft.Log{}), raft.ErrLogNotFound)
	var monotonic any = a
	_, ok := monotonic.(raft.MonotonicLogStore)
	require.False(t, ok)
}
