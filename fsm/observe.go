package fsm

import (
	"math"

	"github.com/esperd/esperd/events"
)

// observe records what rank 0 measured. A value is never refused, only a slot
// that the model does not have, and then before anything is recorded.
func (t *turn) observe(list []Observation) *events.Refused {
	for i := range list {
		if _, ok := t.m.Config.Slot(list[i].Slot); !ok {
			return t.unknownSlot("observation", list[i].Slot)
		}
	}
	for i := range list {
		t.observeSlot(&list[i])
	}
	return nil
}

// observeSlot emits the metrics after one observation, if they changed. A slot
// without a seed has nothing to record on.
func (t *turn) observeSlot(o *Observation) {
	i, _ := t.m.Config.Slot(o.Slot)
	seed := t.slot(i).Seed
	if seed == nil {
		return
	}
	next := seed.Metrics
	assignReading(&next.GradientRatio, o.GradientRatio)
	assignReading(&next.GradientNorm, o.GradientNorm)
	assignReading(&next.Health, o.Health)
	assignReading(&next.Exploding, o.Exploding)
	assignReading(&next.Vanishing, o.Vanishing)
	assignReading(&next.Contribution, o.Contribution)
	if o.Healthy.Given {
		next.Unhealthy = o.Healthy.Value != nil && !*o.Healthy.Value
	}
	// The cooldown lasts a fixed number of ticks. The reference lets an
	// accuracy shorten it, by mistake (section 9, row 21).
	if o.Accuracy.Given && o.Accuracy.Value != nil && !seed.Stage.Cooldown() {
		recordAccuracy(&next, *o.Accuracy.Value, t.m.Tick+1, o.Replace)
	}
	if !sameMetrics(&seed.Metrics, &next) {
		t.emit(events.Event{Observed: &events.Observed{Slot: o.Slot, Seed: seed.Count, Metrics: next}})
	}
}

// assignReading copies the value, so that a caller that reuses its variables
// changes no state.
func assignReading[T any](field **T, r Reading[T]) {
	if !r.Given {
		return
	}
	*field = nil
	if r.Value != nil {
		v := *r.Value
		*field = &v
	}
}

// recordAccuracy counts an epoch (section 6.2), unless a second accuracy in one
// tick replaces the first one. tick counts from 1.
func recordAccuracy(m *events.Metrics, a events.Num, tick uint64, replace bool) {
	if a == 0 {
		a = 0 // not -0, whose sign the encoding of a zero field does not keep
	}
	first := m.Epochs == 0
	if replace && m.Tick == tick {
		first = m.Epochs == 1
	} else {
		m.Epochs++
		m.EpochsInStage++
	}
	if first {
		m.AccuracyFirst = a
		if m.EpochsInStage > 0 { // else the stage began between the two
			m.AccuracyStage = a
		}
	}
	// A stage that began without a finite accuracy is measured from its first
	// one: no gate would ever pass again otherwise.
	if !m.AccuracyStage.Finite() && a.Finite() {
		m.AccuracyStage = a
	}
	m.Accuracy = a
	if a > m.AccuracyBest {
		m.AccuracyBest = a
	}
	m.Tick = tick
}

// sameMetrics takes NaN for the same as NaN, and 0 for another number than -0.
func sameMetrics(a, b *events.Metrics) bool {
	return a.Epochs == b.Epochs && a.EpochsInStage == b.EpochsInStage &&
		sameNum(a.Accuracy, b.Accuracy) && sameNum(a.AccuracyBest, b.AccuracyBest) &&
		sameNum(a.AccuracyFirst, b.AccuracyFirst) && sameNum(a.AccuracyStage, b.AccuracyStage) &&
		sameOpt(a.GradientRatio, b.GradientRatio, sameNum) && sameOpt(a.GradientNorm, b.GradientNorm, sameNum) &&
		sameOpt(a.Health, b.Health, sameNum) && sameOpt(a.Contribution, b.Contribution, sameNum) &&
		sameOpt(a.Exploding, b.Exploding, sameBool) && sameOpt(a.Vanishing, b.Vanishing, sameBool) &&
		a.Unhealthy == b.Unhealthy && a.Tick == b.Tick
}

func sameNum(a, b events.Num) bool {
	return a == b && math.Signbit(float64(a)) == math.Signbit(float64(b)) || a != a && b != b
}

func sameBool(a, b bool) bool { return a == b }

func sameOpt[T any](a, b *T, same func(T, T) bool) bool {
	if a == nil || b == nil {
		return a == b
	}
	return same(*a, *b)
}
