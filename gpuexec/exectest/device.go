package exectest

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/gpuexec/device"
	"github.com/esperd/esperd/gpuexec/element"
)

// CheckDevice is what every device must do, against package element.
func CheckDevice(t *testing.T, d device.Device) {
	t.Run("vectors", func(t *testing.T) { checkVectors(t, d) })
	t.Run("fills", func(t *testing.T) { checkFills(t, d) })
	t.Run("sums", func(t *testing.T) { checkSums(t, d) })
	t.Run("table", func(t *testing.T) { checkTable(t, d) })
	t.Run("chunks", func(t *testing.T) { checkChunks(t, d) })
	t.Run("ranges", func(t *testing.T) { checkRanges(t, d) })
}

// arena returns one with memory behind the first size bytes, rounded up.
func arena(t *testing.T, d device.Device, size uint64) (device.Arena, uint64) {
	a, err := d.NewArena(size)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, a.Close()) })
	g := a.Granularity()
	size = (size + g - 1) / g * g
	require.NoError(t, a.Back(0, size))
	return a, size
}

func read(t *testing.T, a device.Arena, offset, size uint64) []byte {
	b := make([]byte, size)
	n, err := a.ReadAt(b, int64(offset))
	require.NoError(t, err)
	require.Len(t, b, n)
	return b
}

func sumAt(t *testing.T, a device.Arena, offset, size uint64) (total element.Sum) {
	sums, err := a.Sums(element.Segments(offset, size))
	require.NoError(t, err)
	for _, s := range sums {
		total = total.Add(s)
	}
	return total
}

func checkVectors(t *testing.T, d device.Device) {
	a, _ := arena(t, d, 4<<20)
	for _, v := range element.Vectors() {
		const at = 1024
		require.NoError(t, a.Zero(0, 2<<20))
		if v.Fill == nil {
			b, err := v.Contents()
			require.NoError(t, err)
			_, err = a.WriteAt(b, at)
			require.NoError(t, err)
		} else {
			dt, s, scale, err := v.Fill.Args()
			require.NoError(t, err)
			require.NoError(t, a.Fill(device.Fill{Offset: at, Elements: v.Bytes / dt.Size(), DType: dt, Uniform: true, Source: s, Scale: scale}))
		}
		require.NoError(t, a.Sync())
		require.NoError(t, v.Check(read(t, a, at, v.Bytes), sumAt(t, a, at, v.Bytes)))
	}
}

// Fills of any length, next to bytes that must stay what they were.
func checkFills(t *testing.T, d device.Device) {
	const size = 64 << 10
	a, _ := arena(t, d, size)
	rng := rand.New(rand.NewPCG(5, 6))
	for i := range 60 {
		dt := element.DType(rng.IntN(element.DTypes))
		n := uint64(rng.IntN(5000))
		if i < 20 {
			n = uint64(i)
		}
		at := 16 * uint64(1+rng.IntN(1000))
		f := device.Fill{Offset: at, Elements: n, DType: dt, Uniform: i%4 != 3, Source: element.Source{Key: rng.Uint64(), Stream: rng.Uint64()},
			Scale: float32(rng.Float64()) / (1 << 24), Bits: rng.Uint32()}
		before := bytes.Repeat([]byte{0xa5}, size)
		_, err := a.WriteAt(before, 0)
		require.NoError(t, err)
		require.NoError(t, a.Fill(f))
		require.NoError(t, a.Sync())
		want := before[at : at+f.Bytes()]
		if f.Uniform {
			element.FillUniform(want, dt, f.Source, 0, f.Scale)
		} else {
			element.FillConstant(want, dt, f.Bits)
		}
		require.True(t, bytes.Equal(before, read(t, a, 0, size)), "fill %+v", f)
	}
}

// Sums of many tensors at once, of any length.
func checkSums(t *testing.T, d device.Device) {
	a, size := arena(t, d, 4<<20)
	rng := rand.New(rand.NewPCG(7, 8))
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	_, err := a.WriteAt(b, 0)
	require.NoError(t, err)
	var segments []element.Segment
	for i := range 200 {
		n := uint64(rng.IntN(9000))
		if i < 40 {
			n = uint64(i)
		} else if i == 40 {
			n = element.SegmentBytes
		}
		segments = append(segments, element.Segment{Offset: 16 * uint64(rng.IntN(1<<16)), Bytes: n, Block: rng.Uint64() >> rng.IntN(63)})
	}
	for _, count := range []int{0, 1, 200} {
		sums, err := a.Sums(segments[:count])
		require.NoError(t, err)
		require.Len(t, sums, count)
		for i, s := range segments[:count] {
			require.Equal(t, element.SumOf(b[s.Offset:s.Offset+s.Bytes], s.Block), sums[i], s)
		}
	}
}

