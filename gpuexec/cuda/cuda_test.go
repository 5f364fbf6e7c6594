//go:build linux && !nocuda && (amd64 || arm64)

package cuda_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/esperd/esperd/gpuexec/cuda"
	"github.com/esperd/esperd/gpuexec/device"
	"github.com/esperd/esperd/gpuexec/element"
	"github.com/esperd/esperd/gpuexec/exectest"
)

func TestDevice(t *testing.T) {
	s := newStub(t)
	for _, exports := range []int64{1, 0} {
		t.Run(map[int64]string{1: "file descriptors", 0: "cuIpc"}[exports], func(t *testing.T) {
			s.Set("exports", exports)
			d := s.open(t)
			require.Equal(t, "Stub GPU", d.Name())
			exectest.CheckDevice(t, d)
			require.NoError(t, d.Close())
			require.NoError(t, d.Close())
			require.Positive(t, s.Get("launches"))
		})
	}
}

func TestOpen(t *testing.T) {
	s := newStub(t)
	open := func(o cuda.Options) error {
		o.Library = s.path
		d, err := cuda.Open(o)
		if err == nil {
			require.NoError(t, d.Close())
		}
		return err
	}
	second := "GPU-01040700-0d10-1316-191c-1f2225282b2e"
	d, err := cuda.Open(cuda.Options{Library: s.path, UUID: second})
	require.ErrorContains(t, err, "expected one of [GPU-00030609-0c0f-1215-181b-1e2124272a2d GPU-0104070a-0d10-1316-191c-1f2225282b2e]")
	second = "GPU-0104070a-0d10-1316-191c-1f2225282b2e"
	d, err = cuda.Open(cuda.Options{Library: s.path, UUID: second})
	require.NoError(t, err)
	require.Equal(t, second, d.UUID())
	require.Equal(t, "cuda", d.Kind())
	require.NoError(t, d.Close())
	require.NoError(t, open(cuda.Options{UUID: "0104070a0d101316191c1f2225282b2e"}))
	require.NoError(t, open(cuda.Options{Ordinal: 1}))
	for _, bad := range []cuda.Options{{Ordinal: 2}, {Ordinal: -1}, {UUID: "GPU-1"}, {UUID: "zz04070a0d101316191c1f2225282b2e"}} {
		require.Error(t, open(bad))
	}

	for what, c := range map[string]struct {
		value int64
		text  string
	}{"version": {10020, "the driver is of CUDA 10.2: expected 11.0 or newer"}, "devices": {0, "run with --device host"},
		"major": {6, "compute capability 6.0: expected 7.0"}} {
		s := newStub(t)
		s.Set(what, c.value)
		err := open(cuda.Options{})
		require.ErrorIs(t, err, device.ErrUnsupported, what)
		require.ErrorContains(t, err, c.text)
	}
}

// A library that is missing, is none, or lacks functions.
func TestBadLibrary(t *testing.T) {
	newStub(t)
	_, err := cuda.Open(cuda.Options{Library: "libesperd-no-such.so"})
	require.ErrorIs(t, err, device.ErrUnsupported)
	require.ErrorContains(t, err, "install NVIDIA's driver")
	text := filepath.Join(t.TempDir(), "libcuda.so.1")
	require.NoError(t, os.WriteFile(text, []byte("not a library"), 0o755))
	_, err = cuda.Open(cuda.Options{Library: text})
	require.ErrorIs(t, err, device.ErrUnsupported)
	old, err := compile("old.so", "-DSTUB_OLD")
	require.NoError(t, err)
	_, err = cuda.Open(cuda.Options{Library: old})
	require.ErrorIs(t, err, device.ErrUnsupported)
	require.ErrorContains(t, err, "lacks")
	require.ErrorContains(t, err, "cuMemCreate")
}

// Every function that opening and using a device calls fails once, in every way:
// the error says which, what was had is given back, and the next device works.
func TestEveryCallFails(t *testing.T) {
	s := newStub(t)
	functions := []string{"cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetUuid",
		"cuDeviceGetAttribute", "cuMemGetAllocationGranularity", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuStreamCreate", "jit",
		"cuModuleLoadDataEx", "cuModuleGetFunction", "cuMemAddressReserve", "cuMemCreate", "cuMemMap", "cuMemSetAccess",
		"cuMemExportToShareableHandle", "cuMemsetD32Async", "cuMemsetD16Async", "cuStreamSynchronize", "cuLaunchKernel",
		"cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuMemAlloc_v2"}
	for _, f := range functions {
		for _, code := range []int32{2, 304} {
			for after := range int32(2) {
				s.Reset()
				s.Fail(f, after, code)
				err := use(s.path)
				if after == 0 {
					require.Error(t, err, f)
					require.ErrorContains(t, err, "CUDA", f)
				}
			}
		}
		s.Reset()
		require.NoError(t, use(s.path), "after %s", f)
	}
}

