package door_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

func follow(j *job) (rank0, rank1 *trainer) {
	all := j.trainers(inMode(events.ModeFollow))
	return all[0], all[1]
}

func TestInTheModeFollowRank0AloneCalls(t *testing.T) {
	j := newJob(t, 2)
	rank0, rank1 := follow(j)
	rank0.germinate("r0c0").ok(t)
	head := j.head(0)
	for op, more := range map[string]members{
		"germinate": {"blueprint": "conv"}, "advance": {}, "verdict": {"gate": "G1", "passed": true}, "prune": {},
		"schedule_prune": {"ticks": 3}, "alpha_target": {"target": 0.5, "ticks": 3},
	} {
		p := rank1.makes("/v1/slots/r0c0/"+op, more, measured("r0c0", accuracy(50))).refused(t, events.CodeNotAuthority)
		require.Contains(t, p.Detail, op+" at rank1.py:1: in the mode follow rank 0 alone makes this call, and this is rank 1: put it under `if rank == 0`")
		require.Zero(t, p.Index, "the number is free")
	}
	require.Equal(t, head, j.head(0), "they are in no log")
	require.Nil(t, j.fault())
	want := rank0.step(0).fence(t)
	require.Equal(t, want, rank1.step(0).fence(t), "its first number, after all")

	p := rank0.step(1, members{"outcomes": []events.Outcome{{Slot: "r0c0", Stage: events.StageTraining}}}).refused(t, events.CodeInvalidInput)
	require.Contains(t, p.Detail, "outcomes belong to the mode observe, and round 1 is in the mode follow")
}

func TestFollowersGetTheChangesSinceTheirLastFence(t *testing.T) {
	j := newJob(t, 2)
	rank0, rank1 := follow(j)
	var want []*api.Fence
	rank0.germinate("r0c0").ok(t)
	want = append(want, rank0.step(0).fence(t))
	rank0.advance("r0c0").ok(t)
	rank0.advance("r0c0", measured("r0c0", accuracy(50))).ok(t)
	rank0.germinate("r0c1").ok(t)
	rank0.prune("nowhere").refused(t, events.CodeUnknownSlot) // an entry like any other
	rank0.prune("r0c1").ok(t)
	want = append(want, rank0.fenceAt(7).fence(t), rank0.fenceAt(8).fence(t), rank0.step(1).fence(t))

	for i, make := range []func() reply{
		func() reply { return rank1.step(0) }, func() reply { return rank1.fenceAt(7) },
		func() reply { return rank1.fenceAt(8) }, func() reply { return rank1.step(1) },
	} {
		require.Equal(t, want[i], make().fence(t), "fence %d", i)
	}
	require.Equal(t, []api.Change{{Slot: "r0c0", Seed: 1, Blueprint: "conv", From: events.StageDormant, To: events.StageGerminated}}, want[0].Changes)
	require.Equal(t, []api.Change{{Slot: "r0c0", Seed: 1, Blueprint: "conv", From: events.StageGerminated, To: events.StageBlending},
		{Slot: "r0c1", Seed: 1, Blueprint: "conv", From: events.StageDormant, To: events.StagePruned}}, want[1].Changes, "everything in between at once")
	require.Empty(t, want[2].Changes)
	require.Equal(t, "r0c0", want[3].Changes[0].Slot)
	require.Positive(t, want[3].Changes[0].Alpha)
	require.Equal(t, uint64(5), rank1.call)
	require.Equal(t, uint64(4), rank1.fence)
}

func TestAFollowerWaitsForTheNextFence(t *testing.T) {
	j := newJob(t, 2)
	rank0, rank1 := follow(j)
	waits := later(func() reply { return rank1.step(0) })
	j.waiting(1)
	rank0.germinate("r0c0").ok(t)
	rank0.advance("r0c0").ok(t)
	select {
	case a := <-waits:
		t.Fatalf("answered before rank 0 fenced: %s", a.body)
	default:
	}
	want := rank0.step(0).fence(t)
	require.Equal(t, want, (<-waits).fence(t))
}

