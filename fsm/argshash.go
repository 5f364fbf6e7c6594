package fsm

import (
	"crypto/sha256"
	"encoding/binary"
	"math"

	"github.com/esperd/esperd/events"
)

// ArgsHash returns the hash of those arguments that must be equal on all ranks:
// all of them, except that ranks come to their own verdicts (only the gate
// counts), that a configuration is compared with the log's (zero), and that
// Advance's Strict is the door's.
//
// It is the first half of a SHA-256 over the operation and the arguments, in
// the order of their struct, each in one fixed form. Ranks may run different
// builds, so the form never changes: a new argument is added only where it is
// not its default.
func ArgsHash(a Args) events.ArgsHash {
	if a == nil || a.Op() == events.OpConfigure {
		return events.ArgsHash{}
	}
	f := new(argsForm)
	f.str(string(a.Op()))
	switch a := a.(type) {
	case Germinate:
		f.str(a.Blueprint)
		f.str(a.SeedID)
		f.str(a.Blend)
		f.int(a.Tempo)
		f.int(int64(a.Algorithm))
		optional(f, a.Target, f.num)
	case Advance:
		optional(f, a.Target, func(s events.Stage) { f.int(int64(s)) })
	case Verdict:
		f.str(string(a.Verdict.Gate))
	case Prune:
		f.str(a.Reason)
		f.str(a.Initiator)
	case SchedulePrune:
		f.int(a.Ticks)
		optional(f, a.Curve, func(c events.Curve) { f.int(int64(c)) })
		f.num(a.Steepness)
		f.str(a.Reason)
		f.str(a.Initiator)
	case AlphaTarget:
		f.num(a.Target)
		f.int(a.Ticks)
		optional(f, a.Curve, func(c events.Curve) { f.int(int64(c)) })
		f.num(a.Steepness)
		optional(f, a.Algorithm, func(v events.Algorithm) { f.int(int64(v)) })
	case StepEpoch:
		f.int(a.Epoch)
	case Fence:
		f.int(a.N)
	case Resume:
		f.str(string(a.Sum[:]))
	}
	sum := sha256.Sum256(f.b)
	return events.ArgsHash(sum[:16])
}

// argsForm collects arguments in their hashed form: integers and doubles as 8
// bytes, big-endian; strings after their length; optional ones after a byte
// that says whether they are there.
type argsForm struct{ b []byte }

func (f *argsForm) int(v int64) { f.b = binary.BigEndian.AppendUint64(f.b, uint64(v)) }

func (f *argsForm) str(s string) {
	f.int(int64(len(s)))
	f.b = append(f.b, s...)
}

// num writes equal numbers alike: there is one zero and one NaN.
func (f *argsForm) num(n events.Num) {
	bits := math.Float64bits(float64(n))
	switch {
	case n == 0:
		bits = 0
	case n != n:
		bits = canonicalNaN
	}
	f.b = binary.BigEndian.AppendUint64(f.b, bits)
}

func optional[T any](f *argsForm, v *T, write func(T)) {
	if v == nil {
		f.b = append(f.b, 0)
		return
	}
	f.b = append(f.b, 1)
	write(*v)
}
