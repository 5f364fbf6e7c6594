package sim

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// requests are those of the log, by entry; Action is empty for one that is done.
type requests map[uint64]events.Requested

// follow checks that a request is there once, by number and by what it asks for,
// and that the next fence ends it.
func (r requests) follow(index uint64, e *events.Entry) error {
	for i := range e.Events {
		ev := &e.Events[i]
		switch {
		case ev.Requested != nil:
			for at, other := range r {
				same := other.Slot == ev.Requested.Slot && other.Seed == ev.Requested.Seed && other.Action == ev.Requested.Action
				if same || other.Node == ev.Requested.Node && other.Number == ev.Requested.Number {
					return fmt.Errorf("entry %d asks for what entry %d asked for already", index, at)
				}
			}
			r[index] = *ev.Requested
		case ev.RequestDone != nil:
			done, ok := r[ev.RequestDone.Request]
			if !ok || done.Action == "" {
				return fmt.Errorf("entry %d ends request %d, which does not wait", index, ev.RequestDone.Request)
			}
			done.Action = ""
			r[ev.RequestDone.Request] = done
		case fsm.Closes(ev) && r.waiting() > 0:
			return fmt.Errorf("entry %d is a fence, and %d requests wait on", index, r.waiting())
		}
	}
	return nil
}

func (r requests) waiting() int {
	n := 0
	for _, q := range r {
		if q.Action != "" {
			n++
		}
	}
	return n
}

// check compares all histories of the job and everything that was acknowledged,
// and looks at the last round.
func check(t *testing.T, w *world, j *job, seed uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	checkRound(t, w, j, checkLog(t, w, j, seed), seed)
}

// checkLog does so without the round, which may be another job's, and returns it.
func checkLog(t *testing.T, w *world, j *job, seed uint64) fsm.Round {
	require.NoError(t, j.broken, "seed %d", seed)
	ranks := w.job()
	first := ranks[0].alive()
	head := first.Status().Index
	authority := events.NodeID("")
	state, requests := fsm.New(), requests{}
	resumed := map[uint64]*checkpoint{}
	for id, c := range j.resumed {
		resumed[j.acked[id]] = c
	}
	opened := []uint64{0} // by round, its entry
	for i := uint64(1); i <= head; i++ {
		e, rec, err := first.Entry(i)
		require.NoError(t, err)
		for rank, h := range ranks[1:] {
			_, other, err := h.alive().Entry(i)
			require.NoError(t, err, "seed %d: rank %d", seed, rank+1)
			require.True(t, bytes.Equal(rec.Entry, other.Entry), "seed %d: entry %d differs on rank %d", seed, i, rank+1)
			require.Equal(t, rec.Bookkeeping, other.Bookkeeping, "seed %d: entry %d, rank %d", seed, i, rank+1)
			require.Equal(t, rec.Lifecycle, other.Lifecycle, "seed %d: entry %d, rank %d", seed, i, rank+1)
		}
		next, out, err := fsm.Apply(state, e)
		require.NoError(t, err)
		if out.Refused == "" {
			require.Equal(t, uint64(len(opened)-1), e.Round, "seed %d: entry %d is of an old round and takes effect", seed, i)
			require.NoError(t, requests.follow(i, e), "seed %d", seed)
		}
		if out.Refused == "" && e.Kind == events.KindCall {
			require.Equal(t, authority, e.Node, "seed %d: entry %d was decided by a node that is not rank 0's", seed, i)
		}
		if out.Refused == "" && e.Kind == events.KindRound {
			opened = append(opened, i)
		}
		if c := resumed[i]; c != nil {
			require.Empty(t, out.Refused, "seed %d: entry %d", seed, i)
			require.NoError(t, c.is(next), "seed %d: entry %d", seed, i)
			require.True(t, slices.ContainsFunc(e.Events, func(ev events.Event) bool { return ev.Rewound != nil }), "seed %d: entry %d resumes a mark", seed, i)
			wentBack.Add(1)
		}
		state, authority = next, next.Round.Authority()
	}
	require.Equal(t, requests.waiting(), len(state.Requests), "seed %d", seed)
	for index, slot := range j.asked {
		require.Contains(t, requests, index, "seed %d: a request was acknowledged and is lost", seed)
		require.Equal(t, slot, requests[index].Slot, "seed %d: entry %d", seed, index)
	}
	require.NotEmpty(t, j.acked)
	for _, acked := range []map[events.CallID]uint64{j.acked, j.late} {
		for id, index := range acked {
			at, ok, err := first.Find(id)
			require.NoError(t, err)
			require.True(t, ok, "seed %d: call %+v was acknowledged and is lost", seed, id)
			require.Equal(t, index, at, "seed %d: call %+v was acknowledged at another index", seed, id)
			require.Greater(t, index, opened[id.Round], "seed %d: call %+v", seed, id)
			if id.Round+1 < uint64(len(opened)) {
				require.Less(t, index, opened[id.Round+1], "seed %d: call %+v takes effect after its round", seed, id)
			}
		}
	}
	return state.Round
}

// checkRound: what the job was last started with has its rounds, with the nodes
// of that start.
func checkRound(t *testing.T, w *world, j *job, round fsm.Round, seed uint64) {
	require.Equal(t, fmt.Sprintf("%d/%d", j.rounds-1, j.attempt), round.Fingerprint, "seed %d: the last round", seed)
	require.Len(t, round.Members, len(w.job()), "seed %d", seed)
	for rank, h := range w.job() {
		if j.outlived {
			continue
		}
		require.Equal(t, h.alive().ID(), round.Members[rank].Node, "seed %d: rank %d of the last round", seed, rank)
	}
}
