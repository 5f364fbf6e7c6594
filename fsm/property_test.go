package fsm

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/esperd/esperd/events"
)

// Whatever rank 0 calls: applying what Decide emitted gives the model that
// Decide worked on, in memory and through the log; stages change along legal
// edges only; alphas stay in range; each slot ticks on its own; what was asked
// for is done at the next fence. In the odd run some rounds are only observed:
// then the lifecycle is the trainers', and all else holds.
func TestDecideProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := &propertyLog{testLog: newTestLog(t), t: t}
		slots := testSlots("a", "b", "c")
		for i := range slots {
			slots[i].Gates.Permissive = rapid.Bool().Draw(t, "permissive")
			slots[i].Gates.MinBlendingEpochs = rapid.Int64Range(0, 2).Draw(t, "epochs")
			slots[i].AutoForward = rapid.SliceOfDistinct(rapid.SampledFrom([]events.Gate{events.G0, events.G1, events.G2, events.G3, events.G5}), rapid.ID).Draw(t, "auto")
		}
		l.check(Configure{Slots: slots}, "", nil)
		modes := []events.TrainerMode{events.ModeKeyed}
		if l.observed = rapid.Bool().Draw(t, "some rounds are observed"); l.observed {
			modes = append(modes, events.ModeObserve)
		}
		for range rapid.IntRange(1, 60).Draw(t, "calls") {
			slot := rapid.SampledFrom([]string{"a", "a", "b", "c"}).Draw(t, "slot")
			switch rapid.IntRange(0, 11).Draw(t, "instead of a call") {
			case 0:
				l.openRound(rapid.SampledFrom(modes).Draw(t, "mode"))
			case 1:
				l.ask(events.Requested{Slot: slot, Seed: rapid.Uint64Range(0, 2).Draw(t, "seed"), Reason: "asked"})
			default:
				args := lifelikeArgs(l.model()).Draw(t, "args")
				l.check(args, slot, rapid.SliceOfN(lifelikeObservation, 0, 3).Draw(t, "observations"))
			}
		}
	})
}

// A hostile trainer gets refusals and key errors, never a panic, and never an
// entry that replicas cannot read or apply.
func TestHostileCalls(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := &propertyLog{testLog: newTestLog(t), t: t, observed: true}
		if rapid.Bool().Draw(t, "configured") {
			l.check(Configure{Slots: testSlots("a", "b")}, "", nil)
		}
		for range rapid.IntRange(1, 25).Draw(t, "calls") {
			switch rapid.IntRange(0, 11).Draw(t, "instead of a call") {
			case 0:
				l.openRound(rapid.SampledFrom([]events.TrainerMode{events.ModeKeyed, events.ModeObserve, "", "sulk"}).Draw(t, "mode"))
			case 1:
				l.ask(hostileRequest.Draw(t, "request"))
			default:
				l.hostile(hostileCall(l.state).Draw(t, "call"))
			}
		}
	})
}

type propertyLog struct {
	*testLog
	t        *rapid.T
	observed bool // not all that happened was decided
}

// ask asks for the end of a seed: pending afterwards, once, or refused.
func (l *propertyLog) ask(r events.Requested) {
	before := l.state.RequestsOf("main")
	index, known, refused := l.request(r)
	after := l.state.RequestsOf("main")
	if refused != nil {
		require.NotEmpty(l.t, refused.Reason)
		require.Equal(l.t, before, after)
		return
	}
	if !known {
		require.Equal(l.t, l.state.Index, index)
		before = append(before, Request{Index: index, Asked: after[len(after)-1].Asked})
	}
	require.Equal(l.t, before, after)
	l.throughImage()
	seen := map[events.Requested]bool{}
	for _, p := range after {
		of := events.Requested{Slot: p.Asked.Slot, Seed: p.Asked.Seed}
		require.False(l.t, seen[of], "asked twice of one seed")
		seen[of] = true
		require.Equal(l.t, l.model().Generation, p.Asked.Generation)
	}
}

