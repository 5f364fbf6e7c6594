package fsm

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/gates"
)

// edges lists the legal next stages of section 3. The order matters: the first
// one that is no failure is where advance without a target leads.
var edges = map[events.Stage][]events.Stage{
	events.StageGerminated: {events.StageTraining, events.StagePruned},
	events.StageTraining:   {events.StageBlending, events.StagePruned},
	events.StageBlending:   {events.StageHolding, events.StagePruned},
	events.StageHolding:    {events.StageFossilized, events.StageBlending, events.StagePruned},
	events.StagePruned:     {events.StageEmbargoed},
	events.StageEmbargoed:  {events.StageResetting},
	events.StageResetting:  {events.StageDormant},
}

func legal(from, to events.Stage) bool { return slices.Contains(edges[from], to) }

// nextStage returns where advance leads without a target.
func nextStage(from events.Stage) (events.Stage, bool) {
	for _, to := range edges[from] {
		if !to.Cooldown() {
			return to, true
		}
	}
	return events.StageUnknown, false
}

// governorReasons mark a prune as automatic (section 6.4).
var governorReasons = []string{"governor_nan", "governor_lobotomy", "governor_divergence", "governor_rollback"}

// germinate is section 6.1, with everything validated before anything changes.
func (t *turn) germinate(i int, a Germinate) *events.Refused {
	if why := a.bad(); why != "" {
		return refuse(events.CodeInvalidInput, "germinate %s: %s", t.name(i), why)
	}
	slot := t.slot(i)
	if slot.Seed != nil {
		return illegal("germinate %s: expected an empty slot, but seed %s is %s in it; %s",
			t.name(i), slot.Seed.ID, slot.Stage(), whenEmpty(slot.Stage()))
	}
	known := t.m.Config.Slots[i].Blueprints
	if len(known) > 0 && !slices.ContainsFunc(known, func(b events.Blueprint) bool { return b.Name == a.Blueprint }) {
		return refuse(events.CodeInvalidInput, "germinate %s: blueprint %q is not one of the slot's: %s",
			t.name(i), a.Blueprint, blueprintNames(known))
	}
	ev := &events.Germinated{Slot: t.name(i), Seed: slot.Germinations + 1, ID: a.id(t.name(i)), Blueprint: a.Blueprint,
		Blend: a.Blend, Tempo: a.Tempo, Algorithm: a.Algorithm, Target: 1, Absent: t.resides}
	if a.Target != nil {
		ev.Target = float64(*a.Target)
	}
	t.emit(events.Event{Germinated: ev})
	return nil
}

// id is the seed's name: one is made where the trainer gives none.
func (a Germinate) id(slot string) string { return cmp.Or(a.SeedID, slot+"-"+a.Blueprint) }

func whenEmpty(s events.Stage) string {
	switch {
	case s == events.StageFossilized:
		return "a fossilized seed stays for good, use another slot"
	case s.Cooldown():
		return "the slot is empty when the cooldown is over"
	default:
		return "prune the seed first, or use another slot"
	}
}

func blueprintNames(list []events.Blueprint) string {
	const shown = 16
	names := ""
	for i := range min(shown, len(list)) {
		names += ", " + list[i].Name
	}
	if n := len(list); n > shown {
		names += fmt.Sprintf(" and %d more", n-shown)
	}
	return names[2:]
}

// advance is section 6.3.
func (t *turn) advance(i int, a Advance) *events.Refused {
	if a.Target != nil && !a.Target.Valid() {
		return refuse(events.CodeInvalidInput, "advance %s: target: expected the name of a stage, got %s", t.name(i), *a.Target)
	}
	seed := t.slot(i).Active()
	if seed == nil {
		t.decided(i, events.G0, "no_active_seed")
		return nil
	}
	to, ok := a.leadsTo(seed.Stage)
	if !ok {
		t.decided(i, events.G0, "no_valid_transition")
		return nil
	}
	if a.Strict && a.Target == nil && to == events.StageFossilized {
		return refuse(events.CodeInvalidInput, "advance %s: expected a target, since the seed is in %s, from where the next stage is %s, for good; pass target %q to say that it is meant",
			t.name(i), seed.Stage, to, to)
	}
	if to.Cooldown() {
		return illegal("advance %s: advance_stage() cannot target failure stage %s; use prune() and the cooldown pipeline instead.", t.name(i), to)
	}
	v, err := t.evaluate(i, to)
	if err != nil {
		return illegal("advance %s: %s", t.name(i), err)
	}
	t.take(i, to, v, false)
	return nil
}

