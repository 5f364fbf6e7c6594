package gpuexec

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/esperd/esperd/gpuexec/device"
)

// Chunks are held as often as somebody needs them, whatever the order.
func TestBacking(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := newFaulty(t)
		defer d.Close()
		a, err := d.NewArena(64 << 20)
		require.NoError(t, err)
		b := newBacking(a)
		var held []Range
		for range rapid.IntRange(0, 30).Draw(t, "steps") {
			d.back = nil
			if rapid.IntRange(0, 5).Draw(t, "fail") == 0 {
				d.back = device.ErrOutOfMemory
			}
			if len(held) > 0 && rapid.Bool().Draw(t, "release") {
				i := rapid.IntRange(0, len(held)-1).Draw(t, "which")
				require.NoError(t, b.release(held[i]))
				held = append(held[:i], held[i+1:]...)
			} else {
				r := Range{rapid.Uint64Range(0, 60<<20).Draw(t, "offset"), rapid.Uint64Range(0, 4<<20).Draw(t, "size")}
				if b.hold(r) == nil {
					held = append(held, r)
				}
			}
			for _, r := range held {
				if r.Size > 0 {
					_, err := a.ReadAt(make([]byte, 1), int64((r.End()-1)&^15))
					require.NoError(t, err)
				}
			}
		}
		for _, r := range held {
			require.NoError(t, b.release(r))
		}
		require.Empty(t, a.Chunks(), "all was given back")
	})
}
