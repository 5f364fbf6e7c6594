package events

import (
	"encoding/binary"
	"fmt"
	"math"
	"sync"

	"github.com/x448/float16"
)

// A decoder is a position in the bytes of one entry.
type decoder struct {
	b      []byte
	at     int
	recent *[64]string // short strings read before
	nums   []Num       // zero ones, for who needs a pointer to one
}

var decoders = sync.Pool{New: func() any { return new(decoder) }}

// num returns a new Num. Readings come by the half dozen, and as long as they
// are kept at all they are kept together.
func (d *decoder) num() *Num {
	if len(d.nums) == 0 {
		d.nums = make([]Num, 16)
	}
	v := &d.nums[0]
	d.nums = d.nums[1:]
	return v
}

func (d *decoder) errorf(format string, args ...any) error {
	return fmt.Errorf("%w: at byte %d: "+format, append([]any{ErrMalformed, d.at}, args...)...)
}

// head reads the head of an item of the given major type: its argument, or a
// simple value's number.
func (d *decoder) head(major byte) (uint64, error) {
	if d.at >= len(d.b) {
		return 0, d.errorf("the bytes end early")
	}
	c := d.b[d.at]
	if c>>5 != major {
		return 0, d.errorf("major type %d instead of %d", c>>5, major)
	}
	low := uint64(c & 31)
	if low < 24 {
		d.at++
		return low, nil
	}
	return d.longHead(major, low)
}

func (d *decoder) longHead(major byte, low uint64) (uint64, error) {
	if low > 27 || major == majorSimple {
		return 0, d.errorf("additional information %d is not used here", low)
	}
	size := 1 << (low - 24)
	if len(d.b)-d.at-1 < size {
		return 0, d.errorf("the bytes end early")
	}
	var n uint64
	for _, c := range d.b[d.at+1 : d.at+1+size] {
		n = n<<8 | uint64(c)
	}
	if size == 1 && n < 24 || size > 1 && n>>(4*size) == 0 {
		return 0, d.errorf("%d is not in its shortest form", n)
	}
	d.at += 1 + size
	return n, nil
}

func (d *decoder) str(major byte) ([]byte, error) {
	n, err := d.head(major)
	if err != nil {
		return nil, err
	}
	if n > uint64(len(d.b)-d.at) {
		return nil, d.errorf("the bytes end early")
	}
	b := d.b[d.at : d.at+int(n)]
	d.at += int(n)
	return b, nil
}

// known returns where b stands if it was read lately: names repeat within and
// across entries. Nil for what is not kept.
func (d *decoder) known(b []byte) *string {
	if len(b) == 0 || len(b) > 32 {
		return nil
	}
	if d.recent == nil {
		d.recent = new([64]string)
	}
	last := len(b) - 1
	h := uint(len(b)) + 31*uint(b[0]) + 7*uint(b[last]) + 13*uint(b[last/2])
	return &d.recent[h%uint(len(d.recent))]
}

// float reads a number in the shortest of the three widths that holds it.
func (d *decoder) float() (float64, error) {
	rest := d.b[d.at:]
	if len(rest) >= 9 && rest[0] == majorSimple<<5|27 {
		f := math.Float64frombits(binary.BigEndian.Uint64(rest[1:]))
		if f != f || float64(float32(f)) == f {
			return 0, d.errorf("%v is not in its shortest form", f)
		}
		d.at += 9
		return f, nil
	}
	if len(rest) >= 5 && rest[0] == majorSimple<<5|26 {
		f := math.Float32frombits(binary.BigEndian.Uint32(rest[1:]))
		if f != f || float16.Fromfloat32(f).Float32() == f {
			return 0, d.errorf("%v is not in its shortest form", f)
		}
		d.at += 5
		return float64(f), nil
	}
	if len(rest) >= 3 && rest[0] == majorSimple<<5|25 {
		h := float16.Frombits(binary.BigEndian.Uint16(rest[1:]))
		if h.IsNaN() && h.Bits() != 0x7e00 {
			return 0, d.errorf("NaN is not in its canonical form")
		}
		d.at += 3
		if h.IsNaN() {
			return math.NaN(), nil
		}
		return float64(h.Float32()), nil
	}
	return 0, d.errorf("a number is missing")
}
