package gpuexec

import (
	"crypto/rand"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/gpuexec/device"
	"github.com/esperd/esperd/gpuexec/element"
)

// Options say for whom an executor works.
type Options struct {
	Run   string // the run's id, a part of what parameters are keyed by
	Model string

	// Device holds the arena. Nil: none, and the trainer owns all memory; plans
	// and active sets are reported all the same. It is the caller's to close.
	Device device.Device
}

// An Executor keeps one model's arena as one rank's log says. Its methods are
// called inside calls that the rank's trainer waits in, and return when the
// device has finished; so nothing runs while the trainer uses its parameters.
//
// No error of a device leaves it: it is in the report, as a vote where it
// concerns a seed.
type Executor struct {
	opts Options

	mu       sync.Mutex
	at       *fsm.Model // what the device holds; nil: nothing
	index    uint64
	layout   *Layout
	arena    device.Arena // nil: none, or broken
	name     string       // the arena's
	back     *backing
	table    []byte        // what the arena's table is to be
	readback []byte        // as long, for what it is
	seats    map[int]*seat // by slot
	members  []member
	active   activeSum
	grads    [element.DTypes]gradients
	broken   error // the device as a whole
	closed   bool
	attached string // the trainer that has the arena
}

// A seat is a seed in its slot's memory.
type seat struct {
	SeedRef
	blueprint string
	ours      bool // the log names its tensors
	tensors   []Tensor
	ranges    []Range                // of its own
	grads     [element.DTypes]Range  // of them, the gradients
	elements  [element.DTypes]uint64 // how many parameters
	held      []Range                // of the backing: its own, and the gradients' hull when it came
	failed    error
	fresh     bool // came at this fence
	lost      bool
}

// New returns an executor that holds nothing yet.
func New(o Options) *Executor { return &Executor{opts: o, seats: map[int]*seat{}} }

// Fence brings the device to the model's state at a fence that the trainer is
// about to be answered. The first one rebuilds all there is, as Rebuild does, and
// so does one whose configuration is another: call it first with the state in
// which the trainer has configured the model, or to which it has come back.
func (x *Executor) Fence(s *fsm.State) *Report {
	return x.At(s.Model(x.opts.Model), s.Index, false)
}

// Rebuild does what Fence does, after a rewind: all contents are of another
// time. Seeds that have only germinated are initialised, the others are lost
// until the trainer has loaded them. A broken device is tried again.
func (x *Executor) Rebuild(s *fsm.State) *Report {
	return x.At(s.Model(x.opts.Model), s.Index, true)
}

// At does what Fence does, or Rebuild (anew), for the model as it is after the
// entry at index.
func (x *Executor) At(m *fsm.Model, index uint64, anew bool) *Report {
	x.mu.Lock()
	defer x.mu.Unlock()
	r := &Report{Index: index}
	if m == nil || m.Config == nil {
		return r
	}
	var altered []int
	r.Held, altered = x.held()
	arena, changes := x.back, x.back.count()
	var old map[int]*seat
	if anew = anew || x.at == nil || x.at.Config != m.Config && !reflect.DeepEqual(x.at.Config.Slots, m.Config.Slots); anew {
		old = x.begin(m)
	}
	r.Commands = Plan(x.at, m)
	touched := x.run(m, r, old)
	x.at, x.index = m, index
	for _, i := range altered {
		if i < m.Slots.Len() && !slices.Contains(touched, i) {
			touched = append(touched, i)
		}
	}
	x.settle(m, r, touched, anew)
	r.ActiveSet = x.active.digest()
	r.Spans = x.spans()
	r.Remap = x.back != arena || x.back.count() != changes
	if x.broken != nil {
		r.Device = x.broken.Error()
	}
	return r
}

// Generation returns the model's generation at the last fence; 0 before one.
func (x *Executor) Generation() uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.at == nil {
		return 0
	}
	return x.at.Generation
}

// Index returns the index of the last fence's entry.
func (x *Executor) Index() uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.index
}

// begin starts from nothing: with the arena there is, if it fits and works. It
// returns the seats of before, whose memory is still held.
func (x *Executor) begin(m *fsm.Model) map[int]*seat {
	old, slots := x.seats, m.Slots.Len()
	x.seats, x.members, x.active = map[int]*seat{}, make([]member, slots), activeSum{}
	for d := range x.grads {
		x.grads[d] = gradients{present: newSlotSet(slots), learning: newSlotSet(slots)}
	}
	fits := x.at != nil && reflect.DeepEqual(x.at.Config.Slots, m.Config.Slots)
	x.at = nil
	if x.opts.Device == nil || x.closed || fits && x.usable() {
		return old
	}
	lost := x.closeArena()
	if x.broken = x.open(m); x.broken != nil {
		x.broken = errors.Join(x.broken, lost)
	}
	return nil
}

