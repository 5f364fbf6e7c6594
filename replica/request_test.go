package replica

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// memWorld is a world of whole nodes on a MemNetwork, for synctest bubbles.
type memWorld struct {
	t     *testing.T
	net   *MemNetwork
	nodes []*Node
}

// inMemWorld plays fn in a world in which round 1 is open, model "main" has the
// slots a and b, and a seed is in each.
func inMemWorld(t *testing.T, size uint64, fn func(t *testing.T, w *memWorld)) {
	synctest.Test(t, func(t *testing.T) {
		w := &memWorld{t: t, net: NewMemNetwork()}
		defer w.close()
		for rank := range size {
			w.open(rank, size)
		}
		for _, err := range w.connect(events.ModeKeyed) {
			require.NoError(t, err)
		}
		w.call("", fsm.Configure{Slots: slots("a", "b")})
		for _, slot := range []string{"a", "b"} {
			w.call(slot, fsm.Germinate{Blueprint: "conv", Blend: "linear", Tempo: 2, Algorithm: events.AlgorithmAdd})
		}
		fn(t, w)
	})
}

func (w *memWorld) addr(rank uint64) string { return fmt.Sprintf("host%d:1", rank) }

func (w *memWorld) open(rank, size uint64) {
	dir, err := OpenDataDir(w.t.TempDir(), DataDirOptions{NoFsync: true})
	require.NoError(w.t, err)
	history, err := events.OpenHistory(filepath.Join(dir.Path(""), "history.db"), events.HistoryOptions{Logger: discard, NoSync: true})
	require.NoError(w.t, err)
	store := raft.NewInmemStore()
	n, err := Open(Config{Rank: rank, World: size, Run: "mem", Host: w.addr(rank), Join: []string{w.addr(0)}, Dir: dir,
		Network: w.net.Join(w.addr(rank) + "#" + string(dir.Node())), Logger: discard,
		Stores: &Stores{Log: store, Stable: store, Snapshots: raft.NewInmemSnapshotStore(), History: history}})
	require.NoError(w.t, err)
	w.nodes = append(w.nodes, n)
	w.t.Cleanup(func() { require.NoError(w.t, dir.Close()) })
}

func (w *memWorld) close() {
	for _, n := range w.nodes {
		require.NoError(w.t, n.Abort())
	}
}

// connect registers a trainer on every rank, rank i in the i-th mode (the last
// one, if there are fewer), and returns what became of it.
func (w *memWorld) connect(modes ...events.TrainerMode) []error {
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	next := w.nodes[0].State().Round.Number + 1
	errs := make([]error, len(w.nodes))
	done := make(chan int)
	for rank, n := range w.nodes {
		go func() {
			mode := modes[min(rank, len(modes)-1)]
			_, errs[rank] = n.Register(ctx, Registration{Rank: uint64(rank), World: uint64(len(w.nodes)), Incarnation: incarnation(uint64(rank), next),
				Fingerprint: fmt.Sprint(next), Mode: mode})
			done <- rank
		}()
	}
	for range w.nodes {
		<-done
	}
	return errs
}

// call makes rank 0's next call.
func (w *memWorld) call(slot string, args fsm.Args) uint64 {
	n := w.nodes[0]
	index, err := n.Decide(w.t.Context(), fsm.Call{Key: fsm.NextKey(n.State(), "main", slot, args), Args: args})
	require.NoError(w.t, err)
	return index
}

// settle waits until every node has applied what rank 0's has.
func (w *memWorld) settle() {
	time.Sleep(5 * time.Second)
	synctest.Wait()
	for _, n := range w.nodes {
		require.Equal(w.t, w.nodes[0].State().Bookkeeping(), n.State().Bookkeeping())
	}
}

// requests lists the requests in the log, by entry.
func (w *memWorld) requests() map[uint64]events.Requested {
	w.settle()
	out := map[uint64]events.Requested{}
	for i := uint64(1); i <= w.nodes[0].State().Index; i++ {
		e, _, err := w.nodes[0].Entry(i)
		require.NoError(w.t, err)
		for _, ev := range e.Events {
			if ev.Requested != nil {
				require.EqualValues(w.t, 2, e.Version)
				out[i] = *ev.Requested
			}
		}
	}
	return out
}

func prune(slot string) events.Requested {
	return events.Requested{Model: "main", Slot: slot, Action: events.ActionPrune, Reason: "governor_nan"}
}

