package fsm

import (
	"crypto/sha256"
	"encoding/binary"
	"math"

	"github.com/esperd/esperd/events"
)

// A set of records is digested as the sum, in four lanes modulo 2^64, of the
// SHA-256 of each: changing one record costs one hash, whatever the set's size.
// Such a sum tells faults apart, not forgers; against those stands the hash
// chain, which the log's bytes go through one after the other.
type setSum [4]uint64

func (s setSum) add(d events.Digest) setSum {
	for i := range s {
		s[i] += binary.BigEndian.Uint64(d[i*8:])
	}
	return s
}

func (s setSum) sub(d events.Digest) setSum {
	for i := range s {
		s[i] -= binary.BigEndian.Uint64(d[i*8:])
	}
	return s
}

// A record is what a digest is taken over: tagged fields in ascending order.
// A field with its zero value is absent, so that a field which a later version
// adds leaves old digests alone.
//
// Its methods return the longer record, like append: so the bytes stay on the
// caller's stack, in a recordBuffer. Behind a pointer they would go to the heap,
// and did: a third of what replaying a log allocated.
type record []byte

// recordBuffer has room for all but unusually long names.
type recordBuffer [384]byte

func (b *recordBuffer) record(domain string) record { return append(b[:0], domain...) }

func (r record) uint(tag byte, v uint64) record {
	if v == 0 {
		return r
	}
	return binary.AppendUvarint(append(r, tag), v)
}

func (r record) int(tag byte, v int64) record {
	if v == 0 {
		return r
	}
	return binary.AppendVarint(append(r, tag), v)
}

func (r record) str(tag byte, v string) record {
	if v == "" {
		return r
	}
	return append(binary.AppendUvarint(append(r, tag), uint64(len(v))), v...)
}

func (r record) bytes(tag byte, v []byte) record { return append(append(r, tag), v...) }

func (r record) bool(tag byte, v bool) record {
	if !v {
		return r
	}
	return append(r, tag, 1)
}

const canonicalNaN = 0x7ff8 << 48 // as the log's encoding reads back

func (r record) float(tag byte, v float64) record {
	bits := math.Float64bits(v)
	if v != v {
		bits = canonicalNaN
	}
	if bits == 0 {
		return r
	}
	return binary.BigEndian.AppendUint64(append(r, tag), bits)
}

func (r record) optNum(tag byte, v *events.Num) record {
	if v == nil {
		return r
	}
	return append(r, tag, 1).float(tag, float64(*v))
}

func (r record) optBool(tag byte, v *bool) record {
	if v == nil {
		return r
	}
	return append(r, tag, 1).bool(tag, *v)
}

func (r record) reason(tag byte, v *Reason) record {
	if v == nil {
		return r
	}
	return append(r, tag, 1).str(tag, v.Reason).str(tag+1, v.Initiator)
}

func (r record) sum(tag byte, s setSum) record {
	r = append(r, tag)
	for _, lane := range s {
		r = binary.BigEndian.AppendUint64(r, lane)
	}
	return r
}

func (r record) digest() events.Digest { return sha256.Sum256(r) }

// slotLeaf is zero for a slot that never held a seed.
func slotLeaf(i int, s *Slot) events.Digest {
	if s.Germinations == 0 && s.Seed == nil {
		return events.Digest{}
	}
	var b recordBuffer
	r := b.record("slot")
	r = r.uint(1, uint64(i))
	r = r.uint(2, s.Germinations)
	if s.Seed != nil {
		r = seedRecord(r, s.Seed)
	}
	return r.digest()
}

