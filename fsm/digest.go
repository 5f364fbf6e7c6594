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
type record struct{ b []byte }

func newRecord(domain string) record {
	return record{append(make([]byte, 0, 384), domain...)}
}

func (r *record) uint(tag byte, v uint64) {
	if v != 0 {
		r.b = append(r.b, tag)
		r.b = binary.AppendUvarint(r.b, v)
	}
}

func (r *record) int(tag byte, v int64) {
	if v != 0 {
		r.b = append(r.b, tag)
		r.b = binary.AppendVarint(r.b, v)
	}
}

func (r *record) str(tag byte, v string) {
	if v != "" {
		r.b = append(r.b, tag)
		r.b = binary.AppendUvarint(r.b, uint64(len(v)))
		r.b = append(r.b, v...)
	}
}

func (r *record) bytes(tag byte, v []byte) {
	r.b = append(r.b, tag)
	r.b = append(r.b, v...)
}

func (r *record) bool(tag byte, v bool) {
	if v {
		r.b = append(r.b, tag, 1)
	}
}

const canonicalNaN = 0x7ff8 << 48 // as the log's encoding reads back

func (r *record) float(tag byte, v float64) {
	bits := math.Float64bits(v)
	if v != v {
		bits = canonicalNaN
	}
	if bits != 0 {
		r.b = append(r.b, tag)
		r.b = binary.BigEndian.AppendUint64(r.b, bits)
	}
}

func (r *record) optNum(tag byte, v *events.Num) {
	if v != nil {
		r.b = append(r.b, tag, 1)
		r.float(tag, float64(*v))
	}
}

func (r *record) optBool(tag byte, v *bool) {
	if v != nil {
		r.b = append(r.b, tag, 1)
		r.bool(tag, *v)
	}
}

func (r *record) reason(tag byte, v *Reason) {
	if v != nil {
		r.b = append(r.b, tag, 1)
		r.str(tag, v.Reason)
		r.str(tag+1, v.Initiator)
	}
}

func (r *record) sum(tag byte, s setSum) {
	r.b = append(r.b, tag)
	for _, lane := range s {
		r.b = binary.BigEndian.AppendUint64(r.b, lane)
	}
}

func (r *record) digest() events.Digest { return sha256.Sum256(r.b) }

// slotLeaf is zero for a slot that never held a seed.
func slotLeaf(i int, s *Slot) events.Digest {
	if s.Germinations == 0 && s.Seed == nil {
		return events.Digest{}
	}
	r := newRecord("slot")
	r.uint(1, uint64(i))
	r.uint(2, s.Germinations)
	if s.Seed != nil {
		seedRecord(&r, s.Seed)
	}
	return r.digest()
}

func seedRecord(r *record, s *Seed) {
	r.uint(10, s.Count)
	r.str(11, s.ID)
	r.str(12, s.Blueprint)
	r.str(13, s.Blend)
	r.int(14, s.Tempo)
	r.float(15, s.Target)
	r.uint(16, uint64(s.Stage))
	r.uint(17, uint64(s.Previous))

	a := &s.Amplitude
	r.float(20, a.Alpha)
	r.uint(21, uint64(a.Algorithm))
	c := &a.Controller
	r.float(22, c.Alpha)
	r.float(23, c.Start)
	r.float(24, c.Target)
	r.uint(25, uint64(c.Mode))
	r.uint(26, uint64(c.Curve))
	r.float(27, c.Steepness)
	r.int(28, c.Total)
	r.int(29, c.Done)

	m := &s.Metrics
	r.int(40, m.Epochs)
	r.int(41, m.EpochsInStage)
	r.float(42, float64(m.Accuracy))
	r.float(43, float64(m.AccuracyBest))
	r.float(44, float64(m.AccuracyFirst))
	r.float(45, float64(m.AccuracyStage))
	r.optNum(46, m.GradientRatio)
	r.optNum(47, m.GradientNorm)
	r.optNum(48, m.Health)
	r.optBool(49, m.Exploding)
	r.optBool(50, m.Vanishing)
	r.optNum(51, m.Contribution)
	r.bool(52, m.Unhealthy)
	r.uint(53, m.Tick)

	r.optNum(60, s.BlendAccuracy)
	r.reason(61, s.Pending)
	r.reason(63, s.Pruned)
}

// withSlot returns a copy of the model in which slot i is s.
func (m *Model) withSlot(i int, s *Slot) *Model {
	next := *m
	s.leaf = slotLeaf(i, s)
	next.slotsSum = next.slotsSum.sub(m.Slots.At(i).leaf).add(s.leaf)
	next.Slots = m.Slots.with(i, s)
	next.sealed = nil
	return &next
}

// Digest is the lifecycle digest: everything that a mark restores.
func (m *Model) Digest() events.Digest {
	if m.sealed != nil {
		return *m.sealed
	}
	r := newRecord("esperd/lifecycle/1")
	r.str(1, m.Name)
	r.uint(2, m.Generation)
	r.bytes(3, m.Config.digest[:])
	r.int(4, m.Epoch+1)
	r.int(5, m.FenceN+1)
	r.uint(6, m.Tick)
	r.sum(7, m.slotsSum)
	return r.digest()
}

// seal computes the digest once, for a model that will not change any more.
func (m *Model) seal() *Model {
	if m.sealed == nil {
		next := *m
		d := m.Digest()
		next.sealed = &d
		return &next
	}
	return m
}

// Bookkeeping is the digest of everything in the state that is not lifecycle.
func (s *State) Bookkeeping() events.Digest {
	r := newRecord("esperd/bookkeeping/1")
	r.str(1, s.Run)
	r.str(2, s.Lineage)
	if s.Parent != nil {
		r.str(3, s.Parent.Lineage)
		r.uint(4, s.Parent.Index)
		r.bytes(5, s.Parent.Chain[:])
	}
	r.sum(6, s.nodesSum)
	r.bytes(7, s.roundLeaf[:])
	r.sum(8, s.cursorsSum)
	r.sum(9, s.sourcesSum)
	return r.digest()
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
	r := newRecord("node")
	r.str(1, string(n.ID))
	r.uint(2, n.Version)
	r.str(3, n.Host)
	return r.digest()
}

func cursorLeaf(c Cursor) events.Digest {
	r := newRecord("cursor")
	r.str(1, c.Model)
	r.uint(2, c.Round)
	r.uint(3, c.Calls)
	r.uint(4, c.Fence)
	return r.digest()
}

func sourceLeaf(c Source) events.Digest {
	r := newRecord("source")
	r.str(1, string(c.Node))
	r.uint(2, c.Sequence)
	r.uint(3, c.Disagreements)
	return r.digest()
}

func roundLeaf(round Round) events.Digest {
	if round.Number == 0 {
		return events.Digest{}
	}
	r := newRecord("round")
	r.uint(1, round.Number)
	r.str(2, round.Fingerprint)
	for _, m := range round.Members {
		r.b = append(r.b, 3)
		r.uint(4, m.Rank)
		r.str(5, string(m.Node))
		r.str(6, m.Incarnation)
		r.str(7, m.Mode)
	}
	if f := round.Fault; f != nil {
		r.str(8, string(f.Code))
		r.uint(9, f.Rank)
		r.str(10, string(f.Node))
		r.uint(11, f.Index)
	}
	return r.digest()
}
