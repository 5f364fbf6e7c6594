package element

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Bounds of a uniform distribution: the products stay normal float32 numbers,
// which every device multiplies alike.
const (
	minBound = 1.0 / (1 << 60)
	maxBound = 1 << 60
)

// Scale returns what uniform numbers between -bound and bound are multiplied by.
// It is computed once, and handed over as bits.
func Scale(bound float64, d DType) (float32, error) {
	if limit := min(maxBound, d.Max()); !(bound >= minBound && bound <= limit) {
		return 0, fmt.Errorf("uniform bound %v: expected %g to %g for %s", bound, minBound, limit, d)
	}
	return float32(bound / (1 << 24)), nil
}

// Constant returns the bits of a constant fill.
func Constant(value float64, d DType) (uint32, error) {
	if limit := d.Max(); !(math.Abs(value) <= limit) {
		return 0, fmt.Errorf("constant %v: expected a number between -%g and %g, which %s can hold", value, limit, limit, d)
	}
	return d.Bits(float32(value)), nil
}

// uniform makes a number of 32 random bits: odd, so never 0, and symmetric.
func uniform(x uint32, scale float32) float32 {
	return float32(int32(x>>8*2+1)-1<<24) * scale
}

// FillUniform fills dst, whole elements of d, with the distribution whose scale
// is given. The first element's number is 4*block: an element depends on its
// source and its number alone, so parts may be filled in any order. In 16 bits
// it is the rounded float32.
func FillUniform(dst []byte, d DType, s Source, block uint64, scale float32) {
	four := 4 * int(d.Size())
	for ; len(dst) >= four; block++ {
		fillBlock(dst[:four], d, s, block, scale)
		dst = dst[four:]
	}
	if len(dst) > 0 {
		var last [16]byte
		fillBlock(last[:four], d, s, block, scale)
		copy(dst, last[:])
	}
}

func fillBlock(dst []byte, d DType, s Source, block uint64, scale float32) {
	r0, r1, r2, r3 := s.block(block)
	f0, f1, f2, f3 := uniform(r0, scale), uniform(r1, scale), uniform(r2, scale), uniform(r3, scale)
	var lo, hi uint64
	switch d {
	case Float32:
		out := dst[:16]
		binary.LittleEndian.PutUint64(out, uint64(math.Float32bits(f0))|uint64(math.Float32bits(f1))<<32)
		binary.LittleEndian.PutUint64(out[8:], uint64(math.Float32bits(f2))|uint64(math.Float32bits(f3))<<32)
		return
	case Float16:
		lo, hi = uint64(half(f0))|uint64(half(f1))<<16, uint64(half(f2))|uint64(half(f3))<<16
	default:
		lo, hi = uint64(brain(f0))|uint64(brain(f1))<<16, uint64(brain(f2))|uint64(brain(f3))<<16
	}
	binary.LittleEndian.PutUint64(dst, lo|hi<<32)
}

// FillConstant fills dst, whole elements of d, with one value.
func FillConstant(dst []byte, d DType, bits uint32) {
	if len(dst) == 0 {
		return
	}
	if d == Float32 {
		binary.LittleEndian.PutUint32(dst, bits)
	} else {
		binary.LittleEndian.PutUint16(dst, uint16(bits))
	}
	for n := int(d.Size()); n < len(dst); n *= 2 {
		copy(dst[n:], dst[:n])
	}
}