func seedRecord(r record, s *Seed) record {
	r = r.uint(10, s.Count)
	r = r.str(11, s.ID)
	r = r.str(12, s.Blueprint)
	r = r.str(13, s.Blend)
	r = r.int(14, s.Tempo)
	r = r.float(15, s.Target)
	r = r.uint(16, uint64(s.Stage))
	r = r.uint(17, uint64(s.Previous))

	a := &s.Amplitude
	r = r.float(20, a.Alpha)
	r = r.uint(21, uint64(a.Algorithm))
	c := &a.Controller
	r = r.float(22, c.Alpha)
	r = r.float(23, c.Start)
	r = r.float(24, c.Target)
	r = r.uint(25, uint64(c.Mode))
	r = r.uint(26, uint64(c.Curve))
	r = r.float(27, c.Steepness)
	r = r.int(28, c.Total)
	r = r.int(29, c.Done)

	m := &s.Metrics
	r = r.int(40, m.Epochs)
	r = r.int(41, m.EpochsInStage)
	r = r.float(42, float64(m.Accuracy))
	r = r.float(43, float64(m.AccuracyBest))
	r = r.float(44, float64(m.AccuracyFirst))
	r = r.float(45, float64(m.AccuracyStage))
	r = r.optNum(46, m.GradientRatio)
	r = r.optNum(47, m.GradientNorm)
	r = r.optNum(48, m.Health)
	r = r.optBool(49, m.Exploding)
	r = r.optBool(50, m.Vanishing)
	r = r.optNum(51, m.Contribution)
	r = r.bool(52, m.Unhealthy)
	r = r.uint(53, m.Tick)

	r = r.optNum(60, s.BlendAccuracy)
	r = r.reason(61, s.Pending)
	r = r.reason(63, s.Pruned)
	return r.bool(65, s.Absent)
}

// draft returns a model to change: a copy, unless m is one already. Only sealed
// models are ever shared.
func (m *Model) draft() *Model {
	if !m.sealed.done {
		return m
	}
	next := *m
	next.sealed, next.Slots.owned = seal{}, 0
	return &next
}

// withSlot returns a draft in which slot i is s.
func (m *Model) withSlot(i int, s *Slot) *Model {
	next := m.draft()
	if old := next.Slots.At(i); !old.due {
		next.slotsSum = next.slotsSum.sub(old.leaf)
		next.due = append(next.due, int32(i))
	}
	s.due = true
	next.Slots.set(i, s)
	return next
}

// settle digests the slots that changed, each once.
func (m *Model) settle() {
	for _, i := range m.due {
		s := m.Slots.At(int(i))
		s.leaf, s.due = slotLeaf(int(i), s), false
		m.slotsSum = m.slotsSum.add(s.leaf)
	}
	m.due = nil
}

// Digest is the lifecycle digest: everything that a mark restores.
func (m *Model) Digest() events.Digest {
	if m.sealed.done {
		return m.sealed.digest
	}
	m.settle()
	var b recordBuffer
	r := b.record("esperd/lifecycle/1")
	r = r.str(1, m.Name)
	r = r.uint(2, m.Generation)
	r = r.bytes(3, m.Config.digest[:])
	r = r.int(4, m.Epoch+1)
	r = r.int(5, m.FenceN+1)
	r = r.uint(6, m.Tick)
	r = r.sum(7, m.slotsSum)
	return r.digest()
}

// seal computes the digest once: the model will not change any more.
func (m *Model) seal() *Model {
	if !m.sealed.done {
		m.sealed = seal{true, m.Digest()}
	}
	return m
}

// Bookkeeping is the digest of everything in the state that is not lifecycle.
func (s *State) Bookkeeping() events.Digest {
	if s.sealed.done {
		return s.sealed.digest
	}
	var b recordBuffer
	r := b.record("esperd/bookkeeping/1")
	r = r.str(1, s.Run)
	r = r.str(2, s.Lineage)
	if s.Parent != nil {
		r = r.str(3, s.Parent.Lineage)
		r = r.uint(4, s.Parent.Index)
		r = r.bytes(5, s.Parent.Chain[:])
	}
	r = r.sum(6, s.nodesSum)
	r = r.bytes(7, s.roundLeaf[:])
	r = r.sum(8, s.cursorsSum)
	r = r.sum(9, s.sourcesSum)
	if len(s.Requests) > 0 {
		r = r.sum(10, s.requestsSum)
	}
	if len(s.Votes) > 0 {
		r = r.sum(15, s.votesSum)
	}
	for _, a := range s.Ancestors {
		r = append(r, 11)
		r = r.str(12, a.Lineage)
		r = r.uint(13, a.Index)
		r = r.bytes(14, a.Chain[:])
	}
	return r.digest()
}

