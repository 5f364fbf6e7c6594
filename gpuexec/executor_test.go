package gpuexec

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/gpuexec/device"
	"github.com/esperd/esperd/gpuexec/element"
	"github.com/esperd/esperd/gpuexec/exectest"
)

// entryOf reads the table as a trainer does.
func (x *Executor) entryOf(t require.TestingT, slot int) element.Entry {
	b := make([]byte, x.layout.Table.Size)
	_, err := x.arena.ReadAt(b, 0)
	require.NoError(t, err)
	return element.ReadEntry(b, slot)
}

func (x *Executor) contents(t require.TestingT, offset, size uint64) []byte {
	b := make([]byte, size)
	_, err := x.arena.ReadAt(b, int64(offset))
	require.NoError(t, err)
	return b
}

// A seed's life on the host: memory, table, votes, spans.
func TestExecutorLife(t *testing.T) {
	d := newFaulty(t)
	defer d.Close()
	x := newExecutor(t, d)
	l := newLog(t, "a", "b", "c")
	r := x.Fence(l.State)
	require.Empty(t, r.Votes)
	require.True(t, r.Remap, "there is a table now")
	require.Empty(t, r.Device)

	l.Germinate("b", "wide")
	r = x.Fence(l.State)
	require.Equal(t, []Vote{{SeedRef{"b", 1}, true, ""}}, r.Votes)
	require.Empty(t, r.Lost)
	require.Empty(t, r.Spans)
	require.True(t, r.Remap)
	require.Equal(t, element.Entry{Offset: x.layout.Seed(1, "wide")[0].Parameter, Elements: 800_033, Flags: element.Reserved, Generation: l.State.Index}, x.entryOf(t, 1))
	for _, w := range x.layout.Seed(1, "wide") {
		s := element.Parameter{Run: exectest.Run, Model: "main", Generation: 1, Slot: "b", Germination: 1, Tensor: w.Name}.Source()
		scale, err := element.Scale(w.init.Value, w.DType)
		require.NoError(t, err)
		want := make([]byte, w.Bytes())
		element.FillUniform(want, w.DType, s, 0, scale)
		require.True(t, string(want) == string(x.contents(t, w.Parameter, w.Bytes())), w.Name)
		if w.Master != nil {
			want = make([]byte, 4*w.Elements)
			element.FillUniform(want, element.Float32, s, 0, scale)
			require.True(t, string(want) == string(x.contents(t, *w.Master, 4*w.Elements)), "the master copy is not rounded")
		}
	}

	l.Pass("b", events.G1, events.G2)
	l.Epoch()
	r = x.Fence(l.State)
	require.Empty(t, r.Votes)
	require.False(t, r.Remap)
	e := x.entryOf(t, 1)
	require.Equal(t, float32(0.5), e.Alpha)
	require.Equal(t, element.Reserved|element.Active|element.Trainable|element.Isolated, e.Flags)
	require.Len(t, r.Spans, 3)
	g := x.layout.Seed(1, "wide")
	require.Equal(t, Span{"bfloat16", g[0].Gradient, 700_000, 700_000}, r.Spans[2])

	// Its gradients are zero when it freezes, and all of it when it goes.
	_, err := x.arena.WriteAt([]byte{1, 2, 3}, int64(g[0].Gradient))
	require.NoError(t, err)
	l.Epoch()
	l.Call("b", fsm.SchedulePrune{Ticks: 1, Steepness: 12})
	r = x.Fence(l.State)
	require.Empty(t, r.Spans)
	require.Equal(t, make([]byte, 16), x.contents(t, g[0].Gradient, 16))
	l.Epoch()
	r = x.Fence(l.State)
	require.True(t, r.Remap)
	require.Equal(t, element.Entry{Generation: l.State.Index}, x.entryOf(t, 1))
	_, err = x.arena.ReadAt(make([]byte, 1), int64(g[0].Parameter))
	require.Error(t, err, "the memory was given back")
	require.Len(t, x.arena.Chunks(), 1)
	require.Equal(t, ActiveSet(l.Model()), r.ActiveSet)
}

