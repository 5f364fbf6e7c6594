package replica

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
)

func TestStrange(t *testing.T) {
	me := hello{Run: "r", Lineage: "a"}
	for _, c := range []struct {
		peer hello
		want bool
	}{
		{hello{Run: "r", Lineage: "a"}, false},
		{hello{Run: "r", Lineage: "b"}, true},
		{hello{Lineage: "b"}, true},
		{hello{Run: "r"}, false},               // a new node
		{hello{Run: "q", Lineage: "b"}, false}, // another run: refused as such
	} {
		require.Equal(t, c.want, strange(me, c.peer), "%+v", c.peer)
	}
}

// A led log's node tells a stranger where the run goes on and never notes it, so
// that nobody admits it; two led logs refuse each other; and nobody gives way to
// a log without a leader, or gives up one that has.
func TestStrangersAreNotAdmitted(t *testing.T) {
	const stranger events.NodeID = "000000000000000000000000000000ff"
	n := openNode(t, t.TempDir(), 0, 1, "127.0.0.1:0")
	require.Eventually(t, func() bool { return n.Status().Phase == PhaseMember }, 10*time.Second, time.Millisecond)
	ask := func(led bool) (welcome, error) {
		h := n.self()
		h.Node, h.Rank, h.Lineage, h.Address, h.Led = stranger, 0, "other", "127.0.0.1:1", led
		b, err := events.Marshal(h)
		require.NoError(t, err)
		v, err := n.onHello(context.Background(), b)
		if err != nil {
			return welcome{}, err
		}
		return v.(welcome), nil
	}
	w, err := ask(false)
	require.NoError(t, err)
	require.Equal(t, n.State().Lineage, w.Lineage)
	require.Equal(t, n.net.Addr(), w.Leader)
	for _, p := range n.roster.fresh(time.Hour) {
		require.NotEqual(t, stranger, p.Node)
	}
	n.opened.Store(true) // trainers have been here: it is no voter that came back alone
	_, err = ask(true)
	require.ErrorContains(t, err, "both have a leader")
	require.Equal(t, events.CodeConfigMismatch, asPeerError(err).Code)

	me := n.self()
	require.True(t, n.meets(me, "127.0.0.1:1", welcome{Run: me.Run, Lineage: "other"}))
	require.Empty(t, n.Status().Rival)
	require.True(t, n.meets(me, "127.0.0.1:1", welcome{Run: me.Run, Lineage: "other", Leader: "127.0.0.1:2", Ancestors: []string{me.Lineage}}))
	require.Contains(t, n.Status().Rival, "log other of the same run is led, too, at 127.0.0.1:2")
	require.NoError(t, n.Failure())
	require.False(t, n.meets(me, "127.0.0.1:1", welcome{Run: me.Run, Lineage: me.Lineage}))
}

// A voter that came back alone gives way to the log that continues its own, after
// a while, and to no other.
func TestALoneVoterGivesWay(t *testing.T) {
	n := openNode(t, t.TempDir(), 0, 1, "127.0.0.1:0")
	require.Eventually(t, func() bool { return n.Status().Phase == PhaseMember }, 10*time.Second, time.Millisecond)
	me := n.self()
	require.False(t, me.Led)
	require.True(t, n.meets(me, "127.0.0.1:1", welcome{Run: me.Run, Lineage: "anew", Leader: "127.0.0.1:2"}))
	require.Contains(t, n.Status().Rival, "log anew")
	next := welcome{Run: me.Run, Lineage: "next", Leader: "127.0.0.1:2", Ancestors: []string{me.Lineage}}
	require.True(t, n.meets(me, "127.0.0.1:1", next))
	require.NoError(t, n.Failure(), "not at once")
	n.others.mu.Lock()
	n.others.met["next"].since = time.Now().Add(-time.Hour)
	n.others.mu.Unlock()
	require.True(t, n.meets(me, "127.0.0.1:1", next))
	var other *OtherLogError
	require.ErrorAs(t, n.Failure(), &other)
	require.Equal(t, []string{me.Lineage, "next", "127.0.0.1:2"}, []string{other.Mine, other.Other, other.Leader})
}

// So does a replica that has diverged, also where its log is led: behind a wrong
// rank 0 that log goes on nowhere. To a log that does not continue it, it does not.
func TestADivergedReplicaGivesWay(t *testing.T) {
	n := openNode(t, t.TempDir(), 0, 1, "127.0.0.1:0")
	require.Eventually(t, func() bool { return n.Status().Phase == PhaseMember }, 10*time.Second, time.Millisecond)
	n.opened.Store(true)
	me := n.self()
	require.True(t, me.Led)
	next := welcome{Run: me.Run, Lineage: "next", Leader: "127.0.0.1:2", Ancestors: []string{me.Lineage}}
	require.True(t, n.meets(me, "127.0.0.1:1", next))
	require.Contains(t, n.Status().Rival, "log next")
	n.machine.freeze(errors.New("diverged"))
	for _, lineage := range []string{"anew", "next"} {
		w := next
		if w.Lineage = lineage; lineage == "anew" {
			w.Ancestors = nil
		}
		for range 2 { // not at once
			require.NoError(t, n.Failure())
			require.True(t, n.meets(me, "127.0.0.1:1", w))
			n.others.mu.Lock()
			if l := n.others.met[lineage]; !l.since.IsZero() {
				l.since = time.Now().Add(-time.Hour)
			}
			n.others.mu.Unlock()
		}
	}
	var other *OtherLogError
	require.ErrorAs(t, n.Failure(), &other)
	require.Equal(t, "next", other.Other)
}
