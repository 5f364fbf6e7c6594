package fsm

import (
	"fmt"

	"github.com/esperd/esperd/events"
)

// image is a State as bytes: only what was set, in the order of the state.
type image struct {
	Index   uint64         `cbor:"1,keyasint"`
	Run     string         `cbor:"2,keyasint"`
	Lineage string         `cbor:"3,keyasint"`
	Parent  *events.Parent `cbor:"4,keyasint,omitempty"`
	Nodes   []Node         `cbor:"5,keyasint"`
	Round   Round          `cbor:"6,keyasint"`
	Cursors []Cursor       `cbor:"7,keyasint"`
	Sources []Source       `cbor:"8,keyasint"`
	Models  []modelImage   `cbor:"9,keyasint"`
	Check   events.Digest  `cbor:"10,keyasint"` // the bookkeeping digest

	Requests  []Request         `cbor:"11,keyasint,omitempty"`
	Ancestors []events.Ancestor `cbor:"12,keyasint,omitempty"`
	Votes     []Vote            `cbor:"13,keyasint,omitempty"`
}

type modelImage struct {
	Name       string              `cbor:"1,keyasint"`
	Generation uint64              `cbor:"2,keyasint"`
	Slots      []events.SlotConfig `cbor:"3,keyasint"`
	Epoch      int64               `cbor:"4,keyasint"`
	FenceN     int64               `cbor:"5,keyasint"`
	Tick       uint64              `cbor:"6,keyasint"`
	Used       []slotImage         `cbor:"7,keyasint"`
	Check      events.Digest       `cbor:"8,keyasint"` // the lifecycle digest
}

type slotImage struct {
	Slot         int    `cbor:"1,keyasint"`
	Germinations uint64 `cbor:"2,keyasint"`
	Seed         *Seed  `cbor:"3,keyasint,omitempty"`
}

// Image encodes the state.
func (s *State) Image() ([]byte, error) {
	img := image{Index: s.Index, Run: s.Run, Lineage: s.Lineage, Parent: s.Parent, Nodes: s.Nodes,
		Round: s.Round, Cursors: s.Cursors, Sources: s.Sources, Check: s.Bookkeeping(), Requests: s.Requests, Ancestors: s.Ancestors, Votes: s.Votes}
	for _, m := range s.Models {
		mi := modelImage{Name: m.Name, Generation: m.Generation, Slots: m.Config.Slots,
			Epoch: m.Epoch, FenceN: m.FenceN, Tick: m.Tick, Check: m.Digest()}
		for i := range m.Slots.Len() {
			if slot := m.Slots.At(i); slot.Germinations > 0 {
				mi.Used = append(mi.Used, slotImage{Slot: i, Germinations: slot.Germinations, Seed: slot.Seed})
			}
		}
		img.Models = append(img.Models, mi)
	}
	return events.Marshal(img)
}

// FromImage decodes a state and checks that it has the digests it had when it
// was encoded.
func FromImage(b []byte) (*State, error) {
	var img image
	if err := events.Unmarshal(b, &img); err != nil {
		return nil, fmt.Errorf("state image of %d bytes: %w", len(b), err)
	}
	s := &State{Index: img.Index, Run: img.Run, Lineage: img.Lineage, Parent: img.Parent, Ancestors: img.Ancestors}
	s.setRound(img.Round)
	for _, n := range img.Nodes {
		s.setNode(n)
	}
	for _, c := range img.Cursors {
		s.setCursor(c)
	}
	for _, c := range img.Sources {
		s.setSource(c)
	}
	for _, r := range img.Requests {
		s.setRequest(r)
	}
	for _, v := range img.Votes {
		s.setVote(v)
	}
	for _, mi := range img.Models {
		m, err := mi.model()
		if err != nil {
			return nil, err
		}
		s.setModel(m)
	}
	if got := s.Bookkeeping(); got != img.Check {
		return nil, fmt.Errorf("state image of entry %d: expected bookkeeping digest %s, got %s; the image is damaged", s.Index, img.Check.Short(), got.Short())
	}
	return s.seal(), nil
}

func (mi modelImage) model() (*Model, error) {
	cfg := newConfig(mi.Slots)
	m := &Model{Name: mi.Name, Generation: mi.Generation, Config: cfg, Epoch: mi.Epoch, FenceN: mi.FenceN, Tick: mi.Tick,
		Slots: newSlotVec(len(mi.Slots), &Slot{})}
	for _, used := range mi.Used {
		if used.Slot < 0 || used.Slot >= len(mi.Slots) {
			return nil, fmt.Errorf("state image: model %s has %d slots, but slot %d is in use", mi.Name, len(mi.Slots), used.Slot)
		}
		m = m.withSlot(used.Slot, &Slot{Germinations: used.Germinations, Seed: used.Seed})
	}
	if m = m.seal(); m.Digest() != mi.Check {
		return nil, fmt.Errorf("state image: model %s: expected lifecycle digest %s, got %s; the image is damaged", mi.Name, mi.Check.Short(), m.Digest().Short())
	}
	return m, nil
}
