package fsm

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
)

// An event that no correct leader writes stops the replica: it never panics and
// never passes.
func TestAssignErrors(t *testing.T) {
	l := configured(t, "a", "empty")
	l.call("a", plainGermination)
	for _, c := range []struct {
		ev   events.Event
		want string
	}{
		{events.Event{}, "not one of a model"},
		{events.Event{Founded: &events.Founded{}}, "not one of a model"},
		{events.Event{Configured: &events.Configured{Generation: 1, Slots: testSlots("a")}}, "generation 1 of model main follows generation 1"},
		{events.Event{Configured: &events.Configured{Generation: 2}}, "without slots"},
		{events.Event{Configured: &events.Configured{Generation: 2, Slots: testSlots("a", "a")}}, "two slots"},
		{events.Event{Germinated: &events.Germinated{Slot: "b", Seed: 1}}, `no slot "b"`},
		{events.Event{Germinated: &events.Germinated{Slot: "a", Seed: 2}}, "which is GERMINATED"},
		{events.Event{Germinated: &events.Germinated{Slot: "empty", Seed: 2}}, "has had 0"},
		{events.Event{Observed: &events.Observed{Slot: "b", Seed: 1}}, `no slot "b"`},
		{events.Event{Observed: &events.Observed{Slot: "a", Seed: 2}}, "whose seed is 1"},
		{events.Event{Observed: &events.Observed{Slot: "empty", Seed: 0}}, "whose seed is none"},
		{events.Event{GateEvaluated: &events.GateEvaluated{Slot: "a", Seed: 2}}, "whose seed is 1"},
		{events.Event{Decided: &events.Decided{Slot: "a"}}, "whose seed is 1"},
		{events.Event{Decided: &events.Decided{Slot: "empty", Seed: 1}}, "whose seed is none"},
		{events.Event{AmplitudeSet: &events.AmplitudeSet{Slot: "a", Seed: 3}}, "whose seed is 1"},
		{events.Event{PruneScheduled: &events.PruneScheduled{Slot: "a", Seed: 3}}, "whose seed is 1"},
		{events.Event{Pruned: &events.Pruned{Slot: "a", Seed: 3}}, "whose seed is 1"},
		{events.Event{Fossilized: &events.Fossilized{Slot: "a", Seed: 3}}, "whose seed is 1"},
		{events.Event{Dwelled: &events.Dwelled{Slot: "a", Seed: 3}}, "whose seed is 1"},
		{events.Event{StageChanged: &events.StageChanged{Slot: "a", Seed: 1, From: events.StageTraining, To: events.StageBlending}}, "but it is in GERMINATED"},
		{events.Event{StageChanged: &events.StageChanged{Slot: "a", Seed: 1, From: events.StageGerminated, To: events.StageDormant}}, "only RESETTING"},
	} {
		before := l.model().Digest()
		next, err := l.model().assign(&c.ev)
		require.ErrorContains(t, err, c.want)
		require.Nil(t, next)
		require.Equal(t, before, l.model().Digest())
	}
	unconfigured := &Model{Name: "main", Epoch: -1, FenceN: -1}
	for _, ev := range []events.Event{
		{EpochStepped: &events.EpochStepped{}}, {Fenced: &events.Fenced{}}, {Germinated: &events.Germinated{Slot: "a", Seed: 1}},
		{Decided: &events.Decided{Slot: "a"}},
	} {
		_, err := unconfigured.assign(&ev)
		require.ErrorContains(t, err, "not configured")
	}
}

// A second generation starts from nothing.
func TestAssignGeneration(t *testing.T) {
	l := configured(t, "a")
	l.call("a", plainGermination)
	l.epoch()
	m, err := l.model().assign(&events.Event{Configured: &events.Configured{Generation: 2, Slots: testSlots("a", "b")}})
	require.NoError(t, err)
	require.EqualValues(t, 2, m.Generation)
	require.EqualValues(t, -1, m.Epoch)
	require.EqualValues(t, -1, m.FenceN)
	require.Zero(t, m.Tick)
	require.Zero(t, *m.Slot("a"))
	require.Equal(t, "main", m.Name)
}

// States share what an event does not touch.
func TestAssignShares(t *testing.T) {
	l := configured(t, "a", "b")
	l.call("a", plainGermination)
	l.call("b", plainGermination)
	before := l.model()
	seed := *before.Slot("a").Seed
	l.call("a", Advance{}, accuracy("a", 50))
	require.Same(t, before.Slot("b"), l.slot("b"))
	require.Same(t, before.Config, l.model().Config)
	require.Equal(t, seed, *before.Slot("a").Seed, "an older state never changes")
}
