package fsm

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
)

// Ranks may run different builds: these values never change.
func TestArgsHashIsStable(t *testing.T) {
	cosine, gate := events.CurveCosine, events.AlgorithmGate
	for _, c := range []struct {
		args Args
		want string
	}{
		{Configure{Slots: testSlots("a")}, "00000000000000000000000000000000"},
		{plainGermination, "242eb391e28e15abf0c182e314c92800"},
		{Germinate{Blueprint: "conv", SeedID: "s", Blend: "sigmoid", Tempo: 5, Algorithm: events.AlgorithmAdd, Target: num(0.5)}, "c930eb5ea75363d2709559cde56c27fd"},
		{Advance{}, "d64743b7f52a9a4f61d59919acdef790"},
		{Advance{Target: stage(events.StageFossilized)}, "33a027009485a1aec465b8fe72522ce8"},
		{Verdict{events.Verdict{Gate: events.G2}}, "4b94a33ce606888b7e70b37f26c89d89"},
		{Prune{Reason: "r", Initiator: "i"}, "1994b7af9154b902e319d4b990743943"},
		{SchedulePrune{Ticks: 3, Curve: &cosine, Steepness: 12, Reason: "r", Initiator: "i"}, "88ee93c18228b4505d7c3b4b421979dd"},
		{AlphaTarget{Target: 0.5, Ticks: 3, Steepness: 12, Algorithm: &gate}, "a815c70154add00ee3cf36eede85d4ed"},
		{StepEpoch{Epoch: 7}, "56f8952bc252fb023ff4c8136d869cb0"},
		{Fence{N: 7}, "1e458714e27e6f8ae9984b3730024136"},
		{Reset{}, "68520be933d28baeef9cc00aad24f4bb"},
	} {
		got, err := ArgsHash(c.args).MarshalText()
		require.NoError(t, err)
		require.Equal(t, c.want, string(got), "%#v", c.args)
	}
}

func TestArgsHashTellsApart(t *testing.T) {
	linear, cosine, add := events.CurveLinear, events.CurveCosine, events.AlgorithmAdd
	different := []Args{
		plainGermination,
		Germinate{Blueprint: "con", SeedID: "v", Blend: "linear", Tempo: 2, Algorithm: events.AlgorithmAdd},
		Germinate{Blueprint: "conv", Blend: "linear", Tempo: 2, Algorithm: events.AlgorithmAdd, Target: num(1)},
		Advance{}, Advance{Target: stage(events.StageUnknown)}, Advance{Target: stage(events.StageHolding)},
		Verdict{events.Verdict{Gate: events.G2}}, Verdict{events.Verdict{Gate: events.G3}},
		Prune{}, Prune{Reason: "a"}, Prune{Initiator: "a"},
		SchedulePrune{}, SchedulePrune{Ticks: 1}, SchedulePrune{Curve: &linear}, SchedulePrune{Curve: &cosine}, SchedulePrune{Steepness: 1},
		AlphaTarget{}, AlphaTarget{Target: 1}, AlphaTarget{Ticks: 1}, AlphaTarget{Curve: &linear}, AlphaTarget{Algorithm: &add},
		StepEpoch{}, StepEpoch{Epoch: 1}, Fence{}, Fence{N: 1}, Reset{},
	}
	seen := map[events.ArgsHash]Args{}
	for _, args := range different {
		h := ArgsHash(args)
		require.False(t, h.IsZero())
		require.NotContains(t, seen, h, "%#v and %#v", args, seen[h])
		seen[h] = args
	}
	require.Zero(t, ArgsHash(nil))
	require.Equal(t, ArgsHash(Verdict{events.Verdict{Gate: events.G2}}),
		ArgsHash(Verdict{events.Verdict{Gate: events.G2, Passed: true, Score: 1, Message: "mine"}}), "verdicts are each rank's own")
	require.Equal(t, ArgsHash(AlphaTarget{}), ArgsHash(AlphaTarget{Target: events.Num(math.Copysign(0, -1))}))
	require.Equal(t, ArgsHash(AlphaTarget{Target: events.Num(math.NaN())}), ArgsHash(AlphaTarget{Target: events.Num(-math.NaN())}))
}
