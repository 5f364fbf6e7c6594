package fsm

import (
	"fmt"
	"math"
	"slices"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/gates"
)

// Limits of a configuration.
const (
	maxSlots      = 10_000
	maxSlotName   = 64 // bytes
	maxBlueprints = 1_000
	maxTensors    = 10_000
	maxDims       = 16

	// maxConfigBytes leaves room for what else is in the entry.
	maxConfigBytes = events.MaxEntryBytes - 1<<20
)

// configure starts a model, or compares with what the log has of it.
func (t *turn) configure(a Configure) *events.Refused {
	if t.m.Config == nil && a.Slots == nil {
		return refuse(events.CodeConfigMismatch,
			"model %q is not in the log, so there is no configuration to take: expected its slots, got none; pass slots", t.m.Name)
	}
	if a.Slots == nil {
		t.vote(a)
		return nil
	}
	slots := canonicalSlots(a.Slots)
	if why := badSlots(slots); why != "" {
		return refuse(events.CodeInvalidInput, "configuration of model %s: %s", t.m.Name, why)
	}
	if t.m.Config == nil {
		t.emit(events.Event{Configured: &events.Configured{Generation: 1, Slots: slots}})
		t.vote(a)
		return nil
	}
	if diff := diffSlots(t.m.Config.Slots, slots); diff != "" {
		return refuse(events.CodeConfigMismatch,
			"model %s: %s; pass what the log has, pass no slots to take it, or start a new run", t.m.Name, diff)
	}
	t.vote(a)
	return nil
}

// reset starts the next generation. What was asked of this one's seeds is void.
func (t *turn) reset() {
	t.dropRequests(wasReset)
	t.emit(events.Event{Configured: &events.Configured{Generation: t.m.Generation + 1, Slots: t.m.Config.Slots}})
}

// canonicalSlots returns a copy with the auto-forward gates ascending, each
// once.
func canonicalSlots(slots []events.SlotConfig) []events.SlotConfig {
	slots = slices.Clone(slots)
	for i := range slots {
		auto := slices.Clone(slots[i].AutoForward)
		slices.Sort(auto)
		slots[i].AutoForward = slices.Compact(auto)
	}
	return slots
}

// badSlots says what is wrong with a configuration; empty if nothing is.
func badSlots(slots []events.SlotConfig) string {
	if len(slots) < 1 || len(slots) > maxSlots {
		return fmt.Sprintf("expected 1 to %d slots, got %d", maxSlots, len(slots))
	}
	seen := make(map[string]bool, len(slots))
	for i := range slots {
		s := &slots[i]
		if why := badName(s.Name, maxSlotName, seen); why != "" {
			return fmt.Sprintf("name of slot %d: %s", i, why)
		}
		if s.Name == "." || s.Name == ".." {
			return fmt.Sprintf("name of slot %d: %q cannot stand in a URL's path; choose another", i, s.Name)
		}
		if why := badGates(&s.Gates); why != "" {
			return fmt.Sprintf("slot %s: gates.%s", s.Name, why)
		}
		for _, g := range s.AutoForward {
			if _, ok := gates.Target(g); !ok {
				return fmt.Sprintf("slot %s: auto_forward: expected gates out of G0, G1, G2, G3, G5, got %.20q", s.Name, g)
			}
		}
		if why := badBlueprints(s.Blueprints); why != "" {
			return fmt.Sprintf("slot %s: %s", s.Name, why)
		}
	}
	if b, err := events.Marshal(slots); err != nil || len(b) > maxConfigBytes {
		return fmt.Sprintf("expected at most %d bytes when encoded, got %d; name fewer blueprints", maxConfigBytes, len(b))
	}
	return ""
}

func badGates(g *events.GateConfig) string {
	for _, f := range gateFields(g) {
		if v, ok := f.value.(float64); ok && (math.IsNaN(v) || math.IsInf(v, 0)) {
			return fmt.Sprintf("%s: expected a finite number, got %v", f.name, v)
		}
	}
	if n := g.MinBlendingEpochs; n < -maxCount || n > maxCount {
		return fmt.Sprintf("min_blending_epochs: expected at most %d, got %d", int64(maxCount), n)
	}
	return ""
}

func badBlueprints(list []events.Blueprint) string {
	if len(list) > maxBlueprints {
		return fmt.Sprintf("expected at most %d blueprints, got %d", maxBlueprints, len(list))
	}
	seen := make(map[string]bool, len(list))
	for i := range list {
		if why := badName(list[i].Name, maxName, seen); why != "" {
			return fmt.Sprintf("name of blueprint %d: %s", i, why)
		}
		if why := badTensors(list[i].Tensors); why != "" {
			return fmt.Sprintf("blueprint %s: %s", list[i].Name, why)
		}
	}
	return ""
}

