package gpuexec

import (
	"fmt"
	"math/bits"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/gpuexec/device"
	"github.com/esperd/esperd/gpuexec/element"
)

// Alignments, in bytes.
const (
	tensorAlign = 256     // of a tensor, as torch's own allocator aligns at least
	planeAlign  = 2 << 20 // of a plane: what devices give memory in multiples of
)

// MaxArenaBytes is the most addresses that an arena takes: a quarter of what a
// process has on amd64.
const MaxArenaBytes = 1 << 45

// A Plane is one of the copies of the parameters that an arena holds.
type Plane uint8

// The planes, in the order in which they stand in the arena. Parameters and
// gradients lie alike inside theirs, in their own element type.
const (
	PlaneParameter Plane = iota
	PlaneGradient
	PlaneMaster // float32 copies of the tensors that declare one

	planes = 3
)

// A Range is a range of an arena, in bytes.
type Range struct {
	Offset uint64 `json:"offset"`
	Size   uint64 `json:"size"`
}

// End returns the first offset behind it.
func (r Range) End() uint64 { return r.Offset + r.Size }

// hull returns the smallest range around both; an empty one adds nothing.
func (r Range) hull(o Range) Range {
	if r.Size == 0 {
		return o
	}
	if o.Size == 0 {
		return r
	}
	start := min(r.Offset, o.Offset)
	return Range{start, max(r.End(), o.End()) - start}
}

// A Layout says where everything of a model lies in its arena. It is a function
// of the model's configuration alone, which is in the log: a slot's addresses
// are the same on every rank, for every seed of the slot, after every restart
// and rewind, so nothing that was ever bound to them has to be bound anew.
//
//	table | parameters | gradients | master copies
//
// Each plane has a section per element type (of masters there is one), and a
// section a region per slot, in slot order, that holds the largest of the slot's
// blueprints. So the gradients of all seeds that learn lie inside one range per
// element type; what lies between them is zero.
type Layout struct {
	Table  Range
	Planes [planes]Range
	Size   uint64 // of the arena

	slots []slotLayout
}

type slotLayout struct {
	config  *events.SlotConfig
	regions [element.DTypes]Range // in the parameter plane, from its start
	master  Range                 // in the master plane, from its start
}

// A Tensor is one parameter of a seed, in its arena.
type Tensor struct {
	Name     string        `json:"name"`
	DType    element.DType `json:"-"`
	Type     string        `json:"dtype"`
	Shape    []uint64      `json:"shape"`
	Elements uint64        `json:"elements"`

	Parameter uint64  `json:"parameter"`        // offsets in the arena, in bytes
	Gradient  uint64  `json:"gradient"`         //
	Master    *uint64 `json:"master,omitempty"` // nil: none is declared

	init *events.Init
}

// Bytes returns the size of the parameter.
func (t *Tensor) Bytes() uint64 { return t.Elements * t.DType.Size() }

// NewLayout lays out a model. Errors name the slot, blueprint and tensor that
// do not fit.
func NewLayout(slots []events.SlotConfig) (*Layout, error) {
	l := &Layout{Table: Range{0, element.TableBytes(len(slots))}, slots: make([]slotLayout, len(slots))}
	var at [element.DTypes]uint64 // within their sections
	var master uint64
	for i := range slots {
		l.slots[i].config = &slots[i]
		sizes, masters, err := capacity(&slots[i])
		if err != nil {
			return nil, fmt.Errorf("slot %s: %w", slots[i].Name, err)
		}
		for d := range sizes {
			l.slots[i].regions[d] = Range{at[d], sizes[d]}
			at[d] += sizes[d]
		}
		l.slots[i].master = Range{master, masters}
		master += masters
		if total := at[0] + at[1] + at[2] + master; total > MaxArenaBytes {
			return nil, fmt.Errorf("slot %s: expected at most %d bytes for all slots of a plane, got %d with this one", slots[i].Name, uint64(MaxArenaBytes), total)
		}
	}
	section := uint64(0)
	for d := range at {
		for i := range l.slots {
			l.slots[i].regions[d].Offset += section
		}
		section += at[d]
	}
	next := alignUp(l.Table.Size, planeAlign)
	for p, size := range [planes]uint64{section, section, master} {
		l.Planes[p] = Range{next, size}
		next = alignUp(next+size, planeAlign)
	}
	l.Size = next
	if l.Size > MaxArenaBytes {
		return nil, fmt.Errorf("the arena: expected at most %d bytes, got %d; name fewer or smaller blueprints", uint64(MaxArenaBytes), l.Size)
	}
	return l, nil
}

// capacity returns what the largest of a slot's blueprints take.
func capacity(s *events.SlotConfig) (sizes [element.DTypes]uint64, master uint64, err error) {
	for j := range s.Blueprints {
		b := &s.Blueprints[j]
		var need [element.DTypes]uint64
		var needMaster uint64
		for k := range b.Tensors {
			t, err := newTensor(&b.Tensors[k])
			if err != nil {
				return sizes, 0, fmt.Errorf("blueprint %s: tensor %s: %w", b.Name, b.Tensors[k].Name, err)
			}
			need[t.DType] += alignUp(t.Bytes(), tensorAlign)
			if t.Master != nil {
				needMaster += alignUp(4*t.Elements, tensorAlign)
			}
			if total := need[0] + need[1] + need[2] + needMaster; total > MaxArenaBytes {
				return sizes, 0, fmt.Errorf("blueprint %s: expected at most %d bytes, got %d with tensor %s", b.Name, uint64(MaxArenaBytes), total, t.Name)
			}
		}
		for d := range sizes {
			sizes[d] = max(sizes[d], need[d])
		}
		master = max(master, needMaster)
	}
	return sizes, master, nil
}