// check makes the next call of model main and checks all properties.
func (l *propertyLog) check(args Args, slot string, observations []Observation) {
	c := Call{Key: NextKey(l.state, "main", slot, args), Args: args, Observations: observations}
	if l.state.Round.Mode() == events.ModeObserve {
		c.Outcomes = rapid.SliceOfN(lifelikeOutcome, 0, 3).Draw(l.t, "outcomes")
	}
	l.hostile(c)
}

// hostile makes any call. Only a key error keeps it out of the log.
func (l *propertyLog) hostile(c Call) {
	turn, err := decide(l.state, c)
	evs, again := Decide(l.state, c)
	require.Equal(l.t, err, again)
	if err != nil {
		require.ErrorAs(l.t, err, new(*KeyError))
		require.NotEmpty(l.t, err.Error())
		return
	}
	require.Equal(l.t, len(turn.events), len(evs), "Decide is a function")
	before := l.state.Model(c.Key.Model)
	l.checkEvents(before, evs)
	l.checkAssign(before, turn)
	if step, ok := c.Args.(StepEpoch); ok && before != nil && l.state.Round.Mode() != events.ModeObserve {
		l.checkTicks(before, step, c, evs)
	}
	l.checkRequests(l.state.RequestsOf(c.Key.Model), evs)

	kept := l.throughImage()
	e := l.append(events.Entry{Kind: events.KindCall, Key: &c.Key, Events: evs})
	kept, _, err = Apply(kept, e)
	require.NoError(l.t, err)
	require.Equal(l.t, l.state.Bookkeeping(), kept.Bookkeeping(), "an image holds all that matters")
	require.Equal(l.t, l.state.Lifecycle(c.Key.Model), kept.Lifecycle(c.Key.Model))
	after := l.state.Model(c.Key.Model)
	if after == nil {
		require.Nil(l.t, turn.m.Config)
		return
	}
	require.Equal(l.t, turn.m.Digest(), after.Digest(), "what replicas apply is what Decide saw")
	for i := range after.Slots.Len() {
		if s := after.Slots.At(i); l.observed {
			checkAnySlot(l.t, s)
		} else {
			checkSlot(l.t, s)
		}
	}
}

// checkRequests: a fence ends all requests in log order, and nothing else does.
func (l *propertyLog) checkRequests(pending []Request, evs []events.Event) {
	var done, want []uint64
	closes := false
	for i := range evs {
		if evs[i].RequestDone != nil {
			done = append(done, evs[i].RequestDone.Request)
		}
		closes = closes || Closes(&evs[i])
	}
	for _, r := range pending {
		if closes {
			want = append(want, r.Index)
		}
	}
	require.Equal(l.t, want, done)
}

// checkAssign applies the events with assign alone.
func (l *propertyLog) checkAssign(m *Model, turn *turn) {
	if m == nil {
		m = &Model{Name: turn.m.Name, Epoch: -1, FenceN: -1}
	}
	for i := range turn.events {
		if turn.events[i].Refused != nil || turn.events[i].RequestDone != nil {
			continue
		}
		var err error
		m, err = m.assign(&turn.events[i])
		require.NoError(l.t, err)
	}
	if m.Config != nil {
		require.Equal(l.t, turn.m.Digest(), m.Digest())
	}
}

