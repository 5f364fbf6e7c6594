package recovery

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// lead lets a log go on with entries that were decided on a wrong state: the
// replica that keeps them has stopped.
func lead(t *testing.T, dir string, s *fsm.State, entries int) {
	h, err := events.OpenHistory(filepath.Join(dir, "history.db"), events.HistoryOptions{Logger: discard})
	require.NoError(t, err)
	wrong := s.Bookkeeping()
	wrong[0]++
	for range entries {
		index, chain, raftIndex := h.Head()
		e := events.Entry{Kind: events.KindReport, Node: s.Round.Authority(), Round: s.Round.Number, Predecessor: index, Bookkeeping: wrong}
		e.Version = events.VersionOf(&e)
		b, err := events.Encode(&e)
		require.NoError(t, err)
		require.NoError(t, h.Append(events.Record{Index: index + 1, Chain: events.Chain(chain, index+1, b), RaftIndex: raftIndex + 1, Entry: b}, nil))
	}
	require.NoError(t, h.Close())
}

// A log behind a wrong writer goes on from the last entry that follows from those
// before it: not without being told to, and what was found stays as it was.
func TestRecoverBehindAWrongWriter(t *testing.T) {
	dir, before := trained(t, 12, false)
	lead(t, dir, before, 3)
	was := sums(t, dir)
	s := inspect(t, dir)
	require.Equal(t, was, sums(t, dir), "looking changes nothing")
	require.Equal(t, before.Index, s.Kept.State.Index)
	require.Equal(t, before.Index, s.Kept.Committed)
	require.Equal(t, before.Lifecycle("main"), s.Kept.State.Lifecycle("main"))
	d := s.Kept.Dropped
	require.NotNil(t, d)
	require.Equal(t, [2]uint64{before.Index + 1, before.Index + 3}, [2]uint64{d.From, d.To})
	require.Equal(t, before.Round.Authority(), d.Writer)
	require.EqualValues(t, 0, *d.Rank)

	p := Choose([]*Survivor{s}, "")
	p.Heard(nil)
	require.Len(t, p.Refused(false), 1)
	require.Contains(t, p.Refused(false)[0].Why, "would be dropped: rank 0's node "+string(d.Writer))
	require.Empty(t, p.Refused(true))

	done, err := Recover(s, discard)
	require.NoError(t, err)
	require.Equal(t, before.Index+1, done.Index)
	require.Equal(t, events.Ancestor{Lineage: before.Lineage, Index: before.Index, Chain: s.Kept.Chain}, done.From)
	require.Equal(t, was, sums(t, done.Evidence))
	require.NoFileExists(t, filepath.Join(dir, "history.db.shorter"))
	goesOn(t, dir, before)

	h, err := events.OpenHistory(filepath.Join(dir, "history.db"), events.HistoryOptions{Logger: discard})
	require.NoError(t, err)
	defer h.Close()
	at, found, err := h.Find(events.CallID{Round: 1, Model: "main", Call: 5})
	require.NoError(t, err)
	require.True(t, found, "the calls are found as before")
	old, err := events.OpenReader(filepath.Join(done.Evidence, "history.db"))
	require.NoError(t, err)
	defer old.Close()
	want, _, err := old.Find(events.CallID{Round: 1, Model: "main", Call: 5})
	require.NoError(t, err)
	require.Equal(t, want, at)
}

// What has more of the log that follows from itself goes before; and only an
// entry that does not follow is a reason to leave any out.
func TestCutOffIsNotForDamage(t *testing.T) {
	dir, before := trained(t, 6, false)
	lead(t, dir, before, 2)
	whole, state := trained(t, 8, false)
	p := Choose([]*Survivor{inspect(t, dir), inspect(t, whole)}, "")
	require.Equal(t, whole, p.Chosen.Dir)
	require.Greater(t, state.Index, before.Index)

	forge(t, dir, 4) // its own digests are not those of its entries
	s, err := Inspect(dir, discard)
	require.NoError(t, err)
	require.Nil(t, s.Kept)
	require.ErrorContains(t, s.Problem, "entry 4: replaying it gives the digests")

	full, before := trained(t, 6, false)
	lead(t, full, before, 2)
	require.NoError(t, os.RemoveAll(filepath.Join(full, "raft")))
	require.NotNil(t, inspect(t, full).Kept.Dropped, "without raft's log, too")
}