// open lays the model out, and makes an arena with an empty table.
func (x *Executor) open(m *fsm.Model) error {
	l, err := NewLayout(m.Config.Slots)
	if err != nil {
		return fmt.Errorf("lay out model %s: %w", m.Name, err)
	}
	a, err := x.opts.Device.NewArena(l.Size)
	if err != nil {
		return fmt.Errorf("arena of model %s on %s: %w", m.Name, x.opts.Device.Name(), err)
	}
	x.layout, x.arena, x.name, x.back = l, a, rand.Text(), newBacking(a)
	x.table = element.NewTable(l.Slots())
	x.readback = make([]byte, len(x.table))
	if err = x.back.hold(l.Table); err == nil {
		_, err = a.WriteAt(x.table, 0)
	}
	if err != nil {
		return fmt.Errorf("table of model %s on %s: %w", m.Name, x.opts.Device.Name(), errors.Join(err, x.closeArena()))
	}
	return nil
}

func (x *Executor) closeArena() error {
	if x.arena == nil {
		return nil
	}
	err := x.arena.Close()
	x.layout, x.arena, x.back = nil, nil, nil
	return err
}

// usable reports whether there is an arena that works.
func (x *Executor) usable() bool { return x.arena != nil && x.broken == nil }

// Close gives the arena back. A trainer's own mappings stay its own.
func (x *Executor) Close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	err := x.closeArena()
	x.closed = true
	x.fail(errors.New("the executor is closed"))
	return err
}

// Attach gives the arena to a trainer, named as people know it. One trainer has
// it at a time; the same one may take it again, as after a Remap.
func (x *Executor) Attach(trainer string) (*Offer, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case x.broken != nil:
		return nil, fmt.Errorf("attach: %w", x.broken)
	case x.arena == nil:
		return nil, fmt.Errorf("attach: model %s has no arena here: expected a device and a configured model; run esperd with --device, and configure first", x.opts.Model)
	case x.attached != "" && x.attached != trainer:
		return nil, fmt.Errorf("attach: the arena of model %s is attached to %s, and a second trainer would write into its parameters; close that one first", x.opts.Model, x.attached)
	}
	x.attached = trainer
	d := x.opts.Device
	return &Offer{Arena: x.name, Kind: d.Kind(), UUID: d.UUID(), Size: x.arena.Size(), Granularity: x.arena.Granularity(), Chunks: x.arena.Chunks()}, nil
}

// Detach takes the arena from a trainer that is gone. What it left in memory
// stays there.
func (x *Executor) Detach(trainer string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.attached == trainer {
		x.attached = ""
	}
}

// ErrNoRoom says that a seed has no memory on this rank, as its vote does.
var ErrNoRoom = errors.New("has no room here")

// View returns what the module in a slot is bound to, after comparing the
// trainer's tensors with the log's. Its mismatch is a *TensorError.
func (x *Executor) View(slot string, have []events.Tensor) (*View, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.at == nil {
		return nil, fmt.Errorf("slot %.40q: model %s has met no fence yet", slot, x.opts.Model)
	}
	i, ok := x.at.Config.Slot(slot)
	if !ok {
		return nil, fmt.Errorf("slot %.40q: model %s has none of that name", slot, x.opts.Model)
	}
	s := x.seats[i]
	switch {
	case s == nil:
		return nil, fmt.Errorf("slot %s holds no seed at this fence: expected one that has germinated before it", slot)
	case x.broken != nil:
		return nil, fmt.Errorf("slot %s: %w", slot, x.broken)
	case x.arena == nil:
		return nil, fmt.Errorf("slot %s: this esperd has no device; the seed's memory is the trainer's own", slot)
	case s.failed != nil:
		return nil, fmt.Errorf("slot %s: seed %d %w: %w", slot, s.Seed, ErrNoRoom, s.failed)
	case !s.ours:
		return nil, fmt.Errorf("slot %s: the log names no tensors of blueprint %s, so its memory is the trainer's own; list them in the slot's blueprints", slot, s.blueprint)
	}
	if err := compareTensors(slot, s.blueprint, s.tensors, have); err != nil {
		return nil, err
	}
	now := standingOf(x.at, i)
	return &View{SeedRef: s.SeedRef, Blueprint: s.blueprint, Tensors: s.tensors, Entry: element.HeaderBytes + uint64(i)*element.EntryBytes,
		Lost: s.lost, Flags: now.flags, Alpha: now.alpha}, nil
}

// Loaded says that the trainer has loaded a seed's contents again.
func (x *Executor) Loaded(slot string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, s := range x.seats {
		if s.Slot == slot {
			s.lost = false
		}
	}
}

// A TensorError says that a trainer's module is not what the log has: the door
// answers config-mismatch.
type TensorError struct{ Text string }

func (e *TensorError) Error() string { return e.Text }

func compareTensors(slot, blueprint string, want []Tensor, have []events.Tensor) error {
	bad := func(format string, args ...any) error {
		return &TensorError{fmt.Sprintf("slot %s: blueprint %s: ", slot, blueprint) + fmt.Sprintf(format, args...)}
	}
	for i := range min(len(want), len(have)) {
		w, h := &want[i], &have[i]
		switch {
		case w.Name != h.Name:
			return bad("tensor %d is %s in the log, %.100s here", i, w.Name, h.Name)
		case w.Type != h.DType:
			return bad("tensor %s is %s in the log, %.40s here", w.Name, w.Type, h.DType)
		case !slices.Equal(w.Shape, h.Shape):
			return bad("tensor %s has the shape %v in the log, %v here", w.Name, w.Shape, h.Shape)
		}
	}
	if len(want) != len(have) {
		return bad("%d tensors in the log, %d here", len(want), len(have))
	}
	return nil
}
