package door_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
)

// BenchmarkNumberedCall is one whole call of rank 0 and its client over the
// socket, into a log in memory: everything but raft.
func BenchmarkNumberedCall(b *testing.B) {
	j := newJob(b, 1)
	c := j.connect()[0]
	ctx := j.ctx()
	_, err := c.Germinate(ctx, "r0c0", api.GerminateRequest{Blueprint: "conv"})
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Advance(ctx, "r0c1"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStepEpoch is a call with an observation, whose answer lists slots.
func BenchmarkStepEpoch(b *testing.B) {
	j := newJob(b, 1)
	c := j.connect()[0]
	ctx := j.ctx()
	b.ReportAllocs()
	epoch := int64(0)
	for b.Loop() {
		c.Observe("r0c0", accuracy(50))
		if _, err := c.StepEpoch(ctx, epoch); err != nil {
			b.Fatal(err)
		}
		epoch++
	}
}
