package gpuexec

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/gpuexec/device"
	"github.com/esperd/esperd/gpuexec/element"
)

// run executes the report's commands and returns the slots that they name, in
// the order in which they were first named. Old are seats to give up once the
// new ones have their memory, so that what both have stays where it is.
func (x *Executor) run(m *fsm.Model, r *Report, old map[int]*seat) []int {
	var touched []int
	seen := map[int]bool{}
	touch := func(i int) {
		if !seen[i] {
			seen[i] = true
			touched = append(touched, i)
		}
	}
	for _, i := range slices.Sorted(maps.Keys(old)) {
		x.zero(old[i])
		touch(i)
	}
	for _, c := range r.Commands {
		touch(c.slot)
		x.command(m, c)
	}
	for _, i := range slices.Sorted(maps.Keys(old)) {
		x.release(old[i])
	}
	return touched
}

func (x *Executor) command(m *fsm.Model, c Command) {
	s := x.seats[c.slot]
	switch c.Op {
	case OpReserve:
		s = x.newSeat(m, c)
		x.seats[c.slot] = s
		if x.opts.Device != nil && s.ours {
			s.failed = x.reserve(c.slot, s)
		}
	case OpInitialise:
		x.initialise(m, c.slot, s)
	case OpFreeze:
		x.zeroGradients(s)
		x.learning(c.slot, s, false)
	case OpThaw:
		x.learning(c.slot, s, true)
	case OpZero:
		x.zero(s)
	case OpRelease:
		x.learning(c.slot, s, false)
		x.absent(c.slot)
		x.release(s)
		delete(x.seats, c.slot)
	}
	// What the table says of activity and alpha is written at once, by settle.
}

func (x *Executor) newSeat(m *fsm.Model, c Command) *seat {
	s := &seat{SeedRef: SeedRef{c.Slot, c.Seed}, blueprint: c.Blueprint, fresh: true}
	s.ours = slices.ContainsFunc(m.Config.Slots[c.slot].Blueprints, func(b events.Blueprint) bool {
		return b.Name == c.Blueprint && len(b.Tensors) > 0
	})
	if x.layout == nil {
		return s
	}
	s.tensors = x.layout.Seed(c.slot, c.Blueprint)
	s.ranges = rangesOf(s.tensors)
	for i := range s.tensors {
		t := &s.tensors[i]
		s.grads[t.DType] = s.grads[t.DType].hull(Range{t.Gradient, t.Bytes()})
		s.elements[t.DType] += t.Elements
	}
	return s
}

// rangesOf joins the tensors' memory, with what pads them, into few ranges.
func rangesOf(list []Tensor) []Range {
	var all []Range
	for i := range list {
		t := &list[i]
		n := alignUp(t.Bytes(), tensorAlign)
		all = append(all, Range{t.Parameter, n}, Range{t.Gradient, n})
		if t.Master != nil {
			all = append(all, Range{*t.Master, alignUp(4*t.Elements, tensorAlign)})
		}
	}
	slices.SortFunc(all, func(a, b Range) int {
		if a.Offset < b.Offset {
			return -1
		}
		return 1
	})
	out := all[:0]
	for _, r := range all {
		if n := len(out); n > 0 && out[n-1].End() == r.Offset {
			out[n-1].Size += r.Size
		} else {
			out = append(out, r)
		}
	}
	return slices.Clone(out)
}

// reserve takes the seat's memory, and the gradients' between its and those of
// the others: a span over all of them must have memory everywhere.
func (x *Executor) reserve(i int, s *seat) error {
	if !x.usable() {
		return x.broken
	}
	want := slices.Clone(s.ranges)
	for d := range x.grads {
		if s.grads[d].Size > 0 {
			want = append(want, x.hull(x.grads[d].present, d).hull(s.grads[d]))
		}
	}
	for _, r := range want {
		if err := x.back.hold(r); err != nil {
			return errors.Join(x.note(fmt.Errorf("%d bytes for %s in slot %s: %w", r.Size, s.blueprint, s.Slot, err)), x.giveUp(s))
		}
		s.held = append(s.held, r)
	}
	for _, r := range s.ranges {
		if err := x.arena.Zero(r.Offset, r.Size); err != nil {
			return errors.Join(x.note(err), x.giveUp(s))
		}
	}
	for d := range x.grads {
		x.grads[d].present.put(i, s.grads[d].Size > 0)
	}
	return nil
}

func (x *Executor) giveUp(s *seat) error {
	var errs []error
	for _, r := range s.held {
		errs = append(errs, x.note(x.back.release(r)))
	}
	s.held = nil
	return errors.Join(errs...)
}

// note remembers an error that concerns the whole device.
func (x *Executor) note(err error) error {
	if errors.Is(err, device.ErrLost) && x.broken == nil {
		x.broken = err
	}
	return err
}

func (x *Executor) has(s *seat) bool { return s != nil && s.failed == nil && x.usable() }

func (x *Executor) initialise(m *fsm.Model, slot int, s *seat) {
	if !x.has(s) {
		return
	}
	for i := range s.tensors {
		t := &s.tensors[i]
		p := element.Parameter{Run: x.opts.Run, Model: m.Name, Generation: m.Generation, Slot: s.Slot, Germination: s.Seed, Tensor: t.Name}
		f, err := t.fill(p.Source())
		if err == nil {
			err = x.arena.Fill(f)
		}
		if err == nil && t.Master != nil {
			err = x.arena.Fill(t.masterFill(f))
		}
		if err != nil {
			s.failed = errors.Join(x.note(fmt.Errorf("initialise %s in slot %s: %w", t.Name, s.Slot, err)), x.giveUp(s))
			x.absent(slot)
			return
		}
	}
}