// use does with a device whatever is done with one.
func use(library string) (err error) {
	d, err := cuda.Open(cuda.Options{Library: library})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	a, err := d.NewArena(8 << 20)
	if err != nil {
		return err
	}
	if err := a.Back(0, 2<<20); err != nil {
		return err
	}
	if _, err := a.WriteAt(element.NewTable(2), 0); err != nil {
		return err
	}
	_, sumErr := a.Sums(element.Segments(0, 1<<20))
	_, readErr := a.ReadAt(make([]byte, 10), 0)
	return errors.Join(sumErr, readErr, a.Fill(device.Fill{Elements: 10, Uniform: true}), a.Fill(device.Fill{Elements: 10, DType: element.Float16}),
		a.Table(2, []element.Update{{Slot: 1}}, 1), a.Zero(0, 32), a.Sync())
}

// An error after which a context answers nothing more: all that follows says so,
// and nothing crashes or hangs.
func TestLost(t *testing.T) {
	for _, f := range []string{"cuLaunchKernel", "cuStreamSynchronize", "cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2"} {
		s := newStub(t)
		before := s.Get("live")
		d := s.open(t)
		a, err := d.NewArena(8 << 20)
		require.NoError(t, err)
		require.NoError(t, a.Back(0, 2<<20))
		s.Fail(f, 0, 719)
		_, err = a.Sums(element.Segments(0, 64))
		require.ErrorIs(t, err, device.ErrLost, f)
		require.ErrorContains(t, err, "CUDA_ERROR_LAUNCH_FAILED (719)")
		for _, err := range []error{a.Zero(0, 16), a.Back(2<<20, 2<<20), a.Drop(0, 2<<20), a.Sync(), a.Table(1, nil, 1), a.Fill(device.Fill{Elements: 1})} {
			require.ErrorIs(t, err, device.ErrLost)
			require.ErrorContains(t, err, "719", "the first error is the one to know")
		}
		_, err = d.NewArena(1)
		require.ErrorIs(t, err, device.ErrLost)
		require.Error(t, d.Close(), "what could not be given back")
		s.Set("live", before)
	}
}

// Memory that is not there is one seed's error; what it leaves can be used.
func TestOutOfMemory(t *testing.T) {
	s := newStub(t)
	d := s.open(t)
	a, err := d.NewArena(64 << 20)
	require.NoError(t, err)
	s.Set("limit", 6<<20)
	require.NoError(t, a.Back(0, 4<<20))
	err = a.Back(8<<20, 4<<20)
	require.ErrorIs(t, err, device.ErrOutOfMemory)
	require.ErrorContains(t, err, "create 4194304 bytes")
	require.Len(t, a.Chunks(), 1)
	require.NoError(t, a.Drop(0, 4<<20))
	require.NoError(t, a.Back(8<<20, 4<<20))
	require.NoError(t, d.Close())
}

// A trainer maps the exported memory, and has it beyond the device's end.
func TestExport(t *testing.T) {
	s := newStub(t)
	d := s.open(t)
	a, err := d.NewArena(8 << 20)
	require.NoError(t, err)
	require.NoError(t, a.Back(2<<20, 4<<20))
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	require.NoError(t, err)
	defer l.Close()
	trainer, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path})
	require.NoError(t, err)
	defer trainer.Close()
	us, err := l.AcceptUnix()
	require.NoError(t, err)
	defer us.Close()
	require.NoError(t, device.Send(us, &device.Offer{Kind: d.Kind(), UUID: d.UUID(), Size: a.Size(), Granularity: a.Granularity(), Chunks: a.Chunks()}))
	o, err := device.Receive(trainer)
	require.NoError(t, err)
	require.Len(t, o.Chunks, 1)
	mem, err := unix.Mmap(o.Chunks[0].FD, int64(o.Chunks[0].At), int(o.Chunks[0].Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.NoError(t, err)
	defer unix.Munmap(mem)
	require.NoError(t, unix.Close(o.Chunks[0].FD))
	copy(mem, "from the trainer")
	sums, err := a.Sums([]element.Segment{{Offset: 2 << 20, Bytes: 4096}})
	require.NoError(t, err)
	require.Equal(t, element.SumOf(mem[:4096], 0), sums[0])
	require.NoError(t, d.Close())
	require.Equal(t, "from the trainer", string(mem[:16]))
}

// Any goroutine may call; the context stays on its one thread.
func TestGoroutines(t *testing.T) {
	s := newStub(t)
	d := s.open(t)
	a, err := d.NewArena(64 << 20)
	require.NoError(t, err)
	var wg sync.WaitGroup
	for i := range uint64(16) {
		wg.Go(func() {
			at := i * 4 << 20
			errs := []error{a.Back(at, 2<<20), a.Fill(device.Fill{Offset: at, Elements: 1000, Bits: uint32(i)}), a.Sync()}
			b := make([]byte, 4000)
			_, err := a.ReadAt(b, int64(at))
			if err := errors.Join(append(errs, err)...); err != nil {
				panic(err)
			}
			if b[0] != byte(i) || b[3996] != byte(i) {
				panic(fmt.Sprint("contents of ", i))
			}
		})
	}
	wg.Wait()
	require.NoError(t, d.Close())
	require.ErrorContains(t, a.Zero(0, 16), "closed")
}