func TestARefusedFenceIsRefusedAlike(t *testing.T) {
	j := newJob(t, 3)
	all := j.trainers(inMode(events.ModeFollow))
	var refused [3]*api.Problem
	var last [3]*api.Fence
	for rank, tr := range all {
		only0 := func(call func() reply) {
			if rank == 0 {
				call().ok(t)
			}
		}
		tr.step(3).ok(t)
		only0(func() reply { return tr.germinate("r0c0") })
		refused[rank] = tr.step(3).refused(t, events.CodeInvalidInput)
		only0(func() reply { return tr.advance("r0c0") })
		last[rank] = tr.step(4).fence(t)
	}
	require.Positive(t, refused[0].Index)
	for rank := range all {
		require.Equal(t, refused[0], refused[rank], "rank %d", rank)
		require.Equal(t, last[0], last[rank], "rank %d", rank)
	}
	require.Contains(t, refused[0].Detail, "resume")
	require.Equal(t, []api.Change{{Slot: "r0c0", Seed: 1, Blueprint: "conv", From: events.StageDormant, To: events.StageTraining}}, last[0].Changes, "since the fence that was granted")
}

func TestAFollowersOtherFenceEndsTheRound(t *testing.T) {
	for name, tc := range map[string]struct {
		rank0, rank1 func(*trainer) reply
		differs      []string
	}{
		"epoch": {stepTo(1), stepTo(2), []string{"epoch", "args"}},
		"n":     {fenceTo(1), fenceTo(2), []string{"args"}},
		"op":    {stepTo(1), fenceTo(1), []string{"op", "epoch", "args"}},
		"reset": {(*trainer).reset, stepTo(1), []string{"op", "epoch", "args"}},
	} {
		t.Run(name, func(t *testing.T) {
			j := newJob(t, 2)
			rank0, rank1 := follow(j)
			rank0.step(0).ok(t)
			rank1.step(0).ok(t)
			rank0.germinate("r0c0").ok(t)
			tc.rank0(rank0).ok(t)
			p := tc.rank1(rank1).refused(t, events.CodeOrderMismatch)
			require.Equal(t, tc.differs, p.Differs)
			require.Equal(t, uint64(3), p.Want.Call)
			require.Equal(t, p.Want.Call, p.Got.Call, "its number is compared in rank 0's numbers")
			require.Equal(t, "rank0.py:3", p.WantSite)
			require.Equal(t, "rank1.py:2", p.GotSite)
			f := rank0.step(9).refused(t, events.CodeRoundFaulted)
			require.Equal(t, p.Want, f.Want)
			require.Equal(t, p.Got, f.Got)
			require.Equal(t, uint64(1), j.fault().Rank)
			rank1.step(9).refused(t, events.CodeRoundFaulted)
		})
	}
}

func stepTo(epoch int64) func(*trainer) reply {
	return func(tr *trainer) reply { return tr.step(epoch) }
}
func fenceTo(n int64) func(*trainer) reply { return func(tr *trainer) reply { return tr.fenceAt(n) } }

func TestAResetReachesTheFollowers(t *testing.T) {
	j := newJob(t, 2)
	rank0, rank1 := follow(j)
	rank0.germinate("r0c0").ok(t)
	rank0.step(5).ok(t)
	rank0.advance("r0c0").ok(t)
	reset := rank0.reset().fence(t)
	require.Equal(t, int64(-1), reset.Epoch)
	require.Equal(t, []api.Change{{Slot: "r0c0", Blueprint: "conv", From: events.StageGerminated, To: events.StageDormant}}, reset.Changes)
	rank0.germinate("r0c0").ok(t)
	step := rank0.step(0).fence(t)
	require.Equal(t, uint64(1), step.Changes[0].Seed, "germinations count anew")

	rank1.step(5).ok(t)
	require.Equal(t, reset, rank1.reset().fence(t))
	require.Equal(t, step, rank1.step(0).fence(t))
	for _, tr := range []*trainer{rank0, rank1} {
		require.Equal(t, uint64(2), tr.restart().Generation)
	}
}

func TestRank0SeesFencesOnlyToo(t *testing.T) {
	j := newJob(t, 2)
	rank0, rank1 := follow(j)
	sees := func(want events.Stage) {
		t.Helper()
		for range 2 { // the same esperd, and a new one
			for _, tr := range []*trainer{rank0, rank1} {
				a := decodeAs[api.SessionAnswer](t, tr.returns().ok(t).body)
				require.Equal(t, want, a.Slots[0].Stage, "rank %d", tr.rank)
				require.Equal(t, tr.call, a.NextCall)
				require.Equal(t, tr.fence, a.NextFence)
			}
			rank0.restart()
			rank1.restart()
		}
	}
	sees(events.StageDormant)
	require.Equal(t, events.StageGerminated, decodeAs[api.Done](t, rank0.germinate("r0c0").ok(t).body).Stage, "the answer is the entry's")
	sees(events.StageDormant)
	rank0.step(0).ok(t)
	rank1.step(0).ok(t)
	rank0.advance("r0c0").ok(t)
	sees(events.StageGerminated)
	rank0.step(0).refused(t, events.CodeInvalidInput) // closes nothing
	rank1.step(0).refused(t, events.CodeInvalidInput)
	sees(events.StageGerminated)
	rank0.step(1).ok(t)
	rank1.step(1).ok(t)
	sees(events.StageTraining)
}

