package fsm

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
)

// A call that is not the next one never becomes an entry.
func TestKeyErrors(t *testing.T) {
	l := configured(t, "a")
	l.call("a", plainGermination)
	l.call("", Fence{N: 0})
	good := NextKey(l.state, "main", "a", Advance{})
	require.Equal(t, events.Key{Round: 1, Model: "main", Generation: 1, Call: 3, Fence: 1, Op: events.OpAdvance,
		Slot: "a", Seed: 1, Epoch: -1, Args: ArgsHash(Advance{})}, good)
	for _, c := range []struct {
		name   string
		change func(*Call)
		code   events.Code
		reason string
	}{
		{"an old call again", func(c *Call) { c.Key.Call = 2 }, events.CodeOrderMismatch, "answered from the log"},
		{"a call too far", func(c *Call) { c.Key.Call = 4 }, events.CodeOrderMismatch, "call 3, fence 1"},
		{"another fence", func(c *Call) { c.Key.Fence = 0 }, events.CodeOrderMismatch, "fence 1"},
		{"another generation", func(c *Call) { c.Key.Generation = 2 }, events.CodeOrderMismatch, "main.1"},
		{"an old round", func(c *Call) { c.Key.Round = 0 }, events.CodeNotAuthority, "log is in round 1"},
		{"a later round", func(c *Call) { c.Key.Round = 2 }, events.CodeNotAuthority, "connect again"},
		{"no arguments", func(c *Call) { c.Args = nil }, events.CodeInvalidInput, "<nil>"},
		{"a pointer to arguments", func(c *Call) { c.Args = &Advance{} }, events.CodeInvalidInput, "*fsm.Advance"},
		{"other arguments", func(c *Call) { c.Args = Fence{} }, events.CodeInvalidInput, "those of fence"},
		{"no model", func(c *Call) { c.Key.Model = "" }, events.CodeInvalidInput, "names no model"},
		{"a slot that is no text", func(c *Call) { c.Key.Slot = "\xff" }, events.CodeInvalidInput, "UTF-8"},
		{"a slot that is a novel", func(c *Call) { c.Key.Slot = strings.Repeat("a", 300) }, events.CodeInvalidInput, "256 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			call := Call{Key: good, Args: Advance{}}
			c.change(&call)
			_, err := Decide(l.state, call)
			var bad *KeyError
			require.ErrorAs(t, err, &bad)
			require.Equal(t, c.code, bad.Code)
			require.Equal(t, call.Key, bad.Got)
			require.Contains(t, err.Error(), c.reason)
			if c.code == events.CodeOrderMismatch {
				require.Equal(t, good, bad.Want)
			}
		})
	}
}

func TestFaultedRound(t *testing.T) {
	l := configured(t, "a")
	want, got := NextKey(l.state, "main", "a", Prune{}), NextKey(l.state, "main", "a", Advance{})
	l.append(events.Entry{Kind: events.KindFault, Events: []events.Event{{RoundFaulted: &events.RoundFaulted{
		Round: 1, Code: events.CodeOrderMismatch, Rank: 3, Node: testNode, Index: 3, Got: got, Want: want}}}})
	key := NextKey(l.state, "main", "a", Advance{})
	_, err := Decide(l.state, Call{Key: key, Args: Advance{}})
	var bad *KeyError
	require.ErrorAs(t, err, &bad)
	require.Equal(t, events.CodeRoundFaulted, bad.Code)
	require.Equal(t, want, bad.Want)
	require.Equal(t, got, bad.Got)
	require.Contains(t, err.Error(), "rank 3")

	l.openRound(events.ModeKeyed)
	_, err = Decide(l.state, Call{Key: key, Args: Advance{}})
	require.ErrorAs(t, err, &bad)
	require.Equal(t, events.CodeNotAuthority, bad.Code, "the old round's calls are stale")
	require.Zero(t, NextKey(l.state, "main", "a", Advance{}).Call, "numbers start again in each round")
	l.call("a", plainGermination)
}

