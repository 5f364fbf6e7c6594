package conformance

import (
	"encoding/json"
	"reflect"
	"slices"
	gostrings "strings"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

func jsonNames(v any) []string {
	t := reflect.TypeOf(v).Elem()
	names := make([]string, t.NumField())
	for i := range names {
		names[i], _, _ = gostrings.Cut(t.Field(i).Tag.Get("json"), ",")
	}
	return names
}

// obsValue is OBS of section 2.3.
func obsValue(s *fsm.Slot) map[string]any {
	obs := map[string]any{"state": s.Seed != nil, "seed": s.Active() != nil, "stage": s.Stage().String(), "alpha": 0.0,
		"mode": nil, "target": nil, "total": nil, "done": nil, "ep": nil, "ep_stage": nil, "prev": nil}
	if s.Seed == nil {
		return obs
	}
	c := &s.Seed.Amplitude.Controller
	obs["alpha"] = s.Seed.Amplitude.Alpha
	obs["mode"], obs["target"], obs["total"], obs["done"] = c.Mode.String(), c.Target, c.Total, c.Done
	obs["ep"], obs["ep_stage"] = s.Seed.Metrics.Epochs, s.Seed.Metrics.EpochsInStage
	obs["prev"] = s.Seed.Previous.String()
	return obs
}

var seedKeys = []string{"c_alpha", "c_start", "curve", "steep", "algo", "prev_ep", "ramp", "m_alpha", "acc", "acc_best",
	"acc_init", "acc_stage", "acc_blend", "blend_started", "ratio", "contrib", "healthy", "auto_pruned", "auto_reason", "tempo"}

// xValue is X of section 2.3.
func xValue(s *fsm.Slot, p *past) map[string]any {
	x := map[string]any{"iso": false, "freeze": false, "pend_reason": nil, "pend_init": nil, "gate_sched": false,
		"cfg_blend": p.blend, "cfg_tempo": p.tempo, "cfg_target": p.target}
	seed := s.Seed
	if seed == nil {
		for _, k := range seedKeys {
			x[k] = nil
		}
		return x
	}
	x["iso"], x["freeze"], x["gate_sched"] = seed.Isolated(), seed.Frozen() || p.lag, seed.Gated()
	if r := seed.Pending; r != nil {
		x["pend_reason"], x["pend_init"] = r.Reason, r.Initiator
	}
	a, c, m := &seed.Amplitude, &seed.Amplitude.Controller, &seed.Metrics
	x["c_alpha"], x["c_start"], x["curve"], x["steep"] = c.Alpha, c.Start, c.Curve.String(), c.Steepness
	x["algo"], x["tempo"], x["m_alpha"] = a.Algorithm.String(), seed.Tempo, a.Alpha
	x["prev_ep"], x["ramp"] = p.epochsBefore, p.ramp
	x["acc"], x["acc_best"] = float64(m.Accuracy), float64(m.AccuracyBest)
	x["acc_init"], x["acc_stage"] = float64(m.AccuracyFirst), float64(m.AccuracyStage)
	x["acc_blend"], x["blend_started"] = 0.0, seed.BlendAccuracy != nil
	if seed.BlendAccuracy != nil {
		x["acc_blend"] = float64(*seed.BlendAccuracy)
	}
	x["ratio"], x["contrib"] = optional(m.GradientRatio, numValue), optional(m.Contribution, numValue)
	x["healthy"] = !m.Unhealthy
	x["auto_pruned"], x["auto_reason"] = p.autoReason != "", p.autoReason
	return x
}

// past is what the reference remembers of a slot and esperd does not: it is in
// the events only, or is one of the oddities of section 9 that show in
// bookkeeping keys alone.
type past struct {
	blend, tempo, target any    // of the last germinate, granted or not (row 1)
	epochsBefore         int64  // in the stage that was left last
	ramp                 int64  // ticks done at the last tick in BLENDING
	autoReason           string // a governor's: the prune counts as automatic; also of one refused in cooldown (row 22)
	lag                  bool   // freeze outlives a ramp down by a tick (row 20)
}

var governorReasons = []string{"governor_nan", "governor_lobotomy", "governor_divergence", "governor_rollback"}

// note brings the past up to date with an operation and its events.
func (p *past) note(op *episodeOp, before, after *fsm.Slot, evs []events.Event) {
	if op.Op == "step_epoch" && before.Stage() == events.StageBlending {
		c, _ := fsm.Step(before.Seed.Amplitude.Controller)
		p.ramp = c.Done
	}
	p.noteLag(op, before, after)
	p.noteArgs(op, before)
	for i := range evs {
		switch ev := &evs[i]; {
		case ev.Germinated != nil:
			*p = past{blend: p.blend, tempo: p.tempo, target: p.target}
		case ev.StageChanged != nil:
			p.epochsBefore = ev.StageChanged.EpochsInStage
		case ev.Pruned != nil && slices.Contains(governorReasons, after.Seed.Pruned.Reason):
			p.autoReason = after.Seed.Pruned.Reason
		}
	}
}

// noteArgs keeps what the reference takes from the arguments of refused calls.
func (p *past) noteArgs(op *episodeOp, before *fsm.Slot) {
	var a struct {
		Blend  string
		Tempo  int64
		Target any
		Reason string
	}
	if err := json.Unmarshal(op.Args, &a); err != nil {
		return // perform has refused it
	}
	switch {
	case op.Op == "germinate":
		p.blend, p.tempo = a.Blend, a.Tempo
		if target, ok := a.Target.(float64); a.Target == nil {
			p.target = 1.0
		} else if ok && target > 0 && target <= 1 {
			p.target = target
		}
	case before.Stage().Cooldown() && (op.Op == "prune" || op.Op == "schedule_prune"):
		p.autoReason = ""
		if slices.Contains(governorReasons, a.Reason) {
			p.autoReason = a.Reason
		}
	}
}

// noteLag follows row 20: the reference judges freeze before a tick, so it
// outlives a ramp down to a partial target until the next one.
func (p *past) noteLag(op *episodeOp, before, after *fsm.Slot) {
	switch {
	case op.Op == "step_epoch":
		p.lag = before.Seed != nil && before.Seed.Frozen() && after.Active() != nil
	case after.Active() == nil, op.Op == "set_alpha_target" && op.Res["ret"] == true:
		p.lag = false
	}
}

// telemetryValue is what sync_telemetry returns (section 6.2).
func telemetryValue(s *fsm.Seed, epoch, maxEpochs int64) map[string]any {
	a, c, m := &s.Amplitude, &s.Amplitude.Controller, &s.Metrics
	delta, velocity, blending := 0.0, 0.0, 0.0
	if s.Stage != events.StageGerminated && s.Stage != events.StageTraining {
		delta = float64(m.Accuracy - m.AccuracyStage)
	}
	if c.Mode != events.ModeHold && c.Total != 0 {
		velocity = (c.Target - c.Start) / float64(c.Total)
	}
	if s.Stage == events.StageBlending && m.EpochsInStage > 0 {
		blending = a.Alpha / float64(m.EpochsInStage)
	}
	return map[string]any{
		"gradient_norm": optional(m.GradientNorm, numValue), "gradient_health": optional(m.Health, numValue),
		"has_vanishing": optional(m.Vanishing, boolValue), "has_exploding": optional(m.Exploding, boolValue),
		"accuracy": float64(m.Accuracy), "accuracy_delta": delta, "epochs_in_stage": m.EpochsInStage,
		"stage": int64(s.Stage), "alpha": a.Alpha, "alpha_target": c.Target, "alpha_mode": int64(c.Mode),
		"alpha_steps_total": c.Total, "alpha_steps_done": c.Done, "time_to_target": max(c.Total-c.Done, 0),
		"alpha_velocity": velocity, "alpha_algorithm": int64(a.Algorithm), "epoch": epoch, "max_epochs": maxEpochs,
		"blend_tempo_epochs": s.Tempo, "blending_velocity": blending,
	}
}

// eventValues writes the events that the reference emits, too, as section 2.3
// does.
func eventValues(evs []events.Event) []any {
	out := []any{}
	for i := range evs {
		switch ev := &evs[i]; {
		case ev.Germinated != nil:
			out = append(out, map[string]any{"e": "GERMINATED", "bp": ev.Germinated.Blueprint, "alpha": 0.0, "tempo": ev.Germinated.Tempo})
		case ev.GateEvaluated != nil:
			g, v := ev.GateEvaluated, ev.GateEvaluated.Verdict
			out = append(out, map[string]any{"e": "GATE", "gate": string(v.Gate), "target": g.Target.String(), "passed": v.Passed,
				"cp": strings(v.ChecksPassed), "cf": strings(v.ChecksFailed), "msg": v.Message})
		case ev.StageChanged != nil:
			c := ev.StageChanged
			out = append(out, map[string]any{"e": "STAGE", "from": c.From.String(), "to": c.To.String(), "alpha": c.Alpha,
				"acc_delta": float64(c.AccuracyDelta), "ep_stage": c.EpochsInStage})
		case ev.Fossilized != nil:
			f := ev.Fossilized
			out = append(out, map[string]any{"e": "FOSSILIZED", "bp": f.Blueprint, "improvement": float64(f.Improvement),
				"alpha": f.Alpha, "ep": f.Epochs, "contrib": optional(f.Contribution, numValue), "blend_delta": float64(f.BlendDelta)})
		case ev.Pruned != nil:
			p := ev.Pruned
			out = append(out, map[string]any{"e": "PRUNED", "reason": p.Reason, "initiator": p.Initiator, "auto": p.Auto,
				"bp": p.Blueprint, "improvement": float64(p.Improvement), "ep": p.Epochs,
				"contrib": optional(p.Contribution, numValue), "blend_delta": float64(p.BlendDelta)})
		}
	}
	return out
}
