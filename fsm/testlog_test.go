package fsm

import (
	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/gates"
)

const testNode = events.NodeID("00000000000000000000000000000001")

// tester is a *testing.T or a *rapid.T.
type tester interface {
	require.TestingT
	Helper()
}

// testLog is a log of one node with rank 0 on it. Every call is decided,
// encoded, decoded and applied, as on a replica.
type testLog struct {
	t      tester
	state  *State
	chains []events.Digest // by index
	used   State           // memory of a state of before
}

func newTestLog(t tester) *testLog { return foundTestLog(t, "1") }

func foundTestLog(t tester, lineage string) *testLog {
	l := &testLog{t: t, state: New(), chains: make([]events.Digest, 1)}
	l.append(events.Entry{Kind: events.KindFound, Events: []events.Event{
		{Founded: &events.Founded{Run: "test", Lineage: lineage}},
		{NodeJoined: &events.NodeJoined{Node: testNode, Version: 1}}}})
	l.openRound(events.ModeKeyed)
	return l
}

// configured returns a log whose model "main" has the given slots, with the
// default gates.
func configured(t tester, names ...string) *testLog {
	l := newTestLog(t)
	evs := l.call("", Configure{Slots: testSlots(names...)})
	require.Len(t, evs, 1)
	require.NotNil(t, evs[0].Configured)
	return l
}

func testSlots(names ...string) []events.SlotConfig {
	var slots []events.SlotConfig
	for _, name := range names {
		slots = append(slots, events.SlotConfig{Name: name, Gates: gates.Defaults()})
	}
	return slots
}

func (l *testLog) model() *Model          { return l.state.Model("main") }
func (l *testLog) slot(name string) *Slot { return l.model().Slot(name) }

func (l *testLog) openRound(mode events.TrainerMode) { l.openRoundOf(mode, 1) }

func (l *testLog) openRoundOf(mode events.TrainerMode, ranks int) {
	ev := &events.RoundOpened{Round: l.state.Round.Number + 1}
	for rank := range ranks {
		ev.Members = append(ev.Members, events.Member{Rank: uint64(rank), Node: testNode, Incarnation: "1", Mode: mode})
	}
	l.append(events.Entry{Kind: events.KindRound, Events: []events.Event{{RoundOpened: ev}}})
}

// append completes an entry, applies it, and returns it as it was read.
func (l *testLog) append(e events.Entry) *events.Entry {
	e.Version, e.Node, e.Round, e.Predecessor = events.VersionOf(&e), testNode, l.state.Round.Number, l.state.Index
	e.Bookkeeping = l.state.Bookkeeping()
	if e.Key != nil {
		e.Lifecycle = l.state.Lifecycle(e.Key.Model)
	}
	b, err := events.Encode(&e)
	require.NoError(l.t, err)
	decoded, err := events.Decode(b)
	require.NoError(l.t, err)
	next, outcome, err := Apply(l.state, decoded)
	require.NoError(l.t, err)
	require.Empty(l.t, outcome.Refused)
	again, _, err := ApplyInto(&l.used, l.state, decoded)
	require.NoError(l.t, err)
	require.Equal(l.t, digestsOf(next), digestsOf(again), "in memory that was used before")
	l.state = next
	l.chains = append(l.chains, events.Chain(l.chains[next.Index-1], next.Index, b))
	return decoded
}

// digestsOf is all of a state, in short.
func digestsOf(s *State) (out []events.Digest) {
	out = append(out, s.Bookkeeping())
	for _, m := range s.Models {
		out = append(out, m.Digest())
	}
	return out
}

// resumes returns the arguments of a resume, as rank 0's door makes them: it
// looks in the history for what the mark says.
func (l *testLog) resumes(b []byte) Resume {
	mark, sum, err := events.DecodeMark(b)
	require.NoError(l.t, err)
	return Resume{Mark: mark, Sum: sum, Held: mark.Index < uint64(len(l.chains)) && l.chains[mark.Index] == mark.Chain}
}

// recover lets the log go on under another lineage.
func (l *testLog) recover(lineage string) {
	s := l.state
	l.append(events.Entry{Kind: events.KindRecover, Events: []events.Event{
		{Recovered: &events.Recovered{Lineage: lineage, From: events.Ancestor{Lineage: s.Lineage, Index: s.Index, Chain: l.chains[s.Index]}}},
		{NodeJoined: &events.NodeJoined{Node: testNode, Version: events.Version}}}})
	l.openRound(events.ModeKeyed)
}

// call makes rank 0's next call of model "main".
func (l *testLog) call(slot string, args Args, observations ...Observation) []events.Event {
	return l.do(Call{Key: NextKey(l.state, "main", slot, args), Args: args, Observations: observations})
}

func (l *testLog) do(c Call) []events.Event {
	evs, err := Decide(l.state, c)
	require.NoError(l.t, err)
	l.append(events.Entry{Kind: events.KindCall, Key: &c.Key, Events: evs})
	return evs
}

// request asks for the end of a seed of model "main", and writes the entry if it
// is a new one. It returns the request's index.
func (l *testLog) request(r events.Requested) (index uint64, known bool, refused *events.Refused) {
	r.Node, r.Model, r.Action = testNode, "main", events.ActionPrune
	ev, pending, refused := DecideRequest(l.state, r)
	switch {
	case refused != nil:
		return 0, false, refused
	case pending != nil:
		return pending.Index, true, nil
	}
	l.append(events.Entry{Kind: events.KindRequest, Events: []events.Event{{Requested: ev}}})
	return l.state.Index, false, nil
}

// throughImage returns the state as a snapshot keeps it.
func (l *testLog) throughImage() *State {
	b, err := l.state.Image()
	require.NoError(l.t, err)
	back, err := FromImage(b)
	require.NoError(l.t, err)
	require.Equal(l.t, l.state.Bookkeeping(), back.Bookkeeping())
	require.Equal(l.t, l.state.RequestsOf("main"), back.RequestsOf("main"))
	return back
}

// refused makes a call that must be refused, and returns why.
func (l *testLog) refused(code events.Code, slot string, args Args, observations ...Observation) string {
	l.t.Helper()
	evs := l.call(slot, args, observations...)
	require.NotEmpty(l.t, evs)
	r := evs[len(evs)-1].Refused
	require.NotNil(l.t, r, "granted: %+v", evs)
	require.Equal(l.t, code, r.Code, r.Reason)
	for i := range evs[:len(evs)-1] {
		require.NotNil(l.t, evs[i].Observed, "a refusal changes nothing but observations")
	}
	return r.Reason
}

// epoch observes accuracies, one a slot, and steps.
func (l *testLog) epoch(observations ...Observation) []events.Event {
	return l.call("", StepEpoch{Epoch: l.model().Epoch + 1}, observations...)
}

func value[T any](v T) Reading[T] { return Reading[T]{Given: true, Value: &v} }

func null[T any]() Reading[T] { return Reading[T]{Given: true} }

func accuracy(slot string, percent float64) Observation {
	return Observation{Slot: slot, Accuracy: value(events.Num(percent)), Replace: true}
}

var plainGermination = Germinate{Blueprint: "conv", Blend: "linear", Tempo: 2, Algorithm: events.AlgorithmAdd}