// A request of any node is in the log once, with the same index for whoever
// asked, and done at the next fence on all of them.
func TestRequestsOfNodes(t *testing.T) {
	inMemWorld(t, 3, func(t *testing.T, w *memWorld) {
		first, err := w.nodes[2].Request(t.Context(), prune("a"))
		require.NoError(t, err)
		require.GreaterOrEqual(t, w.nodes[2].State().Index, first, "it is applied where it was asked")
		for _, n := range w.nodes {
			again, err := n.Request(t.Context(), prune("a"))
			require.NoError(t, err)
			require.Equal(t, first, again)
		}
		second, err := w.nodes[1].Request(t.Context(), prune("b"))
		require.NoError(t, err)
		list := w.requests()
		require.Len(t, list, 2)
		require.Equal(t, w.nodes[2].ID(), list[first].Node)
		require.Equal(t, w.nodes[1].ID(), list[second].Node)
		for _, n := range w.nodes {
			require.Len(t, n.State().RequestsOf("main"), 2)
		}
		w.call("", fsm.Fence{})
		w.settle()
		for _, n := range w.nodes {
			require.Empty(t, n.State().Requests)
			require.Equal(t, events.StagePruned, n.State().Model("main").Slot("a").Stage())
		}

		for _, c := range []struct {
			r    events.Requested
			code events.Code
		}{
			{prune("a"), events.CodeIllegalTransition},
			{prune("c"), events.CodeUnknownSlot},
			{events.Requested{Model: "gan", Slot: "a", Action: events.ActionPrune}, events.CodeConfigMismatch},
			{events.Requested{Model: "main", Slot: "a", Action: "sing"}, events.CodeInvalidInput},
		} {
			for _, n := range w.nodes { // also over the peers' door
				_, err := n.Request(t.Context(), c.r)
				var refused *Error
				require.ErrorAs(t, err, &refused)
				require.Equal(t, c.code, refused.Code)
			}
		}
		require.Len(t, w.requests(), 2, "a refusal is no entry")
	})
}

// The answer is lost, and the request is sent again. It is in the log once,
// also when it was done meanwhile.
func TestRequestAfterALostAnswer(t *testing.T) {
	for _, fenced := range []bool{false, true} {
		t.Run(fmt.Sprintf("fenced=%t", fenced), func(t *testing.T) {
			inMemWorld(t, 3, func(t *testing.T, w *memWorld) {
				w.net.Cut(w.addr(0), w.addr(2)) // the leader hears rank 2, but not the other way round
				type answer struct {
					index uint64
					err   error
				}
				got := make(chan answer)
				go func() {
					index, err := w.nodes[2].Request(t.Context(), prune("a"))
					got <- answer{index, err}
				}()
				for len(w.nodes[0].State().Requests) == 0 {
					time.Sleep(time.Millisecond)
				}
				want := w.nodes[0].State().Index
				if fenced {
					w.call("", fsm.Fence{})
				}
				time.Sleep(200 * time.Millisecond)
				w.net.HealAll()
				a := <-got
				require.NoError(t, a.err)
				require.Equal(t, want, a.index)
				require.Len(t, w.requests(), 1)
			})
		})
	}
}

// Without a leader the caller learns that the outcome is unknown, and asking
// again, once there is one, asks once.
func TestRequestWithoutQuorum(t *testing.T) {
	inMemWorld(t, 3, func(t *testing.T, w *memWorld) {
		w.net.Isolate(w.addr(2))
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		blocked := make(chan error)
		go func() {
			_, err := w.nodes[2].Request(ctx, prune("b"))
			blocked <- err
		}()
		_, err := w.nodes[2].Request(ctx, prune("a"))
		for _, err := range []error{err, <-blocked} {
			var unknown *Error
			require.ErrorAs(t, err, &unknown)
			require.Equal(t, events.CodeUnavailable, unknown.Code)
			require.ErrorContains(t, err, "ask again")
		}
		w.net.HealAll()
		index, err := w.nodes[2].Request(t.Context(), prune("a"))
		require.NoError(t, err)
		for at, r := range w.requests() {
			require.True(t, at == index || r.Slot == "b", "%d: %+v", at, r)
		}
	})
}

// Trainers that want different modes are told so, and no round opens.
func TestModesThatDiffer(t *testing.T) {
	inMemWorld(t, 3, func(t *testing.T, w *memWorld) {
		for rank, err := range w.connect(events.ModeKeyed, events.ModeFollow) {
			var refused *Error
			require.ErrorAs(t, err, &refused, "rank %d", rank)
			require.Equal(t, events.CodeConfigMismatch, refused.Code)
			require.ErrorContains(t, err, "expected one mode on all ranks")
		}
		require.EqualValues(t, 1, w.nodes[0].State().Round.Number)
		time.Sleep(time.Second) // the leader forgets them
		for _, err := range w.connect("", events.ModeKeyed) {
			require.NoError(t, err, "no mode is keyed")
		}
		for _, err := range w.connect(events.ModeObserve) {
			require.NoError(t, err)
		}
		w.settle()
		require.Equal(t, events.ModeObserve, w.nodes[2].State().Round.Mode())
		_, err := w.nodes[1].Request(t.Context(), prune("a"))
		require.ErrorContains(t, err, "only observed")
	})
}

