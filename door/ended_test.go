package door_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
)

// closes ends a trainer in order.
func (tr *trainer) closes() {
	tr.j.t.Helper()
	tr.post("/v1/close", members{"session": tr.req.Incarnation}).ok(tr.j.t)
}

func TestRank0EndedAndAnotherRankGoesOn(t *testing.T) {
	for mode, inModeOf := range map[string]events.TrainerMode{"keyed": events.ModeKeyed, "follow": events.ModeFollow} {
		t.Run(mode, func(t *testing.T) {
			j := newJob(t, 2)
			all := j.trainers(inMode(inModeOf))
			all[0].step(0).ok(t)
			all[0].step(1).ok(t)
			all[0].closes()
			require.Equal(t, uint64(1), j.log.Node(1).State().Round.Tally(0).Ended)
			all[1].step(0).ok(t) // what rank 0 called is answered
			all[1].step(1).ok(t)
			p := all[1].step(2).refused(t, events.CodeOrderMismatch)
			require.Contains(t, p.Detail, "rank 0's trainer has ended in order, and made call 2, step_epoch epoch 1 at rank0.py:")
			require.Contains(t, p.Detail, "this call is one more than rank 0 made")
			require.Equal(t, uint64(1), j.fault().Rank)
		})
	}
}

func TestAWaitEndsWhenRank0Ends(t *testing.T) {
	j := newJob(t, 2)
	all := j.trainers()
	all[0].step(0).ok(t)
	all[1].step(0).ok(t)
	waiting := later(func() reply { return all[1].step(1) })
	j.waiting(1)
	all[0].closes()
	(<-waiting).refused(t, events.CodeOrderMismatch)
}

func TestARankEndedAndRank0GoesOn(t *testing.T) {
	j := newJob(t, 3)
	all := j.trainers()
	for _, tr := range all {
		tr.step(0).ok(t)
	}
	all[2].closes()
	p := all[0].step(1).refused(t, events.CodeRoundFaulted)
	require.Contains(t, p.Detail, "the trainer of rank 2 is gone: it closed its session in order, and rank 0 goes on with call 2, step_epoch epoch 1 at rank0.py:")
	require.Equal(t, uint64(2), j.fault().Rank)
	all[1].step(1).refused(t, events.CodeRoundFaulted)
}

// A follower makes fences alone: rank 0 may call until the next one.
func TestAFollowerEndedAndRank0Fences(t *testing.T) {
	j := newJob(t, 2)
	all := j.trainers(inMode(events.ModeFollow))
	all[0].step(0).ok(t)
	all[1].step(0).ok(t)
	all[1].closes()
	all[0].germinate("r0c0").ok(t)
	all[0].step(1).refused(t, events.CodeRoundFaulted)
}