// Updates of more entries than one launch takes.
func checkTable(t *testing.T, d device.Device) {
	const slots = 300
	a, _ := arena(t, d, element.TableBytes(slots))
	table := element.NewTable(slots)
	_, err := a.WriteAt(table, 0)
	require.NoError(t, err)
	rng := rand.New(rand.NewPCG(9, 10))
	for generation, count := range []int{0, 1, 63, 64, 65, 200, 300} {
		var updates []element.Update
		for _, slot := range rng.Perm(slots)[:count] {
			updates = append(updates, element.Update{Slot: uint32(slot), Entry: element.Entry{Offset: rng.Uint64(), Elements: rng.Uint64(),
				Alpha: rng.Float32(), Flags: element.Flags(rng.Uint32())}})
		}
		require.NoError(t, a.Table(slots, updates, uint64(generation+7)))
		require.NoError(t, a.Sync())
		element.WriteTable(table, updates, uint64(generation+7))
		require.Equal(t, table, read(t, a, 0, uint64(len(table))))
	}
}

// Memory comes zeroed, goes, and comes back zeroed in the same place.
func checkChunks(t *testing.T, d device.Device) {
	a, err := d.NewArena(32 << 20)
	require.NoError(t, err)
	defer a.Close()
	g := a.Granularity()
	require.Zero(t, a.Size()%g)
	require.Empty(t, a.Chunks())
	if g == a.Size() {
		require.NoError(t, a.Back(0, g))
		require.Len(t, a.Chunks(), 1)
		require.NoError(t, a.Drop(0, g))
		return
	}
	require.NoError(t, a.Back(2*g, 3*g))
	require.NoError(t, a.Back(0, 2*g))
	require.NoError(t, a.Back(8*g, g))
	require.Equal(t, make([]byte, 5*g), read(t, a, 0, 5*g), "two chunks side by side")
	_, err = a.WriteAt([]byte{1, 2, 3}, int64(2*g))
	require.NoError(t, err)
	before := a.Chunks()
	require.Len(t, before, 3)
	require.NoError(t, a.Drop(2*g, 3*g))
	_, err = a.ReadAt(make([]byte, 1), int64(2*g))
	require.ErrorContains(t, err, "chunks")
	require.NoError(t, a.Back(2*g, g))
	require.Equal(t, make([]byte, g), read(t, a, 2*g, g))
	after := a.Chunks()
	require.Equal(t, before[0], after[0])
	require.NotEqual(t, before[1].Serial, after[1].Serial)
	for _, bad := range [][2]uint64{{1, g}, {0, g + 1}, {0, 0}, {a.Size(), g}, {a.Size() - g, 2 * g}, {0, g}, {g, 2 * g}, {1<<63 + g, g}} {
		require.Error(t, a.Back(bad[0], bad[1]), bad)
	}
	for _, bad := range [][2]uint64{{0, g}, {g, g}, {5 * g, g}, {2 * g, 2 * g}} {
		require.Error(t, a.Drop(bad[0], bad[1]), bad)
	}
	require.Equal(t, after, a.Chunks(), "what is refused changes nothing")
}

// Nothing outside of chunks can be touched.
func checkRanges(t *testing.T, d device.Device) {
	a, size := arena(t, d, 2<<20)
	huge := ^uint64(0) &^ 15
	for _, at := range []uint64{8, size, size - 16, huge} {
		const n = 1000
		require.Error(t, a.Zero(at, 4*n), at)
		require.Error(t, a.Fill(device.Fill{Offset: at, Elements: n, Uniform: true}), at)
		require.Error(t, a.Fill(device.Fill{Offset: at, Elements: n}), at)
		_, err := a.Sums([]element.Segment{{Offset: 0, Bytes: 16}, {Offset: at, Bytes: 4 * n}})
		require.Error(t, err, at)
		_, err = a.WriteAt(make([]byte, 4*n), int64(at))
		require.Error(t, err, at)
		_, err = a.ReadAt(make([]byte, 4*n), int64(at))
		require.Error(t, err, at)
	}
	require.Error(t, a.Table(1<<20, []element.Update{{Slot: 1 << 19}}, 1))
	require.Error(t, a.Fill(device.Fill{Elements: 1 << 62}))
	require.Error(t, a.Fill(device.Fill{Elements: 1 << 63, DType: element.Float16}))
	require.NoError(t, a.Sync(), "what is refused harms nothing")
	require.Equal(t, make([]byte, size), read(t, a, 0, size))
	_, err := d.NewArena(0)
	require.Error(t, err)
	_, err = d.NewArena(1 << 62)
	require.ErrorIs(t, err, device.ErrOutOfMemory)
}
