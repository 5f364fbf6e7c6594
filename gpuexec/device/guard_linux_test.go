package device

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
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
