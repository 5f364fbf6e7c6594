package door_test

import (
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/replica"
)

// TestWhoIsToldOfADivergence: only whoever may not trust what it was told gets
// Diverged.
func TestWhoIsToldOfADivergence(t *testing.T) {
	for _, c := range []struct {
		fault replica.Blame
		entry bool     // the log says so, too
		want  [2]error // what a call of each rank gets
	}{
		{replica.BlameSelf, true, [2]error{client.ErrRoundFaulted, client.ErrDiverged}},
		{replica.BlameUndecided, true, [2]error{client.ErrDiverged, client.ErrDiverged}},
		{replica.BlameWriter, false, [2]error{nil, client.ErrDiverged}}, // rank 0's own node tells its trainer
	} {
		t.Run(string(c.fault), func(t *testing.T) {
			j := newJob(t, 2)
			trainers := j.connect()
			j.log.Node(1).Corrupt(c.fault)
			require.Eventually(t, func() bool { return !c.entry || j.log.Node(0).State().Round.Fault != nil }, 10*time.Second, time.Millisecond)
			for rank, want := range c.want {
				err := step(0)(trainers[rank], j)
				if want == nil {
					require.NoError(t, err)
					continue
				}
				require.ErrorIs(t, err, want, "rank %d", rank)
				p, ok := errors.AsType[*client.Problem](err)
				require.True(t, ok)
				require.Equal(t, events.CodeDiverged, p.Fault.Code)
				require.NotZero(t, p.Fault.Index)
			}
			if c.fault == replica.BlameWriter {
				require.Nil(t, j.log.Node(0).State().Round.Fault, "no right replica could apply it")
			}
			d, err := j.admins(0)["admin door"].Divergences(j.ctx())
			require.NoError(t, err)
			require.Len(t, d.State, 1)
			require.Equal(t, string(c.fault), d.State[0].Fault)
			require.EqualValues(t, 1, d.State[0].Rank)
			require.ErrorContains(t, j.admins(1)["admin door"].Ready(j.ctx()), "diverged at entry")
			s, err := j.admins(1)["socket"].State(j.ctx())
			require.NoError(t, err)
			require.Equal(t, string(c.fault), s.Divergence.Fault)
			require.Equal(t, events.CodeDiverged, s.Round.Fault.Code, "its trainer is told without the log, too")

			r, err := http.Get("http://" + j.doors[1].AdminAddr() + "/metrics")
			require.NoError(t, err)
			defer r.Body.Close()
			body, err := io.ReadAll(r.Body)
			require.NoError(t, err)
			require.Contains(t, string(body), "esperd_diverged 1")
		})
	}
}

// TestRank0WaitsForTheVerdict: its own call is refused before it is known whose
// state is wrong, and its answer says whose.
func TestRank0WaitsForTheVerdict(t *testing.T) {
	j := newJob(t, 2)
	trainers := j.connect()
	j.log.Node(0).Refuse(&replica.Error{Code: events.CodeDiverged, Reason: "this node decides nothing"})
	answered := make(chan error, 1)
	go func() { answered <- step(0)(trainers[0], j) }()
	require.Eventually(t, func() bool {
		a, err := j.admins(1)["socket"].Arrivals(j.ctx())
		return err == nil && len(a.Waiting) > 0
	}, 10*time.Second, time.Millisecond)
	j.log.Node(0).Corrupt(replica.BlameSelf)
	err := <-answered
	require.ErrorIs(t, err, client.ErrDiverged)
	p, ok := errors.AsType[*client.Problem](err)
	require.True(t, ok)
	require.NotNil(t, p.Fault, "%v", err)
	require.EqualValues(t, 0, p.Fault.Rank)
}

// TestStatesAreComparedWhenSomebodyLooks: a rank that applies no further entry is
// found by what it has after the last one.
func TestStatesAreComparedWhenSomebodyLooks(t *testing.T) {
	j := newJob(t, 2)
	j.connect()
	a := j.admins(0)["socket"]
	_, err := a.Ranks(j.ctx())
	require.NoError(t, err)
	require.Nil(t, j.log.Node(1).Divergence(), "equal states are no difference")
	j.log.Node(1).Rot()
	require.Eventually(t, func() bool {
		_, err := a.Ranks(j.ctx())
		return err == nil && j.log.Node(1).Divergence().Known()
	}, 10*time.Second, time.Millisecond)
	require.Nil(t, j.log.Node(0).Divergence())
}
