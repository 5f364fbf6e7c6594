package fsm

import (
	"fmt"

	"github.com/esperd/esperd/events"
)

// Mark returns the mark of a model at this state. chain is that of its entry.
// The model is the state's own, or of an earlier state whose entry is at.
func (s *State) Mark(m *Model, at uint64, chain events.Digest) *events.Mark {
	return &events.Mark{Run: s.Run, Lineage: s.Lineage, Model: m.Name, Index: at, Chain: chain,
		Lifecycle: m.Digest(), Slots: m.Config.Slots, Record: m.record()}
}

// record is the model without its name and configuration.
func (m *Model) record() events.ModelRecord {
	r := events.ModelRecord{Generation: m.Generation, Epoch: m.Epoch, FenceN: m.FenceN, Tick: m.Tick}
	for i := range m.Slots.Len() {
		if slot := m.Slots.At(i); slot.Germinations > 0 {
			r.Slots = append(r.Slots, events.SlotRecord{Slot: uint64(i), Germinations: slot.Germinations, Seed: (*events.SeedRecord)(slot.Seed)})
		}
	}
	return r
}

// withRecord returns a model of the same name and configuration, as recorded. It
// shares the seeds with the record.
func (m *Model) withRecord(r *events.ModelRecord) (*Model, error) {
	next := &Model{Name: m.Name, Generation: r.Generation, Config: m.Config, Epoch: r.Epoch, FenceN: r.FenceN, Tick: r.Tick,
		Slots: newSlotVec(len(m.Config.Slots), &Slot{})}
	for i, used := range r.Slots {
		switch {
		case used.Slot >= uint64(len(m.Config.Slots)):
			return nil, fmt.Errorf("model %s has %d slots, but slot %d is in use", m.Name, len(m.Config.Slots), used.Slot)
		case i > 0 && used.Slot <= r.Slots[i-1].Slot:
			return nil, fmt.Errorf("slot %d of model %s follows slot %d", used.Slot, m.Name, r.Slots[i-1].Slot)
		case used.Seed != nil && used.Seed.Count > used.Germinations:
			return nil, fmt.Errorf("seed %d is in slot %d of model %s, which has had %d", used.Seed.Count, used.Slot, m.Name, used.Germinations)
		}
		next = next.withSlot(int(used.Slot), &Slot{Germinations: used.Germinations, Seed: (*Seed)(used.Seed)})
	}
	return next, nil
}
