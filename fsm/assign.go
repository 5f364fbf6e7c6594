package fsm

import (
	"crypto/sha256"
	"fmt"

	"github.com/esperd/esperd/events"
)

// newConfig indexes the slots of a configuration and digests their canonical
// encoding.
func newConfig(slots []events.SlotConfig) *Config {
	b, err := events.Marshal(slots)
	if err != nil {
		panic(fmt.Sprintf("a slot configuration cannot be encoded: %v", err)) // plain data always can
	}
	c := &Config{Slots: slots, index: make(map[string]int, len(slots)), digest: sha256.Sum256(b)}
	for i := range slots {
		c.index[slots[i].Name] = i
	}
	return c
}

// newModel is a fresh start of a model: every slot DORMANT, nothing stepped.
func newModel(name string, ev *events.Configured) (*Model, error) {
	if len(ev.Slots) == 0 {
		return nil, fmt.Errorf("model %s is configured without slots", name)
	}
	cfg := newConfig(ev.Slots)
	if len(cfg.index) != len(ev.Slots) {
		return nil, fmt.Errorf("model %s is configured with two slots of one name", name)
	}
	return &Model{Name: name, Generation: ev.Generation, Config: cfg, Epoch: -1, FenceN: -1,
		Slots: newSlotVec(len(ev.Slots), &Slot{})}, nil
}

// assign returns the model after one event: m itself if that is a draft, else a
// draft. It assigns and computes nothing: all replicas must agree to the last
// bit. An error means that no correct leader wrote the event, so the replica
// has to stop.
func (m *Model) assign(ev *events.Event) (*Model, error) {
	if ev.Configured != nil {
		return m.configured(ev.Configured)
	}
	if m.Config == nil {
		return nil, fmt.Errorf("model %s is not configured", m.Name)
	}
	switch {
	case ev.EpochStepped != nil:
		next := m.draft()
		next.Epoch, next.Tick = ev.EpochStepped.Epoch, ev.EpochStepped.Tick
		return next, nil
	case ev.Fenced != nil:
		next := m.draft()
		next.FenceN = ev.Fenced.N
		return next, nil
	case ev.Refused != nil:
		return m, nil
	case ev.Germinated != nil:
		return m.germinated(ev.Germinated)
	case ev.Fact != nil:
		return m.observedFact(ev.Fact)
	case ev.Rewound != nil:
		return m.rewound(ev.Rewound)
	default:
		return m.assignSeed(ev)
	}
}

func (m *Model) configured(ev *events.Configured) (*Model, error) {
	if ev.Generation != m.Generation+1 {
		return nil, fmt.Errorf("generation %d of model %s follows generation %d", ev.Generation, m.Name, m.Generation)
	}
	return newModel(m.Name, ev)
}

func (m *Model) germinated(ev *events.Germinated) (*Model, error) {
	i, ok := m.Config.Slot(ev.Slot)
	if !ok {
		return nil, unknownSlotError(m, ev.Slot)
	}
	slot := m.Slots.At(i)
	if slot.Seed != nil {
		return nil, fmt.Errorf("a seed germinates in slot %s, which is %s", ev.Slot, slot.Stage())
	}
	if ev.Seed != slot.Germinations+1 {
		return nil, fmt.Errorf("seed %d germinates in slot %s, which has had %d", ev.Seed, ev.Slot, slot.Germinations)
	}
	return m.withSlot(i, &Slot{Germinations: ev.Seed, Seed: &Seed{
		Count: ev.Seed, ID: ev.ID, Blueprint: ev.Blueprint, Blend: ev.Blend, Tempo: ev.Tempo, Target: ev.Target,
		Stage: events.StageGerminated, Previous: events.StageDormant, Absent: ev.Absent,
		Amplitude: events.Amplitude{Algorithm: ev.Algorithm, Controller: freshController},
	}}), nil
}