func badTensors(list []events.Tensor) string {
	if len(list) > maxTensors {
		return fmt.Sprintf("expected at most %d tensors, got %d", maxTensors, len(list))
	}
	seen := make(map[string]bool, len(list))
	for i := range list {
		if why := badName(list[i].Name, maxName, seen); why != "" {
			return fmt.Sprintf("name of tensor %d: %s", i, why)
		}
		if why := badString(list[i].DType, maxName); why != "" {
			return fmt.Sprintf("dtype of tensor %s: %s", list[i].Name, why)
		}
		if n := len(list[i].Shape); n > maxDims {
			return fmt.Sprintf("tensor %s: expected at most %d dimensions, got %d", list[i].Name, maxDims, n)
		}
		if why := badInit(list[i].Init); why != "" {
			return fmt.Sprintf("init of tensor %s: %s", list[i].Name, why)
		}
	}
	return ""
}

func badInit(i *events.Init) string {
	switch {
	case i == nil:
	case i.Rule != events.InitConstant && i.Rule != events.InitUniform:
		return fmt.Sprintf("expected the rule %s or %s, got %.20q", events.InitConstant, events.InitUniform, i.Rule)
	case math.IsNaN(i.Value) || math.IsInf(i.Value, 0):
		return fmt.Sprintf("expected a finite value, got %v", i.Value)
	case i.Rule == events.InitUniform && i.Value <= 0:
		return fmt.Sprintf("uniform: expected a bound above 0, got %v", i.Value)
	}
	return ""
}

// badName checks a name that must be new in seen, and adds it.
func badName(name string, limit int, seen map[string]bool) string {
	if name == "" {
		return "expected one, got an empty string"
	}
	if why := badString(name, limit); why != "" {
		return why
	}
	if seen[name] {
		return fmt.Sprintf("%q is there twice", name)
	}
	seen[name] = true
	return ""
}

type configField struct {
	name  string
	value any
}

func gateFields(g *events.GateConfig) []configField {
	return []configField{
		{"permissive", g.Permissive},
		{"min_training_improvement", g.MinTrainingImprovement},
		{"min_blending_epochs", g.MinBlendingEpochs},
		{"min_seed_gradient_ratio", g.MinSeedGradientRatio},
		{"min_gradient_health_for_blending", g.MinGradientHealthForBlending},
		{"min_probation_stability", g.MinProbationStability},
	}
}

// diffSlots names the first difference between the log's configuration and a
// trainer's, with both values; empty if there is none.
func diffSlots(log, got []events.SlotConfig) string {
	for i := range min(len(log), len(got)) {
		l, g := &log[i], &got[i]
		if l.Name != g.Name {
			return fmt.Sprintf("slot %d is %s in the log, %s here", i, l.Name, g.Name)
		}
		lg, gg := gateFields(&l.Gates), gateFields(&g.Gates)
		for j := range lg {
			if lg[j].value != gg[j].value {
				return fmt.Sprintf("slot %s: gates.%s is %v in the log, %v here", l.Name, lg[j].name, lg[j].value, gg[j].value)
			}
		}
		if !slices.Equal(l.AutoForward, g.AutoForward) {
			return fmt.Sprintf("slot %s: auto_forward is %v in the log, %v here", l.Name, l.AutoForward, g.AutoForward)
		}
		if diff := diffBlueprints(l.Blueprints, g.Blueprints); diff != "" {
			return fmt.Sprintf("slot %s: %s", l.Name, diff)
		}
	}
	if len(log) != len(got) {
		return fmt.Sprintf("the log has %d slots, here are %d", len(log), len(got))
	}
	return ""
}

func diffBlueprints(log, got []events.Blueprint) string {
	for i := range min(len(log), len(got)) {
		l, g := &log[i], &got[i]
		if l.Name != g.Name {
			return fmt.Sprintf("blueprint %d is %s in the log, %s here", i, l.Name, g.Name)
		}
		for j := range min(len(l.Tensors), len(g.Tensors)) {
			a, b := l.Tensors[j], g.Tensors[j]
			if a.Name != b.Name || a.DType != b.DType || slices.Compare(a.Shape, b.Shape) != 0 {
				return fmt.Sprintf("blueprint %s: tensor %d is %s %s%v in the log, %s %s%v here",
					l.Name, j, a.Name, a.DType, a.Shape, b.Name, b.DType, b.Shape)
			}
			if fillText(a) != fillText(b) {
				return fmt.Sprintf("blueprint %s: tensor %s is filled by %s in the log, %s here", l.Name, a.Name, fillText(a), fillText(b))
			}
		}
		if len(l.Tensors) != len(g.Tensors) {
			return fmt.Sprintf("blueprint %s has %d tensors in the log, %d here", l.Name, len(l.Tensors), len(g.Tensors))
		}
	}
	if len(log) != len(got) {
		return fmt.Sprintf("%d blueprints in the log, %d here", len(log), len(got))
	}
	return ""
}

// fillText says how a tensor is filled and kept.
func fillText(t events.Tensor) string {
	text := "zeros"
	if t.Init != nil {
		text = fmt.Sprintf("%s %v", t.Init.Rule, t.Init.Value)
	}
	if t.Master {
		text += " with a master copy"
	}
	return text
}