func (l *propertyLog) checkEvents(m *Model, evs []events.Event) {
	for i := range evs {
		if c := evs[i].StageChanged; c != nil {
			require.True(l.t, legal(c.From, c.To), "%s -> %s", c.From, c.To)
			require.True(l.t, l.observed || c.Alpha >= 0 && c.Alpha <= 1)
		}
		if f := evs[i].Fact; f != nil {
			require.Equal(l.t, events.ModeObserve, l.state.Round.Mode())
			require.LessOrEqual(l.t, len(evs[i].Fact.Unexpected), 100)
		} else if l.state.Round.Mode() == events.ModeObserve {
			ev := &evs[i]
			require.True(l.t, ev.Observed != nil || ev.Refused != nil || ev.RequestDone != nil && ev.RequestDone.Skipped != "" ||
				Closes(ev) || ev.Configured != nil, "nothing is decided")
		}
		if g := evs[i].GateEvaluated; g != nil {
			require.True(l.t, events.Num(g.Verdict.Score).Finite())
			require.True(l.t, g.Own || g.Verdict.Passed == (len(g.Verdict.ChecksFailed) == 0))
		}
		if r := evs[i].Refused; r != nil {
			require.Equal(l.t, len(evs)-1, i, "a refusal is the last event")
			require.NotEmpty(l.t, r.Reason)
			for j := range i {
				require.NotNil(l.t, evs[j].Observed, "and changes nothing but observations")
			}
		}
	}
	if m == nil && len(evs) == 1 {
		require.True(l.t, evs[0].Configured != nil || evs[0].Refused != nil)
	}
}

// checkTicks compares a step with the ticks of its slots, one by one.
func (l *propertyLog) checkTicks(m *Model, step StepEpoch, c Call, evs []events.Event) {
	if len(evs) == 0 || evs[len(evs)-1].EpochStepped == nil || len(c.Observations) > 0 {
		return
	}
	var want []events.Event
	for i := range m.Config.Slots {
		tick, err := TickSlot(m, m.Config.Slots[i].Name)
		require.NoError(l.t, err)
		want = append(want, tick...)
	}
	closing := events.Event{EpochStepped: &events.EpochStepped{Epoch: step.Epoch, Tick: m.Tick + 1}}
	require.Equal(l.t, closing, evs[len(evs)-1])
	if len(l.state.RequestsOf(m.Name)) == 0 { // else they come after the ticks
		require.Len(l.t, evs, len(want)+1)
	}
	for i := range want {
		a, err := events.Marshal(want[i]) // NaN equals NaN as bytes
		require.NoError(l.t, err)
		b, err := events.Marshal(evs[i])
		require.NoError(l.t, err)
		require.Equal(l.t, a, b)
	}
}

// checkAnySlot checks what holds of every seed, whoever brought it there.
func checkAnySlot(t require.TestingT, s *Slot) {
	seed := s.Seed
	if seed == nil {
		return
	}
	a, c := seed.Amplitude.Alpha, &seed.Amplitude.Controller
	require.True(t, events.Num(a).Finite())
	for _, v := range []float64{c.Alpha, c.Start, c.Target} {
		require.True(t, v >= 0 && v <= 1)
	}
	require.True(t, c.Done >= 0 && c.Done <= c.Total && c.Steepness >= minSteepness && c.Curve.Valid())
	require.Equal(t, s.Germinations, seed.Count)
	require.Equal(t, seed.Stage.Cooldown(), seed.Pruned != nil)
	m := &seed.Metrics
	require.True(t, m.EpochsInStage >= 0 && m.EpochsInStage <= m.Epochs)
}

// checkSlot checks what holds of every reachable seed (sections 3, 4 and 8).
func checkSlot(t require.TestingT, s *Slot) {
	seed := s.Seed
	if seed == nil {
		return
	}
	checkAnySlot(t, s)
	a, c := seed.Amplitude.Alpha, &seed.Amplitude.Controller
	require.True(t, a >= 0 && a <= 1)
	switch seed.Stage {
	case events.StageBlending:
	case events.StageHolding, events.StageFossilized:
		require.Equal(t, 1.0, a)
		require.Equal(t, 1.0, c.Alpha)
		require.Equal(t, events.ModeHold, c.Mode)
		require.Nil(t, seed.Pending)
	default:
		require.Zero(t, a)
		require.Equal(t, events.ModeHold, c.Mode)
	}
}

