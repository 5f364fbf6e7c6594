package gates

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
)

func ptr[T any](v T) *T { return &v }

// blending is a seed that passes G2 in both modes.
func blending() Input {
	return Input{SeedID: "s", BlueprintID: "norm", Stage: events.StageTraining, Healthy: true, EpochsInStage: 10,
		AccuracyStage: 50, Accuracy: 52.5, GradientRatio: ptr(0.25), HasTelemetry: true, Health: ptr(0.9), Exploding: ptr(false),
		Contribution: ptr(2.5), Alpha: 1, Target: 1, Mode: events.ModeHold}
}

func with(change func(*Input)) Input {
	in := blending()
	change(&in)
	return in
}

// The vectors in test/conformance cover the gates; this table is for reading.
func TestCheck(t *testing.T) {
	strict, permissive := Defaults(), Defaults()
	permissive.Permissive = true
	for _, c := range []struct {
		name   string
		cfg    events.GateConfig
		target events.Stage
		in     Input
		want   events.Verdict
	}{
		{"G0", strict, events.StageGerminated, blending(),
			events.Verdict{Gate: "G0", Passed: true, Score: 1, ChecksPassed: []string{"seed_id_present", "blueprint_id_present"}, Message: "Germination gate"}},
		{"G0 without a blueprint", strict, events.StageGerminated, with(func(in *Input) { in.BlueprintID = "" }),
			events.Verdict{Gate: "G0", ChecksPassed: []string{"seed_id_present"}, ChecksFailed: []string{"blueprint_id_missing"}, Message: "Missing required fields"}},
		{"G1", strict, events.StageTraining, with(func(in *Input) { in.Stage = events.StageGerminated }),
			events.Verdict{Gate: "G1", Passed: true, Score: 1, ChecksPassed: []string{"germinated"}, Message: "Ready for training"}},
		{"G1 too late", strict, events.StageTraining, blending(),
			events.Verdict{Gate: "G1", ChecksFailed: []string{"not_germinated"}, Message: "Not germinated"}},
		{"G2 strict", strict, events.StageBlending, blending(),
			events.Verdict{Gate: "G2", Passed: true, Score: 0.5, Message: "Improvement: 2.50%",
				ChecksPassed: []string{"global_improvement_2.50%", "seed_ready", "seed_gradient_active_0.25"}}},
		{"G2 strict, NaN accuracy", strict, events.StageBlending, with(func(in *Input) { in.Accuracy = math.NaN(); in.GradientRatio = nil; in.EpochsInStage = 9 }),
			events.Verdict{Gate: "G2", Message: "Improvement: nan%",
				ChecksFailed: []string{"global_improvement_insufficient_nan%", "seed_not_ready", "gradient_stats_never_measured"}}},
		{"G2 permissive", permissive, events.StageBlending, with(func(in *Input) { in.Exploding = nil }),
			events.Verdict{Gate: "G2", Passed: true, Score: 0.5, Message: "Permissive G2 Safety: PASS",
				ChecksPassed: []string{"trained_10_epochs", "no_exploding_gradients", "gradient_health_0.90"}}},
		{"G2 permissive, exploding", permissive, events.StageBlending, with(func(in *Input) { in.Exploding = ptr(true) }),
			events.Verdict{Gate: "G2", Score: 0.5, Message: SafetyFail, ChecksPassed: []string{"trained_10_epochs"}, ChecksFailed: []string{"exploding_gradients"}}},
		{"G2 permissive, nothing measured", permissive, events.StageBlending, with(func(in *Input) { in.HasTelemetry = false; in.EpochsInStage = 3 }),
			events.Verdict{Gate: "G2", Score: 0.5, Message: SafetyFail, ChecksFailed: []string{"insufficient_training_3_of_10", "gradient_health_not_measured"}}},
		{"G3 on the way", strict, events.StageHolding, with(func(in *Input) { in.Alpha = 0.5; in.Mode = events.ModeUp; in.EpochsInStage = 2 }),
			events.Verdict{Gate: "G3", Score: 0.5, ChecksPassed: []string{"alpha_target_full"},
				ChecksFailed: []string{"alpha_not_at_target_0.50_target_1.00_mode_UP", "blending_incomplete_2"}}},
		{"G3 permissive", permissive, events.StageHolding, with(func(in *Input) { in.EpochsInStage = 0 }),
			events.Verdict{Gate: "G3", Passed: true, Score: 1, ChecksPassed: []string{"alpha_target_full", "alpha_target_reached"},
				Message: "Permissive G3: alpha completion only"}},
		{"G5 not measured", permissive, events.StageFossilized, with(func(in *Input) { in.Contribution = nil }),
			events.Verdict{Gate: "G5", ChecksFailed: []string{"counterfactual_not_available"}}},
		{"G5 strict", strict, events.StageFossilized, blending(),
			events.Verdict{Gate: "G5", Passed: true, Score: 0.25,
				ChecksPassed: []string{"counterfactual_available_2.50%", "healthy", "sufficient_contribution_2.50%"}}},
		{"G5 strict, harmful and unhealthy", strict, events.StageFossilized, with(func(in *Input) { in.Contribution = ptr(-3.0); in.Healthy = false }),
			events.Verdict{Gate: "G5", ChecksPassed: []string{"counterfactual_available_-3.00%"},
				ChecksFailed: []string{"unhealthy", "insufficient_contribution_-3.00%_below_1.0%"}}},
		{"G5 permissive, harmful", permissive, events.StageFossilized, with(func(in *Input) { in.Contribution = ptr(math.Inf(-1)) }),
			events.Verdict{Gate: "G5", Passed: true, ChecksPassed: []string{"counterfactual_available_-inf%", "healthy"},
				Message: "Permissive G5: -inf% contribution (no threshold)"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Check(c.cfg, c.target, c.in)
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
}

func TestUngatedTarget(t *testing.T) {
	_, err := Check(Defaults(), events.StagePruned, blending())
	require.EqualError(t, err, "No gate defined for target stage PRUNED. Valid gated stages: GERMINATED, TRAINING, BLENDING, HOLDING, FOSSILIZED")
}

func TestLadder(t *testing.T) {
	for stage := events.StageUnknown; stage <= events.StageResetting; stage++ {
		gate, ok := For(stage)
		back, known := Target(gate)
		require.Equal(t, ok, known)
		if ok {
			require.Equal(t, stage, back)
		}
	}
	_, ok := Target("G4")
	require.False(t, ok)
}

// NonFinite looks only at what the gate reads in its mode.
func TestNonFinite(t *testing.T) {
	strict, permissive := Defaults(), Defaults()
	permissive.Permissive = true
	nan := math.NaN()
	in := with(func(in *Input) {
		in.Accuracy, in.GradientRatio, in.Health, in.Contribution = math.Inf(1), &nan, &nan, &nan
	})
	for _, c := range []struct {
		cfg    events.GateConfig
		target events.Stage
		want   []string
	}{
		{strict, events.StageGerminated, nil},
		{strict, events.StageTraining, nil},
		{strict, events.StageBlending, []string{"accuracy_not_finite", "gradient_ratio_not_finite"}},
		{permissive, events.StageBlending, []string{"gradient_health_not_finite"}},
		{strict, events.StageHolding, nil},
		{strict, events.StageFossilized, []string{"contribution_not_finite"}},
		{permissive, events.StageFossilized, []string{"contribution_not_finite"}},
	} {
		require.Equal(t, c.want, NonFinite(c.cfg, c.target, in))
		require.Empty(t, NonFinite(c.cfg, c.target, blending()))
	}
	in.HasTelemetry = false
	require.Empty(t, NonFinite(permissive, events.StageBlending, in))
}
