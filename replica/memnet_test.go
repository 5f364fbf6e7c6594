package replica

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"
)

var discard = slog.New(slog.DiscardHandler)

func TestMemNetworkCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewMemNetwork()
		a, b := n.Join("a"), n.Join("b")
		b.Serve(testHandlers(), discard)
		checkCalls(t, a, "b")
		require.NoError(t, a.Close())
		require.NoError(t, b.Close())
		require.NoError(t, b.Close(), "closing twice")
	})
}

func TestMemNetworkLinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewMemNetwork()
		a, b := n.Join("a"), n.Join("b")
		handled := 0
		count := map[string]peerHandler{"count": func(context.Context, []byte) (any, error) { handled++; return handled, nil }}
		b.Serve(count, discard)
		call := func(d time.Duration) error {
			ctx, cancel := context.WithTimeout(t.Context(), d)
			defer cancel()
			return a.Call(ctx, "b", "count", nil, nil)
		}
		require.NoError(t, call(time.Second))

		n.Cut("a", "b") // the request is lost
		start := time.Now()
		require.ErrorIs(t, call(time.Second), context.DeadlineExceeded)
		require.Equal(t, time.Second, time.Since(start))
		require.Equal(t, 1, handled)

		n.Heal("a", "b")
		n.Cut("b", "a") // the answer is lost
		require.ErrorIs(t, call(time.Second), errLost)
		require.Equal(t, 2, handled)

		n.Isolate("b")
		require.Error(t, call(time.Second))
		require.Equal(t, 2, handled)
		n.HealAll()
		require.NoError(t, call(time.Second))

		n.SetDelay(func(from, to string) time.Duration {
			return map[string]time.Duration{"a": 30 * time.Millisecond, "b": 12 * time.Millisecond}[from]
		})
		start = time.Now()
		require.NoError(t, call(time.Second))
		require.Equal(t, 42*time.Millisecond, time.Since(start))
		require.ErrorIs(t, call(20*time.Millisecond), context.DeadlineExceeded)
		n.SetDelay(nil)

		// A restart: what the old node would have answered is gone.
		again := n.Join("b")
		require.Error(t, call(time.Second), "it does not serve yet")
		again.Serve(count, discard)
		require.NoError(t, call(time.Second))
		require.NoError(t, again.Close())
		require.Error(t, call(time.Second))
		require.NoError(t, a.Close())
		require.ErrorIs(t, call(time.Second), context.Canceled)
	})
}

func TestMemNodeCloseWaitsForItsHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewMemNetwork()
		a, b := n.Join("a"), n.Join("b")
		left := false
		b.Serve(map[string]peerHandler{"wait": func(ctx context.Context, _ []byte) (any, error) {
			<-ctx.Done()
			time.Sleep(time.Second)
			left = true
			return nil, ctx.Err()
		}}, discard)
		result := make(chan error)
		go func() { result <- a.Call(t.Context(), "b", "wait", nil, nil) }()
		synctest.Wait()
		require.NoError(t, b.Close())
		require.True(t, left)
		require.NoError(t, a.Close())
		require.Error(t, <-result)
	})
}

// testFSM counts what it applied and tells applied, if set, about each entry.
type testFSM struct {
	last    uint64
	count   int
	applied func(l *raft.Log)
}

func (f *testFSM) Apply(l *raft.Log) any {
	f.last, f.count = l.Index, f.count+1
	if f.applied != nil {
		f.applied(l)
	}
	return nil
}
func (f *testFSM) Snapshot() (raft.FSMSnapshot, error) { return nil, fmt.Errorf("no snapshots here") }
func (f *testFSM) Restore(io.ReadCloser) error         { return nil }

// testCluster is a raft cluster on a MemNetwork, for synctest bubbles. Read the
// machines after synctest.Wait.
type testCluster struct {
	t     *testing.T
	net   *MemNetwork
	rafts []*raft.Raft
	fsms  []*testFSM
	nodes []*MemNode
}

func memAddr(i int) string { return fmt.Sprintf("node%d", i) }

func startCluster(t *testing.T, size int, commitTimeout time.Duration) *testCluster {
	c := &testCluster{t: t, net: NewMemNetwork()}
	var servers []raft.Server
	for i := range size {
		servers = append(servers, raft.Server{ID: raft.ServerID(memAddr(i)), Address: raft.ServerAddress(memAddr(i))})
	}
	for i := range size {
		conf := raft.DefaultConfig()
		conf.LocalID = servers[i].ID
		conf.CommitTimeout = commitTimeout
		conf.Logger = newRaftLogger(discard)
		store := raft.NewInmemStore()
		node, fsm := c.net.Join(memAddr(i)), &testFSM{}
		require.NoError(t, raft.BootstrapCluster(conf, store, store, raft.NewDiscardSnapshotStore(), node.Transport(), raft.Configuration{Servers: servers}))
		r, err := raft.NewRaft(conf, fsm, store, store, raft.NewDiscardSnapshotStore(), node.Transport())
		require.NoError(t, err)
		c.nodes, c.fsms, c.rafts = append(c.nodes, node), append(c.fsms, fsm), append(c.rafts, r)
	}
	return c
}

func (c *testCluster) stop() {
	for i, r := range c.rafts {
		require.NoError(c.t, r.Shutdown().Error())
		require.NoError(c.t, c.nodes[i].Close())
	}
}

// leader waits, in fake time, until one node leads that is not excluded.
func (c *testCluster) leader(not ...int) int {
	c.t.Helper()
	for range 600 {
		for i, r := range c.rafts {
			excluded := false
			for _, n := range not {
				excluded = excluded || n == i
			}
			if !excluded && r.State() == raft.Leader && r.VerifyLeader().Error() == nil {
				return i
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.t.Fatal("no leader in a minute")
	return 0
}

// A partition takes leadership and RPC away from the same side, and gives both
// back.
func TestMemNetworkPartitionsRaft(t *testing.T) {
	for _, oneWay := range []bool{false, true} {
		t.Run(fmt.Sprint("oneWay=", oneWay), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := startCluster(t, 3, 50*time.Millisecond)
				defer c.stop()
				old := c.leader()
				require.NoError(t, c.rafts[old].Apply([]byte("one"), time.Second).Error())

				if oneWay { // the others hear nothing of it, it hears them
					for i := range 3 {
						c.net.Cut(memAddr(old), memAddr(i))
					}
				} else {
					c.net.Isolate(memAddr(old))
				}
				lost := c.rafts[old].Apply([]byte("lost"), time.Second)
				next := c.leader(old)
				require.NoError(t, c.rafts[next].Apply([]byte("two"), time.Second).Error())
				require.Error(t, lost.Error())
				require.NotEqual(t, raft.Leader, c.rafts[old].State())

				c.net.HealAll()
				time.Sleep(10 * time.Second)
				synctest.Wait()
				require.Equal(t, c.fsms[next].last, c.fsms[old].last)
				require.Equal(t, c.fsms[next].count, c.fsms[old].count)
			})
		})
	}
}
