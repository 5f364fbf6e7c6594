package door_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

func residency(r *api.SessionRequest) { r.Residency, r.AutoForward = true, []events.Gate{events.G1} }

// votes is what a trainer says of the room for a slot's seed.
func (tr *trainer) votes(what, slot string, more ...members) reply {
	m := members{"session": tr.req.Incarnation}
	for _, x := range more {
		for k, v := range x {
			m[k] = v
		}
	}
	return tr.post("/v1/slots/"+slot+"/"+what, m)
}

// recorded puts what all ranks have reported into the log.
func (j *job) recorded() {
	j.t.Helper()
	for rank := range j.doors {
		require.NoError(j.t, j.log.Node(rank).WriteReports())
	}
}

func TestASeedTrainsOnceAllRanksHaveRoomForIt(t *testing.T) {
	j := newJob(t, 2)
	all := j.trainers(residency)
	for _, tr := range all {
		tr.germinate("r0c0").ok(t)
		tr.germinate("r0c1").ok(t)
	}
	epoch := int64(0)
	stages := func() [2]events.Stage {
		var out [2]events.Stage
		for _, tr := range all {
			f := tr.step(epoch).fence(t)
			out = [2]events.Stage{f.Slots[0].Stage, f.Slots[1].Stage}
		}
		epoch++
		return out
	}
	require.Equal(t, [2]events.Stage{events.StageGerminated, events.StageGerminated}, stages())
	all[0].votes("ready", "r0c0").ok(t)
	all[0].votes("ready", "r0c0").ok(t) // twice is once
	j.recorded()
	require.Equal(t, events.StageGerminated, stages()[0])
	require.Equal(t, events.StageGerminated, stages()[0], "rank 1 has not voted")
	all[1].votes("ready", "r0c0").ok(t)
	j.recorded()
	require.Equal(t, events.StageGerminated, stages()[0], "from the fence after it")
	require.Equal(t, [2]events.Stage{events.StageTraining, events.StageGerminated}, stages())

	// One rank has no room: the seed is pruned on all, with rank and reason.
	all[0].votes("ready", "r0c1").ok(t)
	all[1].votes("failed", "r0c1", members{"reason": "CUDA out of memory"}).ok(t)
	j.recorded()
	require.Equal(t, [2]events.Stage{events.StageTraining, events.StagePruned}, stages())
	require.Equal(t, &[2]string{"rank 1 has no room for it: CUDA out of memory", "rank 1"}, prunedBy(j, "r0c1"))
	require.Contains(t, j.logs[1].String(), "CUDA out of memory")
}

func TestVotesThatCannotBeTaken(t *testing.T) {
	j := newJob(t, 1)
	tr := j.trainers(residency)[0]
	require.Contains(t, tr.votes("ready", "r0c0").refused(t, events.CodeIllegalTransition).Detail, "no seed has germinated in slot r0c0 yet")
	tr.germinate("r0c0").ok(t)
	tr.votes("ready", "r9c9").refused(t, events.CodeUnknownSlot)
	tr.votes("ready", "r0c0", members{"reason": "x"}).refused(t, events.CodeInvalidInput)
	tr.votes("failed", "r0c0", members{"reason": strings.Repeat("x", 1025)}).refused(t, events.CodeInvalidInput)
	tr.votes("failed", "r0c0", members{"model": "critic"}).refused(t, events.CodeUnavailable)
	tr.votes("failed", "r0c0", members{"session": strings.Repeat("0", 32)}).refused(t, events.CodeUnavailable)
	require.Empty(t, j.log.Node(0).Reports())
	tr.votes("ready", "r0c0", members{"seed": 7}).ok(t) // late or early, it changes nothing
	j.recorded()
	require.Empty(t, j.log.Node(0).State().Votes)
	o := newJob(t, 1)
	tr = o.trainers(inMode(events.ModeObserve))[0]
	require.Contains(t, tr.votes("ready", "r0c0").refused(t, events.CodeNotAuthority).Detail, "mode observe")
}

// All ranks have it on, or none.
func TestResidencyIsTheSameOnAllRanks(t *testing.T) {
	j := newJob(t, 2)
	first := j.trainer(0, residency)
	done := later(first.connect)
	p := j.trainer(1, residency, func(r *api.SessionRequest) { r.Residency = false }).connect().refused(t, events.CodeConfigMismatch)
	(<-done).ok(t)
	require.Contains(t, p.Detail, "residency is true on rank 0, false here")
}
