package gpuexec

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/gpuexec/element"
	"github.com/esperd/esperd/gpuexec/exectest"
)

// A layout is the log's format: what was once laid out stays where it is.
func TestLayoutGolden(t *testing.T) {
	l, err := NewLayout(exectest.Slots([]string{"a", "b"}, conv, wide, plain))
	require.NoError(t, err)
	require.Equal(t, Range{0, 128}, l.Table)
	// Per slot: 400128 of float32, 256 of float16, 1400064 of bfloat16.
	section := uint64(2*400_128 + 2*256 + 2*1_400_064)
	require.Equal(t, [planes]Range{{2 << 20, section}, {6 << 20, section}, {10 << 20, 2 * 2_800_128}}, l.Planes)
	require.Equal(t, uint64(16<<20), l.Size)
	b := l.Seed(1, "conv")
	require.Equal(t, []string{"weight 2497280 6691584", "bias 2497792 6692096", "gain 2498048 6692352"}, places(b))
	b = l.Seed(1, "wide")
	require.Equal(t, []string{"a 4297984 8492288 13285888", "b 2897664 7091968", "c 2497280 6691584"}, places(b))
	require.Empty(t, l.Seed(1, "plain"))
	require.Empty(t, l.Seed(1, "unknown"))
	require.Equal(t, uint64(1), l.Seed(0, "conv")[2].Elements, "no dimensions: one element")
}

func places(list []Tensor) (out []string) {
	for _, t := range list {
		s := fmt.Sprintf("%s %d %d", t.Name, t.Parameter, t.Gradient)
		if t.Master != nil {
			s += fmt.Sprintf(" %d", *t.Master)
		}
		out = append(out, s)
	}
	return out
}

// Whatever the blueprints: aligned, inside the planes, no overlap between slots
// or tensors, and gradients in slot order.
func TestLayoutProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var slots []events.SlotConfig
		for i := range rapid.IntRange(1, 6).Draw(t, "slots") {
			s := events.SlotConfig{Name: fmt.Sprint("s", i)}
			for j := range rapid.IntRange(0, 3).Draw(t, "blueprints") {
				b := events.Blueprint{Name: fmt.Sprint("b", j)}
				for k := range rapid.IntRange(0, 4).Draw(t, "tensors") {
					x := events.Tensor{Name: fmt.Sprint("t", k), Shape: rapid.SliceOfN(rapid.Uint64Range(1, 60), 0, 3).Draw(t, "shape"),
						DType: element.DType(rapid.IntRange(0, 2).Draw(t, "dtype")).String()}
					x.Master = x.DType != "float32" && rapid.Bool().Draw(t, "master")
					b.Tensors = append(b.Tensors, x)
				}
				s.Blueprints = append(s.Blueprints, b)
			}
			slots = append(slots, s)
		}
		l, err := NewLayout(slots)
		require.NoError(t, err)
		var used []Range // one blueprint per slot
		for i := range slots {
			for _, b := range slots[i].Blueprints {
				var mine []Range
				for _, x := range l.Seed(i, b.Name) {
					mine = append(mine, Range{x.Parameter, x.Bytes()}, Range{x.Gradient, x.Bytes()})
					require.Equal(t, x.Parameter-l.Planes[PlaneParameter].Offset, x.Gradient-l.Planes[PlaneGradient].Offset)
					if x.Master != nil {
						mine = append(mine, Range{*x.Master, 4 * x.Elements})
					}
				}
				disjoint(t, mine, l)
				require.NotContains(t, mine, Range{})
				disjoint(t, append(slices.Clone(used), mine...), l)
				joined := rangesOf(l.Seed(i, b.Name))
				for _, m := range mine {
					require.True(t, slices.ContainsFunc(joined, func(r Range) bool { return r.Offset <= m.Offset && m.End() <= r.End() }))
				}
			}
			used = append(used, l.Regions(i)...)
		}
	})
}