// One span over all that learns, holes with zeroed memory included.
func TestSpans(t *testing.T) {
	d := newFaulty(t)
	defer d.Close()
	x := newExecutor(t, d)
	l := newLog(t, "a", "b", "c", "d", "e")
	x.Fence(l.State)
	for _, s := range []string{"d", "a", "e"} {
		l.Germinate(s, "wide")
	}
	l.Pass("a", events.G1)
	l.Pass("d", events.G1)
	r := x.Fence(l.State)
	first, last := x.layout.Seed(0, "wide"), x.layout.Seed(3, "wide")
	require.Equal(t, Span{"float32", first[2].Gradient, (last[2].Gradient + 400_000 - first[2].Gradient) / 4, 200_000}, r.Spans[0])
	span := x.contents(t, r.Spans[2].Offset, 2*r.Spans[2].Elements)
	require.Equal(t, len(span), strings.Count(string(span), "\x00"), "all of it can be read, and is zero")
	l.Prune("a")
	r = x.Fence(l.State)
	require.Equal(t, Span{"float32", last[2].Gradient, 100_000, 100_000}, r.Spans[0])
}

// little is wide, with less to fill.
var little = events.Blueprint{Name: "wide", Tensors: []events.Tensor{
	{Name: "a", Shape: []uint64{70, 10}, DType: "bfloat16", Init: uniform(0.1), Master: true},
	{Name: "b", Shape: []uint64{33}, DType: "float16", Init: uniform(2)},
	{Name: "c", Shape: []uint64{1000}, DType: "float32", Init: uniform(1)}}}

// Two ranks with one log have the same bits, whatever they went through.
func TestSameBits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := newFaulty(t)
		defer d.Close()
		names := []string{"a", "b", "c", "d"}
		l := exectest.NewLog(t, exectest.Slots(names, conv, little, plain)...)
		every, some := newExecutor(t, d), newExecutor(t, d)
		some.Fence(l.State)
		every.Fence(l.State)
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			slot := rapid.SampledFrom(names).Draw(t, "slot")
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0, 1:
				if l.Stage(slot) == events.StageDormant {
					l.Germinate(slot, rapid.SampledFrom([]string{"conv", "wide", "plain"}).Draw(t, "blueprint"))
				}
			case 2:
				l.Pass(slot, rapid.SampledFrom([]events.Gate{events.G1, events.G2, events.G3}).Draw(t, "gate"))
			case 3:
				l.Prune(slot)
			case 4:
				for range 8 {
					l.Epoch()
				}
			case 5:
				if rapid.IntRange(0, 3).Draw(t, "reset") == 0 {
					l.Call("", fsm.Reset{})
				}
			}
			r := every.Fence(l.State)
			require.Equal(t, ActiveSet(l.Model()), r.ActiveSet)
			require.Empty(t, r.Device)
			require.Empty(t, r.Held.Altered)
			if rapid.Bool().Draw(t, "fence") {
				require.Equal(t, r.ActiveSet, some.Fence(l.State).ActiveSet)
			}
		}
		some.Fence(l.State)
		anew := newExecutor(t, d) // after a restart
		r := anew.Fence(l.State)
		require.Equal(t, ActiveSet(l.Model()), r.ActiveSet)
		for i, s := range names {
			seed := l.Model().Slot(s).Active()
			for _, x := range []*Executor{some, anew} {
				a, b := every.entryOf(t, i), x.entryOf(t, i)
				a.Generation, b.Generation = 0, 0
				require.Equal(t, a, b, s)
			}
			if lost := seed != nil && seed.Stage >= events.StageTraining && seed.Blueprint != "plain"; lost {
				require.Contains(t, r.Lost, SeedRef{s, seed.Count})
				anew.Loaded(s)
			}
		}
		want, _, err := every.Attest()
		require.NoError(t, err)
		for _, x := range []*Executor{some, anew} {
			got, _, err := x.Attest()
			require.NoError(t, err)
			require.Equal(t, want, got)
		}
		for _, x := range []*Executor{every, some, anew} {
			require.NoError(t, x.Close())
		}
	})
}

