package fsm

import (
	"github.com/esperd/esperd/events"
)

// Call is one numbered call of a trainer, as Decide sees it.
type Call struct {
	Key          events.Key // Round, Model, Generation, Call and Fence are the caller's
	Site         string     // where the trainer called from, for people
	Observations []Observation
	Args         Args

	// Outcomes is what the trainer did by itself, in a round of the mode
	// "observe": of the call's slot, or at a step of all slots. It is recorded in
	// place of a decision; in the other modes it is no part of a call.
	Outcomes []events.Outcome
}

// Args are the arguments of a call, one type for each operation.
type Args interface {
	Op() events.Op
}

// Configure is call 0 of a model in every round. On a model that the log does
// not know it starts generation 1; on one that it knows, every difference is a
// config-mismatch.
type Configure struct {
	Slots []events.SlotConfig `json:"slots"` // nil: take the log's

	// Residency makes germinated seeds wait, in this round, for the votes of all
	// ranks before they may train.
	Residency bool `json:"residency,omitempty"`
}

// Germinate asks for a new seed (lifecycle contract, section 6.1).
type Germinate struct {
	Blueprint string           `json:"blueprint"`
	SeedID    string           `json:"seed_id"` // "": slot-blueprint
	Blend     string           `json:"blend"`
	Tempo     int64            `json:"tempo"`
	Algorithm events.Algorithm `json:"algorithm"`
	Target    *events.Num      `json:"target"` // nil: 1
}

// Advance asks for the next stage, or for Target (section 6.3).
type Advance struct {
	Target *events.Stage `json:"target"`

	// Strict refuses to fossilize a seed, which is for good, unless Target says
	// so. The door always sets it, so it is no argument that ranks could differ
	// in; the reference fossilizes.
	Strict bool `json:"-"`
}

// Verdict brings the trainer's own gate result; the stage it leads to follows
// from the gate.
type Verdict struct {
	Verdict events.Verdict `json:"verdict"`
}

// Prune removes a seed at once (section 6.4).
type Prune struct {
	Reason    string `json:"reason"`
	Initiator string `json:"initiator"`
}

// SchedulePrune ramps alpha to 0 in Ticks ticks, then prunes (section 6.5).
type SchedulePrune struct {
	Ticks     int64         `json:"ticks"`
	Curve     *events.Curve `json:"curve"` // nil: as before
	Steepness events.Num    `json:"steepness"`
	Reason    string        `json:"reason"`
	Initiator string        `json:"initiator"`
}

// AlphaTarget starts a ramp to another alpha (section 6.6).
type AlphaTarget struct {
	Target    events.Num        `json:"target"`
	Ticks     int64             `json:"ticks"`
	Curve     *events.Curve     `json:"curve"` // nil: as before
	Steepness events.Num        `json:"steepness"`
	Algorithm *events.Algorithm `json:"algorithm"` // nil: as before
}

// StepEpoch closes an epoch and ticks every slot once (section 7).
type StepEpoch struct {
	Epoch int64 `json:"epoch"`
}

// Fence closes a stretch of calls without a tick.
type Fence struct {
	N int64 `json:"n"`
}

// Reset starts the model's next generation: all slots DORMANT, epochs from 0,
// the configuration as it was.
type Reset struct{}

// Resume takes the model back to a mark: the lifecycle goes on from where the
// weights are.
type Resume struct {
	Mark *events.Mark  `json:"-"`
	Sum  events.Digest `json:"mark"` // of the mark's bytes: what ranks are compared by

	// Held says that this log holds the mark's entry, with its chain. Who calls
	// Decide looks it up in the history, which the state does not have.
	Held bool `json:"-"`
}

// Op returns the operation that the arguments belong to.
func (Configure) Op() events.Op     { return events.OpConfigure }
func (Germinate) Op() events.Op     { return events.OpGerminate }
func (Advance) Op() events.Op       { return events.OpAdvance }
func (Verdict) Op() events.Op       { return events.OpVerdict }
func (Prune) Op() events.Op         { return events.OpPrune }
func (SchedulePrune) Op() events.Op { return events.OpSchedulePrune }
func (AlphaTarget) Op() events.Op   { return events.OpAlphaTarget }
func (StepEpoch) Op() events.Op     { return events.OpStepEpoch }
func (Fence) Op() events.Op         { return events.OpFence }
func (Reset) Op() events.Op         { return events.OpReset }
func (Resume) Op() events.Op        { return events.OpResume }

// Reading is one field of an observation: absent (leave what is known), null
// (not measured), or a value, which may be non-finite.
type Reading[T any] struct {
	Given bool
	Value *T // nil with Given: not measured
}

// Observation is what rank 0 measured of one slot's seed since its last call.
type Observation struct {
	Slot          string
	Accuracy      Reading[events.Num] // percent; null is the same as absent
	GradientRatio Reading[events.Num]
	GradientNorm  Reading[events.Num]
	Health        Reading[events.Num]
	Exploding     Reading[bool]
	Vanishing     Reading[bool]
	Contribution  Reading[events.Num]
	Healthy       Reading[bool]

	// Replace makes a second accuracy in one tick take the first one's place.
	// The door always sets it; the reference counts both.
	Replace bool
}
