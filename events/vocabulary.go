package events

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
)

// A Stage is where a seed stands in its lifecycle. The codes are those of
// esper-lite's SeedStage (5 is retired there and unused here).
type Stage uint8

// The stages. A slot without a seed is DORMANT.
const (
	StageUnknown    Stage = 0
	StageDormant    Stage = 1
	StageGerminated Stage = 2
	StageTraining   Stage = 3
	StageBlending   Stage = 4
	StageHolding    Stage = 6
	StageFossilized Stage = 7
	StagePruned     Stage = 8
	StageEmbargoed  Stage = 9
	StageResetting  Stage = 10
)

var stageNames = []string{"UNKNOWN", "DORMANT", "GERMINATED", "TRAINING", "BLENDING", "",
	"HOLDING", "FOSSILIZED", "PRUNED", "EMBARGOED", "RESETTING"}

// Cooldown reports whether s is one of the stages after a prune, in which the
// seed's record exists and its module does not.
func (s Stage) Cooldown() bool { return s >= StagePruned && s <= StageResetting }

// A Mode says which way an alpha controller is moving.
type Mode uint8

// The controller modes.
const (
	ModeHold Mode = 0
	ModeUp   Mode = 1
	ModeDown Mode = 2
)

var modeNames = []string{"HOLD", "UP", "DOWN"}

// A Curve is the easing of an alpha ramp.
type Curve uint8

// The curves.
const (
	CurveLinear  Curve = 1
	CurveCosine  Curve = 2
	CurveSigmoid Curve = 3
)

var curveNames = []string{"", "LINEAR", "COSINE", "SIGMOID"}

// An Algorithm is how a seed's output is blended into its host.
type Algorithm uint8

// The blend algorithms. Gate is per sample and belongs to the blend "gated".
const (
	AlgorithmAdd      Algorithm = 1
	AlgorithmMultiply Algorithm = 2
	AlgorithmGate     Algorithm = 3
)

var algorithmNames = []string{"", "ADD", "MULTIPLY", "GATE"}

// A Gate names the check that guards the entry into a stage.
type Gate string

// The gates, by the stage they lead to: G0 GERMINATED, G1 TRAINING,
// G2 BLENDING, G3 HOLDING, G5 FOSSILIZED. There is no G4.
const (
	G0 Gate = "G0"
	G1 Gate = "G1"
	G2 Gate = "G2"
	G3 Gate = "G3"
	G5 Gate = "G5"
)

// An Op is what a numbered call asks for.
type Op string

// The operations of numbered calls. Configure is call 0 of every model.
const (
	OpConfigure     Op = "configure"
	OpGerminate     Op = "germinate"
	OpAdvance       Op = "advance"
	OpVerdict       Op = "verdict"
	OpPrune         Op = "prune"
	OpSchedulePrune Op = "schedule_prune"
	OpAlphaTarget   Op = "alpha_target"
	OpStepEpoch     Op = "step_epoch"
	OpFence         Op = "fence"
	OpReset         Op = "reset"
	OpResume        Op = "resume"
)

// Fence reports whether op closes a stretch of calls: the points at which every
// rank must have made the same ones.
func (op Op) Fence() bool {
	return op == OpStepEpoch || op == OpFence || op == OpReset || op == OpResume
}

// A Code is the last path element of a problem's type (RFC 9457). Scripts match
// on it, so a code is never renamed.
type Code string

// The problem codes.
const (
	CodeOrderMismatch     Code = "order-mismatch"
	CodeMissingCall       Code = "missing-call"
	CodeRoundFaulted      Code = "round-faulted"
	CodeDecisionTimeout   Code = "decision-timeout"
	CodeNotAuthority      Code = "not-authority"
	CodeIllegalTransition Code = "illegal-transition"
	CodeUnknownSlot       Code = "unknown-slot"
	CodeConfigMismatch    Code = "config-mismatch"
	CodeMarkMismatch      Code = "mark-mismatch"
	CodeNoRoom            Code = "no-room"
	CodeInvalidInput      Code = "invalid-input"
	CodeDiverged          Code = "diverged"
	CodeUnavailable       Code = "unavailable"
)

// A TrainerMode says how much of a round's training the log decides.
type TrainerMode = string

// The modes of a round's trainers, the same on all ranks.
const (
	ModeKeyed   TrainerMode = "keyed"   // every rank makes the same calls
	ModeFollow  TrainerMode = "follow"  // rank 0 calls, the others only fence
	ModeObserve TrainerMode = "observe" // calls tell what the trainers decided by themselves
)

// An Action is what a request asks for.
type Action string

// ActionPrune asks for the end of a seed at the next fence.
const ActionPrune Action = "prune"

