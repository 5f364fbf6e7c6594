package replica

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/gates"
)

// openNode starts one real node: TCP on loopback, boltdb, fsync.
func openNode(t *testing.T, dir string, rank, world uint64, listen string, join ...string) *Node {
	t.Helper()
	d, err := OpenDataDir(dir, DataDirOptions{})
	require.NoError(t, err)
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	nw, err := NewNetwork(ListenOptions{Listen: listen, Node: d.Node(), Log: log})
	require.NoError(t, err)
	n, err := Open(Config{Rank: rank, World: world, Dir: d, Network: nw, Logger: log, Join: join, Host: "test"})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, n.Close(context.Background()))
		_ = d.Close() // a test may have closed it
	})
	return n
}

func incarnation(rank, round uint64) string { return fmt.Sprintf("%016x%016x", rank, round) }

func slots(names ...string) []events.SlotConfig {
	var out []events.SlotConfig
	for _, name := range names {
		out = append(out, events.SlotConfig{Name: name, Gates: gates.Defaults()})
	}
	return out
}

func TestThreeRealNodesAgree(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	first := openNode(t, t.TempDir(), 0, 3, "127.0.0.1:0")
	join := first.net.Addr()
	nodes := []*Node{first, openNode(t, t.TempDir(), 1, 3, "127.0.0.1:0", join), openNode(t, t.TempDir(), 2, 3, "127.0.0.1:0", join)}

	errs := make(chan error, 3)
	for rank, n := range nodes {
		go func() {
			_, err := n.Register(ctx, Registration{Rank: uint64(rank), World: 3, Incarnation: incarnation(uint64(rank), 1), Mode: "keyed"})
			errs <- err
		}()
	}
	for range nodes {
		require.NoError(t, <-errs)
	}
	call := func(k uint64, fence uint64, args fsm.Args) fsm.Call {
		return fsm.Call{Key: events.Key{Round: 1, Model: "main", Generation: 1, Call: k, Fence: fence, Op: args.Op(), Epoch: -1, Args: fsm.ArgsHash(args)}, Args: args}
	}
	configure := call(0, 0, fsm.Configure{Slots: slots("r0c0", "r0c1")})
	configure.Key.Generation = 0 // the log knows no generation yet
	var last uint64
	for k, c := range []fsm.Call{
		configure,
		call(1, 0, fsm.StepEpoch{Epoch: 0}),
		call(2, 1, fsm.StepEpoch{Epoch: 1}),
	} {
		i, err := nodes[0].Decide(ctx, c)
		require.NoError(t, err, "call %d", k)
		again, err := nodes[0].Decide(ctx, c)
		require.NoError(t, err)
		require.Equal(t, i, again, "a repeated call is found, not decided again")
		last = i
	}
	for _, n := range nodes {
		for {
			changed := n.Changed()
			if n.State().Index >= last {
				break
			}
			select {
			case <-changed:
			case <-ctx.Done():
				t.Fatal("a follower never applied the last entry")
			}
		}
		s, err := n.StateAt(ctx, last)
		require.NoError(t, err)
		require.Equal(t, nodes[0].State().Lifecycle("main"), s.Lifecycle("main"))
		_, rec, err := n.Entry(last)
		require.NoError(t, err)
		_, want, err := nodes[0].Entry(last)
		require.NoError(t, err)
		require.Equal(t, want.Chain, rec.Chain)
	}
}

// A node that waits says for whom.
func TestJoiningNodeSaysWhatItWaitsFor(t *testing.T) {
	n := openNode(t, t.TempDir(), 0, 3, "127.0.0.1:0")
	require.Equal(t, PhaseJoining, n.Status().Phase)
	require.Eventually(t, func() bool { return n.Status().Problem == "it waits for the esperds of ranks [1 2]" }, 10*time.Second, time.Millisecond)
	lost := openNode(t, t.TempDir(), 1, 3, "127.0.0.1:0", "127.0.0.1:1")
	require.Eventually(t, func() bool { return strings.Contains(lost.Status().Problem, "no answer from 127.0.0.1:1") }, 10*time.Second, time.Millisecond)
}
