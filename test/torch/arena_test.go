package torch

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestArena has seeds live in esperd's arena, on four ranks with the host's memory.
func TestArena(t *testing.T) {
	python := needTorch(t)
	t.Parallel()
	j := startJob(t, 4)
	got := j.with(python, "arena", "life")
	for rank := range 4 {
		d := got.last(t, rank, "differs")
		require.Equal(t, []int{2}, d.Ranks)
		require.Equal(t, []string{"a/0.weight"}, d.Tensors)
		table := got.last(t, rank, "table")
		require.Equal(t, []int{1}, table.Ranks)
		require.Equal(t, []string{"a"}, table.Tensors)
		require.Equal(t, got.last(t, 0, "pruned").Epoch, got.last(t, rank, "pruned").Epoch, "at the same fence")
	}
	var reason, initiator string
	for _, e := range j.entries() {
		for _, ev := range e.Events {
			if p := ev.Pruned; p != nil && p.Slot == "b" {
				reason, initiator = p.Reason, p.Initiator
			}
		}
	}
	require.Equal(t, "rank 3 has no room for it: CUDA out of memory", reason)
	require.Equal(t, "rank 3", initiator)
}
