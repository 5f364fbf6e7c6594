package gpuexec

import (
	"crypto/sha256"
	"encoding/binary"
	"math"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/gpuexec/element"
)

// ActiveSet returns the digest of a model's active set: slots, seeds, the names,
// shapes and types of their tensors, flags and alphas. Ranks compare it.
func ActiveSet(m *fsm.Model) events.Digest {
	var s activeSum
	for i := range m.Slots.Len() {
		s.add(memberOf(m, i))
	}
	return s.digest()
}

// A member is the digest of one active seed; zero for none.
type member = events.Digest

// memberOf digests what slot i has in the active set.
func memberOf(m *fsm.Model, i int) member {
	s := standingOf(m, i)
	if !s.is(element.Active) {
		return member{}
	}
	config := &m.Config.Slots[i]
	b := make([]byte, 0, 512)
	num := func(n uint64) { b = binary.BigEndian.AppendUint64(b, n) }
	str := func(s string) { num(uint64(len(s))); b = append(b, s...) }
	str("esperd active 1")
	str(m.Name)
	num(m.Generation)
	num(uint64(i))
	str(config.Name)
	num(s.seed)
	str(s.blueprint)
	num(uint64(s.flags))
	num(uint64(math.Float32bits(float32(s.alpha))))
	for j := range config.Blueprints {
		if config.Blueprints[j].Name != s.blueprint {
			continue
		}
		for _, t := range config.Blueprints[j].Tensors {
			str(t.Name)
			str(t.DType)
			num(uint64(len(t.Shape)))
			for _, d := range t.Shape {
				num(d)
			}
		}
	}
	return sha256.Sum256(b)
}

// An activeSum is the sum of the members' digests, lane by lane, so that a
// change costs what it changes and not what lives. (It tells faults apart, not
// forgers.)
type activeSum struct {
	lanes [4]uint64
	count uint64
}

func (s *activeSum) add(d member) {
	if d == (member{}) {
		return
	}
	for i := range s.lanes {
		s.lanes[i] += binary.BigEndian.Uint64(d[i*8:])
	}
	s.count++
}

func (s *activeSum) remove(d member) {
	if d == (member{}) {
		return
	}
	for i := range s.lanes {
		s.lanes[i] -= binary.BigEndian.Uint64(d[i*8:])
	}
	s.count--
}

func (s *activeSum) digest() events.Digest {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 40), s.count)
	for _, lane := range s.lanes {
		b = binary.BigEndian.AppendUint64(b, lane)
	}
	return sha256.Sum256(b)
}