func TestAFenceIsAnsweredAgainUnderItsNumber(t *testing.T) {
	j := newJob(t, 2)
	rank0, rank1 := follow(j)
	rank0.germinate("r0c0").ok(t)
	again := func(path string, more ...members) {
		t.Helper()
		before := rank1.body(more...)
		first := rank1.makes(path, more...)
		head := j.head(0)
		require.Equal(t, first, rank1.post(path, before))
		require.Equal(t, head, j.head(0))
		a := decodeAs[api.SessionAnswer](t, rank1.returns(func(r *api.SessionRequest) { *r.Answered-- }).ok(t).body)
		require.Equal(t, before["call"], a.NextCall, "a client that has missed the answer")
		require.Equal(t, before["fence"], a.NextFence)
		require.Equal(t, first, rank1.post(path, before))
	}
	rank0.step(0).ok(t)
	again("/v1/epochs/0/step")
	rank0.step(0).refused(t, events.CodeInvalidInput)
	again("/v1/epochs/0/step") // refused
	rank0.fenceAt(2).ok(t)
	again("/v1/fence", members{"n": 2})
	rank0.reset().ok(t)
	again("/v1/reset")

	// Another call under a number that was used ends the round.
	used := rank1.body(members{"call": rank1.call - 1, "fence": rank1.fence - 1})
	p := rank1.post("/v1/epochs/7/step", used).refused(t, events.CodeOrderMismatch)
	require.Equal(t, []string{"op", "epoch", "args"}, p.Differs)
	require.Equal(t, p.Want.Call, p.Got.Call, "its number is compared in rank 0's numbers")
	require.NotNil(t, j.fault())
}

// followed plays a loop of a policy and its followers, with something between
// any two calls of any rank.
func followed(t *testing.T, between func(*trainer)) (fences [2][]any) {
	j := newJob(t, 2)
	rank0, rank1 := follow(j)
	add := func(tr *trainer, a reply) {
		var v any = decodeAs[api.Problem](t, a.body)
		if a.status == 200 {
			v = *a.fence(t)
		}
		fences[tr.rank] = append(fences[tr.rank], v)
		between(tr)
	}
	policy := []func() reply{
		func() reply { return rank0.germinate("r0c0") },
		func() reply { return rank0.advance("r0c0") },
		func() reply { return rank0.germinate("r0c1") },
		func() reply { return rank0.advance("r0c0", measured("r0c0", accuracy(50))) },
	}
	for epoch := range int64(4) {
		policy[epoch]().ok(t)
		between(rank0)
		add(rank0, rank0.step(epoch))
		add(rank0, rank0.step(epoch)) // refused
	}
	add(rank0, rank0.reset())
	for epoch := range int64(4) {
		add(rank1, rank1.step(epoch))
		add(rank1, rank1.step(epoch))
	}
	add(rank1, rank1.reset())
	return fences
}

func TestAFollowersEsperdThatRestartsIsNotNoticed(t *testing.T) {
	quiet := followed(t, func(*trainer) {})
	require.Equal(t, quiet[0], quiet[1])
	restarted := followed(t, func(tr *trainer) { tr.restart() })
	require.Equal(t, quiet, restarted)
}

func TestAFollowerThatIsBackBeforeItsNodeIs(t *testing.T) {
	j := newJob(t, 2)
	rank0, rank1 := follow(j)
	rank0.germinate("r0c0").ok(t)
	rank0.step(0).ok(t)
	rank1.step(0).ok(t)
	j.stop(1)
	j.log.Node(1).Behind(rank1.fenced - 1)
	j.start(1)
	back := later(func() reply { return rank1.returns() })
	want := rank0.step(1).fence(t)
	select {
	case a := <-back:
		t.Fatalf("answered before the node has caught up: %s", a.body)
	default:
	}
	j.log.Node(1).Release()
	require.Equal(t, events.StageGerminated, decodeAs[api.SessionAnswer](t, (<-back).ok(t).body).Slots[0].Stage)
	require.Equal(t, want, rank1.step(1).fence(t))
}