// Two models have the same slot names and know nothing of each other.
func TestModelsAreIndependent(t *testing.T) {
	l := configured(t, "a")
	l.call("a", plainGermination)
	args := Configure{Slots: testSlots("a")}
	l.do(Call{Key: NextKey(l.state, "other", "", args), Args: args})
	require.Nil(t, l.state.Model("other").Slot("a").Seed)
	require.NotNil(t, l.slot("a").Seed)
	require.EqualValues(t, 2, l.state.Cursor("main").Calls)
	require.EqualValues(t, 1, l.state.Cursor("other").Calls)
}

func TestRefusedGermination(t *testing.T) {
	l := configured(t, "a")
	for _, c := range []struct {
		change func(*Germinate)
		reason string
	}{
		{func(g *Germinate) { g.Blueprint = "" }, "blueprint"},
		{func(g *Germinate) { g.Blueprint = "\xff" }, "UTF-8"},
		{func(g *Germinate) { g.SeedID = strings.Repeat("x", 257) }, "256 bytes"},
		{func(g *Germinate) { g.Blend = "" }, "blend"},
		{func(g *Germinate) { g.Tempo = -1 }, "tempo"},
		{func(g *Germinate) { g.Tempo = maxCount + 1 }, "tempo"},
		{func(g *Germinate) { g.Algorithm = 0 }, "algorithm"},
		{func(g *Germinate) { g.Target = num(1.0000001) }, "target"},
		{func(g *Germinate) { g.Target = num(math.Inf(1)) }, "target"},
	} {
		g := plainGermination
		c.change(&g)
		require.Contains(t, l.refused(events.CodeInvalidInput, "a", g), c.reason)
	}
	l.call("a", plainGermination)
	require.Contains(t, l.refused(events.CodeIllegalTransition, "a", plainGermination), "GERMINATED")
}

func num(f float64) *events.Num { return (*events.Num)(&f) }

func TestRefusedRamps(t *testing.T) {
	l := configured(t, "a")
	curve, algorithm := events.Curve(9), events.Algorithm(9)
	for _, args := range []Args{
		SchedulePrune{Ticks: maxCount + 1, Steepness: 12},
		SchedulePrune{Ticks: 3, Steepness: events.Num(math.NaN())},
		SchedulePrune{Ticks: 3, Steepness: 12, Curve: &curve},
		SchedulePrune{Ticks: 3, Steepness: 12, Reason: "\xff"},
		Prune{Initiator: strings.Repeat("x", 257)},
		AlphaTarget{Target: events.Num(math.Inf(1)), Ticks: 3, Steepness: 12},
		AlphaTarget{Target: 5e-7, Ticks: 3, Steepness: 12},
		AlphaTarget{Target: 1, Ticks: 3, Steepness: events.Num(math.Inf(1))},
		AlphaTarget{Target: 1, Ticks: maxCount + 1, Steepness: 12},
		AlphaTarget{Target: 1, Ticks: 3, Steepness: 12, Algorithm: &algorithm},
		Verdict{events.Verdict{Gate: "G9"}},
		Verdict{events.Verdict{Gate: events.G1, Score: math.NaN()}},
		Verdict{events.Verdict{Gate: events.G1, ChecksPassed: []string{"\xff"}}},
		Verdict{events.Verdict{Gate: events.G1, ChecksFailed: make([]string, maxChecks+1)}},
		Verdict{events.Verdict{Gate: events.G1, Message: strings.Repeat("x", maxText+1)}},
		Advance{Target: stage(5)},
	} {
		l.refused(events.CodeInvalidInput, "a", args)
	}
	for _, args := range []Args{Prune{}, SchedulePrune{Steepness: 12}, AlphaTarget{Target: 1, Steepness: 12}} {
		l.refused(events.CodeIllegalTransition, "a", args)
		l.refused(events.CodeUnknownSlot, "b", args)
	}
}

