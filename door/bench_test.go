package door_test

import (
	"context"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
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

// BenchmarkResume is a resume of 4 ranks that call at once, as a governor's do,
// with marks in memory; BenchmarkStepOfRanks is what a decision takes there.
func BenchmarkResume(b *testing.B) {
	benchmarkFence(b, func(c *client.Client, mark []byte, _ int64) error {
		_, err := c.Resume(context.Background(), mark)
		return err
	})
}

func BenchmarkStepOfRanks(b *testing.B) {
	benchmarkFence(b, func(c *client.Client, _ []byte, epoch int64) error {
		_, err := c.StepEpoch(context.Background(), epoch)
		return err
	})
}

func benchmarkFence(b *testing.B, fence func(*client.Client, []byte, int64) error) {
	j := newJob(b, 4)
	trainers := j.connect()
	mark, err := trainers[0].Checkpoint(j.ctx())
	require.NoError(b, err)
	b.ReportAllocs()
	for epoch := int64(0); b.Loop(); epoch++ {
		var ranks sync.WaitGroup
		for _, c := range trainers {
			ranks.Go(func() {
				if err := fence(c, mark.Mark, epoch); err != nil {
					b.Error(err)
				}
			})
		}
		ranks.Wait()
	}
}