// older is the state of a log that a node of version 1 takes part in.
func older(s *fsm.State) *fsm.State {
	out := *s
	out.Nodes = append([]fsm.Node{{ID: "0123", Version: 1, Host: "gpu7"}}, s.Nodes...)
	return &out
}

// A node that knows version 1 only is written nothing newer; who wants to is
// told which node it is. All else goes on.
func TestOlderNodeIsWrittenNothingNewer(t *testing.T) {
	inMemWorld(t, 1, func(t *testing.T, w *memWorld) {
		n := w.nodes[0]
		reset := fsm.NextKey(n.State(), "main", "", fsm.Reset{})
		fence := fsm.NextKey(n.State(), "main", "", fsm.Fence{})
		members := func(mode events.TrainerMode) []events.Member {
			return []events.Member{{Node: n.ID(), Incarnation: "2", Mode: mode}}
		}
		for name, e := range map[string]*events.Entry{
			"reset":   {Kind: events.KindCall, Key: &reset, Events: []events.Event{{Configured: &events.Configured{Generation: 2, Slots: slots("a")}}}},
			"request": {Kind: events.KindRequest, Events: []events.Event{{Requested: &events.Requested{Node: n.ID(), Number: 1, Model: "main", Slot: "a", Action: events.ActionPrune}}}},
			"observe": {Kind: events.KindRound, Events: []events.Event{{RoundOpened: &events.RoundOpened{Round: 2, Members: members(events.ModeObserve)}}}},
			"follow":  {Kind: events.KindRound, Events: []events.Event{{RoundOpened: &events.RoundOpened{Round: 2, Members: members(events.ModeFollow)}}}},
		} {
			before := n.State().Index
			_, err := n.propose(t.Context(), older(n.State()), e)
			var refused *Error
			require.ErrorAs(t, err, &refused, name)
			require.Equal(t, events.CodeConfigMismatch, refused.Code)
			require.ErrorContains(t, err, "needs log format 2, but node 0123 (gpu7) knows only format 1: upgrade esperd on that node", name)
			require.Equal(t, before, n.State().Index)
		}
		for _, e := range []*events.Entry{
			{Kind: events.KindCall, Key: &fence, Events: []events.Event{{Fenced: &events.Fenced{}}}},
			{Kind: events.KindRound, Events: []events.Event{{RoundOpened: &events.RoundOpened{Round: 2, Members: members(events.ModeKeyed)}}}},
		} {
			index, err := n.propose(t.Context(), older(n.State()), e)
			require.NoError(t, err)
			written, _, err := n.Entry(index)
			require.NoError(t, err)
			require.EqualValues(t, 1, written.Version)
		}
		require.Equal(t, events.Version, entryVersion(n.State()), "the world itself has no such node")
	})
}

// What an older node cannot read of reports and faults is left out: the rest must
// get through.
func TestReportsToAnOlderNode(t *testing.T) {
	inMemWorld(t, 1, func(t *testing.T, w *memWorld) {
		s := w.nodes[0].State()
		key := events.Key{Round: 1, Op: events.OpAdvance}
		shadow := events.Event{ShadowVerdict: &events.ShadowVerdict{Index: 1, Key: key, Verdict: events.Verdict{Gate: events.G1}}}
		mismatch := events.Event{Mismatched: &events.Mismatched{Code: events.CodeOrderMismatch, Got: key, Want: key}}
		stranger := events.Event{Mismatched: &events.Mismatched{Rank: 7, Code: events.CodeOrderMismatch, Got: key, Want: key}}
		r := reports{Node: "n", First: 5, Items: []events.Event{mismatch, shadow, stranger, mismatch, {Fenced: &events.Fenced{}}}}
		acknowledged := events.Event{Reported: &events.Reported{Node: "n", Sequence: 9}}

		e, dropped := r.entry(s)
		require.Zero(t, dropped)
		require.Equal(t, []events.Event{mismatch, shadow, mismatch, acknowledged}, e.Events)
		e, dropped = r.entry(older(s))
		require.Equal(t, 2, dropped)
		require.Equal(t, []events.Event{shadow, acknowledged}, e.Events)
		e, dropped = (&reports{Node: "n", First: 1, Items: []events.Event{mismatch}}).entry(older(s))
		require.Equal(t, 1, dropped)
		require.Nil(t, e)

		gone := events.RoundFaulted{Round: 1, Code: events.CodeUnavailable, Got: key, Want: key, Reason: "killed"}
		require.Equal(t, "killed", faultEntry(s, gone).Events[0].RoundFaulted.Reason)
		e = faultEntry(older(s), gone)
		require.Empty(t, e.Events[0].RoundFaulted.Reason)
		require.EqualValues(t, 1, events.VersionOf(e))
	})
}