func TestFossilizingStrictlyHasToBeNamed(t *testing.T) {
	l := configured(t, "a")
	l.call("a", plainGermination)
	for _, gate := range []events.Gate{events.G1, events.G2, events.G3} {
		require.Equal(t, ArgsHash(Advance{}), ArgsHash(Advance{Strict: true}))
		require.Empty(t, refusals(l.call("a", Advance{Strict: true})), "elsewhere it changes nothing")
		l.call("a", Verdict{events.Verdict{Gate: gate, Passed: true}})
	}
	require.Equal(t, events.StageHolding, l.slot("a").Stage())
	reason := l.refused(events.CodeInvalidInput, "a", Advance{Strict: true}, Observation{Slot: "a", Contribution: value(events.Num(3))})
	require.Equal(t, `advance a: expected a target, since the seed is in HOLDING, from where the next stage is FOSSILIZED, for good; pass target "FOSSILIZED" to say that it is meant`, reason)
	require.EqualValues(t, 3, *l.slot("a").Seed.Metrics.Contribution, "what was observed counts")
	require.Empty(t, refusals(l.call("a", Advance{Target: stage(events.StageBlending), Strict: true})))
	require.Empty(t, refusals(l.call("a", Advance{Target: stage(events.StageFossilized), Strict: true})))

	lax := configured(t, "a")
	lax.call("a", plainGermination)
	for _, gate := range []events.Gate{events.G1, events.G2, events.G3} {
		lax.call("a", Verdict{events.Verdict{Gate: gate, Passed: true}})
	}
	require.Empty(t, refusals(lax.call("a", Advance{})), "as the reference does")
}

func refusals(evs []events.Event) (out []events.Refused) {
	for _, ev := range evs {
		if ev.Refused != nil {
			out = append(out, *ev.Refused)
		}
	}
	return out
}

func stage(s events.Stage) *events.Stage { return &s }

func TestRefusedSteps(t *testing.T) {
	l := configured(t, "a")
	l.call("", StepEpoch{Epoch: 4})
	reason := l.refused(events.CodeInvalidInput, "", StepEpoch{Epoch: 4})
	require.Contains(t, reason, "resume")
	require.Contains(t, reason, "reset")
	l.refused(events.CodeInvalidInput, "", StepEpoch{Epoch: -1})
	l.refused(events.CodeInvalidInput, "", StepEpoch{Epoch: math.MaxInt64})
	l.refused(events.CodeInvalidInput, "", Fence{N: -1})
	l.refused(events.CodeInvalidInput, "", Fence{N: math.MaxInt64})
	require.EqualValues(t, 4, l.model().Epoch)
	require.EqualValues(t, 1, l.state.Cursor("main").Fence, "a refused fence is none")
}