// leadsTo returns the stage that is asked for; false if there is none.
func (a Advance) leadsTo(from events.Stage) (events.Stage, bool) {
	if a.Target != nil {
		return *a.Target, true
	}
	return nextStage(from)
}

// verdict takes the trainer's own gate result for the evaluated one.
func (t *turn) verdict(i int, a Verdict) *events.Refused {
	if why := a.bad(); why != "" {
		return refuse(events.CodeInvalidInput, "verdict %s: %s", t.name(i), why)
	}
	if t.slot(i).Active() == nil {
		t.decided(i, events.G0, "no_active_seed")
		return nil
	}
	to, _ := gates.Target(a.Verdict.Gate)
	t.take(i, to, a.Verdict, true)
	return nil
}

// evaluate asks the gate of a stage. A gate that read something that is no
// number does not pass, whatever the comparison said (section 9, row 16).
func (t *turn) evaluate(i int, to events.Stage) (events.Verdict, error) {
	cfg, in := t.m.Config.Slots[i].Gates, gateInput(t.slot(i).Seed)
	v, err := gates.Check(cfg, to, in)
	if err != nil || !v.Passed {
		return v, err
	}
	if t.waits(i, to) {
		v.Passed, v.Score, v.Message = false, 0, "Waits for residency"
		v.ChecksFailed = append(v.ChecksFailed, notResident)
		return v, nil
	}
	if failed := gates.NonFinite(cfg, to, in); len(failed) > 0 {
		v.Passed = false
		v.ChecksFailed = append(v.ChecksFailed, failed...)
		if v.Gate == events.G2 && cfg.Permissive {
			v.Message = gates.SafetyFail
		}
	}
	return v, nil
}

func gateInput(s *Seed) gates.Input {
	m, c := &s.Metrics, &s.Amplitude.Controller
	return gates.Input{
		SeedID: s.ID, BlueprintID: s.Blueprint, Stage: s.Stage, Healthy: !m.Unhealthy,
		EpochsInStage: m.EpochsInStage, AccuracyStage: float64(m.AccuracyStage), Accuracy: float64(m.Accuracy),
		GradientRatio: (*float64)(m.GradientRatio), Contribution: (*float64)(m.Contribution),
		HasTelemetry: true, Health: (*float64)(m.Health), Exploding: m.Exploding,
		Alpha: c.Alpha, Target: c.Target, Mode: c.Mode,
	}
}

// decided records an answer that is not an evaluated verdict.
func (t *turn) decided(i int, gate events.Gate, failed string) {
	ev := &events.Decided{Slot: t.name(i), Verdict: events.Verdict{Gate: gate, ChecksFailed: []string{failed}}}
	if seed := t.slot(i).Seed; seed != nil {
		ev.Seed = seed.Count
	}
	t.emit(events.Event{Decided: ev})
}

// take records a verdict and, if it passed, takes the edge.
func (t *turn) take(i int, to events.Stage, v events.Verdict, own bool) {
	seed := t.slot(i).Seed
	t.emit(events.Event{GateEvaluated: &events.GateEvaluated{Slot: t.name(i), Seed: seed.Count, Target: to, Verdict: v, Own: own}})
	switch {
	case !v.Passed:
	case own && t.waits(i, to):
		t.decided(i, v.Gate, notResident)
	case !legal(seed.Stage, to):
		t.decided(i, v.Gate, "transition_failed")
	default:
		t.enter(i, to)
	}
}

