package gpuexec

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/gpuexec/device"
	"github.com/esperd/esperd/gpuexec/exectest"
)

// What a fence costs with so many live seeds: one whose alpha changed, and one
// that changed nothing. Beside it a fence in which a seed comes and goes, of 1
// MiB in float32.
func BenchmarkFence(b *testing.B) {
	for _, live := range []int{10, 1000} {
		d, err := device.Host()
		require.NoError(b, err)
		var names []string
		for i := range live + 1 {
			names = append(names, fmt.Sprint("s", i))
		}
		mib := events.Blueprint{Name: "mib", Tensors: []events.Tensor{{Name: "w", Shape: []uint64{1 << 18}, DType: "float32", Init: uniform(1)}}}
		l := exectest.NewLog(b, exectest.Slots(names, conv, mib)...)
		x := New(Options{Run: exectest.Run, Model: "main", Device: d})
		for _, n := range names[:live] {
			l.Germinate(n, "conv")
			l.Pass(n, events.G1)
		}
		x.Fence(l.State)
		without := l.State
		l.Pass(names[live/2], events.G2)
		l.Call(names[live/2], fsm.Fence{N: 1})
		l.Call(names[live/2], fsm.AlphaTarget{Target: 0.5, Ticks: 0, Steepness: 12})
		l.Epoch()
		alpha := l.State
		require.Len(b, x.Fence(alpha).Commands, 1)
		l.Germinate(names[live], "mib")
		with := l.State
		run := func(name string, states ...*fsm.State) {
			b.Run(fmt.Sprintf("%s/live=%d", name, live), func(b *testing.B) {
				for i := 0; b.Loop(); i++ {
					if r := x.Fence(states[i%len(states)]); r.Device != "" {
						b.Fatal(r.Device)
					}
				}
			})
		}
		run("alpha", without, alpha)
		run("nothing", alpha)
		run("seed", with, alpha)
		x.Close()
		d.Close()
	}
}