// An InitRule says how a new seed's parameter is filled.
type InitRule string

// The rules. A normal distribution is not among them: it takes functions that
// no two devices compute to the same bit.
const (
	InitConstant InitRule = "constant" // every element is Value
	InitUniform  InitRule = "uniform"  // between -Value and Value, both left out
)

// String returns the stage's name, as users write it.
func (s Stage) String() string     { return enumName(stageNames, uint8(s), "Stage") }
func (m Mode) String() string      { return enumName(modeNames, uint8(m), "Mode") }
func (c Curve) String() string     { return enumName(curveNames, uint8(c), "Curve") }
func (a Algorithm) String() string { return enumName(algorithmNames, uint8(a), "Algorithm") }

// MarshalText writes the name; an undefined code is an error.
func (s Stage) MarshalText() ([]byte, error) { return enumText(stageNames, uint8(s), "stage") }
func (m Mode) MarshalText() ([]byte, error)  { return enumText(modeNames, uint8(m), "mode") }
func (c Curve) MarshalText() ([]byte, error) { return enumText(curveNames, uint8(c), "curve") }
func (a Algorithm) MarshalText() ([]byte, error) {
	return enumText(algorithmNames, uint8(a), "algorithm")
}

// UnmarshalText reads a name; the error lists the valid ones.
func (s *Stage) UnmarshalText(b []byte) error { return enumParse(stageNames, b, "stage", (*uint8)(s)) }
func (m *Mode) UnmarshalText(b []byte) error  { return enumParse(modeNames, b, "mode", (*uint8)(m)) }
func (c *Curve) UnmarshalText(b []byte) error { return enumParse(curveNames, b, "curve", (*uint8)(c)) }
func (a *Algorithm) UnmarshalText(b []byte) error {
	return enumParse(algorithmNames, b, "algorithm", (*uint8)(a))
}

// Valid reports whether the code is defined. Decoding refuses entries with
// undefined ones.
func (s Stage) Valid() bool     { return enumValid(stageNames, uint8(s)) }
func (m Mode) Valid() bool      { return enumValid(modeNames, uint8(m)) }
func (c Curve) Valid() bool     { return enumValid(curveNames, uint8(c)) }
func (a Algorithm) Valid() bool { return enumValid(algorithmNames, uint8(a)) }

func enumValid(names []string, v uint8) bool { return int(v) < len(names) && names[v] != "" }

func enumName(names []string, v uint8, kind string) string {
	if !enumValid(names, v) {
		return fmt.Sprintf("%s(%d)", kind, v)
	}
	return names[v]
}

func enumText(names []string, v uint8, kind string) ([]byte, error) {
	if !enumValid(names, v) {
		return nil, fmt.Errorf("undefined %s code %d", kind, v)
	}
	return []byte(names[v]), nil
}

func enumParse(names []string, b []byte, kind string, out *uint8) error {
	i := slices.Index(names, string(b))
	if i < 0 || len(b) == 0 {
		valid := slices.DeleteFunc(slices.Clone(names), func(s string) bool { return s == "" })
		return fmt.Errorf("unknown %s %q: expected one of %q", kind, b, valid)
	}
	*out = uint8(i)
	return nil
}

// Num is a double that may be non-finite. JSON has no such numbers, so they are
// the strings "NaN", "Infinity" and "-Infinity" there, as in the vectors.
type Num float64

// Finite reports whether n is neither NaN nor an infinity.
func (n Num) Finite() bool { return !math.IsNaN(float64(n)) && !math.IsInf(float64(n), 0) }

// MarshalJSON writes a JSON number, or one of the three strings.
func (n Num) MarshalJSON() ([]byte, error) {
	switch f := float64(n); {
	case math.IsNaN(f):
		return []byte(`"NaN"`), nil
	case math.IsInf(f, 1):
		return []byte(`"Infinity"`), nil
	case math.IsInf(f, -1):
		return []byte(`"-Infinity"`), nil
	default:
		return json.Marshal(f)
	}
}

// UnmarshalJSON reads a JSON number or one of the three strings.
func (n *Num) UnmarshalJSON(b []byte) error {
	switch string(b) {
	case `"NaN"`:
		*n = Num(math.NaN())
	case `"Infinity"`:
		*n = Num(math.Inf(1))
	case `"-Infinity"`:
		*n = Num(math.Inf(-1))
	default:
		var f float64
		if err := json.Unmarshal(b, &f); err != nil {
			return fmt.Errorf("expected a number or one of \"NaN\", \"Infinity\", \"-Infinity\", got %.40s", b)
		}
		*n = Num(f)
	}
	return nil
}
