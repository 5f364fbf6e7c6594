package gpuexec

import (
	"errors"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/gpuexec/device"
	"github.com/esperd/esperd/gpuexec/element"
)

// tamper writes into the arena, as a trainer does that writes too far.
func (x *Executor) tamper(t *testing.T, offset uint64, b ...byte) {
	whole := x.contents(t, offset&^15, 32)
	copy(whole[offset&15:], b)
	_, err := x.arena.WriteAt(whole, int64(offset&^15))
	require.NoError(t, err)
}

// A byte of the table that somebody else writes is found at the next fence, with
// the slot, and written anew; what is found depends on what was written.
func TestWhoWritesIntoTheTableIsFound(t *testing.T) {
	d := newFaulty(t)
	defer d.Close()
	x := newExecutor(t, d)
	l := newLog(t, "a", "b", "c")
	x.Fence(l.State)
	l.Germinate("b", "wide")
	l.Pass("b", events.G1)
	r := x.Fence(l.State)
	require.Equal(t, Held{Index: l.State.Index - 2, Generation: 1, Planned: r.Held.Planned, Value: r.Held.Planned}, r.Held)
	clean := slices.Clone(x.contents(t, 0, x.layout.Table.Size))
	seen := map[events.Digest]string{}
	at := l.State.Index
	for name, c := range map[string]struct {
		offset uint64
		bytes  []byte
		slots  []string
	}{
		"offset":     {element.HeaderBytes + 32, []byte{1}, []string{"b"}},
		"elements":   {element.HeaderBytes + 32 + 8, []byte{1}, []string{"b"}},
		"alpha":      {element.HeaderBytes + 32 + 16, []byte{0, 0, 0, 0x3f}, []string{"b"}},
		"an alpha":   {element.HeaderBytes + 32 + 16, []byte{0, 0, 0x80, 0x3f}, []string{"b"}},
		"flag":       {element.HeaderBytes + 32 + 20, []byte{byte(element.Active)}, []string{"b"}},
		"generation": {element.HeaderBytes + 32 + 24, []byte{0xff}, []string{"b"}},
		"no seed's":  {element.HeaderBytes + 64 + 20, []byte{byte(element.Active)}, []string{"c"}},
		"two":        {element.HeaderBytes + 28, []byte{9, 9, 9, 9, 9, 9, 9, 9}, []string{"a", "b"}},
		"header":     {12, []byte{9}, []string{HeaderName}},
	} {
		x.tamper(t, c.offset, c.bytes...)
		h := x.Fence(l.State).Held
		require.Equal(t, c.slots, h.Altered, name)
		require.Equal(t, []any{at, r.ActiveSet}, []any{h.Index, h.Planned})
		require.NotEqual(t, h.Planned, h.Value)
		require.Empty(t, seen[h.Value], name)
		seen[h.Value] = name
		require.Empty(t, x.Fence(l.State).Held.Altered, "it is right again")
		require.Equal(t, element.ReadEntry(clean, 1).Alpha, x.entryOf(t, 1).Alpha)
	}
	// The same written on another rank is the same value.
	y := newExecutor(t, d)
	y.Fence(l.State)
	y.Fence(l.State)
	require.Equal(t, x.Fence(l.State).Held, y.Fence(l.State).Held)
}

// What is written where a seed comes, goes or is rebuilt is found all the same.
func TestTheTableIsReadBeforeItIsWritten(t *testing.T) {
	d := newFaulty(t)
	defer d.Close()
	x := newExecutor(t, d)
	l := newLog(t, "a", "b", "c")
	require.Zero(t, x.Fence(l.State).Held, "nothing was held before")
	tamper := func() { x.tamper(t, element.HeaderBytes+32+20, 7) }
	l.Germinate("b", "conv")
	tamper()
	require.Equal(t, []string{"b"}, x.Fence(l.State).Held.Altered)
	tamper()
	require.Equal(t, []string{"b"}, x.Rebuild(l.State).Held.Altered)
	require.Empty(t, x.Fence(l.State).Held.Altered)
	l.Prune("b")
	tamper()
	require.Equal(t, []string{"b"}, x.Fence(l.State).Held.Altered)
	require.Equal(t, element.Entry{Generation: l.State.Index}, x.entryOf(t, 1))

	few := newLog(t, "a") // another configuration, in which the slot is not
	tamper()
	r := x.Fence(few.State)
	require.Equal(t, []string{"b"}, r.Held.Altered)
	require.Empty(t, r.Device)
	require.Empty(t, x.Fence(few.State).Held.Altered)
}

type unreadable struct{ device.Device }

type unreadableArena struct{ device.Arena }

func (d unreadable) NewArena(size uint64) (device.Arena, error) {
	a, err := d.Device.NewArena(size)
	return unreadableArena{a}, err
}

func (a unreadableArena) ReadAt([]byte, int64) (int, error) { return 0, errors.New("no answer") }

func TestATableThatCannotBeRead(t *testing.T) {
	d := newFaulty(t)
	defer d.Close()
	x := newExecutor(t, unreadable{d})
	l := newLog(t, "a")
	require.Empty(t, x.Fence(l.State).Device)
	r := x.Fence(l.State)
	require.Contains(t, r.Device, "read the table of model main back from host: no answer")
	require.Equal(t, r.Held.Planned, r.Held.Value, "nothing is known")
	require.Equal(t, ActiveSet(l.Model()), r.ActiveSet)
}
