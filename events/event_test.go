package events

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// What a fault says is the same wherever it is told.
func TestFaultInWords(t *testing.T) {
	got := Key{Round: 2, Model: "main", Generation: 1, Call: 7, Fence: 3, Op: OpAdvance, Slot: "r0c1", Seed: 1, Epoch: 2}
	want := got
	want.Slot = "r0c0"
	f := RoundFaulted{Round: 2, Code: CodeOrderMismatch, Rank: 3, Got: got, GotSite: "train.py:90", Want: want}
	require.Equal(t, "rank 3 called advance r0c1#1 epoch 2 (model main.1, round 2, call 7, fence 3) at train.py:90 "+
		"where rank 0 called advance r0c0#1 epoch 2 (model main.1, round 2, call 7, fence 3)", f.What())
	f.Code, f.Reason = CodeUnavailable, "killed"
	require.Equal(t, "the trainer of rank 3 is gone: killed; its last call was advance r0c1#1 epoch 2 (model main.1, round 2, call 7, fence 3) at train.py:90", f.What())
	f.Reason = "" // from a log that an older node takes part in
	require.Contains(t, f.What(), "is gone: it is not known why; its last call")
}
