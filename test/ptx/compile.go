package ptx

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// Addresses of parameters and of shared memory are told apart from those of
// allocations by their upper bits.
const (
	paramSpace  = 1 << 61
	sharedSpace = 1 << 62
)

// compile gives an instruction its function. What it does not know is an error.
func (k *Kernel) compile(in *instruction) error {
	var err error
	switch in.opcode {
	case "bra":
		at, ok := k.labels[in.operands[0].name]
		if !ok {
			return fmt.Errorf("no label %q", in.operands[0].name)
		}
		in.do = func(t *thread) error { t.next = at; return nil }
	case "ret":
		in.do = func(t *thread) error { t.state = ended; return nil }
	case "bar":
		in.do = func(t *thread) error { t.state = atBarrier; return nil }
	case "shfl":
		if strings.Join(in.types, ".") != "sync.down.b32" || in.operands[3].value != 31 || in.operands[4].value != ^uint64(0) {
			return fmt.Errorf("a shuffle that is not down over the whole warp")
		}
		in.do = func(t *thread) error { t.state = atShuffle; return nil }
	case "membar":
		in.do = func(*thread) error { return nil }
	case "ld":
		in.do, err = k.load(in)
	case "st":
		in.do, err = k.store(in)
	case "mov":
		in.do, err = k.move(in)
	default:
		in.do, err = k.compute(in)
	}
	return err
}

// read returns what an operand's value is at the time.
func (k *Kernel) read(o operand) (func(t *thread) uint64, error) {
	switch o.kind {
	case 'n':
		return func(*thread) uint64 { return o.value }, nil
	case 'r':
		switch o.name {
		case "%tid.x":
			return func(t *thread) uint64 { return uint64(t.id) }, nil
		case "%ntid.x":
			return func(t *thread) uint64 { return uint64(t.g.threads) }, nil
		case "%ctaid.x":
			return func(t *thread) uint64 { return uint64(t.g.id) }, nil
		case "%nctaid.x":
			return func(t *thread) uint64 { return uint64(t.g.groups) }, nil
		}
		return func(t *thread) uint64 { return t.r[o.index] }, nil
	case 'l':
		if at, ok := k.params[o.name]; ok {
			return func(*thread) uint64 { return paramSpace + at }, nil
		}
		if at, ok := k.shared[o.name]; ok {
			return func(*thread) uint64 { return sharedSpace + at }, nil
		}
	}
	return nil, fmt.Errorf("no operand %q", o.name)
}

// address returns the bytes that an address operand stands for.
func (k *Kernel) address(o operand, n uint64) (func(t *thread) ([]byte, error), error) {
	if o.kind != 'a' {
		return nil, fmt.Errorf("expected an address")
	}
	base, err := k.read(o.list[0])
	if err != nil {
		return nil, err
	}
	return func(t *thread) ([]byte, error) {
		a := base(t) + o.value
		space := a >> 60
		switch space {
		case paramSpace >> 60:
			return inside(t.g.params, a&^paramSpace, n, "parameters")
		case sharedSpace >> 60:
			return inside(t.g.shared, a&^sharedSpace, n, "shared memory")
		}
		return t.g.memory.at(a, n)
	}, nil
}

func inside(b []byte, at, n uint64, what string) ([]byte, error) {
	if at%n != 0 || at > uint64(len(b)) || n > uint64(len(b))-at {
		return nil, fmt.Errorf("access of %d bytes at %d of %d bytes of %s", n, at, len(b), what)
	}
	return b[at : at+n], nil
}

// vector returns the element's size and the operands of a load or store.
func vector(in *instruction, data operand) (size uint64, list []operand, err error) {
	size, err = typeBytes(in.types[len(in.types)-1])
	list = []operand{data}
	if data.kind == 'v' {
		list = data.list
	}
	if want := slices.ContainsFunc(in.types, func(s string) bool { return s == fmt.Sprintf("v%d", len(list)) }); err == nil && want != (len(list) > 1) {
		err = fmt.Errorf("%d values", len(list))
	}
	return size, list, err
}

func (k *Kernel) load(in *instruction) (func(t *thread) error, error) {
	size, list, err := vector(in, in.operands[0])
	if err != nil {
		return nil, err
	}
	at, err := k.address(in.operands[1], size*uint64(len(list)))
	return func(t *thread) error {
		b, err := at(t)
		if err != nil {
			return err
		}
		for i, o := range list {
			t.r[o.index] = number(b[uint64(i)*size:][:size])
		}
		return nil
	}, err
}

func (k *Kernel) store(in *instruction) (func(t *thread) error, error) {
	size, list, err := vector(in, in.operands[1])
	if err != nil {
		return nil, err
	}
	values := make([]func(t *thread) uint64, len(list))
	for i, o := range list {
		if values[i], err = k.read(o); err != nil {
			return nil, err
		}
	}
	at, err := k.address(in.operands[0], size*uint64(len(list)))
	return func(t *thread) error {
		b, err := at(t)
		if err != nil {
			return err
		}
		for i := range list {
			var word [8]byte
			binary.LittleEndian.PutUint64(word[:], values[i](t))
			copy(b[uint64(i)*size:][:size], word[:])
		}
		return nil
	}, err
}

func number(b []byte) uint64 {
	var word [8]byte
	copy(word[:], b)
	return binary.LittleEndian.Uint64(word[:])
}

// move copies, and takes registers apart or together.
func (k *Kernel) move(in *instruction) (func(t *thread) error, error) {
	to, from := in.operands[0], in.operands[1]
	size, err := typeBytes(in.types[0])
	if err != nil {
		return nil, err
	}
	switch {
	case to.kind == 'v':
		value, err := k.read(from)
		bits := 8 * int(size) / len(to.list)
		return func(t *thread) error {
			v := value(t)
			for i, o := range to.list {
				t.r[o.index] = v >> (i * bits) & mask(bits)
			}
			return nil
		}, err
	case from.kind == 'v':
		bits := 8 * int(size) / len(from.list)
		var values []func(t *thread) uint64
		for _, o := range from.list {
			v, err := k.read(o)
			if err != nil {
				return nil, err
			}
			values = append(values, v)
		}
		return func(t *thread) error {
			v := uint64(0)
			for i := range values {
				v |= values[i](t) & mask(bits) << (i * bits)
			}
			t.r[to.index] = v
			return nil
		}, nil
	}
	value, err := k.read(from)
	return func(t *thread) error { t.r[to.index] = value(t) & mask(8*int(size)); return nil }, err
}

func mask(bits int) uint64 {
	if bits >= 64 {
		return ^uint64(0)
	}
	return 1<<bits - 1
}
