package ptx

import (
	"fmt"
	"math"
	"math/bits"
	"strings"

	"github.com/x448/float16"
)

// An operation computes from up to three values of the instruction's type.
type operation func(x, y, z uint64) uint64

// compute compiles what only computes: the last type is the operands', of width
// bits; results are cut to theirs.
func (k *Kernel) compute(in *instruction) (func(t *thread) error, error) {
	if len(in.types) == 0 || len(in.operands) < 2 {
		return nil, fmt.Errorf("unknown instruction %s", in.opcode)
	}
	typ := in.types[len(in.types)-1]
	size, err := typeBytes(typ)
	if err != nil {
		return nil, err
	}
	width := 8 * int(size)
	if typ == "pred" {
		width = 1
	}
	op, out, err := choose(in, typ, width)
	if err != nil {
		return nil, err
	}
	var v [3]func(t *thread) uint64
	for i := range v {
		v[i] = func(*thread) uint64 { return 0 }
		if i+1 < len(in.operands) {
			if v[i], err = k.read(in.operands[i+1]); err != nil {
				return nil, err
			}
		}
	}
	to := in.operands[0].index
	m := mask(width)
	return func(t *thread) error {
		// The third is the accumulator, twice as wide where the product is.
		t.r[to] = op(v[0](t)&m, v[1](t)&m, v[2](t)) & mask(out)
		return nil
	}, nil
}

// choose returns an instruction's operation, and the width of its result.
func choose(in *instruction, typ string, width int) (operation, int, error) {
	name := in.opcode + "." + strings.Join(in.types, ".")
	signed := typ[0] == 's'
	switch in.opcode {
	case "cvt":
		return convert(name, in.types)
	case "cvta":
		return func(x, _, _ uint64) uint64 { return x }, 64, nil
	case "mul", "mad":
		return multiply(name, in.types[0], signed, width)
	case "setp":
		return compare(name, in.types[0], signed, width)
	}
	if typ[0] == 'f' {
		return nil, 0, fmt.Errorf("unknown instruction %s", name)
	}
	var op operation
	switch in.opcode {
	case "add":
		op = func(x, y, _ uint64) uint64 { return x + y }
	case "sub":
		op = func(x, y, _ uint64) uint64 { return x - y }
	case "and":
		op = func(x, y, _ uint64) uint64 { return x & y }
	case "or":
		op = func(x, y, _ uint64) uint64 { return x | y }
	case "xor":
		op = func(x, y, _ uint64) uint64 { return x ^ y }
	case "not":
		op = func(x, _, _ uint64) uint64 { return ^x }
	case "shl":
		op = func(x, y, _ uint64) uint64 { return x << min(y&0xffffffff, 64) }
	case "shr":
		op = func(x, y, _ uint64) uint64 { return x >> min(y&0xffffffff, 64) }
		if signed {
			op = func(x, y, _ uint64) uint64 { return uint64(extend(x, width) >> min(y&0xffffffff, 63)) }
		}
	case "selp":
		op = func(x, y, z uint64) uint64 {
			if z&1 != 0 {
				return x
			}
			return y
		}
	case "bfe":
		op = func(x, y, z uint64) uint64 { return x >> min(y&0xff, 64) & mask(int(z&0xff)) }
		if signed {
			op = nil
		}
	}
	if op == nil {
		return nil, 0, fmt.Errorf("unknown instruction %s", name)
	}
	return op, width, nil
}

// extend reads the lower bits as a signed number.
func extend(x uint64, width int) int64 { return int64(x<<(64-width)) >> (64 - width) }

func float(x uint64) float32 { return math.Float32frombits(uint32(x)) }

func convert(name string, types []string) (operation, int, error) {
	switch name {
	case "cvt.rn.f32.s32":
		return func(x, _, _ uint64) uint64 { return uint64(math.Float32bits(float32(int32(x)))) }, 32, nil
	case "cvt.rn.f16.f32":
		return func(x, _, _ uint64) uint64 { return uint64(float16.Fromfloat32(float(x))) }, 16, nil
	}
	if len(types) != 2 || types[0][0] == 'f' || types[1][0] == 'f' {
		return nil, 0, fmt.Errorf("unknown instruction %s", name)
	}
	to, err := typeBytes(types[0])
	if err != nil {
		return nil, 0, err
	}
	from, err := typeBytes(types[1])
	if types[1][0] == 's' {
		return func(x, _, _ uint64) uint64 { return uint64(extend(x, 8*int(from))) }, 8 * int(to), err
	}
	return func(x, _, _ uint64) uint64 { return x }, 8 * int(to), err
}

func multiply(name, half string, signed bool, width int) (operation, int, error) {
	switch {
	case name == "mul.rn.f32":
		return func(x, y, _ uint64) uint64 { return uint64(math.Float32bits(float(x) * float(y))) }, 32, nil
	case half == "lo":
		return func(x, y, z uint64) uint64 { return x*y + z }, width, nil
	case half == "wide" && width <= 32:
		return func(x, y, z uint64) uint64 {
			if signed {
				x, y = uint64(extend(x, width)), uint64(extend(y, width))
			}
			return x*y + z
		}, 2 * width, nil
	case half == "hi" && width == 64 && !signed:
		return func(x, y, z uint64) uint64 { hi, _ := bits.Mul64(x, y); return hi + z }, 64, nil
	case half == "hi" && width == 32 && !signed:
		return func(x, y, z uint64) uint64 { return x*y>>32 + z }, 32, nil
	}
	return nil, 0, fmt.Errorf("unknown instruction %s", name)
}

func compare(name, relation string, signed bool, width int) (operation, int, error) {
	less := func(x, y uint64) bool { return x < y }
	if signed {
		less = func(x, y uint64) bool { return extend(x, width) < extend(y, width) }
	}
	test, ok := map[string]func(x, y uint64) bool{
		"eq": func(x, y uint64) bool { return x == y },
		"ne": func(x, y uint64) bool { return x != y },
		"lt": less,
		"ge": func(x, y uint64) bool { return !less(x, y) },
		"gt": func(x, y uint64) bool { return less(y, x) },
		"le": func(x, y uint64) bool { return !less(y, x) },
	}[relation]
	if !ok || strings.Contains(name, ".f") {
		return nil, 0, fmt.Errorf("unknown instruction %s", name)
	}
	return func(x, y, _ uint64) uint64 {
		if test(x, y) {
			return 1
		}
		return 0
	}, 1, nil
}
