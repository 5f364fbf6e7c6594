//go:build linux

package gpu

import (
	"cmp"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/gpuexec"
	"github.com/esperd/esperd/gpuexec/device"
	"github.com/esperd/esperd/gpuexec/element"
	"github.com/esperd/esperd/gpuexec/exectest"
)

func required(what string) bool { return strings.Contains(os.Getenv("ESPERD_REQUIRE"), what) }

// open returns the GPU, or skips.
func open(t *testing.T) device.Device {
	d, _, err := gpuexec.OpenDevice(cmp.Or(os.Getenv("ESPERD_DEVICE"), "cuda"), "")
	if err != nil {
		if required("cuda") {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	t.Logf("%s %s", d.Name(), d.UUID())
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	return d
}

func TestDevice(t *testing.T) { exectest.CheckDevice(t, open(t)) }

func uniform(bound float64) *events.Init {
	return &events.Init{Rule: events.InitUniform, Value: bound}
}

// block is what tests put into slots: all element types, a master copy.
var block = events.Blueprint{Name: "block", Tensors: []events.Tensor{
	{Name: "weight", Shape: []uint64{256, 384}, DType: "float32", Init: uniform(0.1)},
	{Name: "bias", Shape: []uint64{257}, DType: "float32", Init: &events.Init{Rule: events.InitConstant, Value: 0.5}},
	{Name: "half", Shape: []uint64{1000, 33}, DType: "float16", Init: uniform(0.3)},
	{Name: "brain", Shape: []uint64{123_457}, DType: "bfloat16", Init: uniform(2), Master: true}}}

// The same log gives the same bits on the GPU and on the host.
func TestSameBitsAsHost(t *testing.T) {
	gpu := open(t)
	host, err := device.Host()
	require.NoError(t, err)
	defer host.Close()
	l := exectest.NewLog(t, exectest.Slots([]string{"a", "b", "c"}, block)...)
	var x [2]*gpuexec.Executor
	for i, d := range []device.Device{host, gpu} {
		x[i] = gpuexec.New(gpuexec.Options{Run: exectest.Run, Model: "main", Device: d})
	}
	compare := func() {
		t.Helper()
		var lists [2][]gpuexec.Attestation
		for i := range x {
			require.Empty(t, x[i].Fence(l.State).Device)
			lists[i], _, err = x[i].Attest()
			require.NoError(t, err)
		}
		require.NotEmpty(t, lists[0])
		require.Equal(t, lists[0], lists[1])
	}
	l.Germinate("c", "block")
	compare()
	l.Germinate("a", "block")
	l.Pass("c", events.G1, events.G2)
	l.Epoch()
	compare()
	l.Prune("c")
	for range 7 {
		l.Epoch()
	}
	l.Germinate("c", "block")
	compare()
	for i := range x {
		require.NoError(t, x[i].Close())
	}
}

// copier is what the GPU's arena can do besides, for figures to be held against.
type copier interface {
	Copy(to, from, size uint64) error
}

// Figures beside a copy of the same run. Bytes: of the tensor; a copy's are
// counted twice, read and written.
func TestFigures(t *testing.T) {
	d := open(t)
	for _, size := range []uint64{64 << 20, 1 << 30, 8 << 30} {
		a, err := d.NewArena(2*size + 4<<20)
		require.NoError(t, err)
		if err := a.Back(0, a.Size()/a.Granularity()*a.Granularity()); err != nil {
			t.Logf("%d MiB: %v", size>>20, err)
			require.NoError(t, a.Close())
			continue
		}
		_, err = a.WriteAt(element.NewTable(1000), 0)
		require.NoError(t, err)
		const from = 2 << 20
		segments := element.Segments(from, size)
		source := element.Parameter{Run: "figures"}.Source()
		scale, _ := element.Scale(0.1, element.Float32)
		fill := func(dt element.DType) func() error {
			return func() error {
				return a.Fill(device.Fill{Offset: from, Elements: size / dt.Size(), DType: dt, Uniform: true, Source: source, Scale: scale})
			}
		}
		copied := rate(t, a, "copy (read plus written)", 2*size, 0, func() error { return a.(copier).Copy(from+size, from, size) })
		rate(t, a, "fingerprint, with its segments' and sums' way there and back", size, copied, func() error { _, err := a.Sums(segments); return err })
		rate(t, a, "zero", size, copied, func() error { return a.Zero(from, size) })
		rate(t, a, "init float32", size, copied, fill(element.Float32))
		rate(t, a, "init float16", size, copied, fill(element.Float16))
		rate(t, a, "init bfloat16", size, copied, fill(element.BFloat16))
		if size == 64<<20 {
			for _, n := range []int{1, 64} {
				updates := make([]element.Update, n)
				for i := range updates {
					updates[i].Slot = uint32(i * 15)
				}
				const rounds = 2000
				start := time.Now()
				for i := range uint64(rounds) {
					require.NoError(t, a.Table(1000, updates, i))
					require.NoError(t, a.Sync())
				}
				t.Logf("table update of %d entries, until the GPU has finished: %.1f us", n, time.Since(start).Seconds()/rounds*1e6)
			}
		}
		require.NoError(t, a.Close())
	}
}

// rate runs something for a while and logs how fast it was.
func rate(t *testing.T, a device.Arena, what string, bytes uint64, beside float64, f func() error) float64 {
	require.NoError(t, f())
	require.NoError(t, a.Sync())
	rounds := 0
	start := time.Now()
	for time.Since(start) < 300*time.Millisecond {
		for range 4 {
			require.NoError(t, f())
			rounds++
		}
		require.NoError(t, a.Sync())
	}
	gbs := float64(bytes) * float64(rounds) / time.Since(start).Seconds() / 1e9
	text := ""
	if beside > 0 {
		text = fmt.Sprintf(", %.2f of the copy", gbs/beside)
	}
	t.Logf("%5d MiB: %8.1f GB/s%s: %s", bytes>>20, gbs, text, what)
	return gbs
}
