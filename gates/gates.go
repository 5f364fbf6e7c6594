package gates

import (
	"fmt"
	"math"

	"github.com/esperd/esperd/events"
)

// Input is what a gate may read of a seed. A nil pointer means "not measured".
type Input struct {
	SeedID, BlueprintID string
	Stage               events.Stage
	Healthy             bool
	EpochsInStage       int64
	AccuracyStage       float64 // percent, when the stage began
	Accuracy            float64 // percent, the last one
	GradientRatio       *float64
	Contribution        *float64 // percentage points
	HasTelemetry        bool     // false: Health and Exploding are not looked at
	Health              *float64 // 0 to 1
	Exploding           *bool
	Alpha, Target       float64     // the controller's, not the seed's
	Mode                events.Mode // the controller's
}

const (
	// alphaEpsilon is the slack of G3 around a full target and a reached one.
	alphaEpsilon = 1e-6
	// minContribution is the threshold of strict G5, in percentage points. It
	// is not configurable (section 9, row 25).
	minContribution = 1.0
	// fullImprovement and fullContribution are worth a score of 1.
	fullImprovement  = 5.0
	fullContribution = 10.0
)

// ladder lists the gates with the stage that each leads to.
var ladder = []struct {
	gate   events.Gate
	target events.Stage
	check  func(events.GateConfig, Input) events.Verdict
}{
	{events.G0, events.StageGerminated, checkG0},
	{events.G1, events.StageTraining, checkG1},
	{events.G2, events.StageBlending, checkG2},
	{events.G3, events.StageHolding, checkG3},
	{events.G5, events.StageFossilized, checkG5},
}

// Defaults returns the reference's thresholds, in strict mode.
func Defaults() events.GateConfig {
	return events.GateConfig{
		MinTrainingImprovement:       0.5,
		MinBlendingEpochs:            10,
		MinSeedGradientRatio:         0.10,
		MinGradientHealthForBlending: 0.7,
		MinProbationStability:        0.95,
	}
}

// For returns the gate that guards the entry into a stage, false for a stage
// that no gate leads to.
func For(target events.Stage) (events.Gate, bool) {
	for _, rung := range ladder {
		if rung.target == target {
			return rung.gate, true
		}
	}
	return "", false
}

// Target returns the stage that a gate leads to, false for an unknown gate.
func Target(g events.Gate) (events.Stage, bool) {
	for _, rung := range ladder {
		if rung.gate == g {
			return rung.target, true
		}
	}
	return events.StageUnknown, false
}

// Check evaluates the gate of the target stage. The error, for a target without
// a gate, has the reference's text.
func Check(cfg events.GateConfig, target events.Stage, in Input) (events.Verdict, error) {
	for _, rung := range ladder {
		if rung.target == target {
			v := rung.check(cfg, in)
			v.Gate = rung.gate
			return v, nil
		}
	}
	return events.Verdict{}, fmt.Errorf("No gate defined for target stage %s. Valid gated stages: "+ //nolint:staticcheck // the reference's text
		"GERMINATED, TRAINING, BLENDING, HOLDING, FOSSILIZED", target)
}

// NonFinite names, as failed checks, the readings that the gate of the target
// stage looks at in the configured mode and that are NaN or infinite. Check
// itself judges them as the reference does, which lets some of them pass; the
// state machine does not (section 9, row 16).
func NonFinite(cfg events.GateConfig, target events.Stage, in Input) []string {
	var failed []string
	name := func(check string, readings ...*float64) {
		for _, r := range readings {
			if r != nil && (math.IsNaN(*r) || math.IsInf(*r, 0)) {
				failed = append(failed, check)
				return
			}
		}
	}
	switch {
	case target == events.StageBlending && cfg.Permissive:
		if in.HasTelemetry {
			name("gradient_health_not_finite", in.Health)
		}
	case target == events.StageBlending:
		name("accuracy_not_finite", &in.Accuracy, &in.AccuracyStage)
		name("gradient_ratio_not_finite", in.GradientRatio)
	case target == events.StageFossilized:
		name("contribution_not_finite", in.Contribution)
	}
	return failed
}

// checks collects check names in the order in which they were made.
type checks struct{ passed, failed []string }

func (c *checks) add(ok bool, passed, failed string) {
	if ok {
		c.passed = append(c.passed, passed)
	} else {
		c.failed = append(c.failed, failed)
	}
}

// verdict passes if no check failed.
func (c *checks) verdict(score float64, message string) events.Verdict {
	return events.Verdict{Passed: len(c.failed) == 0, Score: score,
		ChecksPassed: c.passed, ChecksFailed: c.failed, Message: message}
}

func checkG0(_ events.GateConfig, in Input) events.Verdict {
	var c checks
	c.add(in.SeedID != "", "seed_id_present", "seed_id_missing")
	c.add(in.BlueprintID != "", "blueprint_id_present", "blueprint_id_missing")
	if len(c.failed) > 0 {
		return c.verdict(0, "Missing required fields")
	}
	return c.verdict(1, "Germination gate")
}

