//go:build linux && !nocuda && (amd64 || arm64)

package cuda

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/esperd/esperd/gpuexec/device"
	"github.com/esperd/esperd/gpuexec/element"
	"github.com/esperd/esperd/gpuexec/kernels"
)

// An arena is a reserved range of the GPU's addresses. Chunks are allocations
// mapped into it and exported as file descriptors, which a trainer maps in its
// own process; the memory is free when both have unmapped it.
//
// Where a driver exports none, the whole arena is one allocation from the first
// chunk on, with a handle for cuIpcOpenMemHandle.
type arena struct {
	g      *gpu
	size   uint64
	grain  uint64 // the whole size without file descriptors
	m      device.Map
	base   uint64            // 0: closed, or without memory yet (IPC)
	handle map[uint64]uint64 // allocations, by offset
	closed bool
}

const ipcGrain = 2 << 20 // what the driver allocates in multiples of

// prop describes memory that can be exported.
func (g *gpu) prop() *allocationProp {
	return &allocationProp{kind: pinned, handles: asFD, location: location{onDevice, g.dev}}
}

func (g *gpu) NewArena(size uint64) (device.Arena, error) {
	if size == 0 || size > 1<<56 {
		err := fmt.Errorf("arena of %d bytes: expected 1 to 2^56", size)
		if size > 0 {
			err = fmt.Errorf("%w: %w", device.ErrOutOfMemory, err)
		}
		return nil, err
	}
	a := &arena{g: g, handle: map[uint64]uint64{}}
	err := a.do(func() error {
		if g.grain == 0 {
			a.size = (size + ipcGrain - 1) / ipcGrain * ipcGrain
			a.grain = a.size
			return nil
		}
		a.grain = g.grain
		a.size = (size + a.grain - 1) / a.grain * a.grain
		return g.check(fmt.Sprintf("reserve %d bytes of addresses", a.size), g.driver.Reserve(&a.base, uintptr(a.size), uintptr(a.grain), 0, 0))
	})
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.arenas = append(g.arenas, a)
	return a, nil
}

// do runs f on the GPU's thread, unless the GPU is lost or the arena closed.
func (a *arena) do(f func() error) error {
	return a.g.thread.do(func() error {
		switch {
		case a.g.lost != nil:
			return a.g.lost
		case a.closed:
			return fmt.Errorf("%w: the arena is closed", device.ErrLost)
		}
		return f()
	})
}

func (a *arena) Size() uint64        { return a.size }
func (a *arena) Granularity() uint64 { return a.grain }

func (a *arena) Back(offset, size uint64) error {
	return a.do(func() error {
		if offset%a.grain != 0 || size == 0 || size%a.grain != 0 || offset > a.size || size > a.size-offset {
			return fmt.Errorf("chunk at %d, %d bytes: expected multiples of %d inside %d bytes", offset, size, a.grain, a.size)
		}
		if _, err := a.m.Add(device.Chunk{Offset: offset, Size: size, FD: -1}); err != nil {
			return err
		}
		a.m.Remove(offset, size) // it is entered when it is whole
		c := device.Chunk{Offset: offset, Size: size, FD: -1}
		var err error
		if a.g.grain == 0 {
			err = a.allocate(&c)
		} else {
			err = a.mapIn(&c)
		}
		if err != nil {
			return err
		}
		_, err = a.m.Add(c)
		return err
	})
}

// mapIn maps new memory, zeroed, and exports it. What fails is undone.
func (a *arena) mapIn(c *device.Chunk) (err error) {
	g, d := a.g, a.g.driver
	at, size := a.base+c.Offset, uintptr(c.Size)
	var undo []func() error
	defer func() {
		for i := len(undo) - 1; i >= 0 && err != nil; i-- {
			err = errors.Join(err, undo[i]())
		}
	}()
	var h uint64
	if err = g.check(fmt.Sprintf("create %d bytes", c.Size), d.Create(&h, size, g.prop(), 0)); err != nil {
		return err
	}
	undo = append(undo, func() error { return g.check("release memory", d.Drop(h)) })
	if err = g.check("map memory", d.Map(at, size, 0, h, 0)); err != nil {
		return err
	}
	undo = append(undo, func() error { return g.check("unmap memory", d.Unmap(at, size)) })
	if err = g.check("set access", d.Access(at, size, &accessDesc{location{onDevice, g.dev}, readWrite}, 1)); err != nil {
		return err
	}
	if err = g.check("zero", d.Set32(at, 0, size/4, g.stream)); err != nil {
		return err
	}
	if err = g.sync(); err != nil {
		return err
	}
	var fd int32
	if err = g.check("export memory", d.Export(&fd, h, asFD, 0)); err != nil {
		return err
	}
	unix.CloseOnExec(int(fd))
	c.FD = int(fd)
	a.handle[c.Offset] = h
	return nil
}

// allocate is mapIn for drivers without file descriptors.
func (a *arena) allocate(c *device.Chunk) error {
	g, d := a.g, a.g.driver
	var p uint64
	if err := g.check(fmt.Sprintf("allocate %d bytes", c.Size), d.Alloc(&p, uintptr(c.Size))); err != nil {
		return err
	}
	var h [64]byte
	err := g.check("export memory", d.IPC(&h, p))
	if err == nil {
		err = g.check("zero", d.Set32(p, 0, uintptr(c.Size/4), g.stream))
	}
	if err == nil {
		err = g.sync()
	}
	if err != nil {
		return errors.Join(err, g.check("free memory", d.Free(p)))
	}
	a.base, c.IPC = p, h[:]
	return nil
}

