package conformance

import (
	"encoding/json"
	"fmt"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/gates"
)

type gateRecord struct {
	ID     string         `json:"id"`
	Tag    string         `json:"tag"`
	Gates  gateConfig     `json:"gates"`
	Target events.Stage   `json:"target"`
	State  gateState      `json:"state"`
	Want   map[string]any `json:"want"`
}

type gateState struct {
	SeedID        string          `json:"seed_id"`
	BlueprintID   string          `json:"blueprint_id"`
	Stage         events.Stage    `json:"stage"`
	Healthy       bool            `json:"is_healthy"`
	EpochsInStage int64           `json:"epochs_in_current_stage"`
	AccuracyStage events.Num      `json:"accuracy_at_stage_start"`
	Accuracy      events.Num      `json:"current_val_accuracy"`
	Ratio         *events.Num     `json:"seed_gradient_norm_ratio"`
	Contribution  *events.Num     `json:"counterfactual_contribution"`
	Telemetry     json.RawMessage `json:"telemetry"`
	Controller    struct {
		Alpha  events.Num  `json:"alpha"`
		Target events.Num  `json:"target"`
		Mode   events.Mode `json:"mode"`
	} `json:"controller"`
}

func (s *gateState) input() (gates.Input, error) {
	in := gates.Input{SeedID: s.SeedID, BlueprintID: s.BlueprintID, Stage: s.Stage, Healthy: s.Healthy,
		EpochsInStage: s.EpochsInStage, AccuracyStage: float64(s.AccuracyStage), Accuracy: float64(s.Accuracy),
		GradientRatio: (*float64)(s.Ratio), Contribution: (*float64)(s.Contribution),
		Alpha: float64(s.Controller.Alpha), Target: float64(s.Controller.Target), Mode: s.Controller.Mode}
	var tel *struct {
		Health    *events.Num `json:"gradient_health"`
		Exploding *bool       `json:"has_exploding"`
	}
	if err := decode(s.Telemetry, &tel); err != nil {
		return in, err
	}
	if tel != nil {
		in.HasTelemetry, in.Health, in.Exploding = true, (*float64)(tel.Health), tel.Exploding
	}
	return in, nil
}

// replayGates replays one gate check (section 2.2).
func replayGates(line []byte, numbers *[]place) (tally, error) {
	var r gateRecord
	if err := decodeRecord(line, &r); err != nil {
		return tally{}, err
	}
	sum := tally{Records: 1}
	in, err := r.State.input()
	if err != nil {
		return sum, fmt.Errorf("record %s: telemetry: %w", r.ID, err)
	}
	var got map[string]any
	if v, err := gates.Check(r.Gates.config(), r.Target, in); err != nil {
		got = map[string]any{"exc": "ValueError", "msg": err.Error()}
	} else {
		got = verdictValue(v)
	}
	cmp := &comparer{record: r.ID, op: 0, name: r.Target.String(), numbers: numbers}
	if err := cmp.value("want", r.Want, got); err != nil {
		return sum, err
	}
	sum.Ops, sum.Complete = 1, 1
	return sum, nil
}