// enter takes an edge upwards, with the entry action of the stage.
func (t *turn) enter(i int, to events.Stage) {
	seed := t.slot(i).Seed
	a := seed.Amplitude
	switch {
	case seed.Stage == events.StageTraining && to == events.StageBlending:
		a = startBlending(seed)
	case to == events.StageHolding:
		a.Alpha = 1
		c := &a.Controller
		c.Alpha, c.Start, c.Target, c.Mode, c.Done = 1, 1, 1, events.ModeHold, c.Total
	}
	t.changeStage(i, to, a.Alpha)
	t.setAmplitude(i, a)
	if to == events.StageFossilized {
		t.emit(events.Event{Fossilized: &events.Fossilized{Slot: t.name(i), Seed: seed.Count, Blueprint: seed.Blueprint,
			Improvement: improvement(seed), Alpha: seed.Amplitude.Alpha, Epochs: seed.Metrics.Epochs,
			Contribution: seed.Metrics.Contribution, BlendDelta: blendDelta(seed)}})
	}
}

// startBlending gives a seed a new controller on the way to its target. Its own
// alpha follows at the next tick.
func startBlending(s *Seed) events.Amplitude {
	a := s.Amplitude // gated seeds germinated with GATE
	c := freshController
	c.Alpha, c.Curve = a.Alpha, blends[s.Blend]
	a.Controller, _ = Retarget(NewController(c), s.Target, s.Tempo, nil, nil) // it is in HOLD
	return a
}

// changeStage emits the edge alone. alpha is the seed's when the edge is taken.
func (t *turn) changeStage(i int, to events.Stage, alpha float64) {
	seed := t.slot(i).Seed
	ev := &events.StageChanged{Slot: t.name(i), Seed: seed.Count, From: seed.Stage, To: to, Alpha: alpha,
		EpochsInStage: seed.Metrics.EpochsInStage}
	if !seed.Stage.Cooldown() {
		ev.AccuracyDelta = improvement(seed)
	}
	t.emit(events.Event{StageChanged: ev})
}

// setAmplitude emits an amplitude if it is another one.
func (t *turn) setAmplitude(i int, a events.Amplitude) {
	if seed := t.slot(i).Seed; seed.Amplitude != a {
		t.emit(events.Event{AmplitudeSet: &events.AmplitudeSet{Slot: t.name(i), Seed: seed.Count, Amplitude: a}})
	}
}

func improvement(s *Seed) events.Num { return s.Metrics.Accuracy - s.Metrics.AccuracyFirst }

// blendDelta is what blending has changed so far, 0 before it.
func blendDelta(s *Seed) events.Num {
	if s.BlendAccuracy == nil {
		return 0
	}
	return s.Metrics.Accuracy - *s.BlendAccuracy
}

// prune is section 6.4: at once, whatever the controller is doing.
func (t *turn) prune(i int, a Prune) *events.Refused {
	if why := badReason(a.Reason, a.Initiator); why != "" {
		return refuse(events.CodeInvalidInput, "prune %s: %s", t.name(i), why)
	}
	if why := t.unprunable(i); why != "" {
		return illegal("prune %s: %s", t.name(i), why)
	}
	t.remove(i, a.Reason, a.Initiator)
	return nil
}

// unprunable says why a slot has no seed that could be pruned; empty if it has.
func (t *turn) unprunable(i int) string {
	switch slot := t.slot(i); {
	case slot.Seed == nil:
		return "expected a seed, but the slot is empty; nothing to do"
	case slot.Seed.Stage == events.StageFossilized:
		return "expected a seed that is not fossilized yet; a fossilized one is permanent"
	case slot.Active() == nil:
		return fmt.Sprintf("expected a living seed, but it was pruned already and is %s; nothing to do", slot.Stage())
	}
	return ""
}

