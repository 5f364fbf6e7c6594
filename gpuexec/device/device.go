package device

import (
	"errors"
	"fmt"

	"github.com/esperd/esperd/gpuexec/element"
)

// Errors that an executor tells apart.
var (
	// ErrOutOfMemory says that a chunk could not be had; all else goes on.
	ErrOutOfMemory = errors.New("out of memory")

	// ErrLost says that the device answers no more: every later call fails, and
	// the contents are gone.
	ErrLost = errors.New("device lost")

	// ErrUnsupported says that this build or machine has no such device.
	ErrUnsupported = errors.New("not supported here")
)

// A Device has memory for arenas. Its methods may be called by any goroutine.
type Device interface {
	// Name says which device it is, for people: "host", or a GPU's name.
	Name() string

	// Kind is "host" or "cuda": what a trainer has to open chunks with.
	Kind() string

	// UUID is the GPU's, empty for the host.
	UUID() string

	// NewArena reserves size bytes of addresses and no memory. Errors wrap
	// ErrOutOfMemory where there are not as many.
	NewArena(size uint64) (Arena, error)

	// Close gives everything back, arenas included.
	Close() error
}

// An Arena is one flat range of a device's memory. Offsets are in bytes from its
// start. Nothing outside of chunks may be read or written: it is an error, and
// never touches other memory. Methods return when the device has finished, but
// for Fill, Zero and Table, which Sync waits for.
type Arena interface {
	// Size returns the bytes of the range, a multiple of Granularity.
	Size() uint64

	// Granularity returns what offsets and sizes of chunks are multiples of.
	Granularity() uint64

	// Back puts zeroed memory behind a range that has none. Errors wrap
	// ErrOutOfMemory where there is none to be had.
	Back(offset, size uint64) error

	// Drop takes the chunk away that Back put there.
	Drop(offset, size uint64) error

	// Chunks returns what a trainer has to map, by offset. The file descriptors
	// stay the arena's.
	Chunks() []Chunk

	Fill(f Fill) error
	Zero(offset, size uint64) error

	// Table updates entries of the table of so many slots at offset 0 (package
	// element); their generation is written last.
	Table(slots int, updates []element.Update, generation uint64) error

	// Sums returns the sums of segments.
	Sums(segments []element.Segment) ([]element.Sum, error)

	Sync() error

	// ReadAt and WriteAt copy contents, for tables, tests and checks.
	ReadAt(p []byte, offset int64) (int, error)
	WriteAt(p []byte, offset int64) (int, error)

	Close() error
}

// A Chunk is a part of an arena with memory behind it, as it is handed over.
type Chunk struct {
	Offset uint64 `json:"offset"` // in the arena, bytes
	Size   uint64 `json:"size"`   // bytes
	At     uint64 `json:"at"`     // where it starts in what FD or IPC stand for, bytes
	Serial uint64 `json:"serial"` // told apart from a later chunk in the same place; from 1

	// One of the two: a file descriptor to map, or a handle for
	// cuIpcOpenMemHandle, of a driver that exports none.
	FD  int    `json:"-"`
	IPC []byte `json:"ipc,omitempty"`
}

// An Offer is what a trainer needs to open an arena.
type Offer struct {
	Arena       string  `json:"arena"` // a random name: whoever has mapped chunks of it keeps them
	Kind        string  `json:"kind"`  // of the device: "host" or "cuda"
	UUID        string  `json:"uuid,omitempty"`
	Size        uint64  `json:"size"` // bytes of addresses to reserve
	Granularity uint64  `json:"granularity"`
	Chunks      []Chunk `json:"chunks"` // to map; those with IPC handles have no file descriptor
}

// A Fill sets whole elements.
type Fill struct {
	Offset   uint64 // a multiple of 16
	Elements uint64
	DType    element.DType

	Uniform bool
	Source  element.Source // of a uniform fill
	Scale   float32
	Bits    uint32 // of a constant one
}

// Bytes returns how much f fills; of more than any arena has, as much as no
// chunk covers.
func (f Fill) Bytes() uint64 { return min(f.Elements, 1<<60) * f.DType.Size() }

// A RangeError says that something lies outside of a chunk, or not where it must.
func RangeError(what string, offset, size uint64) error {
	return fmt.Errorf("%s at %d, %d bytes: expected a range inside the arena's chunks that starts at a multiple of 16", what, offset, size)
}

// A Map is the ranges of an arena that have memory, for devices to check
// arguments against. The zero value has none.
type Map struct {
	chunks []Chunk // by offset; neighbours may touch
	serial uint64
}

// Add enters a chunk and gives it a serial number; an overlap is an error.
func (m *Map) Add(c Chunk) (Chunk, error) {
	i := m.after(c.Offset)
	if i > 0 && m.chunks[i-1].Offset+m.chunks[i-1].Size > c.Offset || i < len(m.chunks) && c.Offset+c.Size > m.chunks[i].Offset {
		return Chunk{}, fmt.Errorf("chunk at %d, %d bytes: expected a range without memory", c.Offset, c.Size)
	}
	m.serial++
	c.Serial = m.serial
	m.chunks = append(m.chunks, Chunk{})
	copy(m.chunks[i+1:], m.chunks[i:])
	m.chunks[i] = c
	return c, nil
}

// Remove takes out the chunk of exactly that range.
func (m *Map) Remove(offset, size uint64) (Chunk, error) {
	if i := m.after(offset); i > 0 && m.chunks[i-1].Offset == offset && m.chunks[i-1].Size == size {
		c := m.chunks[i-1]
		m.chunks = append(m.chunks[:i-1], m.chunks[i:]...)
		return c, nil
	}
	return Chunk{}, fmt.Errorf("drop at %d, %d bytes: expected a chunk that was backed", offset, size)
}

// Covers reports whether every byte of a range has memory.
func (m *Map) Covers(offset, size uint64) bool {
	end := offset + size
	if end < offset {
		return false
	}
	for i := m.after(offset) - 1; offset < end; i++ {
		if i < 0 || i >= len(m.chunks) || offset < m.chunks[i].Offset || offset >= m.chunks[i].Offset+m.chunks[i].Size {
			return false
		}
		offset = m.chunks[i].Offset + m.chunks[i].Size
	}
	return true
}

// All returns the chunks, by offset.
func (m *Map) All() []Chunk { return append([]Chunk(nil), m.chunks...) }

// after returns how many chunks start at offset or before.
func (m *Map) after(offset uint64) int {
	lo, hi := 0, len(m.chunks)
	for lo < hi {
		if mid := (lo + hi) / 2; m.chunks[mid].Offset <= offset {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// Check returns a RangeError unless a range of the map is covered and aligned.
func (m *Map) Check(what string, offset, size uint64) error {
	if offset%16 != 0 || !m.Covers(offset, size) {
		return RangeError(what, offset, size)
	}
	return nil
}
