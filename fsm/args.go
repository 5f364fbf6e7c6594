package fsm

import (
	"fmt"
	"unicode/utf8"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/gates"
)

// Limits of arguments: whatever a trainer passes, an entry stays small and no
// counter overflows.
const (
	maxName    = 256           // bytes of a name or a check
	maxText    = 1024          // bytes of a reason or a message
	maxChecks  = 256           // of one verdict
	maxCount   = 1_000_000_000 // ticks and epochs of a ramp or a threshold
	maxOrdinal = 1 << 53       // an epoch or fence number: what JSON keeps exactly
)

// blends are the blend settings of a seed, with the curve of its first ramp.
var blends = map[string]events.Curve{
	"linear":  events.CurveLinear,
	"sigmoid": events.CurveSigmoid,
	"gated":   events.CurveLinear,
}

const blendGated = "gated"

// badString says what is wrong with a string that goes into the log; empty if
// nothing is.
func badString(s string, limit int) string {
	if len(s) > limit {
		return fmt.Sprintf("expected at most %d bytes, got %d", limit, len(s))
	}
	if !utf8.ValidString(s) {
		return fmt.Sprintf("expected UTF-8, got %.64q", s)
	}
	return ""
}

func badReason(reason, initiator string) string {
	if why := badString(reason, maxText); why != "" {
		return "reason: " + why
	}
	if why := badString(initiator, maxName); why != "" {
		return "initiator: " + why
	}
	return ""
}

func badTicks(n int64) string {
	if n > maxCount {
		return fmt.Sprintf("ticks: expected at most %d, got %d", maxCount, n)
	}
	return ""
}

// badRamp checks what schedule_prune and alpha_target have in common.
func badRamp(ticks int64, curve *events.Curve, steepness events.Num) string {
	if why := badTicks(ticks); why != "" {
		return why
	}
	if curve != nil && !curve.Valid() {
		return fmt.Sprintf("curve: expected LINEAR, COSINE or SIGMOID, got %s", *curve)
	}
	if !steepness.Finite() {
		return fmt.Sprintf("steepness: expected a finite number, got %v", float64(steepness))
	}
	return ""
}

func (a Germinate) bad() string {
	switch _, known := blends[a.Blend]; {
	case a.Blueprint == "":
		return "blueprint: expected a name, got an empty string"
	case badString(a.Blueprint, maxName) != "":
		return "blueprint: " + badString(a.Blueprint, maxName)
	case badString(a.SeedID, maxName) != "":
		return "seed: " + badString(a.SeedID, maxName)
	case !known:
		return fmt.Sprintf("blend: expected linear, sigmoid or gated, got %.64q", a.Blend)
	case a.Tempo < 1 || a.Tempo > maxCount:
		return fmt.Sprintf("tempo: expected 1 to %d ticks, got %d", maxCount, a.Tempo)
	case !a.Algorithm.Valid():
		return fmt.Sprintf("algorithm: expected ADD, MULTIPLY or GATE, got %s", a.Algorithm)
	case a.Blend == blendGated && a.Algorithm != events.AlgorithmGate:
		return fmt.Sprintf("blend gated requires algorithm GATE, got %s", a.Algorithm)
	case a.Blend != blendGated && a.Algorithm == events.AlgorithmGate:
		return fmt.Sprintf("algorithm GATE requires blend gated, got %s", a.Blend)
	case a.Target != nil && !(*a.Target > alphaEpsilon && *a.Target <= 1):
		return fmt.Sprintf("target: expected an alpha above %g and at most 1, got %v", alphaEpsilon, float64(*a.Target))
	}
	return ""
}

func (a Verdict) bad() string {
	v := &a.Verdict
	if _, ok := gates.Target(v.Gate); !ok {
		return fmt.Sprintf("gate: expected one of G0, G1, G2, G3, G5, got %.20q", v.Gate)
	}
	if !events.Num(v.Score).Finite() {
		return fmt.Sprintf("score: expected a finite number, got %v", v.Score)
	}
	if why := badString(v.Message, maxText); why != "" {
		return "message: " + why
	}
	for _, list := range [][]string{v.ChecksPassed, v.ChecksFailed} {
		if len(list) > maxChecks {
			return fmt.Sprintf("checks: expected at most %d, got %d", maxChecks, len(list))
		}
		for _, check := range list {
			if why := badString(check, maxName); why != "" {
				return "checks: " + why
			}
		}
	}
	return ""
}

func (a AlphaTarget) bad() string {
	switch {
	case !a.Target.Finite():
		return fmt.Sprintf("target: expected a finite number, got %v", float64(a.Target))
	case a.Target <= alphaEpsilon:
		return fmt.Sprintf("target: expected an alpha above %g, got %v; use schedule_prune to ramp to 0", alphaEpsilon, float64(a.Target))
	case a.Algorithm != nil && !a.Algorithm.Valid():
		return fmt.Sprintf("algorithm: expected ADD, MULTIPLY or GATE, got %s", *a.Algorithm)
	}
	return badRamp(a.Ticks, a.Curve, a.Steepness)
}
