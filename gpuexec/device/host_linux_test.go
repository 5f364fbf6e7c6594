package device_test

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/esperd/esperd/gpuexec/device"
	"github.com/esperd/esperd/gpuexec/exectest"
)

func TestHost(t *testing.T) {
	d, err := device.Host()
	require.NoError(t, err)
	exectest.CheckDevice(t, d)
	require.NoError(t, d.Close())
}

func pair(t *testing.T) (a, b *net.UnixConn) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	require.NoError(t, err)
	defer l.Close()
	a, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: path})
	require.NoError(t, err)
	b, err = l.AcceptUnix()
	require.NoError(t, err)
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// A trainer takes the arena over the socket, and both see the same memory. It
// can neither cut it off, nor grow it, nor take the seals off; what it writes,
// and that it unmaps and closes all, harms nothing.
func TestHandOver(t *testing.T) {
	d, err := device.Host()
	require.NoError(t, err)
	defer d.Close()
	a, err := d.NewArena(8 << 20)
	require.NoError(t, err)
	require.NoError(t, a.Back(0, 2<<20))
	require.NoError(t, a.Back(4<<20, 2<<20))
	us, trainer := pair(t)
	require.NoError(t, device.Send(us, &device.Offer{Kind: d.Kind(), Size: a.Size(), Granularity: a.Granularity(), Chunks: a.Chunks()}))
	o, err := device.Receive(trainer)
	require.NoError(t, err)
	require.Len(t, o.Chunks, 2)
	require.NotEqual(t, a.Chunks()[0].FD, o.Chunks[0].FD)

	c := o.Chunks[1]
	mem, err := unix.Mmap(c.FD, int64(c.At), int(c.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.NoError(t, err)
	mem[5] = 77
	got := make([]byte, 16)
	_, err = a.ReadAt(got, int64(c.Offset))
	require.NoError(t, err)
	require.Equal(t, byte(77), got[5])
	_, err = a.WriteAt([]byte{3}, int64(c.Offset))
	require.NoError(t, err)
	require.Equal(t, byte(3), mem[0])

	require.ErrorIs(t, unix.Ftruncate(c.FD, 0), unix.EPERM)
	require.ErrorIs(t, unix.Ftruncate(c.FD, 64<<20), unix.EPERM)
	_, err = unix.FcntlInt(uintptr(c.FD), unix.F_ADD_SEALS, unix.F_SEAL_WRITE)
	require.ErrorIs(t, err, unix.EPERM)
	require.NoError(t, unix.Fallocate(c.FD, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 8<<20), "it may throw its contents away")
	_, err = a.ReadAt(got, int64(c.Offset))
	require.NoError(t, err)
	require.Equal(t, make([]byte, 16), got)
	require.NoError(t, unix.Munmap(mem))
	for _, c := range o.Chunks {
		require.NoError(t, unix.Close(c.FD))
	}
	require.NoError(t, a.Zero(4<<20, 2<<20))
}

// More file descriptors than one message takes.
func TestHandOverMany(t *testing.T) {
	us, trainer := pair(t)
	var o device.Offer
	for i := range 600 {
		c := device.Chunk{Offset: uint64(i)}
		if i%3 == 0 {
			c.IPC = make([]byte, 64)
		} else {
			f, err := os.CreateTemp(t.TempDir(), "")
			require.NoError(t, err)
			defer f.Close()
			_, err = f.Write([]byte{byte(i)})
			require.NoError(t, err)
			c.FD = int(f.Fd())
		}
		o.Chunks = append(o.Chunks, c)
	}
	sent := make(chan error, 1)
	go func() { sent <- device.Send(us, &o) }()
	got, err := device.Receive(trainer)
	require.NoError(t, err)
	require.NoError(t, <-sent)
	require.Len(t, got.Chunks, 600)
	for i, c := range got.Chunks {
		if c.IPC != nil {
			require.Equal(t, -1, c.FD)
			continue
		}
		b := make([]byte, 1)
		_, err := unix.Pread(c.FD, b, 0)
		require.NoError(t, err)
		require.Equal(t, byte(i), b[0], "in the order of the chunks")
		require.NoError(t, unix.Close(c.FD))
	}
}

// What is no offer is an error.
func TestReceiveBad(t *testing.T) {
	text, err := json.Marshal(device.Offer{Chunks: []device.Chunk{{}}})
	require.NoError(t, err)
	for name, b := range map[string][]byte{
		"nothing":   {},
		"too long":  {255, 255, 255, 255},
		"cut off":   {9, 0, 0, 0, '{'},
		"no JSON":   {1, 0, 0, 0, '{'},
		"no rights": append(append([]byte{byte(len(text)), 0, 0, 0}, text...), 'f'),
		"no end":    append([]byte{byte(len(text)), 0, 0, 0}, text...),
	} {
		t.Run(name, func(t *testing.T) {
			us, trainer := pair(t)
			_, err := us.Write(b)
			require.NoError(t, err)
			require.NoError(t, us.CloseWrite())
			_, err = device.Receive(trainer)
			require.ErrorContains(t, err, "take the arena")
		})
	}
	us, trainer := pair(t)
	require.NoError(t, trainer.Close())
	require.Error(t, device.Send(us, &device.Offer{Chunks: make([]device.Chunk, 10_000)}), "a trainer that died")
}

// An arena that is closed is an error, not a fault.
func TestClosed(t *testing.T) {
	d, err := device.Host()
	require.NoError(t, err)
	a, err := d.NewArena(1)
	require.NoError(t, err)
	require.NoError(t, a.Back(0, 2<<20))
	require.NoError(t, d.Close())
	require.ErrorIs(t, a.Zero(0, 16), device.ErrLost)
	require.ErrorIs(t, a.Back(0, 2<<20), device.ErrLost)
	require.ErrorIs(t, a.Drop(0, 2<<20), device.ErrLost)
	require.NoError(t, a.Close())
}