var lifelikeNum = rapid.Custom(func(t *rapid.T) events.Num {
	return events.Num(rapid.OneOf(
		rapid.Float64Range(0, 100), rapid.Float64Range(-3, 3),
		rapid.SampledFrom([]float64{0, math.Copysign(0, -1), 1, math.NaN(), math.Inf(1), math.Inf(-1)})).Draw(t, "number"))
})

func reading[T any](g *rapid.Generator[T]) *rapid.Generator[Reading[T]] {
	return rapid.Custom(func(t *rapid.T) Reading[T] {
		switch rapid.IntRange(0, 3).Draw(t, "reading") {
		case 0:
			return Reading[T]{}
		case 1:
			return null[T]()
		default:
			return value(g.Draw(t, "value"))
		}
	})
}

var lifelikeObservation = rapid.Custom(func(t *rapid.T) Observation {
	num, flag := reading(lifelikeNum), reading(rapid.Bool())
	return Observation{Slot: rapid.SampledFrom([]string{"a", "a", "b", "c"}).Draw(t, "slot"),
		Accuracy: num.Draw(t, "accuracy"), GradientRatio: num.Draw(t, "ratio"), GradientNorm: num.Draw(t, "norm"),
		Health: num.Draw(t, "health"), Contribution: num.Draw(t, "contribution"), Exploding: flag.Draw(t, "exploding"),
		Vanishing: flag.Draw(t, "vanishing"), Healthy: flag.Draw(t, "healthy"), Replace: rapid.Bool().Draw(t, "replace")}
})

var lifelikeOutcome = rapid.Custom(func(t *rapid.T) events.Outcome {
	return events.Outcome{Slot: rapid.SampledFrom([]string{"a", "a", "b", "c"}).Draw(t, "slot"),
		Stage: rapid.SampledFrom([]events.Stage{1, 2, 3, 4, 4, 6, 7, 8, 9, 10}).Draw(t, "stage"),
		Alpha: rapid.OneOf(anyUnit, lifelikeNum).Draw(t, "alpha"), Passed: maybe(rapid.Bool()).Draw(t, "passed")}
})

func maybe[T any](g *rapid.Generator[T]) *rapid.Generator[*T] { return rapid.Ptr(g, true) }

var (
	anyStage     = rapid.SampledFrom([]events.Stage{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 200})
	anyCurve     = rapid.SampledFrom([]events.Curve{1, 2, 3})
	anyAlgorithm = rapid.SampledFrom([]events.Algorithm{1, 2, 3})
	anyGate      = rapid.SampledFrom([]events.Gate{events.G0, events.G1, events.G2, events.G3, events.G5})
	anyUnit      = rapid.Custom(func(t *rapid.T) events.Num {
		return events.Num(rapid.OneOf(rapid.Float64Range(0, 1.2), rapid.SampledFrom([]float64{0, 5e-7, 0.9999999, 1})).Draw(t, "alpha"))
	})
)