// A single bit that differs on one rank is named by slot, seed and tensor.
func TestAttest(t *testing.T) {
	d := newFaulty(t)
	defer d.Close()
	l := newLog(t, "a", "b")
	l.Germinate("a", "wide")
	l.Germinate("b", "conv")
	var lists [2][]Attestation
	for i := range lists {
		x := newExecutor(t, d)
		x.Fence(l.State)
		if i == 1 {
			at := int64(x.layout.Seed(0, "wide")[0].Parameter) + 1_000_000&^15
			b := make([]byte, 1)
			_, err := x.arena.ReadAt(b, at)
			require.NoError(t, err)
			_, err = x.arena.WriteAt([]byte{b[0] ^ 4}, at)
			require.NoError(t, err)
		}
		var err error
		lists[i], _, err = x.Attest()
		require.NoError(t, err)
		require.Len(t, lists[i], 6)
	}
	var differ []string
	for k := range lists[0] {
		if lists[0][k] != lists[1][k] {
			differ = append(differ, fmt.Sprintf("%s#%d %s", lists[1][k].Slot, lists[1][k].Seed, lists[1][k].Tensor))
		}
	}
	require.Equal(t, []string{"a#1 a"}, differ)
}

// A rewind puts back what the log says then. Addresses stay, contents do not.
func TestRebuild(t *testing.T) {
	d := newFaulty(t)
	defer d.Close()
	x := newExecutor(t, d)
	l := newLog(t, "a", "b", "c")
	x.Fence(l.State)
	l.Germinate("a", "conv")
	l.Germinate("b", "wide")
	l.Pass("b", events.G1)
	mark := l.State
	x.Fence(l.State)
	fresh, _, err := x.Attest()
	require.NoError(t, err)
	l.Pass("a", events.G1)
	l.Germinate("c", "wide")
	x.Fence(l.State)
	_, err = x.arena.WriteAt([]byte{9}, int64(x.layout.Seed(0, "conv")[0].Parameter))
	require.NoError(t, err)

	r := x.Rebuild(mark)
	require.Equal(t, []Vote{{SeedRef{"a", 1}, true, ""}, {SeedRef{"b", 1}, true, ""}}, r.Votes)
	require.Equal(t, []SeedRef{{"b", 1}}, r.Lost, "a has only germinated: its bits follow from the log")
	require.Equal(t, ActiveSet(mark.Model("main")), r.ActiveSet)
	require.Equal(t, element.Entry{Generation: mark.Index}, x.entryOf(t, 2), "a seed that is not there any more is not in the table")
	view, err := x.View("b", wide.Tensors)
	require.NoError(t, err)
	require.True(t, view.Lost)
	got, _, err := x.Attest()
	require.NoError(t, err)
	require.Equal(t, fresh[:3], got, "what is lost is not attested")
	x.Loaded("b")
	got, _, err = x.Attest()
	require.NoError(t, err)
	require.Equal(t, fresh, got)
	require.Equal(t, 1, d.arenas)
}

// What cannot be had fails one seed's vote; the others live, and so does the
// slot's next seed.
func TestOutOfMemory(t *testing.T) {
	d := newFaulty(t)
	defer d.Close()
	x := newExecutor(t, d)
	l := newLog(t, "a", "b")
	l.Germinate("a", "conv")
	x.Fence(l.State)
	want, _, err := x.Attest()
	require.NoError(t, err)
	d.back = fmt.Errorf("no: %w", device.ErrOutOfMemory)
	l.Germinate("b", "wide")
	r := x.Fence(l.State)
	require.Len(t, r.Votes, 1)
	require.False(t, r.Votes[0].Ready)
	require.Contains(t, r.Votes[0].Reason, "bytes for wide in slot b: no: out of memory")
	require.Empty(t, r.Device)
	require.Equal(t, element.Entry{Generation: l.State.Index}, x.entryOf(t, 1))
	_, err = x.View("b", wide.Tensors)
	require.ErrorIs(t, err, device.ErrOutOfMemory)
	require.ErrorContains(t, err, "seed 1 has no room here")
	got, _, err := x.Attest()
	require.NoError(t, err)
	require.Equal(t, want, got)
	l.Pass("b", events.G1)
	require.Empty(t, x.Fence(l.State).Spans, "it goes on in the log until its prune is there")
	d.back, d.fill = nil, errors.New("fill refused")
	l.Prune("b")
	for range 7 {
		l.Epoch()
	}
	l.Germinate("b", "wide")
	r = x.Fence(l.State)
	require.False(t, r.Votes[0].Ready)
	require.Contains(t, r.Votes[0].Reason, "initialise a in slot b: fill refused")
	d.fill = nil
	l.Prune("b")
	for range 7 {
		l.Epoch()
	}
	l.Germinate("b", "wide")
	require.Equal(t, []Vote{{SeedRef{"b", 3}, true, ""}}, x.Fence(l.State).Votes)
}

