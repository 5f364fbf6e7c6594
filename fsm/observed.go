package fsm

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/esperd/esperd/events"
)

// runObserved records a call of a round that is only observed: nothing is
// decided, and what the trainer did is assigned, whatever the lifecycle says.
// Only what no log can hold is refused.
func (t *turn) runObserved(c Call) *events.Refused {
	if done, r := t.begin(c); done {
		return r
	}
	if r := t.unrecordable(c); r != nil {
		return r
	}
	switch args := c.Args.(type) {
	case StepEpoch:
		t.observedFence(c)
		t.emit(events.Event{EpochStepped: &events.EpochStepped{Epoch: args.Epoch, Tick: t.m.Tick + 1}})
	case Fence:
		t.observedFence(c)
		t.emit(events.Event{Fenced: &events.Fenced{N: args.N}})
	case Reset:
		t.reset()
	case Resume:
		return t.resume(args)
	default:
		i, ok := t.m.Config.Slot(c.Key.Slot)
		if !ok {
			return t.unknownSlot(string(c.Key.Op), c.Key.Slot)
		}
		if at := slices.IndexFunc(c.Outcomes, func(o events.Outcome) bool { return o.Slot == c.Key.Slot }); at >= 0 {
			t.fact(i, c.Args, &c.Outcomes[at])
		}
	}
	return nil
}

// unrecordable refuses a call that cannot be written down. An alpha that is no
// number can: the fact says so.
func (t *turn) unrecordable(c Call) *events.Refused {
	for _, o := range c.Outcomes {
		if _, ok := t.m.Config.Slot(o.Slot); !ok {
			return t.unknownSlot("outcome", o.Slot)
		}
		if o.Stage == events.StageUnknown || !o.Stage.Valid() {
			return refuse(events.CodeInvalidInput, "outcome of slot %s: stage: expected the name of a stage, got %s", o.Slot, o.Stage)
		}
	}
	why := ""
	switch a := c.Args.(type) {
	case StepEpoch:
		return badOrdinal("step_epoch: epoch", a.Epoch)
	case Fence:
		return badOrdinal("fence: n", a.N)
	case Germinate:
		why = cmp.Or(badString(a.Blueprint, maxName), badString(a.SeedID, maxName))
	case Prune:
		why = badReason(a.Reason, a.Initiator)
	case SchedulePrune:
		why = badReason(a.Reason, a.Initiator)
	}
	if why != "" {
		return refuse(events.CodeInvalidInput, "%s %s: %s", c.Key.Op, c.Key.Slot, why)
	}
	return nil
}

// observedFence records a step: the slots in which something has changed. What
// was asked of an earlier round is not this one's to do.
func (t *turn) observedFence(c Call) {
	said := make([]*events.Outcome, len(t.m.Config.Slots))
	for at := range c.Outcomes {
		if i, ok := t.m.Config.Slot(c.Outcomes[at].Slot); ok && said[i] == nil {
			said[i] = &c.Outcomes[at]
		}
	}
	for i, o := range said {
		slot := t.slot(i)
		if o != nil && (o.Stage != slot.Stage() || slot.Seed != nil && float64(o.Alpha) != slot.Seed.Amplitude.Alpha) {
			t.fact(i, c.Args, o)
		}
	}
	t.dropRequests("the round is only observed")
}

func (t *turn) fact(i int, args Args, o *events.Outcome) {
	slot := t.slot(i)
	ev := &events.Fact{Slot: t.name(i), Seed: slot.Germinations, Stage: o.Stage, Passed: o.Passed, Unexpected: unexpected(slot, args, o)}
	before := events.Amplitude{Algorithm: events.AlgorithmAdd}
	germination, germinates := args.(Germinate)
	switch {
	case germinates && o.Stage == events.StageGerminated: // also in the place of another
		ev.Seed++
		ev.ID, ev.Blueprint = germination.id(t.name(i)), germination.Blueprint
		if germination.Algorithm.Valid() {
			before.Algorithm = germination.Algorithm
		}
	case slot.Seed != nil:
		before = slot.Seed.Amplitude
	case o.Stage != events.StageDormant:
		ev.Seed++ // it germinates, or did so before anybody looked
	}
	switch a := args.(type) {
	case Prune:
		ev.Reason = a.Reason
	case SchedulePrune:
		ev.Reason = a.Reason
	}
	ev.Amplitude = restingAt(before, o)
	t.emit(events.Event{Fact: ev})
}

// restingAt is an amplitude of which only the alpha is known. The controller is
// one that a later round, which decides, can go on from.
func restingAt(a events.Amplitude, o *events.Outcome) events.Amplitude {
	if o.Alpha.Finite() { // else it stays, and the fact is unexpected
		a.Alpha = float64(o.Alpha)
	}
	if a.Alpha == 0 {
		a.Alpha = 0 // not -0, whose sign the encoding of a zero field does not keep
	}
	c := freshController
	c.Alpha, c.Start, c.Target = a.Alpha, a.Alpha, a.Alpha
	if o.Stage == events.StageBlending {
		c.Target = 1 // else a tick would take a blend that is under way for one that has ended
	}
	a.Controller = NewController(c)
	return a
}

// unexpected names the rule of the lifecycle that an outcome does not follow;
// empty if it follows all.
func unexpected(slot *Slot, args Args, o *events.Outcome) string {
	from := slot.Stage()
	_, germinates := args.(Germinate)
	switch {
	case germinates && slot.Seed != nil && o.Stage == events.StageGerminated:
		return fmt.Sprintf("a seed germinated in a slot that is %s", from)
	case germinates && o.Stage == events.StageGerminated, from == o.Stage:
	case !legal(from, o.Stage):
		return fmt.Sprintf("there is no edge from %s to %s", from, o.Stage)
	case o.Passed != nil && !*o.Passed:
		return fmt.Sprintf("the gate failed, and the seed went from %s to %s", from, o.Stage)
	}
	if !o.Alpha.Finite() || o.Alpha < 0 || o.Alpha > 1 {
		return fmt.Sprintf("alpha is %v, expected 0 to 1", float64(o.Alpha))
	}
	return ""
}

// observedSeed is a seed of which nothing is known. What it would be blended by,
// should a later round decide about it, is what a trainer gets who does not say.
var observedSeed = Seed{Blend: "sigmoid", Tempo: 5, Target: 1, Stage: events.StageDormant}

// observedFact assigns a fact. A seed that is not in the slot is a new record.
func (m *Model) observedFact(ev *events.Fact) (*Model, error) {
	i, ok := m.Config.Slot(ev.Slot)
	if !ok {
		return nil, unknownSlotError(m, ev.Slot)
	}
	slot := m.Slots.At(i)
	next := &Slot{Germinations: max(slot.Germinations, ev.Seed)}
	if ev.Stage == events.StageDormant {
		return m.withSlot(i, next), nil
	}
	seed := observedSeed
	if slot.Seed != nil && slot.Seed.Count == ev.Seed {
		seed = *slot.Seed
	} else {
		seed.Count, seed.ID, seed.Blueprint = ev.Seed, ev.ID, ev.Blueprint
	}
	if seed.Stage != ev.Stage {
		seed.move(ev.Stage)
	}
	switch {
	case !ev.Stage.Cooldown():
		seed.Pruned = nil
	case seed.Pruned == nil:
		seed.Pruned, seed.Pending = &Reason{Reason: ev.Reason}, nil
	}
	seed.Amplitude = ev.Amplitude
	next.Seed = &seed
	return m.withSlot(i, next), nil
}