func checkG1(_ events.GateConfig, in Input) events.Verdict {
	var c checks
	c.add(in.Stage == events.StageGerminated, "germinated", "not_germinated")
	if len(c.failed) > 0 {
		return c.verdict(0, "Not germinated")
	}
	return c.verdict(1, "Ready for training")
}

func checkG2(cfg events.GateConfig, in Input) events.Verdict {
	improvement := in.Accuracy - in.AccuracyStage
	score := share(improvement, fullImprovement)
	if cfg.Permissive {
		return permissiveG2(cfg, in, score)
	}
	var c checks
	c.add(improvement >= cfg.MinTrainingImprovement,
		"global_improvement_"+fixed2(improvement)+"%", "global_improvement_insufficient_"+fixed2(improvement)+"%")
	c.add(in.EpochsInStage >= cfg.MinBlendingEpochs, "seed_ready", "seed_not_ready")
	if in.GradientRatio == nil {
		c.add(false, "", "gradient_stats_never_measured")
	} else {
		ratio := fixed2(*in.GradientRatio)
		c.add(*in.GradientRatio >= cfg.MinSeedGradientRatio, "seed_gradient_active_"+ratio, "seed_gradient_low_"+ratio)
	}
	return c.verdict(score, "Improvement: "+fixed2(improvement)+"%")
}

func permissiveG2(cfg events.GateConfig, in Input, score float64) events.Verdict {
	var c checks
	c.add(in.EpochsInStage >= cfg.MinBlendingEpochs, fmt.Sprintf("trained_%d_epochs", in.EpochsInStage),
		fmt.Sprintf("insufficient_training_%d_of_%d", in.EpochsInStage, cfg.MinBlendingEpochs))
	switch {
	case !in.HasTelemetry || in.Health == nil:
		c.add(false, "", "gradient_health_not_measured")
	case in.Exploding != nil && *in.Exploding:
		c.add(false, "", "exploding_gradients")
	default:
		c.add(true, "no_exploding_gradients", "")
		c.add(*in.Health >= cfg.MinGradientHealthForBlending, "gradient_health_"+fixed2(*in.Health),
			"gradient_health_low_"+fixed2(*in.Health)+"_need_"+fixed2(cfg.MinGradientHealthForBlending))
	}
	if len(c.failed) > 0 {
		return c.verdict(score, SafetyFail)
	}
	return c.verdict(score, "Permissive G2 Safety: PASS")
}

// SafetyFail is the message of a permissive G2 that did not pass.
const SafetyFail = "Permissive G2 Safety: FAIL"

func checkG3(cfg events.GateConfig, in Input) events.Verdict {
	var c checks
	c.add(in.Target >= 1-alphaEpsilon, "alpha_target_full", "alpha_target_not_full_"+fixed2(in.Target))
	c.add(in.Mode == events.ModeHold && math.Abs(in.Alpha-in.Target) <= alphaEpsilon, "alpha_target_reached",
		fmt.Sprintf("alpha_not_at_target_%s_target_%s_mode_%s", fixed2(in.Alpha), fixed2(in.Target), in.Mode))
	if cfg.Permissive {
		return c.verdict(in.Alpha, "Permissive G3: alpha completion only")
	}
	c.add(in.EpochsInStage >= cfg.MinBlendingEpochs, "blending_complete",
		fmt.Sprintf("blending_incomplete_%d", in.EpochsInStage))
	return c.verdict(in.Alpha, "")
}

func checkG5(cfg events.GateConfig, in Input) events.Verdict {
	var c checks
	if in.Contribution == nil {
		c.add(false, "", "counterfactual_not_available")
		return c.verdict(0, "")
	}
	v := *in.Contribution
	score := share(v, fullContribution)
	c.add(true, "counterfactual_available_"+fixed2(v)+"%", "")
	c.add(in.Healthy, "healthy", "unhealthy")
	if cfg.Permissive {
		return c.verdict(score, "Permissive G5: "+fixed2(v)+"% contribution (no threshold)")
	}
	c.add(v >= minContribution, "sufficient_contribution_"+fixed2(v)+"%",
		"insufficient_contribution_"+fixed2(v)+"%_below_1.0%")
	return c.verdict(score, "")
}

// share is v as a part of full, from 0 to 1. NaN is worth nothing.
func share(v, full float64) float64 {
	if v > 0 {
		return min(1, v/full)
	}
	return 0
}

// fixed2 prints two decimals as Python's "%.2f" does.
func fixed2(v float64) string {
	switch {
	case math.IsNaN(v):
		return "nan"
	case math.IsInf(v, 1):
		return "inf"
	case math.IsInf(v, -1):
		return "-inf"
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