// A device that is lost fails what germinates from then on, and harms nothing
// else: plans and digests are right, what lived is named lost once it is back.
func TestDeviceLost(t *testing.T) {
	d := newFaulty(t)
	defer d.Close()
	x := newExecutor(t, d)
	l := newLog(t, "a", "b", "c")
	l.Germinate("a", "conv")
	l.Pass("a", events.G1)
	x.Fence(l.State)
	d.sync = fmt.Errorf("gone: %w", device.ErrLost)
	l.Germinate("b", "conv")
	l.Germinate("c", "plain")
	r := x.Fence(l.State)
	require.Equal(t, "gone: device lost", r.Device)
	require.Equal(t, []Vote{{SeedRef{"b", 1}, false, "gone: device lost"}}, r.Votes, "c's memory is its trainer's")
	l.Pass("c", events.G1)
	r = x.Fence(l.State)
	require.Equal(t, ActiveSet(l.Model()), r.ActiveSet)
	require.Equal(t, "activate c#1, set_alpha c#1=0, thaw c#1", planText(r.Commands))
	_, _, err := x.Attest()
	require.ErrorIs(t, err, device.ErrLost)
	_, err = x.Attach("t")
	require.ErrorIs(t, err, device.ErrLost)
	l.Prune("b")
	l.Prune("a")
	require.NotEmpty(t, x.Fence(l.State).Device)
	for range 7 {
		l.Epoch()
	}
	l.Germinate("a", "conv")
	l.Pass("a", events.G1)
	d.sync = nil
	r = x.Rebuild(l.State)
	require.Empty(t, r.Device)
	require.Equal(t, []SeedRef{{"a", 2}}, r.Lost)
	require.True(t, r.Remap)
	require.Equal(t, 2, d.arenas)
}

// A configuration that no arena holds says so, and takes nothing down.
func TestNoArena(t *testing.T) {
	d := newFaulty(t)
	defer d.Close()
	odd := events.Blueprint{Name: "odd", Tensors: []events.Tensor{{Name: "w", DType: "float64", Shape: []uint64{2}}}}
	l := exectest.NewLog(t, exectest.Slots([]string{"a"}, odd)...)
	x := newExecutor(t, d)
	require.Contains(t, x.Fence(l.State).Device, `slot a: blueprint odd: tensor w: dtype "float64"`)
	l.Germinate("a", "odd")
	r := x.Fence(l.State)
	require.False(t, r.Votes[0].Ready)
	require.Contains(t, r.Votes[0].Reason, "float64")
	_, err := x.View("a", odd.Tensors)
	require.ErrorContains(t, err, "float64")
	require.NoError(t, x.Close())
	require.NotEmpty(t, x.Fence(l.State).Device)
}

// Without a device plans and active sets are reported, and nobody votes.
func TestNoDevice(t *testing.T) {
	x := newExecutor(t, nil)
	require.Equal(t, &Report{}, x.Fence(fsm.New()), "no model yet")
	l := newLog(t, "a")
	l.Germinate("a", "conv")
	r := x.Fence(l.State)
	require.Equal(t, &Report{Index: l.State.Index, Commands: Plan(nil, l.Model()), ActiveSet: ActiveSet(l.Model())}, r)
	_, err := x.Attach("t")
	require.ErrorContains(t, err, "--device")
	_, err = x.View("a", conv.Tensors)
	require.ErrorContains(t, err, "no device")
	l.Prune("a")
	require.Equal(t, "zero a#1, release a#1", planText(x.Rebuild(l.State).Commands)+planText(x.Fence(l.State).Commands)+"zero a#1, release a#1")
	list, _, err := x.Attest()
	require.NoError(t, err)
	require.Empty(t, list)
}