// remove prunes a seed that can be.
func (t *turn) remove(i int, reason, initiator string) {
	seed := t.slot(i).Seed
	t.changeStage(i, events.StagePruned, seed.Amplitude.Alpha)
	t.emit(events.Event{Pruned: &events.Pruned{Slot: t.name(i), Seed: seed.Count, Reason: reason, Initiator: initiator,
		Auto: slices.Contains(governorReasons, reason), Blueprint: seed.Blueprint,
		Improvement: improvement(seed), Epochs: seed.Metrics.Epochs,
		Contribution: seed.Metrics.Contribution, BlendDelta: blendDelta(seed)}})
	a := seed.Amplitude
	a.Alpha = 0
	c := &a.Controller
	c.Alpha, c.Start, c.Target, c.Mode, c.Total, c.Done = 0, 0, 0, events.ModeHold, 0, 0
	t.setAmplitude(i, a)
}

// schedulePrune is section 6.5. A seed without alpha has nothing to ramp down:
// it is pruned at once.
func (t *turn) schedulePrune(i int, a SchedulePrune) *events.Refused {
	why := badReason(a.Reason, a.Initiator)
	if why == "" {
		why = badRamp(a.Ticks, a.Curve, a.Steepness)
	}
	if why != "" {
		return refuse(events.CodeInvalidInput, "schedule_prune %s: %s", t.name(i), why)
	}
	if why := t.unprunable(i); why != "" {
		return illegal("schedule_prune %s: %s", t.name(i), why)
	}
	seed := t.slot(i).Seed
	if a.Ticks <= 0 || seed.Amplitude.Alpha <= 0 {
		t.remove(i, a.Reason, a.Initiator)
		return nil
	}
	steepness := float64(a.Steepness)
	c, err := Retarget(seed.Amplitude.Controller, 0, a.Ticks, a.Curve, &steepness)
	if err != nil {
		return illegal("schedule_prune %s: %s", t.name(i), ramping(seed))
	}
	if seed.Stage == events.StageHolding {
		t.changeStage(i, events.StageBlending, seed.Amplitude.Alpha)
	}
	t.emit(events.Event{PruneScheduled: &events.PruneScheduled{Slot: t.name(i), Seed: seed.Count, Reason: a.Reason, Initiator: a.Initiator}})
	next := seed.Amplitude
	next.Controller = c
	t.setAmplitude(i, next)
	return nil
}

func ramping(s *Seed) string {
	c := &s.Amplitude.Controller
	return fmt.Sprintf("expected a resting alpha, but it ramps %s to %g (tick %d of %d); wait for the end of the ramp, or prune at once",
		c.Mode, c.Target, c.Done, c.Total)
}

// alphaTarget is section 6.6. It starts from the controller's alpha; the seed's
// own follows at the next tick.
func (t *turn) alphaTarget(i int, a AlphaTarget) *events.Refused {
	if why := a.bad(); why != "" {
		return refuse(events.CodeInvalidInput, "alpha_target %s: %s", t.name(i), why)
	}
	slot := t.slot(i)
	if s := slot.Stage(); s != events.StageBlending && s != events.StageHolding {
		return illegal("alpha_target %s: expected a seed in BLENDING or HOLDING, but the slot is %s", t.name(i), s)
	}
	seed, target, steepness := slot.Seed, float64(a.Target), float64(a.Steepness)
	holding := seed.Stage == events.StageHolding
	if holding && target >= 1-alphaEpsilon {
		target = 1 // a ramp to almost 1 would never be ticked in HOLDING (section 9, row 7)
	}
	next := seed.Amplitude
	var err error
	if next.Controller, err = Retarget(next.Controller, target, a.Ticks, a.Curve, &steepness); err != nil {
		return illegal("alpha_target %s: %s", t.name(i), ramping(seed))
	}
	if a.Algorithm != nil {
		next.Algorithm = *a.Algorithm
	}
	if holding && target < 1 {
		t.changeStage(i, events.StageBlending, seed.Amplitude.Alpha)
	}
	t.setAmplitude(i, next)
	return nil
}
