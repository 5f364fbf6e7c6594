package gpuexec

import (
	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/gpuexec/device"
	"github.com/esperd/esperd/gpuexec/exectest"
)

// faulty is the host with errors where a test wants them.
type faulty struct {
	device.Device
	back, fill, sync error
	arenas           int
}

type faultyArena struct {
	device.Arena
	d *faulty
}

func (d *faulty) NewArena(size uint64) (device.Arena, error) {
	a, err := d.Device.NewArena(size)
	d.arenas++
	return &faultyArena{a, d}, err
}

func (a *faultyArena) Back(offset, size uint64) error {
	if a.d.back != nil {
		return a.d.back
	}
	return a.Arena.Back(offset, size)
}

func (a *faultyArena) Fill(f device.Fill) error {
	if a.d.fill != nil {
		return a.d.fill
	}
	return a.Arena.Fill(f)
}

func (a *faultyArena) Sync() error { return a.d.sync }

func newFaulty(t require.TestingT) *faulty {
	d, err := device.Host()
	require.NoError(t, err)
	return &faulty{Device: d}
}

func newExecutor(t exectest.T, d device.Device) *Executor {
	return New(Options{Run: exectest.Run, Model: "main", Device: d})
}