func TestAFollowerIsNotBackWhereItsReplicaHasDiverged(t *testing.T) {
	j := newJob(t, 2)
	rank0, rank1 := follow(j)
	rank0.step(0).ok(t)
	rank1.step(0).ok(t)
	j.stop(1)
	j.log.Node(1).Behind(rank1.fenced - 1)
	j.start(1)
	back := later(func() reply { return rank1.returns() })
	j.diverge(1)
	(<-back).refused(t, events.CodeDiverged)
}

func TestAWrongFenceIndexIsRefused(t *testing.T) {
	j := newJob(t, 2)
	rank0, rank1 := follow(j)
	critic := j.trainers(inMode(events.ModeFollow), func(r *api.SessionRequest) {
		r.Model, r.Incarnation = "critic", []*trainer{rank0, rank1}[r.Rank].req.Incarnation
	})
	rank0.germinate("r0c0").ok(t)
	rank0.step(0).ok(t)
	rank1.step(0).ok(t)
	critic[0].step(0).ok(t)
	critic[1].step(0).ok(t)
	j.stop(1)
	j.start(1)
	for what, index := range map[string]uint64{"none": 0, "no call": 1, "no fence": rank0.fenced - 1, "another model's": critic[0].fenced} {
		p := rank1.returns(func(r *api.SessionRequest) { r.FenceIndex = index }).refused(t, events.CodeInvalidInput)
		require.Contains(t, p.Detail, fmt.Sprintf("expected the entry of a fence of model main in round 1, got entry %d: send the index", index), what)
	}
	rank1.returns().ok(t)
	want := rank0.step(1).fence(t)
	require.Equal(t, want, rank1.step(1).fence(t))

	// Of an earlier round.
	old := rank1.fenced
	rank0, rank1 = follow(j)
	j.stop(1)
	j.start(1)
	rank1.returns(func(r *api.SessionRequest) { r.FenceIndex = old }).refused(t, events.CodeInvalidInput)
	rank1.returns().ok(t)
}

func TestFollowersTellWhereTheyWouldHaveDecidedOtherwise(t *testing.T) {
	j := newJob(t, 2)
	rank0, rank1 := follow(j)
	rank0.germinate("r0c0").ok(t)
	rank0.advance("r0c0").ok(t)
	rank0.step(0).ok(t)
	rank1.step(0).ok(t)
	require.Empty(t, j.log.Node(1).Reports())

	// What rank 1 measured before its fence counts for rank 0's calls before it.
	rank0.germinate("r0c1").ok(t)
	d := rank0.advance("r0c0", measured("r0c0", health(0.9))).decision(t)
	require.True(t, d.Passed)
	rank0.verdict("r0c1", "G1").ok(t) // its own, which nobody can differ from
	rank0.step(1).ok(t)
	status, body := j.post(1, "/v1/slots/r0c0/observe", jsonOf(t, api.ObserveRequest{Session: rank1.req.Incarnation, Model: "main", Readings: health(0.9)}))
	require.Equal(t, 200, status, body)
	rank1.step(1, measured("r0c0", health(0.2))).ok(t) // the later one counts
	verdicts := j.log.Node(1).Verdicts()
	require.Len(t, verdicts, 1)
	require.Equal(t, uint64(1), verdicts[0].Rank)
	require.Equal(t, d.Index, verdicts[0].Index)
	require.Equal(t, events.OpAdvance, verdicts[0].Key.Op)
	require.Equal(t, "rank1.py:2", verdicts[0].Site, "its fence")
	require.Equal(t, []string{"gradient_health_low_0.20_need_0.70"}, verdicts[0].Verdict.ChecksFailed)
	require.NoError(t, j.log.Node(1).WriteReports())
	require.Equal(t, uint64(1), j.log.Node(0).State().Round.Tally(1).Disagreements)

	// The stages are the log's, and it goes on from there.
	rank0.advance("r0c1", measured("r0c1", health(0.2))).ok(t)
	rank0.step(2).ok(t)
	rank1.step(2, measured("r0c1", health(0.2))).ok(t)
	require.Len(t, j.log.Node(1).Verdicts(), 1, "both failed")
	require.NotContains(t, j.logs[1].String(), "bug in esperd")
}
