package gpuexec

import (
	"fmt"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/gpuexec/element"
)

// An Op is what a device, or a trainer that owns its memory, does for a seed.
type Op uint8

// The operations, in the order in which a seed meets them.
const (
	OpReserve    Op = iota // memory for parameters, gradients and master copies, zeroed
	OpInitialise           // parameters by their rules
	OpActivate             // part of the forward pass, by alpha
	OpSetAlpha             // as the log says
	OpThaw                 // parameters learn
	OpFreeze               // they do not, and their gradients are zero
	OpDeactivate           // not part of the forward pass any more
	OpZero                 // all its memory
	OpRelease              // the memory is free for another seed
)

var opNames = []string{"reserve", "initialise", "activate", "set_alpha", "thaw", "freeze", "deactivate", "zero", "release"}

// String returns the operation's name.
func (o Op) String() string { return opNames[o] }

// MarshalText writes the name.
func (o Op) MarshalText() ([]byte, error) { return []byte(opNames[o]), nil }

// UnmarshalText reads it.
func (o *Op) UnmarshalText(b []byte) error {
	for i, n := range opNames {
		if n == string(b) {
			*o = Op(i)
			return nil
		}
	}
	return fmt.Errorf("unknown operation %.20q: expected one of %q", b, opNames)
}

// A Command is one step of a plan.
type Command struct {
	Op        Op      `json:"op"`
	Slot      string  `json:"slot"`
	Seed      uint64  `json:"seed"` // the slot's germination count
	Blueprint string  `json:"blueprint"`
	Alpha     float64 `json:"alpha,omitempty"` // of set_alpha
	slot      int
}

// A standing is what a stage means for the device. Its zero value is an empty
// slot, or one whose seed is pruned.
type standing struct {
	generation uint64 // of the model
	seed       uint64
	id         string
	blueprint  string
	flags      element.Flags
	alpha      float64
}

// same reports whether both are of one seed.
func (s standing) same(o standing) bool {
	return s.generation == o.generation && s.seed == o.seed && s.id == o.id && s.blueprint == o.blueprint
}

func (s standing) is(f element.Flags) bool { return s.flags&f != 0 }

// standingOf says what slot i of a model asks of the device:
//
//	DORMANT     nothing
//	GERMINATED  reserved and initialised
//	TRAINING    active and trainable, alpha 0
//	BLENDING    active, alpha from the log; trainable unless alpha ramps down
//	HOLDING     the same, alpha 1
//	FOSSILIZED  the same, permanent
//	cooldown    nothing: the memory is zeroed and released
func standingOf(m *fsm.Model, i int) standing {
	seed := m.Slots.At(i).Active()
	if seed == nil || seed.Stage < events.StageGerminated {
		return standing{}
	}
	s := standing{generation: m.Generation, seed: seed.Count, id: seed.ID, blueprint: seed.Blueprint, flags: element.Reserved}
	if seed.Stage >= events.StageTraining {
		s.flags |= element.Active
		s.alpha = seed.Amplitude.Alpha
		if !seed.Frozen() {
			s.flags |= element.Trainable
		}
		if seed.Isolated() {
			s.flags |= element.Isolated
		}
	}
	if seed.Stage == events.StageFossilized {
		s.flags |= element.Permanent
	}
	return s
}

// Plan returns what takes a device from one state of a model to another, in the
// order in which to do it: what gives memory back comes first. Before is nil for
// a device that holds nothing; the two have the same slots.
//
// It is pure: the same states give the same plan on every rank. It looks at
// slots that changed, and costs what they cost.
func Plan(before, after *fsm.Model) []Command {
	var p plan
	switch {
	case before == nil:
		for i := range after.Slots.Len() {
			p.slot(after, i, standing{})
		}
	case before.Generation != after.Generation:
		for i := range after.Slots.Len() {
			p.slot(after, i, standingOf(before, i))
		}
	default:
		after.Changed(before, func(i int) { p.slot(after, i, standingOf(before, i)) })
	}
	return append(p.first, p.then...)
}

// plan is one in the making: what gives memory back, and all else.
type plan struct{ first, then []Command }

func (p *plan) slot(after *fsm.Model, i int, was standing) {
	now := standingOf(after, i)
	name := after.Config.Slots[i].Name
	leave := func(ops ...Op) { p.first = appendOps(p.first, name, i, was, ops) }
	enter := func(ops ...Op) { p.then = appendOps(p.then, name, i, now, ops) }
	if was.is(element.Reserved) && !now.same(was) {
		if was.is(element.Active) {
			leave(OpDeactivate)
		}
		leave(OpZero, OpRelease)
		was = standing{}
	}
	if !now.is(element.Reserved) {
		return
	}
	if !was.is(element.Reserved) {
		enter(OpReserve, OpInitialise)
	}
	steps(was, now, enter)
}

// steps are those of a seed that stays.
func steps(was, now standing, enter func(ops ...Op)) {
	starts := now.is(element.Active) && !was.is(element.Active)
	switch {
	case was.is(element.Active) && !now.is(element.Active):
		enter(OpDeactivate)
		if was.is(element.Trainable) {
			enter(OpFreeze)
		}
		return
	case starts:
		enter(OpActivate)
	}
	if now.is(element.Active) && (starts || now.alpha != was.alpha) {
		enter(OpSetAlpha)
	}
	switch {
	case now.is(element.Trainable) && !was.is(element.Trainable):
		enter(OpThaw)
	case !now.is(element.Trainable) && was.is(element.Trainable):
		enter(OpFreeze)
	}
}

func appendOps(list []Command, slot string, i int, s standing, ops []Op) []Command {
	for _, op := range ops {
		c := Command{Op: op, Slot: slot, Seed: s.seed, Blueprint: s.blueprint, slot: i}
		if op == OpSetAlpha {
			c.Alpha = s.alpha
		}
		list = append(list, c)
	}
	return list
}