func disjoint(t *rapid.T, list []Range, l *Layout) {
	slices.SortFunc(list, func(a, b Range) int { return int(int64(a.Offset) - int64(b.Offset)) })
	end := l.Planes[PlaneParameter].Offset
	for _, r := range list {
		require.Zero(t, r.Offset%tensorAlign)
		require.GreaterOrEqual(t, r.Offset, end, "%v", list)
		end = r.End()
	}
	require.LessOrEqual(t, end, l.Size)
}

func TestLayoutRefuses(t *testing.T) {
	for want, x := range map[string]events.Tensor{
		"shape [4 0]: expected dimensions of at least 1":          {Shape: []uint64{4, 0}},
		"expected at most 8796093022208 elements":                 {Shape: []uint64{1 << 20, 1 << 24}},
		"tensor t: shape [18446744073709551615 184467440737":      {Shape: []uint64{math.MaxUint64, math.MaxUint64}},
		"shape [4294967296 4294967296 4]: expected at most":       {Shape: []uint64{1 << 32, 1 << 32, 4}},
		"expected float32, float16 or bfloat16":                   {DType: "float64"},
		"expected one of float16 or bfloat16 only":                {Master: true},
		"init rule \"normal\"":                                    {Init: &events.Init{Rule: "normal"}},
		"uniform bound 1e+30: expected":                           {Init: uniform(1e30)},
		"constant 70000: expected a number between -65504 and 65": {DType: "float16", Init: &events.Init{Rule: events.InitConstant, Value: 70_000}},
	} {
		x.Name = "t"
		if x.DType == "" {
			x.DType = "float32"
		}
		_, err := NewLayout([]events.SlotConfig{{Name: "s", Blueprints: []events.Blueprint{{Name: "b", Tensors: []events.Tensor{x}}}}})
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, "slot s: blueprint b: tensor t: ")
	}
	huge := events.Tensor{Name: "h", DType: "float32", Shape: []uint64{MaxArenaBytes / 8}}
	_, err := NewLayout([]events.SlotConfig{{Name: "s", Blueprints: []events.Blueprint{{Name: "b", Tensors: []events.Tensor{huge, huge, huge}}}}})
	require.ErrorContains(t, err, "slot s: blueprint b: expected at most 35184372088832 bytes")
	var many []events.SlotConfig
	for i := range 10_000 {
		many = append(many, events.SlotConfig{Name: fmt.Sprint(i), Blueprints: []events.Blueprint{{Name: "b", Tensors: []events.Tensor{huge}}}})
	}
	_, err = NewLayout(many)
	require.ErrorContains(t, err, "slot 2: expected at most 35184372088832 bytes for all slots of a plane")
	_, err = NewLayout(many[:2])
	require.ErrorContains(t, err, "the arena: expected at most")
}

func TestLayoutManyTensors(t *testing.T) {
	b := events.Blueprint{Name: "many"}
	for i := range 10_000 {
		b.Tensors = append(b.Tensors, events.Tensor{Name: fmt.Sprint(i), DType: "bfloat16", Shape: []uint64{uint64(i%7 + 1)}})
	}
	l, err := NewLayout([]events.SlotConfig{{Name: "s", Blueprints: []events.Blueprint{b}}})
	require.NoError(t, err)
	require.Len(t, l.Seed(0, "many"), 10_000)
	require.Len(t, rangesOf(l.Seed(0, "many")), 2, "one of parameters, one of gradients")
}

func TestSlotSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newSlotSet(200)
		in := map[int]bool{}
		for _, i := range rapid.SliceOf(rapid.IntRange(0, 199)).Draw(t, "flips") {
			in[i] = !in[i]
			s.put(i, in[i])
			require.Equal(t, in[i], s.has(i))
		}
		var want []int
		for i := range 200 {
			if in[i] {
				want = append(want, i)
			}
		}
		first, last, ok := s.ends()
		require.Equal(t, len(want) > 0, ok)
		if ok {
			require.Equal(t, [2]int{want[0], want[len(want)-1]}, [2]int{first, last})
		}
	})
}