// seal computes the digest once: the state will not change any more.
func (s *State) seal() *State {
	s.sealed = seal{true, s.Bookkeeping()}
	return s
}

// Lifecycle returns the named model's digest, zero if the log does not know the
// model.
func (s *State) Lifecycle(model string) events.Digest {
	if m := s.Model(model); m != nil {
		return m.Digest()
	}
	return events.Digest{}
}

func nodeLeaf(n Node) events.Digest {
	var b recordBuffer
	r := b.record("node")
	r = r.str(1, string(n.ID))
	r = r.uint(2, n.Version)
	r = r.str(3, n.Host)
	return r.digest()
}

func cursorLeaf(c Cursor) events.Digest {
	var b recordBuffer
	r := b.record("cursor")
	r = r.str(1, c.Model)
	r = r.uint(2, c.Round)
	r = r.uint(3, c.Calls)
	r = r.uint(4, c.Fence)
	r = r.uint(5, c.Residency)
	return r.digest()
}

func sourceLeaf(c Source) events.Digest {
	var b recordBuffer
	r := b.record("source")
	r = r.str(1, string(c.Node))
	r = r.uint(2, c.Sequence)
	r = r.uint(3, c.Requests)
	r = r.uint(4, c.RequestIndex)
	return r.digest()
}

func requestLeaf(q Request) events.Digest {
	var b recordBuffer
	r, a := b.record("request"), q.Asked
	r = r.uint(1, q.Index)
	r = r.str(2, string(a.Node))
	r = r.uint(3, a.Number)
	r = r.str(4, a.Model)
	r = r.uint(5, a.Generation)
	r = r.str(6, a.Slot)
	r = r.uint(7, a.Seed)
	r = r.str(8, string(a.Action))
	r = r.str(9, a.Reason)
	r = r.str(10, a.Initiator)
	return r.digest()
}

func roundLeaf(round Round) events.Digest {
	if round.Number == 0 {
		return events.Digest{}
	}
	var b recordBuffer
	r := b.record("round")
	r = r.uint(1, round.Number)
	r = r.str(2, round.Fingerprint)
	for _, m := range round.Members {
		r = append(r, 3)
		r = r.uint(4, m.Rank)
		r = r.str(5, string(m.Node))
		r = r.str(6, m.Incarnation)
		r = r.str(7, m.Mode)
	}
	if f := round.Fault; f != nil {
		r = r.str(8, string(f.Code))
		r = r.uint(9, f.Rank)
		r = r.str(10, string(f.Node))
		r = r.uint(11, f.Index)
	}
	for tag, counts := range [4][]uint64{round.Disagreements, round.Misplaced, round.Missing, round.Differing} {
		for rank, n := range counts {
			if n > 0 {
				r = append(r, byte(12+tag*3))
				r = r.uint(byte(13+tag*3), uint64(rank))
				r = r.uint(byte(14+tag*3), n)
			}
		}
	}
	if f := round.Fault; f != nil {
		r = r.str(24, f.Reason)
	}
	for rank, n := range round.Ended {
		if n > 0 {
			r = append(r, 25)
			r = r.uint(26, uint64(rank))
			r = r.uint(27, n)
		}
	}
	for rank, n := range round.Attesting {
		if n > 0 {
			r = append(r, 28)
			r = r.uint(29, uint64(rank))
			r = r.uint(30, n)
		}
	}
	return r.digest()
}
