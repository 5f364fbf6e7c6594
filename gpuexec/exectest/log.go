package exectest

import (
	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/gates"
)

const node = events.NodeID("00000000000000000000000000000001")

// Run is the run's id in all logs of this package.
const Run = "exectest"

// A T is a *testing.T, *testing.B or *rapid.T.
type T interface {
	require.TestingT
	Helper()
}

// A Log is one node's, with rank 0 on it and one model, "main".
type Log struct {
	t     T
	State *fsm.State
}

// NewLog returns a log whose model has the given slots.
func NewLog(t T, slots ...events.SlotConfig) *Log {
	l := &Log{t: t, State: fsm.New()}
	l.append(events.Entry{Kind: events.KindFound, Events: []events.Event{
		{Founded: &events.Founded{Run: Run, Lineage: "1"}}, {NodeJoined: &events.NodeJoined{Node: node, Version: events.Version}}}})
	l.append(events.Entry{Kind: events.KindRound, Events: []events.Event{{RoundOpened: &events.RoundOpened{
		Round: 1, Members: []events.Member{{Node: node, Incarnation: "1", Mode: events.ModeKeyed}}}}}})
	l.Call("", fsm.Configure{Slots: slots})
	return l
}

// Slots returns configurations of slots that take any of the blueprints.
func Slots(names []string, blueprints ...events.Blueprint) []events.SlotConfig {
	var out []events.SlotConfig
	for _, n := range names {
		out = append(out, events.SlotConfig{Name: n, Gates: gates.Defaults(), Blueprints: blueprints})
	}
	return out
}

func (l *Log) append(e events.Entry) {
	e.Version, e.Node, e.Round, e.Predecessor = events.VersionOf(&e), node, l.State.Round.Number, l.State.Index
	e.Bookkeeping = l.State.Bookkeeping()
	if e.Key != nil {
		e.Lifecycle = l.State.Lifecycle(e.Key.Model)
	}
	b, err := events.Encode(&e)
	require.NoError(l.t, err)
	decoded, err := events.Decode(b)
	require.NoError(l.t, err)
	next, outcome, err := fsm.Apply(l.State, decoded)
	require.NoError(l.t, err)
	require.Empty(l.t, outcome.Refused)
	l.State = next
}

// Call makes rank 0's next call, which may be refused.
func (l *Log) Call(slot string, args fsm.Args) []events.Event {
	l.t.Helper()
	c := fsm.Call{Key: fsm.NextKey(l.State, "main", slot, args), Args: args}
	evs, err := fsm.Decide(l.State, c)
	require.NoError(l.t, err)
	l.append(events.Entry{Kind: events.KindCall, Key: &c.Key, Events: evs})
	return evs
}

// Germinate puts a seed into a slot.
func (l *Log) Germinate(slot, blueprint string) {
	l.t.Helper()
	l.Call(slot, fsm.Germinate{Blueprint: blueprint, Blend: "linear", Tempo: 2, Algorithm: events.AlgorithmAdd})
	require.Equal(l.t, events.StageGerminated, l.Stage(slot))
}

// Pass passes a gate by the trainer's own verdict.
func (l *Log) Pass(slot string, gates ...events.Gate) {
	l.t.Helper()
	for _, g := range gates {
		l.Call(slot, fsm.Verdict{Verdict: events.Verdict{Gate: g, Passed: true, Score: 1}})
	}
}

// Prune removes a seed.
func (l *Log) Prune(slot string) { l.Call(slot, fsm.Prune{Reason: "test"}) }

// Epoch steps one.
func (l *Log) Epoch() { l.Call("", fsm.StepEpoch{Epoch: l.Model().Epoch + 1}) }

// Model returns the model.
func (l *Log) Model() *fsm.Model { return l.State.Model("main") }

// Stage returns a slot's stage.
func (l *Log) Stage(slot string) events.Stage { return l.Model().Slot(slot).Stage() }
