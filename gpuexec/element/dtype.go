package element

import (
	"fmt"
	"math"

	"github.com/x448/float16"
)

// A DType is the type of a tensor's elements. Arenas hold these three; their
// order is the order of the sections in a plane.
type DType uint8

// The element types.
const (
	Float32 DType = iota
	Float16
	BFloat16

	DTypes = 3 // how many there are
)

var dtypeNames = [DTypes]string{"float32", "float16", "bfloat16"}

// ParseDType reads a name, as torch writes it after "torch.".
func ParseDType(name string) (DType, error) {
	for d, n := range dtypeNames {
		if n == name {
			return DType(d), nil
		}
	}
	return 0, fmt.Errorf("dtype %.40q: expected float32, float16 or bfloat16; an arena holds no other, use plan or attest for it", name)
}

// String returns the name.
func (d DType) String() string { return dtypeNames[d] }

// Size returns the bytes of one element.
func (d DType) Size() uint64 {
	if d == Float32 {
		return 4
	}
	return 2
}

// Max returns the largest finite value.
func (d DType) Max() float64 {
	switch d {
	case Float16:
		return 65504
	case BFloat16:
		return float64(math.Float32frombits(0x7f7f0000))
	}
	return math.MaxFloat32
}

// Bits rounds a finite value to the type, to nearest with ties to even, and
// returns its bits; of the 16-bit types in the lower half.
func (d DType) Bits(f float32) uint32 {
	switch d {
	case Float16:
		return half(f)
	case BFloat16:
		return brain(f)
	}
	return math.Float32bits(f)
}

// half rounds to float16; the library's function is for the few that become
// subnormal or infinite.
func half(f float32) uint32 {
	u := math.Float32bits(f)
	if m := u & 0x7fffffff; m-0x38800000 < 0x477fe000-0x38800000 { // 2^-14 to 65504
		return u>>16&0x8000 | (m-0x38000000+0xfff+m>>13&1)>>13
	}
	return uint32(float16.Fromfloat32(f))
}

// brain rounds a finite number to bfloat16.
func brain(f float32) uint32 {
	u := math.Float32bits(f)
	return (u + 0x7fff + u>>16&1) >> 16
}
