package replica

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// memberNode is a world of one that has its log.
func memberNode(t *testing.T) *Node {
	t.Helper()
	n := openNode(t, t.TempDir(), 0, 1, "127.0.0.1:0")
	require.Eventually(t, func() bool { return n.Status().Phase == PhaseMember }, 10*time.Second, time.Millisecond)
	return n
}

// spoilLive gives a node a state that its history does not give.
func spoilLive(t *testing.T, n *Node) {
	t.Helper()
	s := n.State()
	e := &events.Entry{Version: 1, Kind: events.KindMembership, Node: n.id, Round: s.Round.Number, Predecessor: s.Index, Bookkeeping: s.Bookkeeping(), Time: 1,
		Events: []events.Event{{NodeJoined: &events.NodeJoined{Node: "nobody", Version: 1}}}}
	next, out, err := fsm.Apply(s, e)
	require.NoError(t, err)
	require.Empty(t, out.Refused)
	wrong := *next
	wrong.Index = s.Index
	n.machine.mu.Lock()
	defer n.machine.mu.Unlock()
	n.machine.head.state = &wrong
}

// TestRecheck: a state that the history does not give is found without another
// entry, kept as evidence, and gone after a restart.
func TestRecheck(t *testing.T) {
	n := memberNode(t)
	require.NoError(t, n.Recheck(t.Context()))
	require.Nil(t, n.Divergence())

	n.rechecked = 0
	spoilLive(t, n)
	require.NoError(t, n.Recheck(t.Context()))
	d := n.Divergence()
	require.True(t, d.Known())
	require.Equal(t, BlameSelf, d.Fault)
	require.Equal(t, n.id, d.Node)
	require.EqualValues(t, 0, *d.Rank)
	require.NotEqual(t, d.Live, d.Replay)
	require.Equal(t, PhaseDiverged, n.Status().Phase)
	require.Contains(t, n.Status().Problem, "rank 0 is at fault")
	_, err := n.onFault(t.Context(), nil)
	require.Error(t, err, "it writes no entries")

	dir := n.cfg.Dir.Path("")
	kept, err := ReadDivergence(dir)
	require.NoError(t, err)
	require.Equal(t, d.Live, kept.Live)
	doubted, err := doubtedFrom(dir)
	require.NoError(t, err)
	require.Equal(t, d.First, doubted)
	require.NotZero(t, doubted)
	state, err := replayTo(n.history, d.Index, doubted)
	require.NoError(t, err)
	require.Equal(t, d.Replay, state.Bookkeeping(), "a restart begins with what the history gives")
}

// TestContradictionAboutARightEntry: the writer's replay gives what it wrote, so
// it goes on; what is no entry of its own is refused.
func TestContradictionAboutARightEntry(t *testing.T) {
	n := memberNode(t)
	chain, err := n.history.ChainAt(1)
	require.NoError(t, err)
	ask := func(q doubt) (any, error) {
		b, err := events.Marshal(q)
		require.NoError(t, err)
		return n.onContradiction(context.Background(), b)
	}
	a, err := ask(doubt{Index: 1, Chain: chain, Node: "x"})
	require.NoError(t, err)
	require.True(t, a.(contradicted).Agrees)
	require.Equal(t, PhaseMember, n.Status().Phase)
	for _, q := range []doubt{{Index: 1, Chain: events.Digest{1}}, {Index: 99, Chain: chain}, {}} {
		_, err := ask(q)
		require.Error(t, err, "%+v", q)
	}
	_, err = n.onContradiction(context.Background(), []byte("junk"))
	require.Error(t, err)
}

// TestDivergenceFile: what cannot be read is an error that says what to do.
func TestDivergenceFile(t *testing.T) {
	dir, err := OpenDataDir(t.TempDir(), DataDirOptions{NoFsync: true})
	require.NoError(t, err)
	defer dir.Close()
	at, err := doubtedFrom(dir.Path(""))
	require.NoError(t, err)
	require.Zero(t, at)
	require.NoError(t, writeDivergence(dir, &Divergence{Index: 12, First: 11, Fault: BlameSelf}))
	require.NoError(t, writeDivergence(dir, &Divergence{Index: 40, First: 30, Fault: BlameWriter}))
	at, err = doubtedFrom(dir.Path(""))
	require.NoError(t, err)
	require.EqualValues(t, 11, at, "an earlier wrong state is not forgotten")
	d, err := ReadDivergence(dir.Path(""))
	require.NoError(t, err)
	require.Equal(t, BlameWriter, d.Fault)
	for _, text := range []string{"", "{", `{"format":9}`, "[]"} {
		require.NoError(t, os.WriteFile(dir.Path(divergenceFileName), []byte(text), 0o600))
		_, err = doubtedFrom(dir.Path(""))
		require.ErrorContains(t, err, "move the data directory aside", "%q", text)
	}
}