// lifelikeArgs draws calls that lead seeds through all their stages.
func lifelikeArgs(m *Model) *rapid.Generator[Args] {
	return rapid.Custom(func(t *rapid.T) Args {
		switch rapid.SampledFrom([]string{"germinate", "advance", "advance", "advance", "verdict", "verdict", "prune",
			"schedule_prune", "alpha_target", "step", "step", "step", "step", "fence", "fence or reset"}).Draw(t, "op") {
		case "germinate":
			g := Germinate{Blueprint: "conv", Blend: rapid.SampledFrom([]string{"linear", "sigmoid", "gated"}).Draw(t, "blend"),
				Tempo: rapid.Int64Range(1, 3).Draw(t, "tempo"), Algorithm: events.AlgorithmAdd, Target: maybe(anyUnit).Draw(t, "target")}
			if g.Blend == "gated" {
				g.Algorithm = events.AlgorithmGate
			}
			return g
		case "advance":
			return Advance{Target: maybe(anyStage).Draw(t, "target")}
		case "verdict":
			return Verdict{events.Verdict{Gate: anyGate.Draw(t, "gate"), Passed: true}}
		case "prune":
			return Prune{Reason: rapid.SampledFrom(append(governorReasons, "", "policy")).Draw(t, "reason")}
		case "schedule_prune":
			return SchedulePrune{Ticks: rapid.Int64Range(-1, 3).Draw(t, "ticks"), Curve: maybe(anyCurve).Draw(t, "curve"), Steepness: 12}
		case "alpha_target":
			return AlphaTarget{Target: anyUnit.Draw(t, "target"), Ticks: rapid.Int64Range(-1, 3).Draw(t, "ticks"),
				Curve: maybe(anyCurve).Draw(t, "curve"), Steepness: 12, Algorithm: maybe(anyAlgorithm).Draw(t, "algorithm")}
		case "step":
			return StepEpoch{Epoch: m.Epoch + 1}
		case "fence or reset":
			if rapid.IntRange(0, 3).Draw(t, "reset") == 0 {
				return Reset{}
			}
		}
		return Fence{N: m.FenceN + 1}
	})
}

var (
	hostileString = rapid.OneOf(rapid.SampledFrom([]string{"", "a", "b", "\xff\x00", "linear", "gated", "r0c0\n"}), rapid.StringN(0, 40, 400),
		rapid.Custom(func(t *rapid.T) string { return string(rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "bytes")) }))
	hostileInt = rapid.OneOf(rapid.Int64(), rapid.Int64Range(-2, 5), rapid.SampledFrom([]int64{math.MaxInt64, math.MinInt64}))
	hostileNum = rapid.Custom(func(t *rapid.T) events.Num {
		return events.Num(rapid.OneOf(rapid.Float64(), rapid.SampledFrom([]float64{0, 1, 12, math.NaN(), math.Inf(1), math.Inf(-1), math.MaxFloat64})).Draw(t, "number"))
	})
	hostileVerdict = rapid.Custom(func(t *rapid.T) events.Verdict {
		return events.Verdict{Gate: events.Gate(rapid.OneOf(hostileString, rapid.SampledFrom([]string{"G1", "G2", "G5"})).Draw(t, "gate")),
			Passed: rapid.Bool().Draw(t, "passed"), Score: float64(hostileNum.Draw(t, "score")), Message: hostileString.Draw(t, "message"),
			ChecksPassed: rapid.SliceOfN(hostileString, 0, 3).Draw(t, "passed checks"), ChecksFailed: rapid.SliceOfN(hostileString, 0, 3).Draw(t, "failed checks")}
	})
	hostileSlots = rapid.Custom(func(t *rapid.T) events.SlotConfig {
		return events.SlotConfig{Name: hostileString.Draw(t, "name"),
			Gates:       events.GateConfig{MinSeedGradientRatio: float64(hostileNum.Draw(t, "ratio")), MinBlendingEpochs: hostileInt.Draw(t, "epochs")},
			AutoForward: rapid.SliceOfN(rapid.Map(hostileString, func(s string) events.Gate { return events.Gate(s) }), 0, 1).Draw(t, "auto"),
			Blueprints: rapid.SliceOfN(rapid.Map(hostileString, func(s string) events.Blueprint {
				return events.Blueprint{Name: s, Tensors: []events.Tensor{{Name: s, DType: s}}}
			}), 0, 2).Draw(t, "blueprints")}
	})
)

var hostileRequest = rapid.Custom(func(t *rapid.T) events.Requested {
	text := func(label string) string { return hostileString.Draw(t, label) }
	return events.Requested{Slot: text("slot"), Seed: uint64(hostileInt.Draw(t, "seed")), Number: uint64(hostileInt.Draw(t, "number")),
		Generation: 9, Reason: text("reason"), Initiator: text("initiator")}
})

