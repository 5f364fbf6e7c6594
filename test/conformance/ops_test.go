package conformance

import (
	"fmt"
	"slices"
	gostrings "strings"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

func contains(s, part string) bool { return gostrings.Contains(s, part) }

// perform runs an operation and returns the call's events and its result as
// section 2.3 writes it; a nil result where the call was refused.
func (e *episode) perform(slot string, op *episodeOp) ([]events.Event, map[string]any, error) {
	switch op.Op {
	case "germinate", "advance":
		return e.performAnswered(slot, op)
	case "prune", "schedule_prune", "set_alpha_target":
		args, err := commandArgs(op)
		if err != nil {
			return nil, nil, err
		}
		evs, err := e.run.call(slot, args)
		return evs, map[string]any{"ret": refusal(evs) == nil}, err
	case "step_epoch":
		if len(e.slots) > 1 {
			evs, err := e.run.tick(slot)
			return evs, map[string]any{"ret": nil}, err
		}
		evs, err := e.run.step()
		return evs, map[string]any{"ret": nil}, err
	default:
		return e.performData(slot, op)
	}
}

func (e *episode) performAnswered(slot string, op *episodeOp) ([]events.Event, map[string]any, error) {
	args, err := commandArgs(op)
	if err != nil {
		return nil, nil, err
	}
	evs, err := e.run.call(slot, args)
	if err != nil || refusal(evs) != nil {
		return evs, nil, err
	}
	if op.Op == "germinate" {
		return evs, map[string]any{"ok": true, "seed_id": e.run.model().Slot(slot).Seed.ID}, nil
	}
	var answer events.Verdict
	for i := range evs {
		if g := evs[i].GateEvaluated; g != nil {
			answer = g.Verdict
		}
		if d := evs[i].Decided; d != nil {
			answer = d.Verdict
		}
	}
	return evs, verdictValue(answer), nil
}

// commandArgs reads the arguments of an operation that is a call.
func commandArgs(op *episodeOp) (fsm.Args, error) {
	var a struct {
		Bp        string            `json:"bp"`
		SeedID    *string           `json:"seed_id"`
		Blend     string            `json:"blend"`
		Tempo     int64             `json:"tempo"`
		Algo      *events.Algorithm `json:"algo"`
		Reason    string            `json:"reason"`
		Initiator string            `json:"initiator"`
		Steps     int64             `json:"steps"`
		Curve     *events.Curve     `json:"curve"`
		Steepness events.Num        `json:"steepness"`
	}
	var num struct {
		Target *events.Num `json:"target"`
	}
	var stage struct {
		Target *events.Stage `json:"target"`
	}
	target := any(&num)
	if op.Op == "advance" {
		target = &stage
	}
	if err := readArgs(op, &a, target); err != nil {
		return nil, err
	}
	switch op.Op {
	case "germinate":
		g := fsm.Germinate{Blueprint: a.Bp, Blend: a.Blend, Tempo: a.Tempo, Algorithm: *a.Algo, Target: num.Target}
		if a.SeedID != nil {
			g.SeedID = *a.SeedID
		}
		return g, nil
	case "advance":
		return fsm.Advance{Target: stage.Target}, nil
	case "prune":
		return fsm.Prune{Reason: a.Reason, Initiator: a.Initiator}, nil
	case "schedule_prune":
		return fsm.SchedulePrune{Ticks: a.Steps, Curve: a.Curve, Steepness: a.Steepness, Reason: a.Reason, Initiator: a.Initiator}, nil
	default:
		return fsm.AlphaTarget{Target: *num.Target, Ticks: a.Steps, Curve: a.Curve, Steepness: a.Steepness, Algorithm: a.Algo}, nil
	}
}

// readArgs reads an operation's arguments into several structs, whose fields
// together must be all that there are.
func readArgs(op *episodeOp, into ...any) error {
	var generic map[string]any
	if err := decode(op.Args, &generic); err != nil {
		return fmt.Errorf("args: %w", err)
	}
	known := map[string]bool{}
	for _, v := range into {
		part := map[string]any{}
		for _, name := range jsonNames(v) {
			known[name] = true
			if g, ok := generic[name]; ok {
				part[name] = g
			}
		}
		if err := redecode(part, v); err != nil {
			return fmt.Errorf("args: %w", err)
		}
	}
	for name := range generic {
		if !known[name] {
			return fmt.Errorf("args: unknown argument %q", name)
		}
	}
	return nil
}

type dataArgs struct {
	Acc       *events.Num `json:"acc"`
	Ratio     *events.Num `json:"ratio"`
	Value     any         `json:"value"`
	Norm      *events.Num `json:"gradient_norm"`
	Health    *events.Num `json:"gradient_health"`
	Vanishing *bool       `json:"has_vanishing"`
	Exploding *bool       `json:"has_exploding"`
	Epoch     int64       `json:"epoch"`
	MaxEpochs int64       `json:"max_epochs"`
}

// performData runs an operation that writes data. It rides with a fence.
func (e *episode) performData(slot string, op *episodeOp) ([]events.Event, map[string]any, error) {
	var a dataArgs
	if err := readArgs(op, &a); err != nil {
		return nil, nil, err
	}
	o := fsm.Observation{Slot: slot}
	switch op.Op {
	case "record_accuracy":
		o.Accuracy = given(a.Acc)
	case "set_gradient_ratio":
		o.GradientRatio = fsm.Reading[events.Num]{Given: true, Value: a.Ratio}
	case "set_contribution":
		n, err := optionalNum(a.Value)
		if err != nil {
			return nil, nil, err
		}
		o.Contribution = fsm.Reading[events.Num]{Given: true, Value: n}
	case "set_healthy":
		healthy, ok := a.Value.(bool)
		if !ok {
			return nil, nil, fmt.Errorf("set_healthy: %v", a.Value)
		}
		o.Healthy = given(&healthy)
	case "sync_telemetry":
		o.GradientNorm, o.Health = given(a.Norm), given(a.Health)
		o.Vanishing, o.Exploding = given(a.Vanishing), given(a.Exploding)
	default:
		return nil, nil, fmt.Errorf("unknown operation")
	}
	evs, err := e.run.observe(o)
	if err != nil {
		return nil, nil, err
	}
	seed := e.run.model().Slot(slot).Seed
	switch {
	case seed == nil && slices.ContainsFunc(evs, func(ev events.Event) bool { return ev.Observed != nil }):
		return nil, nil, fmt.Errorf("observed an empty slot")
	case seed == nil:
		return evs, map[string]any{"skip": "no_state"}, nil
	case op.Op == "sync_telemetry":
		return evs, map[string]any{"tel": telemetryValue(seed, a.Epoch, a.MaxEpochs)}, nil
	default:
		return evs, map[string]any{"ret": nil}, nil
	}
}

// given is a reading that null leaves as it was.
func given[T any](v *T) fsm.Reading[T] { return fsm.Reading[T]{Given: v != nil, Value: v} }

func optionalNum(v any) (*events.Num, error) {
	if v == nil {
		return nil, nil
	}
	f, ok := double(v)
	if !ok {
		return nil, fmt.Errorf("expected a number, got %v", v)
	}
	return (*events.Num)(&f), nil
}
