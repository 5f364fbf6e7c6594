package gpuexec

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/gpuexec/exectest"
)

func uniform(bound float64) *events.Init {
	return &events.Init{Rule: events.InitUniform, Value: bound}
}

// conv and wide are what tests put into slots.
var (
	conv = events.Blueprint{Name: "conv", Tensors: []events.Tensor{
		{Name: "weight", Shape: []uint64{8, 3, 3}, DType: "float32", Init: uniform(0.5)},
		{Name: "bias", Shape: []uint64{8}, DType: "float32"},
		{Name: "gain", Shape: []uint64{}, DType: "float32", Init: &events.Init{Rule: events.InitConstant, Value: 1}}}}
	wide = events.Blueprint{Name: "wide", Tensors: []events.Tensor{
		{Name: "a", Shape: []uint64{700, 1000}, DType: "bfloat16", Init: uniform(0.1), Master: true},
		{Name: "b", Shape: []uint64{33}, DType: "float16", Init: uniform(2)},
		{Name: "c", Shape: []uint64{100_000}, DType: "float32", Init: uniform(1)}}}
	plain = events.Blueprint{Name: "plain"} // its memory is the trainer's
)

func newLog(t exectest.T, slots ...string) *exectest.Log {
	return exectest.NewLog(t, exectest.Slots(slots, conv, wide, plain)...)
}

func planText(list []Command) string {
	var words []string
	for _, c := range list {
		w := fmt.Sprintf("%s %s#%d", c.Op, c.Slot, c.Seed)
		if c.Op == OpSetAlpha {
			w += fmt.Sprintf("=%g", c.Alpha)
		}
		words = append(words, w)
	}
	return strings.Join(words, ", ")
}

// A seed's life, fence by fence.
func TestPlan(t *testing.T) {
	l := newLog(t, "a", "b")
	before := l.Model()
	expect := func(want string) {
		t.Helper()
		require.Equal(t, want, planText(Plan(before, l.Model())))
		before = l.Model()
	}
	expect("")
	l.Germinate("a", "conv")
	expect("reserve a#1, initialise a#1")
	l.Pass("a", events.G1)
	expect("activate a#1, set_alpha a#1=0, thaw a#1")
	l.Pass("a", events.G2)
	expect("")
	l.Epoch()
	expect("set_alpha a#1=0.5")
	l.Epoch()
	expect("set_alpha a#1=1")
	l.Pass("a", events.G3)
	require.Equal(t, events.StageHolding, l.Stage("a"))
	expect("")
	l.Call("a", fsm.SchedulePrune{Ticks: 2, Steepness: 12})
	expect("freeze a#1")
	l.Epoch()
	expect("set_alpha a#1=0.5")
	l.Germinate("b", "conv")
	expect("reserve b#1, initialise b#1")
	l.Epoch()
	expect("deactivate a#1, zero a#1, release a#1")
	l.Prune("b")
	expect("zero b#1, release b#1")
	for range 7 {
		l.Epoch()
	}
	expect("")
	l.Germinate("a", "wide")
	l.Pass("a", events.G1)
	l.Germinate("b", "conv")
	expect("reserve a#2, initialise a#2, activate a#2, set_alpha a#2=0, thaw a#2, reserve b#2, initialise b#2")
	l.Call("", fsm.Reset{})
	expect("deactivate a#2, zero a#2, release a#2, zero b#2, release b#2")
	l.Germinate("a", "conv")
	before = nil
	expect("reserve a#1, initialise a#1")
}

func TestPlanFossilized(t *testing.T) {
	l := newLog(t, "a")
	l.Germinate("a", "conv")
	l.Pass("a", events.G1, events.G2)
	l.Epoch()
	l.Epoch()
	l.Pass("a", events.G3)
	before := l.Model()
	l.Pass("a", events.G5)
	require.Equal(t, events.StageFossilized, l.Stage("a"))
	require.Empty(t, Plan(before, l.Model()))
	require.NotEqual(t, ActiveSet(before), ActiveSet(l.Model()), "permanent is a flag of the table")
}

// The names of operations are read as they are written.
func TestOpText(t *testing.T) {
	for op := range Op(len(opNames)) {
		text, err := op.MarshalText()
		require.NoError(t, err)
		var again Op
		require.NoError(t, again.UnmarshalText(text))
		require.Equal(t, op, again)
	}
	require.Error(t, new(Op).UnmarshalText([]byte("explode")))
}