func (x *Executor) zero(s *seat) {
	if !x.has(s) {
		return
	}
	for _, r := range s.ranges {
		x.fail(x.arena.Zero(r.Offset, r.Size))
	}
}

func (x *Executor) zeroGradients(s *seat) {
	if !x.has(s) {
		return
	}
	for _, r := range s.grads {
		if r.Size > 0 {
			x.fail(x.arena.Zero(r.Offset, r.Size))
		}
	}
}

func (x *Executor) release(s *seat) {
	if x.has(s) {
		x.fail(x.giveUp(s))
	}
}

// fail takes an error that no seed's vote can carry as one of the device.
func (x *Executor) fail(err error) {
	if err != nil && x.broken == nil {
		x.broken = err
	}
}

// settle writes the table, waits for the device, and says what came of it.
// Anew says that what has learned has lost its contents.
func (x *Executor) settle(m *fsm.Model, r *Report, touched []int, anew bool) {
	var updates []element.Update
	for _, i := range touched {
		x.active.remove(x.members[i])
		x.members[i] = memberOf(m, i)
		x.active.add(x.members[i])
		updates = append(updates, element.Update{Slot: uint32(i), Entry: x.entry(m, i)})
	}
	if x.usable() && len(updates) > 0 {
		x.fail(x.arena.Table(m.Slots.Len(), updates, r.Index))
		element.WriteTable(x.table, updates, r.Index)
	}
	if x.usable() {
		x.fail(x.arena.Sync())
	}
	if x.opts.Device == nil {
		return
	}
	for _, i := range touched {
		s := x.seats[i]
		if s == nil || !s.fresh || !s.ours {
			continue
		}
		s.fresh = false
		if err := firstOf(x.broken, s.failed); err != nil {
			r.Votes = append(r.Votes, Vote{s.SeedRef, false, err.Error()})
			continue
		}
		r.Votes = append(r.Votes, Vote{s.SeedRef, true, ""})
		if anew && standingOf(m, i).is(element.Active) {
			s.lost = true
			r.Lost = append(r.Lost, s.SeedRef)
		}
	}
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// entry is what the table says of slot i: nothing of a seed without memory.
func (x *Executor) entry(m *fsm.Model, i int) element.Entry {
	s := x.seats[i]
	if s == nil || s.failed != nil {
		return element.Entry{}
	}
	now := standingOf(m, i)
	e := element.Entry{Alpha: float32(now.alpha), Flags: now.flags}
	for j := range s.tensors {
		if e.Elements += s.tensors[j].Elements; j == 0 {
			e.Offset = s.tensors[j].Parameter
		}
	}
	return e
}

// gradients are the slots whose seeds have gradients of one element type.
type gradients struct {
	present  slotSet // all that have memory
	learning slotSet
	elements uint64 // of those that learn
}

// learning enters that a seat's parameters learn, or that they do not.
func (x *Executor) learning(i int, s *seat, learns bool) {
	if !x.has(s) {
		return
	}
	for d := range x.grads {
		g := &x.grads[d]
		if s.grads[d].Size == 0 || g.learning.has(i) == learns {
			continue
		}
		g.learning.put(i, learns)
		if learns {
			g.elements += s.elements[d]
		} else {
			g.elements -= s.elements[d]
		}
	}
}

// absent enters that a slot has no gradients any more.
func (x *Executor) absent(i int) {
	for d := range x.grads {
		x.grads[d].present.put(i, false)
	}
}

// hull returns the range around the gradients of a set of slots. They lie in
// slot order, so its ends are those of the first and the last.
func (x *Executor) hull(set slotSet, d int) Range {
	first, last, ok := set.ends()
	if !ok {
		return Range{}
	}
	return x.seats[first].grads[d].hull(x.seats[last].grads[d])
}

func (x *Executor) spans() []Span {
	if !x.usable() {
		return nil
	}
	var out []Span
	for d := range x.grads {
		if r, t := x.hull(x.grads[d].learning, d), element.DType(d); r.Size > 0 {
			out = append(out, Span{DType: t.String(), Offset: r.Offset, Elements: r.Size / t.Size(), Learning: x.grads[d].elements})
		}
	}
	return out
}

// Attest fingerprints all parameters that the arena holds, in slot order. Seeds
// that wait, in the log, for room on all ranks are left out, on every rank. partial
// says that this rank alone leaves some out: of seeds that have no memory here, or
// are lost and hold what no rank means.
func (x *Executor) Attest() (out []Attestation, partial bool, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.usable() {
		return nil, true, x.broken
	}
	var segments []element.Segment
	var tensors []*Tensor
	for _, i := range slices.Sorted(maps.Keys(x.seats)) {
		s := x.seats[i]
		if seed := x.at.Slots.At(i).Seed; seed != nil && seed.Absent {
			continue
		}
		if s.failed != nil || s.lost {
			partial = true
			continue
		}
		for j := range s.tensors {
			t := &s.tensors[j]
			tensors = append(tensors, t)
			segments = append(segments, element.Segments(t.Parameter, t.Bytes())...)
			out = append(out, Attestation{SeedRef: s.SeedRef, Tensor: t.Name})
		}
	}
	sums, err := x.arena.Sums(segments)
	if err != nil {
		x.note(err)
		return nil, true, fmt.Errorf("fingerprint model %s on %s: %w", x.opts.Model, x.opts.Device.Name(), err)
	}
	for k, t := range tensors {
		var total element.Sum
		for range element.Segments(t.Parameter, t.Bytes()) {
			total, sums = total.Add(sums[0]), sums[1:]
		}
		out[k].Fingerprint = total.Finish(t.Type, t.Shape, t.Bytes())
	}
	return out, partial, nil
}
