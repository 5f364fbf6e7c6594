package fsm

import (
	"fmt"
	"math"
	"slices"

	"github.com/esperd/esperd/events"
)

// embargoTicks is how long an EMBARGOED seed dwells (section 7).
const embargoTicks = 5

// stepEpoch ticks every slot once, in slot order, and closes the epoch.
func (t *turn) stepEpoch(a StepEpoch) *events.Refused {
	if r := badOrdinal("step_epoch: epoch", a.Epoch); r != nil {
		return r
	}
	if a.Epoch <= t.m.Epoch {
		return refuse(events.CodeInvalidInput,
			"step_epoch %d: expected an epoch above %d, the last one stepped; the log of a run goes on when its trainers are started again: to begin again at epoch 0 call reset() or give the job a run id of its own (ESPERD_RUN_ID), to train on from a checkpoint call resume(mark)",
			a.Epoch, t.m.Epoch)
	}
	for i := range t.m.Config.Slots {
		t.tick(i)
	}
	t.meet()
	t.emit(events.Event{EpochStepped: &events.EpochStepped{Epoch: a.Epoch, Tick: t.m.Tick + 1}})
	return nil
}

func badOrdinal(what string, n int64) *events.Refused {
	if n < 0 || n > maxOrdinal {
		return refuse(events.CodeInvalidInput, "%s: expected 0 to %d, got %d", what, int64(maxOrdinal), n)
	}
	return nil
}

// fence closes a stretch of calls without a tick.
func (t *turn) fence(a Fence) *events.Refused {
	if a.N <= t.m.FenceN || a.N > maxOrdinal {
		return refuse(events.CodeInvalidInput, "fence %d: expected a number above %d, the last fence's, and at most %d; number fences upwards, as steps are",
			a.N, t.m.FenceN, int64(maxOrdinal))
	}
	t.meet()
	t.emit(events.Event{Fenced: &events.Fenced{N: a.N}})
	return nil
}

// meet does what ranks meet at a fence for, after the tick, which goes by the
// residency of before: failed votes, then requests, then residency.
func (t *turn) meet() {
	t.takeFailures()
	t.executeRequests()
	t.takeResidency()
}

// TickSlot returns what one tick does to one slot of a model: its part of the
// events of step_epoch, which ticks all slots and then closes the epoch.
func TickSlot(m *Model, slot string) ([]events.Event, error) {
	i, ok := m.Config.Slot(slot)
	if !ok {
		return nil, unknownSlotError(m, slot)
	}
	t := &turn{m: m}
	t.tick(i)
	return t.events, t.err
}

// tick is section 7: at most one transition, by the stage at its beginning.
func (t *turn) tick(i int) {
	seed := t.slot(i).Seed
	if seed == nil {
		return
	}
	switch seed.Stage {
	case events.StageGerminated:
		if t.auto(i, events.G1) && !t.waits(i, events.StageTraining) {
			t.forward(i, events.StageTraining)
		}
	case events.StageTraining:
		if t.auto(i, events.G2) && t.dwelt(i) {
			t.forward(i, events.StageBlending)
		}
	case events.StageBlending:
		t.tickBlending(i)
	case events.StagePruned:
		t.changeStage(i, events.StageEmbargoed, seed.Amplitude.Alpha)
	case events.StageEmbargoed:
		if t.dwell(i) >= embargoTicks {
			t.changeStage(i, events.StageResetting, seed.Amplitude.Alpha)
		}
	case events.StageResetting:
		t.dwell(i)
		t.changeStage(i, events.StageDormant, seed.Amplitude.Alpha)
	}
}

// tickBlending moves the ramp on. One that ends at 0 prunes, in the same tick.
func (t *turn) tickBlending(i int) {
	seed := t.slot(i).Seed
	a := seed.Amplitude
	var reached bool
	a.Controller, reached = Step(a.Controller)
	a.Alpha = a.Controller.Alpha
	t.setAmplitude(i, a)

	c := &a.Controller
	finished := reached || c.Mode == events.ModeHold && math.Abs(c.Alpha-c.Target) <= alphaEpsilon
	switch {
	case !finished:
	case c.Target <= alphaEpsilon:
		reason, initiator := pendingReason(seed)
		t.remove(i, reason, initiator)
	case t.auto(i, events.G3) && (t.m.Config.Slots[i].Gates.Permissive || t.dwelt(i)):
		t.forward(i, events.StageHolding)
	}
}

// pendingReason is why the ramp to 0 was started. An empty string counts as
// absent.
func pendingReason(s *Seed) (reason, initiator string) {
	reason, initiator = "scheduled_prune", "policy"
	if p := s.Pending; p != nil {
		if p.Reason != "" {
			reason = p.Reason
		}
		if p.Initiator != "" {
			initiator = p.Initiator
		}
	}
	return reason, initiator
}

// auto reports whether a tick tries the gate by itself.
func (t *turn) auto(i int, g events.Gate) bool {
	return slices.Contains(t.m.Config.Slots[i].AutoForward, g)
}

// dwelt reports whether the seed has been in its stage for long enough.
func (t *turn) dwelt(i int) bool {
	return t.slot(i).Seed.Metrics.EpochsInStage >= t.m.Config.Slots[i].Gates.MinBlendingEpochs
}

// forward is an advance whose answer nobody waits for: the gate's verdict is
// all that is left of one that fails.
func (t *turn) forward(i int, to events.Stage) {
	v, err := t.evaluate(i, to)
	if err != nil {
		t.err = fmt.Errorf("auto-forward of slot %s: %w", t.name(i), err)
		return
	}
	t.take(i, to, v, false)
}

// dwell counts a tick of the cooldown and returns the ticks in the stage.
func (t *turn) dwell(i int) int64 {
	seed := t.slot(i).Seed
	n := seed.Metrics.EpochsInStage + 1
	t.emit(events.Event{Dwelled: &events.Dwelled{Slot: t.name(i), Seed: seed.Count, Epochs: seed.Metrics.Epochs + 1, EpochsInStage: n}})
	return n
}
