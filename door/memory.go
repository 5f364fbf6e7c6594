package door

import (
	"errors"
	"strings"
	"sync"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/gpuexec"
	"github.com/esperd/esperd/gpuexec/device"
)

// voteReasonMax is how much of a device's error stands in the log, in bytes.
const voteReasonMax = 1024

// devices is the device that this node's arenas lie on. It is opened for the
// first trainer that asks for an arena, and kept.
type devices struct {
	open func(uuid string) (device.Device, error)

	mu     sync.Mutex
	opened device.Device
}

var errNoDevice = errors.New("this esperd has no device: start it with --device auto, host or cuda (ESPERD_DEVICE)")

func (d *devices) get(uuid string) (device.Device, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.opened == nil {
		if d.open == nil {
			return nil, errNoDevice
		}
		opened, err := d.open(uuid)
		if err != nil {
			return nil, err
		}
		if opened == nil {
			return nil, errNoDevice
		}
		d.opened = opened
	}
	return d.opened, nil
}

func (d *devices) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.opened == nil {
		return nil
	}
	return d.opened.Close()
}

// memory is the executor of a track: what the stages mean for the seeds' memory,
// which is esperd's where the trainer has asked for an arena, and its own
// otherwise. It moves at fences only, with the answer that the trainer waits for.
type memory struct {
	mu      sync.Mutex
	device  device.Device // nil: no arena is asked for
	exec    *gpuexec.Executor
	pending api.Arena // what the trainer has not been told yet
	closed  bool      // the trainer is gone

	attested []*attested // what the trainer has handed in last, the latest last
}

// wantsArena takes note of what a trainer asks for when it connects.
func (s *Server) wantsArena(t *track, req *api.SessionRequest) *api.Problem {
	if !req.Arena {
		return nil
	}
	if s.replica.State().Round.Mode() == events.ModeObserve {
		return problemf(events.CodeInvalidInput, "arena: in the mode observe nothing is decided, so esperd cannot lay out the seeds' memory: connect without it, or in the mode keyed or follow")
	}
	d, err := s.devices.get(req.GPU)
	if err != nil {
		return problemf(events.CodeConfigMismatch, "arena: rank %d: %v", s.rank, err)
	}
	if req.GPU != "" && d.UUID() != "" && !strings.EqualFold(req.GPU, d.UUID()) {
		return problemf(events.CodeConfigMismatch, "arena: the trainer of rank %d is on GPU %s, this esperd's arenas are on %s: start it with --device auto, one esperd for each GPU", s.rank, req.GPU, d.UUID())
	}
	t.memory.mu.Lock()
	defer t.memory.mu.Unlock()
	t.memory.device = d
	return nil
}

// openMemory starts where a track is put: after the configuration, or at the last
// fence of a trainer that comes back, from whose entry all is rebuilt.
func (s *Server) openMemory(t *track) {
	m := &t.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shut()
	m.exec, m.closed, m.pending = gpuexec.New(gpuexec.Options{Run: t.cursor.Run, Model: t.model, Device: m.device}), false, api.Arena{}
	r := m.exec.At(t.fenced, t.fencedAt, false)
	s.takeReport(t, r, t.cursor.Cursor(t.model).Residency > 0)
}

// fenceMemory brings the memory to a fence, and says so in its answer.
func (s *Server) fenceMemory(t *track, found *matched, f *api.Fence) {
	m := &t.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.exec == nil || m.closed {
		return
	}
	r := m.exec.At(found.after.Model(t.model), found.index, rewinds(found.entry))
	f.ActiveSet, f.Differs = r.ActiveSet, s.differs(t, found)
	s.tellHeld(t, r.Held)
	for _, c := range r.Commands {
		f.Plan = append(f.Plan, api.Command{Op: c.Op.String(), Slot: c.Slot, Seed: c.Seed, Blueprint: c.Blueprint, Alpha: c.Alpha})
	}
	s.takeReport(t, r, found.after.Cursor(t.model).Residency > 0)
	if m.device != nil {
		told := m.pending
		f.Arena, m.pending = &told, api.Arena{}
	}
}

// takeReport votes, and keeps what the trainer is to be told at its next fence.
// It is called with the memory's mu held.
func (s *Server) takeReport(t *track, r *gpuexec.Report, resides bool) {
	p := &t.memory.pending
	for _, v := range r.Votes {
		if v.Ready && !resides {
			continue
		}
		vote := events.Voted{Round: t.round, Rank: s.rank, Model: t.model, Generation: t.memory.exec.Generation(), Slot: v.Slot, Seed: v.Seed, Failed: !v.Ready}
		if vote.Failed {
			vote.Reason = strings.ToValidUTF8(v.Reason[:min(len(v.Reason), voteReasonMax)], "")
		}
		s.tellVote(vote)
	}
	for _, l := range r.Lost {
		p.Lost = append(p.Lost, api.SeedRef{Slot: l.Slot, Seed: l.Seed})
	}
	p.Spans = nil
	for _, x := range r.Spans {
		p.Spans = append(p.Spans, api.Span{DType: x.DType, Offset: x.Offset, Elements: x.Elements, Learning: x.Learning})
	}
	p.Remap, p.Device = p.Remap || r.Remap, r.Device
	if r.Device != "" {
		s.log.Error("the device of the arena fails; the log goes on", "model", t.model, "error", r.Device)
	}
}

// close gives the memory back: the trainer is gone.
func (m *memory) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	m.shut()
}

// shut is called with mu held.
func (m *memory) shut() {
	if m.exec != nil {
		_ = m.exec.Close() // a device that fails has said so in a report
		m.exec = nil
	}
}