func TestConfigure(t *testing.T) {
	slots := func(change func([]events.SlotConfig)) Configure {
		c := Configure{Slots: testSlots("a", "b")}
		c.Slots[1].AutoForward = []events.Gate{events.G3, events.G1, events.G3}
		c.Slots[1].Blueprints = []events.Blueprint{{Name: "conv", Tensors: []events.Tensor{{Name: "w", Shape: []uint64{3, 3}, DType: "float32"}}}}
		change(c.Slots)
		return c
	}
	same := func([]events.SlotConfig) {}
	t.Run("invalid", func(t *testing.T) {
		l := newTestLog(t)
		for _, c := range []struct {
			change func([]events.SlotConfig)
			reason string
		}{
			{func(s []events.SlotConfig) { s[0].Name = "" }, "name of slot 0"},
			{func(s []events.SlotConfig) { s[0].Name = strings.Repeat("x", 65) }, "64 bytes"},
			{func(s []events.SlotConfig) { s[0].Name = ".." }, "URL's path"},
			{func(s []events.SlotConfig) { s[0].Gates.MinSeedGradientRatio = math.NaN() }, "min_seed_gradient_ratio"},
			{func(s []events.SlotConfig) { s[0].Gates.MinProbationStability = math.Inf(1) }, "min_probation_stability"},
			{func(s []events.SlotConfig) { s[0].Gates.MinBlendingEpochs = math.MaxInt64 }, "min_blending_epochs"},
			{func(s []events.SlotConfig) { s[0].AutoForward = []events.Gate{"G4"} }, "auto_forward"},
			{func(s []events.SlotConfig) { s[1].Blueprints[0].Name = "" }, "name of blueprint 0"},
			{func(s []events.SlotConfig) { s[1].Blueprints = append(s[1].Blueprints, s[1].Blueprints[0]) }, "twice"},
			{func(s []events.SlotConfig) { s[1].Blueprints[0].Tensors[0].Name = "" }, "name of tensor 0"},
			{func(s []events.SlotConfig) { s[1].Blueprints[0].Tensors[0].DType = "\xff" }, "dtype"},
			{func(s []events.SlotConfig) { s[1].Blueprints[0].Tensors[0].Shape = make([]uint64, 17) }, "dimensions"},
			{func(s []events.SlotConfig) {
				s[1].Blueprints[0].Tensors[0].Init = &events.Init{Rule: "normal", Value: 1}
			}, `got "normal"`},
			{func(s []events.SlotConfig) {
				s[1].Blueprints[0].Tensors[0].Init = &events.Init{Rule: events.InitUniform, Value: math.Inf(1)}
			}, "finite"},
			{func(s []events.SlotConfig) {
				s[1].Blueprints[0].Tensors[0].Init = &events.Init{Rule: events.InitUniform}
			}, "above 0"},
		} {
			require.Contains(t, l.refused(events.CodeInvalidInput, "", slots(c.change)), c.reason)
		}
		l.refused(events.CodeInvalidInput, "", Configure{Slots: make([]events.SlotConfig, maxSlots+1)})
		require.Contains(t, l.refused(events.CodeInvalidInput, "", slots(func(s []events.SlotConfig) {
			s[1].Blueprints[0].Tensors = nil
			for i := range 10_000 {
				s[1].Blueprints[0].Tensors = append(s[1].Blueprints[0].Tensors, events.Tensor{Name: fmt.Sprintf("%0200d", i), DType: strings.Repeat("x", 256)})
			}
			for i := range 3 {
				s[1].Blueprints = append(s[1].Blueprints, events.Blueprint{Name: fmt.Sprint(i), Tensors: s[1].Blueprints[0].Tensors})
			}
		})), "when encoded")
		require.Nil(t, l.model())
	})
	t.Run("different", func(t *testing.T) {
		l := newTestLog(t)
		l.call("", slots(same))
		require.Equal(t, []events.Gate{events.G1, events.G3}, l.model().Config.Slots[1].AutoForward)
		for _, c := range []struct {
			change func([]events.SlotConfig)
			reason string
		}{
			{func(s []events.SlotConfig) { s[1].Name = "c" }, "slot 1 is b in the log, c here"},
			{func(s []events.SlotConfig) { s[0].Gates.Permissive = true }, "slot a: gates.permissive is false in the log, true here"},
			{func(s []events.SlotConfig) { s[0].Gates.MinTrainingImprovement = 0.7 }, "gates.min_training_improvement is 0.5 in the log, 0.7 here"},
			{func(s []events.SlotConfig) { s[0].AutoForward = []events.Gate{events.G2} }, "auto_forward is [] in the log, [G2] here"},
			{func(s []events.SlotConfig) { s[1].Blueprints[0].Name = "norm" }, "blueprint 0 is conv in the log, norm here"},
			{func(s []events.SlotConfig) { s[1].Blueprints = nil }, "1 blueprints in the log, 0 here"},
			{func(s []events.SlotConfig) { s[1].Blueprints[0].Tensors[0].Shape[1] = 5 }, "w float32[3 3] in the log, w float32[3 5] here"},
			{func(s []events.SlotConfig) { s[1].Blueprints[0].Tensors = nil }, "1 tensors in the log, 0 here"},
			{func(s []events.SlotConfig) { s[1].Blueprints[0].Tensors[0].Master = true }, "w is filled by zeros in the log, zeros with a master copy here"},
		} {
			require.Contains(t, l.refused(events.CodeConfigMismatch, "", slots(c.change)), c.reason)
		}
		require.Contains(t, l.refused(events.CodeConfigMismatch, "", Configure{Slots: slots(same).Slots[:1]}), "the log has 2 slots, here are 1")
		require.Empty(t, l.call("", slots(same)))
		require.Empty(t, l.call("", Configure{}))
	})
}

func TestManySlots(t *testing.T) {
	l := newTestLog(t)
	many := testSlots(make([]string, maxSlots)...)
	for i := range many {
		many[i].Name = fmt.Sprintf("s%d", i)
	}
	l.call("", Configure{Slots: many})
	require.Equal(t, maxSlots, l.model().Slots.Len())
	last := many[maxSlots-1].Name
	l.call(last, plainGermination)
	l.epoch()
	require.NotNil(t, l.slot(last).Seed)
	require.Contains(t, l.refused(events.CodeUnknownSlot, "x", Prune{}), "s7 and 9992 more")
}