// hostileArgs draws arguments that no client library would send.
var hostileArgs = rapid.Custom(func(t *rapid.T) Args {
	curve := maybe(rapid.Map(rapid.Byte(), func(b byte) events.Curve { return events.Curve(b % 6) }))
	algorithm := rapid.Map(rapid.Byte(), func(b byte) events.Algorithm { return events.Algorithm(b % 6) })
	text := func(label string) string { return hostileString.Draw(t, label) }
	switch rapid.IntRange(0, 11).Draw(t, "op") {
	case 0:
		return Configure{Slots: rapid.SliceOfN(hostileSlots, 0, 3).Draw(t, "slots")}
	case 1, 2:
		return Germinate{Blueprint: text("blueprint"), SeedID: text("seed"), Blend: text("blend"), Tempo: hostileInt.Draw(t, "tempo"),
			Algorithm: algorithm.Draw(t, "algorithm"), Target: maybe(hostileNum).Draw(t, "target")}
	case 3:
		return Advance{Target: maybe(rapid.Map(rapid.Byte(), func(b byte) events.Stage { return events.Stage(b) })).Draw(t, "target")}
	case 4:
		return Verdict{hostileVerdict.Draw(t, "verdict")}
	case 5:
		return Prune{Reason: text("reason"), Initiator: text("initiator")}
	case 6:
		return SchedulePrune{Ticks: hostileInt.Draw(t, "ticks"), Curve: curve.Draw(t, "curve"), Steepness: hostileNum.Draw(t, "steepness"), Reason: text("reason")}
	case 7:
		return AlphaTarget{Target: hostileNum.Draw(t, "target"), Ticks: hostileInt.Draw(t, "ticks"), Curve: curve.Draw(t, "curve"),
			Steepness: hostileNum.Draw(t, "steepness"), Algorithm: maybe(algorithm).Draw(t, "algorithm")}
	case 8:
		return StepEpoch{Epoch: hostileInt.Draw(t, "epoch")}
	case 9:
		return Fence{N: hostileInt.Draw(t, "n")}
	case 10:
		return Reset{}
	default:
		return nil
	}
})

func hostileCall(s *State) *rapid.Generator[Call] {
	return rapid.Custom(func(t *rapid.T) Call {
		args := hostileArgs.Draw(t, "args")
		if args == nil {
			return Call{Key: events.Key{Round: 1, Model: "main"}}
		}
		c := Call{Key: NextKey(s, "main", rapid.OneOf(rapid.SampledFrom([]string{"a", "b"}), hostileString).Draw(t, "slot"), args), Args: args}
		for range rapid.IntRange(0, 2).Draw(t, "observations") {
			o := lifelikeObservation.Draw(t, "observation")
			o.Slot = rapid.OneOf(rapid.SampledFrom([]string{"a", "b"}), hostileString).Draw(t, "observed slot")
			c.Observations = append(c.Observations, o)
		}
		for range rapid.IntRange(0, 2).Draw(t, "outcomes") {
			o := lifelikeOutcome.Draw(t, "outcome")
			o.Slot = rapid.OneOf(rapid.SampledFrom([]string{"a", "b"}), hostileString).Draw(t, "slot of the outcome")
			o.Stage = events.Stage(rapid.Byte().Draw(t, "stage") % 12)
			o.Alpha = hostileNum.Draw(t, "alpha")
			c.Outcomes = append(c.Outcomes, o)
		}
		switch rapid.IntRange(0, 8).Draw(t, "key") {
		case 0:
			c.Key.Model = hostileString.Draw(t, "model")
		case 1:
			c.Key.Round = uint64(hostileInt.Draw(t, "round"))
		case 2:
			c.Key.Call++
		case 3:
			c.Key.Op = events.Op(hostileString.Draw(t, "op"))
		}
		return c
	})
}