// assignSeed applies an event to the living seed that it names.
func (m *Model) assignSeed(ev *events.Event) (*Model, error) {
	name, count, ok := seedOf(ev)
	if !ok {
		return nil, fmt.Errorf("event is not one of a model")
	}
	i, ok := m.Config.Slot(name)
	if !ok {
		return nil, unknownSlotError(m, name)
	}
	slot := m.Slots.At(i)
	if ev.Decided != nil && slot.Seed == nil && count == 0 {
		return m, nil // no active seed: the answer is all there is
	}
	if slot.Seed == nil || slot.Seed.Count != count {
		return nil, fmt.Errorf("event of seed %d of slot %s, whose seed is %s", count, name, describeSeed(slot))
	}
	if ev.StageChanged != nil {
		return m.stageChanged(i, ev.StageChanged)
	}
	if ev.GateEvaluated != nil || ev.Decided != nil || ev.Fossilized != nil {
		return m, nil
	}
	next, seed := slot.copied()
	switch {
	case ev.Observed != nil:
		seed.Metrics = ev.Observed.Metrics
	case ev.AmplitudeSet != nil:
		seed.Amplitude = ev.AmplitudeSet.Amplitude
	case ev.PruneScheduled != nil:
		seed.Pending = &Reason{Reason: ev.PruneScheduled.Reason, Initiator: ev.PruneScheduled.Initiator}
	case ev.Pruned != nil:
		seed.Pruned = &Reason{Reason: ev.Pruned.Reason, Initiator: ev.Pruned.Initiator}
		seed.Pending = nil
	case ev.Resided != nil:
		seed.Absent = false
	case ev.Dwelled != nil:
		seed.Metrics.Epochs = ev.Dwelled.Epochs
		seed.Metrics.EpochsInStage = ev.Dwelled.EpochsInStage
	}
	return m.withSlot(i, next), nil
}

// copied returns a slot with a seed of its own to change, both in one piece of
// memory.
func (s *Slot) copied() (*Slot, *Seed) {
	both := &struct {
		slot Slot
		seed Seed
	}{Slot{Germinations: s.Germinations}, *s.Seed}
	both.slot.Seed = &both.seed
	return &both.slot, &both.seed
}

// stageChanged applies the transition rule of section 3. RESETTING to DORMANT
// destroys the record.
func (m *Model) stageChanged(i int, ev *events.StageChanged) (*Model, error) {
	slot := m.Slots.At(i)
	seed := slot.Seed
	if (ev.To == events.StageDormant) != (ev.From == events.StageResetting) {
		return nil, fmt.Errorf("seed %d of slot %s goes from %s to %s: only RESETTING leads to DORMANT", ev.Seed, ev.Slot, ev.From, ev.To)
	}
	if ev.From != seed.Stage {
		return nil, fmt.Errorf("seed %d of slot %s goes from %s to %s, but it is in %s", ev.Seed, ev.Slot, ev.From, ev.To, seed.Stage)
	}
	if ev.From == events.StageResetting {
		return m.withSlot(i, &Slot{Germinations: slot.Germinations}), nil
	}
	next, seed := slot.copied()
	seed.move(ev.To)
	return m.withSlot(i, next), nil
}

// move is what a stage's change does to the record.
func (s *Seed) move(to events.Stage) {
	from := s.Stage
	s.Previous, s.Stage = from, to
	s.Metrics.AccuracyStage = s.Metrics.Accuracy
	s.Metrics.EpochsInStage = 0
	switch {
	case from == events.StageTraining && to == events.StageBlending:
		accuracy := s.Metrics.Accuracy
		s.BlendAccuracy = &accuracy
	case to == events.StageHolding:
		// Only a trainer's own verdict enters HOLDING while a prune is
		// scheduled; the ramp to 0 ends here, and so does its reason.
		s.Pending = nil
	}
}

// seedOf returns the slot and the germination count of a seed's event.
func seedOf(ev *events.Event) (slot string, seed uint64, ok bool) {
	switch {
	case ev.Observed != nil:
		return ev.Observed.Slot, ev.Observed.Seed, true
	case ev.GateEvaluated != nil:
		return ev.GateEvaluated.Slot, ev.GateEvaluated.Seed, true
	case ev.Decided != nil:
		return ev.Decided.Slot, ev.Decided.Seed, true
	case ev.StageChanged != nil:
		return ev.StageChanged.Slot, ev.StageChanged.Seed, true
	case ev.AmplitudeSet != nil:
		return ev.AmplitudeSet.Slot, ev.AmplitudeSet.Seed, true
	case ev.PruneScheduled != nil:
		return ev.PruneScheduled.Slot, ev.PruneScheduled.Seed, true
	case ev.Pruned != nil:
		return ev.Pruned.Slot, ev.Pruned.Seed, true
	case ev.Fossilized != nil:
		return ev.Fossilized.Slot, ev.Fossilized.Seed, true
	case ev.Dwelled != nil:
		return ev.Dwelled.Slot, ev.Dwelled.Seed, true
	case ev.Resided != nil:
		return ev.Resided.Slot, ev.Resided.Seed, true
	default:
		return "", 0, false
	}
}

func unknownSlotError(m *Model, slot string) error {
	return fmt.Errorf("model %s has no slot %q", m.Name, slot)
}

func describeSeed(s *Slot) string {
	if s.Seed == nil {
		return "none"
	}
	return fmt.Sprintf("%d", s.Seed.Count)
}
