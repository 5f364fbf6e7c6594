package door_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/door"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/gpuexec"
	"github.com/esperd/esperd/gpuexec/device"
)

// cramped is the host with room for so many chunks more.
type cramped struct {
	device.Device
	room int
}

type crampedArena struct {
	device.Arena
	d *cramped
}

func (d *cramped) NewArena(size uint64) (device.Arena, error) {
	a, err := d.Device.NewArena(size)
	return &crampedArena{a, d}, err
}

func (a *crampedArena) Back(offset, size uint64) error {
	if a.d.room--; a.d.room < 0 {
		return fmt.Errorf("%d bytes: %w", size, device.ErrOutOfMemory)
	}
	return a.Arena.Back(offset, size)
}

// onHost gives a door the host's memory, with room for so many chunks.
func onHost(room int) func(*door.Options) {
	return func(o *door.Options) {
		o.OpenDevice = func(string) (device.Device, error) {
			d, err := device.Host()
			return &cramped{d, room}, err
		}
	}
}

// arena asks for one, of slots with a blueprint of one tensor.
func arena(r *api.SessionRequest) {
	conv := events.Blueprint{Name: "conv", Tensors: []events.Tensor{{Name: "weight", Shape: []uint64{4, 3}, DType: "float32", Init: &events.Init{Rule: events.InitUniform, Value: 0.5}}}}
	r.Arena, r.Residency = true, true
	r.Slots = []api.SlotRequest{{Name: "r0c0", Blueprints: []events.Blueprint{conv}}, {Name: "r0c1", Blueprints: []events.Blueprint{conv}}}
}

func planOf(f *api.Fence) (words []string) {
	for _, c := range f.Plan {
		words = append(words, c.Op+" "+c.Slot)
	}
	return words
}

// The plan leads from one fence to the next, and is the same on every rank and
// after a restart.
func TestAFenceSaysWhatItMeansForMemory(t *testing.T) {
	for _, mode := range []events.TrainerMode{events.ModeKeyed, events.ModeFollow} {
		t.Run(mode, func(t *testing.T) {
			j := newJob(t, 2)
			all := j.trainers(inMode(mode))
			epoch := int64(-1)
			fence := func(calls func(*trainer)) *api.Fence {
				epoch++
				var fences []*api.Fence
				for _, tr := range all {
					if mode == events.ModeKeyed || tr.rank == 0 {
						calls(tr)
					}
					fences = append(fences, tr.step(epoch, measured("r0c0", health(0.9))).fence(t))
				}
				require.Equal(t, fences[0], fences[1])
				require.Nil(t, fences[0].Arena)
				require.Equal(t, gpuexec.ActiveSet(j.log.Node(0).State().Model("main")), fences[0].ActiveSet)
				return fences[0]
			}
			none := fence(func(*trainer) {})
			require.Empty(t, none.Plan)
			f := fence(func(tr *trainer) { tr.germinate("r0c0").ok(t) })
			require.Equal(t, []string{"reserve r0c0", "initialise r0c0"}, planOf(f))
			require.Equal(t, none.ActiveSet, f.ActiveSet, "it is not active yet")
			f = fence(func(tr *trainer) { tr.advance("r0c0").ok(t) })
			require.Equal(t, []string{"activate r0c0", "set_alpha r0c0", "thaw r0c0"}, planOf(f))
			require.NotEqual(t, none.ActiveSet, f.ActiveSet)
			for _, tr := range all {
				tr.restart()
			}
			f = fence(func(tr *trainer) { tr.prune("r0c0").ok(t) })
			require.Equal(t, []string{"deactivate r0c0", "zero r0c0", "release r0c0"}, planOf(f))
			require.Equal(t, none.ActiveSet, f.ActiveSet)
		})
	}
}

// The executor votes: ready where there is memory, and where there is none the
// seed is pruned on all ranks, with rank and reason.
func TestTheExecutorVotes(t *testing.T) {
	j := newJob(t, 2)
	j.stop(1)
	j.start(1, onHost(4)) // table, and one seed
	j.stop(0)
	j.start(0, onHost(100))
	all := j.trainers(arena)
	epoch := int64(0)
	step := func() []*api.Fence {
		var out []*api.Fence
		for _, tr := range all {
			out = append(out, tr.step(epoch).fence(t))
		}
		epoch++
		return out
	}
	for _, tr := range all {
		tr.germinate("r0c0").ok(t)
	}
	f := step()
	require.True(t, f[0].Arena.Remap)
	require.Equal(t, f[0].Plan, f[1].Plan)
	j.recorded()
	step()
	require.False(t, j.log.Node(0).State().Model("main").Slot("r0c0").Seed.Absent, "all ranks have room")
	for _, tr := range all {
		require.Equal(t, events.StageTraining, tr.advance("r0c0").decision(t).Stage)
	}
	f = step()
	require.Len(t, f[1].Arena.Spans, 1)
	require.Equal(t, f[0].Arena.Spans, f[1].Arena.Spans)
	require.False(t, f[0].Arena.Remap)

	j.stop(1) // esperd of rank 1 comes back with less memory: what was there is lost, and does not fit
	all[1].http.CloseIdleConnections()
	j.start(1, onHost(1))
	all[1].returns().ok(t)
	j.recorded()
	f = step()
	require.Equal(t, events.StagePruned, f[0].Slots[0].Stage)
	require.Equal(t, f[0].Slots[0].Stage, f[1].Slots[0].Stage)
	by := prunedBy(j, "r0c0")
	require.Equal(t, "rank 1", by[1])
	require.Contains(t, by[0], "out of memory")
}

// What was learned is lost with an esperd, and said at the next fence.
func TestARestartLosesTheArena(t *testing.T) {
	j := newJob(t, 1, onHost(100))
	tr := j.trainers(arena)[0]
	tr.germinate("r0c0").ok(t)
	tr.step(0).ok(t)
	j.recorded()
	tr.step(1).ok(t)
	tr.advance("r0c0").ok(t)
	require.Empty(t, tr.step(2).fence(t).Arena.Lost)
	j.stop(0)
	tr.http.CloseIdleConnections()
	j.start(0, onHost(100))
	tr.returns().ok(t)
	f := tr.step(3).fence(t)
	require.Equal(t, []api.SeedRef{{Slot: "r0c0", Seed: 1}}, f.Arena.Lost)
	require.True(t, f.Arena.Remap)
	require.Len(t, f.Arena.Spans, 1)
	require.Empty(t, tr.step(4).fence(t).Arena.Lost, "said once")
}

func TestArenasThatCannotBeHad(t *testing.T) {
	j := newJob(t, 1)
	require.Contains(t, j.trainer(0, arena).connect().refused(t, events.CodeConfigMismatch).Detail, "--device")
	j = newJob(t, 1, func(o *door.Options) {
		o.OpenDevice = func(string) (device.Device, error) { return nil, errors.New("libcuda is too old") }
	})
	require.Contains(t, j.trainer(0, arena).connect().refused(t, events.CodeConfigMismatch).Detail, "libcuda is too old")
	j = newJob(t, 1, onHost(1))
	j.trainer(0, arena, inMode(events.ModeObserve)).connect().refused(t, events.CodeInvalidInput)
}