func (a *arena) Drop(offset, size uint64) error {
	return a.do(func() error {
		c, err := a.m.Remove(offset, size)
		if err != nil {
			return err
		}
		if err := a.g.sync(); err != nil {
			return err
		}
		return a.drop(c)
	})
}

func (a *arena) drop(c device.Chunk) error {
	g, d := a.g, a.g.driver
	if c.IPC != nil {
		p := a.base
		a.base = 0
		return g.check("free memory", d.Free(p))
	}
	h := a.handle[c.Offset]
	delete(a.handle, c.Offset)
	return errors.Join(unix.Close(c.FD), g.check("unmap memory", d.Unmap(a.base+c.Offset, uintptr(c.Size))), g.check("release memory", d.Drop(h)))
}

func (a *arena) Chunks() (out []device.Chunk) {
	a.g.thread.do(func() error { out = a.m.All(); return nil })
	return out
}

func (a *arena) Fill(f device.Fill) error {
	return a.do(func() error {
		if err := a.m.Check("fill", f.Offset, f.Bytes()); err != nil {
			return err
		}
		return a.g.fill(a.base, f)
	})
}

func (a *arena) Zero(offset, size uint64) error {
	return a.do(func() error {
		if err := a.m.Check("zero", offset, size); err != nil || size == 0 {
			return err
		}
		if size%4 == 0 {
			return a.g.check("zero", a.g.driver.Set32(a.base+offset, 0, uintptr(size/4), a.g.stream))
		}
		return a.g.check("zero", a.g.driver.Set8(a.base+offset, 0, uintptr(size), a.g.stream))
	})
}

func (a *arena) Table(slots int, updates []element.Update, generation uint64) error {
	return a.do(func() error {
		if err := a.m.Check("table", 0, element.TableBytes(slots)); err != nil {
			return err
		}
		for first := true; first || len(updates) > 0; first = false {
			n := min(len(updates), element.MaxUpdates)
			err := a.g.launch(kernels.Table, 1, element.MaxUpdates, kernels.U64(a.base), kernels.U64(a.base+element.HeaderBytes), kernels.U32(uint32(slots)),
				kernels.Updates(updates[:n], generation))
			if err != nil {
				return err
			}
			// The next launch's parameters take the place of this one's, which the
			// driver has copied.
			updates = updates[n:]
		}
		return nil
	})
}

func (a *arena) Sums(segments []element.Segment) ([]element.Sum, error) {
	out := make([]element.Sum, len(segments))
	err := a.do(func() error {
		for _, s := range segments {
			if err := a.m.Check("fingerprint", s.Offset, s.Bytes); err != nil {
				return err
			}
			if s.Bytes > element.SegmentBytes {
				return fmt.Errorf("fingerprint: a segment of %d bytes: expected at most %d", s.Bytes, element.SegmentBytes)
			}
		}
		for at := 0; at < len(segments); at += maxSegments {
			end := min(at+maxSegments, len(segments))
			if err := a.g.sums(a.base, segments[at:end], out[at:end]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (a *arena) Sync() error { return a.do(a.g.sync) }

func (a *arena) ReadAt(p []byte, offset int64) (int, error) {
	return a.copy("read", p, offset, func(at uint64) result { return a.g.driver.ToHost(&p[0], at, uintptr(len(p)), a.g.stream) })
}

func (a *arena) WriteAt(p []byte, offset int64) (int, error) {
	return a.copy("write", p, offset, func(at uint64) result { return a.g.driver.ToGPU(at, &p[0], uintptr(len(p)), a.g.stream) })
}

func (a *arena) copy(what string, p []byte, offset int64, start func(at uint64) result) (int, error) {
	err := a.do(func() error {
		if err := a.m.Check(what, uint64(offset), uint64(len(p))); err != nil || len(p) == 0 {
			return err
		}
		if err := a.g.check(what, start(a.base+uint64(offset))); err != nil {
			return err
		}
		return a.g.sync()
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// Copy copies inside the arena: what figures are held against.
func (a *arena) Copy(to, from, size uint64) error {
	return a.do(func() error {
		if err := errors.Join(a.m.Check("copy", from, size), a.m.Check("copy", to, size)); err != nil {
			return err
		}
		return a.g.check("copy", a.g.driver.Copy(a.base+to, a.base+from, uintptr(size), a.g.stream))
	})
}

// Close gives the memory back, on a GPU that is lost as far as it can be.
func (a *arena) Close() error {
	err := a.g.thread.do(func() error {
		if a.closed {
			return nil
		}
		a.closed = true
		var errs []error
		for _, c := range a.m.All() {
			errs = append(errs, a.drop(c))
		}
		if a.g.grain != 0 {
			errs = append(errs, a.g.check("free addresses", a.g.driver.Unreserve(a.base, uintptr(a.size))))
		}
		return errors.Join(errs...)
	})
	if errors.Is(err, errEnded) {
		return nil
	}
	return err
}
