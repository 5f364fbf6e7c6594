package device

import (
	"bytes"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/esperd/esperd/gpuexec/element"
)

// A fault in shared memory is an error, and a bug stays a panic.
func TestGuarded(t *testing.T) {
	fd, err := unix.MemfdCreate("t", 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	require.NoError(t, unix.Ftruncate(fd, 4096))
	mem, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.NoError(t, err)
	defer unix.Munmap(mem)
	require.NoError(t, guarded("write", func() { mem[0] = 1 }))
	require.NoError(t, unix.Ftruncate(fd, 0))
	require.ErrorIs(t, guarded("write", func() { mem[0] = 1 }), ErrLost)
	require.ErrorIs(t, guarded("clear", func() { clear(mem) }), ErrLost)
	require.ErrorIs(t, fillUniform(mem, Fill{Uniform: true}), ErrLost, "on another goroutine")
	require.Panics(t, func() { guarded("bug", func() { panic("bug") }) })
}

// Memory that cannot be had is out of memory, and nothing is kept of it.
func TestHostOutOfMemory(t *testing.T) {
	d, err := Host()
	require.NoError(t, err)
	defer d.Close()
	a, err := d.NewArena(8 << 20)
	require.NoError(t, err)
	real := allocate
	defer func() { allocate = real }()
	allocate = func(fd int, offset, size uint64) error {
		return errors.Join(real(fd, offset, size/2), unix.ENOSPC)
	}
	require.ErrorIs(t, a.Back(0, 4<<20), ErrOutOfMemory)
	require.Empty(t, a.Chunks())
	allocate = real
	require.NoError(t, a.Back(0, 4<<20))
}

// All cores together make the bits that one makes.
func TestFillingInParts(t *testing.T) {
	for d := element.DType(0); d < element.DTypes; d++ {
		for _, elements := range []int{0, 1, 5, fillPart/int(d.Size()) - 1, fillPart / int(d.Size()), 3*fillPart/int(d.Size()) + 3} {
			f := Fill{DType: d, Uniform: true, Source: element.Source{Key: 5, Stream: 6}, Scale: 0x1p-24}
			got, want := make([]byte, elements*int(d.Size())), make([]byte, elements*int(d.Size()))
			require.NoError(t, fillUniform(got, f))
			element.FillUniform(want, d, f.Source, 0, f.Scale)
			require.True(t, bytes.Equal(want, got), "%d of %s", elements, d)
		}
	}
}
