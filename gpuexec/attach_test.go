package gpuexec

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/gpuexec/element"
)

// Trainers attach one at a time, with the log's tensors.
func TestAttach(t *testing.T) {
	d := newFaulty(t)
	defer d.Close()
	x := newExecutor(t, d)
	l := newLog(t, "a", "b")
	l.Germinate("a", "conv")
	l.Germinate("b", "plain")
	_, err := x.View("a", conv.Tensors)
	require.ErrorContains(t, err, "no fence yet")
	x.Fence(l.State)
	o, err := x.Attach("process 7")
	require.NoError(t, err)
	require.Equal(t, "host", o.Kind)
	require.NotEmpty(t, o.Chunks)
	again, err := x.Attach("process 7")
	require.NoError(t, err)
	require.Equal(t, o.Arena, again.Arena)
	other := newExecutor(t, d)
	other.Fence(l.State)
	of, err := other.Attach("process 7")
	require.NoError(t, err)
	require.NotEqual(t, o.Arena, of.Arena, "another arena's chunks would be taken for its")
	_, err = x.Attach("process 8")
	require.ErrorContains(t, err, "attached to process 7")
	x.Detach("process 8")
	_, err = x.Attach("process 8")
	require.Error(t, err)
	x.Detach("process 7")
	_, err = x.Attach("process 8")
	require.NoError(t, err)

	v, err := x.View("a", conv.Tensors)
	require.NoError(t, err)
	require.Equal(t, x.layout.Seed(0, "conv"), v.Tensors)
	require.Equal(t, uint64(element.HeaderBytes), v.Entry)
	for want, change := range map[string]func(list []events.Tensor) []events.Tensor{
		"tensor bias is float32 in the log, float16 here":              func(l []events.Tensor) []events.Tensor { l[1].DType = "float16"; return l },
		"tensor weight has the shape [8 3 3] in the log, [3 8 3] here": func(l []events.Tensor) []events.Tensor { l[0].Shape = []uint64{3, 8, 3}; return l },
		"tensor 1 is bias in the log, beta here":                       func(l []events.Tensor) []events.Tensor { l[1].Name = "beta"; return l },
		"slot a: blueprint conv: 3 tensors in the log, 2 here":         func(l []events.Tensor) []events.Tensor { return l[:2] },
		"slot a: blueprint conv: 3 tensors in the log, 4 here":         func(l []events.Tensor) []events.Tensor { return append(l, l[0]) },
	} {
		_, err := x.View("a", change(append([]events.Tensor(nil), conv.Tensors...)))
		var mismatch *TensorError
		require.ErrorAs(t, err, &mismatch)
		require.ErrorContains(t, err, want)
	}
	_, err = x.View("b", nil)
	require.ErrorContains(t, err, "names no tensors of blueprint plain")
	_, err = x.View("c", nil)
	require.ErrorContains(t, err, "none of that name")
	l.Prune("a")
	x.Fence(l.State)
	_, err = x.View("a", conv.Tensors)
	require.ErrorContains(t, err, "holds no seed")
}
