package device

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/esperd/esperd/gpuexec/element"
)

const hostGranularity = 2 << 20 // as the GPU's, so that chunks lie alike

// Host returns the device of machines without a GPU: shared memory that a
// trainer maps.
func Host() (Device, error) { return &host{}, nil }

type host struct {
	mu     sync.Mutex
	arenas []*hostArena
}

func (h *host) Name() string { return "host" }
func (h *host) Kind() string { return "host" }
func (h *host) UUID() string { return "" }

// NewArena makes a file of memory whose size is sealed: a trainer that has it
// can neither cut it off under esperd's feet nor take the seals off again.
func (h *host) NewArena(size uint64) (Arena, error) {
	if size == 0 || size > math.MaxInt64-hostGranularity {
		return nil, fmt.Errorf("arena of %d bytes: expected 1 to 2^63-1", size)
	}
	size = (size + hostGranularity - 1) &^ (hostGranularity - 1)
	fd, err := unix.MemfdCreate("esperd-arena", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	a := &hostArena{fd: fd, size: size}
	if err := a.open(); err != nil {
		unix.Close(fd)
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.arenas = append(h.arenas, a)
	return a, nil
}

func (h *host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for _, a := range h.arenas {
		errs = append(errs, a.Close())
	}
	h.arenas = nil
	return errors.Join(errs...)
}

type hostArena struct {
	mu   sync.Mutex
	fd   int
	size uint64
	mem  []byte // nil: closed
	m    Map
}

func (a *hostArena) open() error {
	if err := unix.Ftruncate(a.fd, int64(a.size)); err != nil {
		return fmt.Errorf("arena of %d bytes: %w: %w", a.size, ErrOutOfMemory, err)
	}
	if _, err := unix.FcntlInt(uintptr(a.fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		return fmt.Errorf("seal the arena: %w", err)
	}
	mem, err := unix.Mmap(a.fd, 0, int(a.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return fmt.Errorf("map an arena of %d bytes: %w: %w", a.size, ErrOutOfMemory, err)
	}
	a.mem = mem
	return nil
}

func (a *hostArena) Size() uint64        { return a.size }
func (a *hostArena) Granularity() uint64 { return hostGranularity }

// use runs f on the memory of a range. A fault, as of a machine that has no page
// left, is an error: what a trainer does to its memory ends no esperd.
func (a *hostArena) use(what string, offset, size uint64, f func(b []byte)) (err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mem == nil {
		return fmt.Errorf("%s: %w: the arena is closed", what, ErrLost)
	}
	if err := a.m.Check(what, offset, size); err != nil {
		return err
	}
	return guarded(what, func() { f(a.mem[offset : offset+size]) })
}

func guarded(what string, f func()) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			fault, ok := r.(interface{ Addr() uintptr })
			if !ok {
				panic(r)
			}
			err = fmt.Errorf("%s: %w: the memory at %#x is gone", what, ErrLost, fault.Addr())
		}
	}()
	f()
	return nil
}

// Back reserves pages, so that what was granted cannot fail when it is used.
func (a *hostArena) Back(offset, size uint64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if offset%hostGranularity != 0 || size == 0 || size%hostGranularity != 0 || offset > a.size || size > a.size-offset {
		return fmt.Errorf("chunk at %d, %d bytes: expected multiples of %d inside %d bytes", offset, size, hostGranularity, a.size)
	}
	if a.mem == nil {
		return fmt.Errorf("chunk: %w: the arena is closed", ErrLost)
	}
	if _, err := a.m.Add(Chunk{Offset: offset, Size: size, At: offset, FD: a.fd}); err != nil {
		return err
	}
	if err := allocate(a.fd, offset, size); err != nil {
		a.m.Remove(offset, size)
		a.punch(offset, size)
		return fmt.Errorf("%d bytes of shared memory: %w: %w", size, ErrOutOfMemory, err)
	}
	return nil
}

// allocate is fallocate until no signal interrupts it.
var allocate = func(fd int, offset, size uint64) error {
	for {
		if err := unix.Fallocate(fd, 0, int64(offset), int64(size)); err != unix.EINTR {
			return err
		}
	}
}

func (a *hostArena) punch(offset, size uint64) error {
	return unix.Fallocate(a.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(offset), int64(size))
}

func (a *hostArena) Drop(offset, size uint64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mem == nil {
		return fmt.Errorf("drop: %w: the arena is closed", ErrLost)
	}
	if _, err := a.m.Remove(offset, size); err != nil {
		return err
	}
	if err := a.punch(offset, size); err != nil {
		return fmt.Errorf("give %d bytes of shared memory back: %w", size, err)
	}
	return nil
}

func (a *hostArena) Chunks() []Chunk {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.m.All()
}

func (a *hostArena) Fill(f Fill) error {
	var failed error
	err := a.use("fill", f.Offset, f.Bytes(), func(b []byte) {
		if f.Uniform {
			failed = fillUniform(b, f)
		} else {
			element.FillConstant(b, f.DType, f.Bits)
		}
	})
	return errors.Join(err, failed)
}

// fillPart is what one core fills at a time, in bytes: whole blocks of any element
// type.
const fillPart = 1 << 20

// fillUniform fills on all cores. An element depends on its number alone, so who
// makes which part changes no bit.
func fillUniform(b []byte, f Fill) error {
	parts := (len(b) + fillPart - 1) / fillPart
	var next atomic.Int64
	errs := make([]error, min(parts, runtime.GOMAXPROCS(0)))
	var wg sync.WaitGroup
	for w := range errs {
		wg.Go(func() {
			errs[w] = guarded("fill", func() {
				for i := int(next.Add(1)) - 1; i < parts; i = int(next.Add(1)) - 1 {
					part := b[i*fillPart : min((i+1)*fillPart, len(b))]
					element.FillUniform(part, f.DType, f.Source, uint64(i)*fillPart/(4*f.DType.Size()), f.Scale)
				}
			})
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (a *hostArena) Zero(offset, size uint64) error {
	return a.use("zero", offset, size, func(b []byte) { clear(b) })
}

func (a *hostArena) Table(slots int, updates []element.Update, generation uint64) error {
	return a.use("table", 0, element.TableBytes(slots), func(b []byte) { element.WriteTable(b, updates, generation) })
}

func (a *hostArena) Sums(segments []element.Segment) ([]element.Sum, error) {
	out := make([]element.Sum, len(segments))
	for i, s := range segments {
		if err := a.use("fingerprint", s.Offset, s.Bytes, func(b []byte) { out[i] = element.SumOf(b, s.Block) }); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (a *hostArena) Sync() error { return nil }

func (a *hostArena) ReadAt(p []byte, offset int64) (int, error) {
	err := a.use("read", uint64(offset), uint64(len(p)), func(b []byte) { copy(p, b) })
	return done(len(p), err)
}

func (a *hostArena) WriteAt(p []byte, offset int64) (int, error) {
	err := a.use("write", uint64(offset), uint64(len(p)), func(b []byte) { copy(b, p) })
	return done(len(p), err)
}

func done(n int, err error) (int, error) {
	if err != nil {
		return 0, err
	}
	return n, nil
}

// Close takes esperd's mapping away. A trainer's own mapping keeps the memory
// until it is gone too.
func (a *hostArena) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mem == nil {
		return nil
	}
	mem := a.mem
	a.mem = nil
	return errors.Join(unix.Munmap(mem), unix.Close(a.fd))
}