// newTensor reads a tensor of a blueprint, without its place.
func newTensor(t *events.Tensor) (*Tensor, error) {
	d, err := element.ParseDType(t.DType)
	if err != nil {
		return nil, err
	}
	out := &Tensor{Name: t.Name, DType: d, Type: t.DType, Shape: t.Shape, Elements: 1, init: t.Init}
	for i, n := range t.Shape {
		hi, lo := bits.Mul64(out.Elements, n)
		if n == 0 {
			return nil, fmt.Errorf("shape %v: expected dimensions of at least 1, got 0 at %d", t.Shape, i)
		}
		if hi != 0 || lo > MaxArenaBytes/4 {
			return nil, fmt.Errorf("shape %v: expected at most %d elements", t.Shape, uint64(MaxArenaBytes/4))
		}
		out.Elements = lo
	}
	if t.Master {
		if d == element.Float32 {
			return nil, fmt.Errorf("a master copy of float32: expected one of float16 or bfloat16 only")
		}
		out.Master = new(uint64)
	}
	if _, err := out.fill(element.Source{}); err != nil {
		return nil, err
	}
	return out, nil
}

func alignUp(n, to uint64) uint64 { return (n + to - 1) / to * to }

// Slots returns the number of slots.
func (l *Layout) Slots() int { return len(l.slots) }

// Seed returns the tensors of a blueprint in slot i, in the blueprint's order;
// none of a blueprint that names none, or that the slot does not list: such a
// seed's memory is its trainer's.
func (l *Layout) Seed(i int, blueprint string) []Tensor {
	s := &l.slots[i]
	for j := range s.config.Blueprints {
		if s.config.Blueprints[j].Name == blueprint {
			return l.place(s, s.config.Blueprints[j].Tensors)
		}
	}
	return nil
}

func (l *Layout) place(s *slotLayout, list []events.Tensor) []Tensor {
	var at [element.DTypes]uint64
	for d := range at {
		at[d] = s.regions[d].Offset
	}
	master := l.Planes[PlaneMaster].Offset + s.master.Offset
	out := make([]Tensor, len(list))
	for k := range list {
		t, err := newTensor(&list[k])
		if err != nil {
			panic(err) // NewLayout has read it
		}
		t.Parameter = l.Planes[PlaneParameter].Offset + at[t.DType]
		t.Gradient = l.Planes[PlaneGradient].Offset + at[t.DType]
		at[t.DType] += alignUp(t.Bytes(), tensorAlign)
		if t.Master != nil {
			*t.Master = master
			master += alignUp(4*t.Elements, tensorAlign)
		}
		out[k] = *t
	}
	return out
}

// Regions returns the ranges of slot i that are not empty, in all planes.
func (l *Layout) Regions(i int) []Range {
	var out []Range
	s := &l.slots[i]
	for _, p := range []Plane{PlaneParameter, PlaneGradient} {
		for _, r := range s.regions {
			if r.Size > 0 {
				out = append(out, Range{l.Planes[p].Offset + r.Offset, r.Size})
			}
		}
	}
	if s.master.Size > 0 {
		out = append(out, Range{l.Planes[PlaneMaster].Offset + s.master.Offset, s.master.Size})
	}
	return out
}

// fill returns how the parameter is initialised; its offset is the parameter's.
func (t *Tensor) fill(s element.Source) (fill device.Fill, err error) {
	fill = device.Fill{Offset: t.Parameter, Elements: t.Elements, DType: t.DType}
	switch {
	case t.init == nil:
	case t.init.Rule == events.InitUniform:
		fill.Uniform, fill.Source = true, s
		fill.Scale, err = element.Scale(t.init.Value, t.DType)
	case t.init.Rule == events.InitConstant:
		fill.Bits, err = element.Constant(t.init.Value, t.DType)
	default:
		err = fmt.Errorf("init rule %.40q: expected %s or %s", t.init.Rule, events.InitConstant, events.InitUniform)
	}
	return fill, err
}

// masterFill returns how the master copy is: the same numbers, not rounded.
func (t *Tensor) masterFill(f device.Fill) device.Fill {
	f.Offset, f.DType = *t.Master, element.Float32
	if !f.Uniform && t.init != nil {
		f.Bits = element.Float32.Bits(float32(t.init.Value))
	}
	return f
}

// Initial returns the first n bytes that a parameter of a new seed has, whole
// elements: what every rank's arena begins with.
func Initial(p element.Parameter, spec events.Tensor, n uint64) ([]byte, error) {
	t, err := newTensor(&spec)
	if err != nil {
		return nil, err
	}
	f, err := t.fill(p.Source())
	if err != nil {
		return nil, err
	}
	b := make([]byte, min(n/f.DType.Size()*f.DType.Size(), t.Bytes()))
	if f.Uniform {
		element.FillUniform(b, f.DType, f.Source, 0, f.Scale)
	} else {
		element.FillConstant(b, f.DType, f.Bits)
	}
	return b, nil
}