// A gate that reads a number which is none does not pass, whatever the
// reference's comparison says of it.
func TestNonFiniteReadings(t *testing.T) {
	nan, inf := events.Num(math.NaN()), events.Num(math.Inf(1))
	for _, c := range []struct {
		name       string
		permissive bool
		stage      events.Stage
		o          Observation
		check      string
	}{
		{"strict G2, ratio", false, events.StageTraining, Observation{Accuracy: value(events.Num(9)), GradientRatio: value(inf)}, "gradient_ratio_not_finite"},
		{"strict G2, accuracy", false, events.StageTraining, Observation{Accuracy: value(inf), GradientRatio: value(events.Num(1))}, "accuracy_not_finite"},
		{"permissive G2, health", true, events.StageTraining, Observation{Health: value(inf)}, "gradient_health_not_finite"},
		{"permissive G2, only accuracy", true, events.StageTraining, Observation{Accuracy: value(nan), Health: value(events.Num(1))}, ""},
		{"strict G5", false, events.StageHolding, Observation{Contribution: value(inf)}, "contribution_not_finite"},
		{"permissive G5", true, events.StageHolding, Observation{Contribution: value(nan)}, "contribution_not_finite"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newTestLog(t)
			slots := testSlots("a")
			slots[0].Gates.Permissive, slots[0].Gates.MinBlendingEpochs = c.permissive, 0
			l.call("", Configure{Slots: slots})
			l.call("a", plainGermination)
			l.epoch(accuracy("a", 5))
			for _, g := range []events.Gate{events.G1, events.G2, events.G3} {
				if l.slot("a").Stage() != c.stage {
					l.call("a", Verdict{events.Verdict{Gate: g, Passed: true}})
				}
			}
			c.o.Slot = "a"
			evs := l.call("a", Advance{}, c.o)
			v := evs[1].GateEvaluated.Verdict
			require.Equal(t, c.check == "", v.Passed)
			if c.check != "" {
				require.Equal(t, []string{c.check}, v.ChecksFailed)
				require.Equal(t, c.stage, l.slot("a").Stage())
				require.NotContains(t, v.Message, "PASS")
			}
		})
	}
}

// A caller that reuses its variables changes no state.
func TestDecideCopiesReadings(t *testing.T) {
	l := configured(t, "a")
	l.call("a", plainGermination)
	ratio := events.Num(0.5)
	o := Observation{Slot: "a", GradientRatio: Reading[events.Num]{Given: true, Value: &ratio}}
	key := NextKey(l.state, "main", "", Fence{})
	evs, err := Decide(l.state, Call{Key: key, Args: Fence{}, Observations: []Observation{o}})
	require.NoError(t, err)
	ratio = 9
	require.EqualValues(t, 0.5, *evs[0].Observed.Metrics.GradientRatio)
}

func TestReplacedAccuracy(t *testing.T) {
	l := configured(t, "a")
	l.call("a", plainGermination)
	metrics := func() events.Metrics { return l.slot("a").Seed.Metrics }

	l.call("a", Advance{}, accuracy("a", 50))
	require.EqualValues(t, 50, metrics().AccuracyStage)
	l.call("", Fence{N: 0}, accuracy("a", 55))
	m := metrics()
	require.EqualValues(t, 1, m.Epochs)
	require.EqualValues(t, 0, m.EpochsInStage, "the epoch was counted in the stage before")
	require.EqualValues(t, 55, m.AccuracyFirst)
	require.EqualValues(t, 50, m.AccuracyStage, "the stage began with the accuracy of then")

	l.epoch()
	l.call("", Fence{N: 1}, accuracy("a", 57), accuracy("a", 56))
	m = metrics()
	require.EqualValues(t, 2, m.Epochs)
	require.EqualValues(t, 1, m.EpochsInStage)
	require.EqualValues(t, 56, m.Accuracy)
	require.EqualValues(t, 57, m.AccuracyBest)
	require.EqualValues(t, 55, m.AccuracyFirst)
}

func TestNegativeZeroAccuracy(t *testing.T) {
	l := configured(t, "a")
	l.call("a", plainGermination)
	l.call("", Fence{}, accuracy("a", math.Copysign(0, -1)))
	require.False(t, math.Signbit(float64(l.slot("a").Seed.Metrics.Accuracy)))
}
