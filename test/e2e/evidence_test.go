package e2e

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// verify checks what must hold whatever happened, of a world that has settled
// and of all trainers that it has had, and returns its log.
func (w *world) verify(loads ...*load) []api.Entry {
	w.t.Helper()
	states := w.settled()
	head := states[0].Index
	log := w.nodes[0].events()[:head]
	chained(w.t, log, states[0])
	for _, n := range w.nodes[1:] {
		sameEntries(w.t, log, n.events()[:head])
	}
	calls := callsOnce(w.t, log)
	for _, l := range loads {
		l.sameAnswers()
		for _, tr := range l.trainers {
			answers, _ := tr.now()
			inLog(w.t, log, calls, l.round, answers)
		}
	}
	return log
}

// chained checks that a log begins at 1, has no gap, and that its chain is that
// of its entries.
func chained(t *testing.T, log []api.Entry, s *api.State) {
	t.Helper()
	var chain events.Digest
	for i := range log {
		e := &log[i]
		require.Equal(t, uint64(i+1), e.Index)
		b, err := events.Encode(&e.Entry)
		require.NoError(t, err, "entry %d", e.Index)
		chain = events.Chain(chain, e.Index, b)
		require.Equal(t, chain, e.Chain, "the chain at entry %d is not that of the entries up to it", e.Index)
	}
	require.Equal(t, s.Chain, chain)
}

// holds waits until a node has as many entries as a log, and compares them.
func (n *node) holds(log []api.Entry) {
	n.w.t.Helper()
	eventually(n.w.t, fmt.Sprintf("rank %d with entry %d", n.rank, len(log)), func() error {
		s, err := n.state()
		if err == nil && s.Index < uint64(len(log)) {
			err = fmt.Errorf("it is at entry %d", s.Index)
		}
		return err
	})
	sameEntries(n.w.t, log, n.events()[:len(log)])
}

// sameEntries compares two logs, entry by entry, as JSON.
func sameEntries(t *testing.T, want, got []api.Entry) {
	t.Helper()
	require.Equal(t, len(want), len(got))
	for i := range want {
		a, err := json.Marshal(want[i])
		require.NoError(t, err)
		b, err := json.Marshal(got[i])
		require.NoError(t, err)
		require.Equal(t, string(a), string(b))
	}
}

// callsOnce returns the log's calls and checks that each is there once, in
// order and without a gap, and that no replica refused an entry that the leader
// acknowledged.
func callsOnce(t *testing.T, log []api.Entry) map[events.CallID]*api.Entry {
	t.Helper()
	calls := map[events.CallID]*api.Entry{}
	next := map[events.CallID]uint64{} // by round and model
	for i := range log {
		e := &log[i]
		if e.Kind != events.KindCall || e.Refused != "" {
			continue
		}
		id := events.CallID{Round: e.Key.Round, Model: e.Key.Model, Call: e.Key.Call}
		require.NotContains(t, calls, id, "entry %d is a second one for a call", e.Index)
		calls[id] = e
		stretch := events.CallID{Round: id.Round, Model: id.Model}
		require.Equal(t, next[stretch], id.Call, "entry %d", e.Index)
		next[stretch]++
	}
	return calls
}

// inLog checks that everything that a trainer was told is in the log.
func inLog(t *testing.T, log []api.Entry, calls map[events.CallID]*api.Entry, round uint64, answers []answer) {
	t.Helper()
	for i := range answers {
		a := &answers[i]
		e := calls[events.CallID{Round: round, Model: api.DefaultModel, Call: a.call}]
		require.NotNil(t, e, "round %d, call %d was answered and is not in the log of %d entries", round, a.call, len(log))
		require.Equal(t, a.index, e.Index)
		require.Equal(t, a.op, e.Key.Op)
		require.Equal(t, a.slot, e.Key.Slot)
		var refused events.Code
		var verdict *events.Verdict
		for _, ev := range e.Events {
			switch {
			case ev.Refused != nil:
				refused = ev.Refused.Code
			case ev.GateEvaluated != nil:
				verdict = &ev.GateEvaluated.Verdict
			case ev.Decided != nil:
				verdict = &ev.Decided.Verdict
			}
		}
		require.Equal(t, refused, a.code)
		if a.verdict != nil {
			require.NotNil(t, verdict)
			require.Equal(t, [2]any{verdict.Gate, verdict.Passed}, [2]any{a.verdict.Gate, a.verdict.Passed})
		}
	}
}

// sameAnswers checks that every call was answered once, and the same on every
// rank.
func (l *load) sameAnswers() {
	l.w.t.Helper()
	first, err := l.trainers[0].now()
	require.NoError(l.w.t, err)
	require.NotEmpty(l.w.t, first)
	for i := range first {
		require.Equal(l.w.t, uint64(i+1), first[i].call)
	}
	for _, tr := range l.trainers[1:] {
		answers, err := tr.now()
		require.NoError(l.w.t, err)
		require.Equal(l.w.t, len(first), len(answers), "rank %d", tr.rank)
		for i := range first {
			require.Equal(l.w.t, first[i].said, answers[i].said, "rank %d, call %d", tr.rank, first[i].call)
		}
	}
}

// kinds counts the entries of each kind.
func kinds(log []api.Entry) map[events.Kind]int {
	out := map[events.Kind]int{}
	for i := range log {
		out[log[i].Kind]++
	}
	return out
}
