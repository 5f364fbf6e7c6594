package door_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// warn connects two trainers with ordering "warn".
func warn(j *job) (rank0, rank1 *trainer) {
	all := j.trainers(func(r *api.SessionRequest) { r.Ordering = "warn" })
	return all[0], all[1]
}

// mismatched returns what a rank recorded of calls that are not rank 0's.
func (j *job) mismatched(rank int) []events.Mismatched {
	var out []events.Mismatched
	for _, ev := range j.log.Node(rank).Reports() {
		if ev.Mismatched != nil {
			out = append(out, *ev.Mismatched)
		}
	}
	return out
}

// germinated brings both slots to GERMINATED on both ranks, and closes the
// stretch with step 0.
func germinated(t *testing.T, all ...*trainer) {
	t.Helper()
	for _, tr := range all {
		for _, slot := range []string{"r0c0", "r0c1"} {
			tr.germinate(slot).ok(t)
		}
		tr.step(0).ok(t)
	}
}

func TestSwappedCallsGetTheirOwnSlotsVerdict(t *testing.T) {
	j := newJob(t, 2)
	rank0, rank1 := warn(j)
	germinated(t, rank0, rank1)
	a := rank0.verdict("r0c0", "G1").decision(t)
	b := rank0.verdict("r0c1", "G1", members{"passed": false, "message": "not this one"}).decision(t)
	require.True(t, a.Passed)
	require.False(t, b.Passed)

	got := rank1.verdict("r0c1", "G1").decision(t)
	require.Equal(t, b.Verdict, got.Verdict, "rank 0's, of this slot")
	require.Equal(t, "r0c1", got.Slot)
	require.Equal(t, events.StageGerminated, got.Stage)
	require.Equal(t, b.Index, got.Index)
	require.False(t, got.Agreed)
	got = rank1.verdict("r0c0", "G1").decision(t)
	require.Equal(t, a.Verdict, got.Verdict)
	require.Equal(t, events.StageTraining, got.Stage)
	require.True(t, got.Agreed)
	require.True(t, got.Local.Passed, "a trainer's own verdict is its local one, also here")

	m := j.mismatched(1)
	require.Len(t, m, 1, "one swap")
	require.Equal(t, events.CodeOrderMismatch, m[0].Code)
	require.Equal(t, uint64(1), m[0].Rank)
	require.Equal(t, a.Index, m[0].Index)
	require.Equal(t, "r0c1", m[0].Got.Slot)
	require.Equal(t, "rank1.py:4", m[0].GotSite)
	require.Equal(t, "r0c0", m[0].Want.Slot)
	require.Equal(t, "rank0.py:4", m[0].WantSite)
	require.Equal(t, m[0].Want.Call, m[0].Got.Call, "it stands in that one's place")
	require.NoError(t, j.log.Node(1).WriteReports())
	require.Equal(t, uint64(1), j.log.Node(0).State().Round.Tally(1).Misplaced)

	want := rank0.step(1).fence(t)
	require.Equal(t, want, rank1.step(1).fence(t))
	require.Nil(t, j.fault())
	require.Len(t, j.mismatched(1), 1)
}

func TestAMissingCallIsRecordedAtTheFence(t *testing.T) {
	j := newJob(t, 2)
	rank0, rank1 := warn(j)
	germinated(t, rank0, rank1)
	rank0.advance("r0c0").ok(t)
	missing := rank0.advance("r0c1").decision(t)
	want := rank0.step(1).fence(t)
	rank1.advance("r0c0").ok(t)
	require.Empty(t, j.mismatched(1), "it may still come")
	require.Equal(t, want, rank1.step(1).fence(t), "its effects come with the fence")
	require.Len(t, want.Changes, 2)
	m := j.mismatched(1)
	require.Len(t, m, 1)
	require.Equal(t, events.CodeMissingCall, m[0].Code)
	require.Equal(t, missing.Index, m[0].Index)
	require.Equal(t, events.OpStepEpoch, m[0].Got.Op)
	require.Equal(t, "r0c1", m[0].Want.Slot)
	require.NoError(t, j.log.Node(1).WriteReports())
	require.Equal(t, uint64(1), j.log.Node(0).State().Round.Tally(1).Missing)

	// The numbers are each rank's own from here on.
	require.Equal(t, rank0.call-1, rank1.call)
	d := rank0.advance("r0c1", measured("r0c1", health(0.9))).decision(t)
	got := rank1.advance("r0c1", measured("r0c1", health(0.9))).decision(t)
	require.Equal(t, d, got)
	require.Nil(t, j.fault())
}

func TestWhatRank0DidNotCallEndsTheRoundAlsoWithWarn(t *testing.T) {
	for name, tc := range map[string]struct {
		rank1   func(*trainer) reply
		differs []string
		text    string
	}{
		"extra call":      {func(tr *trainer) reply { return tr.prune("r0c0") }, []string{"op", "slot", "seed", "epoch", "args"}, "rank 1 made a call more than rank 0 before that one"},
		"extra the third": {func(tr *trainer) reply { tr.advance("r0c0"); tr.advance("r0c0"); return tr.advance("r0c0") }, []string{"op", "slot", "seed", "epoch", "args"}, "rank 1 made a call more"},
		"other arguments": {func(tr *trainer) reply { return tr.advance("r0c0", members{"target": "PRUNED"}) }, []string{"args"}, "the same call with other arguments"},
		"other germination": {func(tr *trainer) reply {
			tr.germinate("r0c1")
			return tr.advance("r0c1")
		}, []string{"seed"}, "they differ in seed"},
		"other epoch": {func(tr *trainer) reply { return tr.step(2) }, []string{"epoch", "args"}, "they differ in epoch, args"},
	} {
		t.Run(name, func(t *testing.T) {
			j := newJob(t, 2)
			rank0, rank1 := warn(j)
			for _, tr := range []*trainer{rank0, rank1} {
				tr.germinate("r0c0").ok(t)
				tr.step(0).ok(t)
			}
			rank0.advance("r0c1").ok(t) // no seed yet
			rank0.germinate("r0c1").ok(t)
			rank0.advance("r0c0").ok(t)
			rank0.advance("r0c0").ok(t)
			rank0.step(1).ok(t)
			p := tc.rank1(rank1).refused(t, events.CodeOrderMismatch)
			require.Equal(t, tc.differs, p.Differs)
			require.Contains(t, p.Detail, tc.text)
			require.Equal(t, p.Want.Call, p.Got.Call)
			rank0.step(2).refused(t, events.CodeRoundFaulted)
			require.Equal(t, uint64(1), j.fault().Rank)
		})
	}
}

// Calls of one slot keep their order here; the slots' do not.
func TestTheNthCallOfAKindIsRank0sNth(t *testing.T) {
	j := newJob(t, 2)
	rank0, rank1 := warn(j)
	script := map[string]func(*trainer) reply{}
	for _, slot := range []string{"r0c0", "r0c1"} {
		script["advance "+slot] = func(tr *trainer) reply {
			return tr.advance(slot, measured(slot, accuracy(50))) // not the same in both slots, nor each time
		}
		script["germinate "+slot] = func(tr *trainer) reply { return tr.germinate(slot) }
		script["prune "+slot] = func(tr *trainer) reply { return tr.prune(slot) }
	}
	one := []string{"advance r0c0", "germinate r0c0", "germinate r0c0", "advance r0c0", "advance r0c0", "prune r0c0", "prune r0c0"}
	other := []string{"germinate r0c1", "advance r0c1", "prune r0c1", "advance r0c1"}
	want, got := map[string]string{}, map[string]string{}
	play := func(tr *trainer, into map[string]string, calls ...string) {
		for _, call := range calls {
			a := script[call](tr)
			for n := 1; ; n++ {
				if key := fmt.Sprintf("%s, %d", call, n); into[key] == "" {
					into[key] = fmt.Sprint(a.status, unlocalBody(t, a))
					break
				}
			}
		}
	}
	play(rank0, want, append(one, other...)...)
	play(rank1, got, append(other, one...)...)
	require.Equal(t, want, got)
	require.Contains(t, want["germinate r0c0, 2"], "expected an empty slot")
	require.Contains(t, want["advance r0c0, 1"], "no_active_seed")
	require.Equal(t, rank0.step(0).fence(t), rank1.step(0).fence(t))
	require.Nil(t, j.fault())
	require.Len(t, j.mismatched(1), len(other), "each of them before the first of the others")

	// In the next stretch they are counted anew.
	rank0.advance("r0c0").ok(t)
	d := rank0.advance("r0c1").decision(t)
	require.Equal(t, d.Index, rank1.advance("r0c1").decision(t).Index)
	require.Equal(t, d.Index-1, rank1.advance("r0c0").decision(t).Index)
}

// unlocalBody drops what is a rank's own in an answer.
func unlocalBody(t testing.TB, a reply) string {
	if a.status != 200 {
		return a.body
	}
	m := decodeAs[map[string]any](t, a.body)
	delete(m, "local")
	delete(m, "agreed")
	return jsonOf(t, m)
}

func TestASwappedCallIsAnsweredAgainUnderItsNumber(t *testing.T) {
	j := newJob(t, 2)
	rank0, rank1 := warn(j)
	germinated(t, rank0, rank1)
	rank0.advance("r0c0").ok(t)
	rank0.advance("r0c1").ok(t)
	again := func(slot string) {
		t.Helper()
		body, path := rank1.body(), "/v1/slots/"+slot+"/advance"
		first := rank1.makes(path)
		require.Equal(t, first, rank1.post(path, body))
		a := decodeAs[api.SessionAnswer](t, rank1.returns(func(r *api.SessionRequest) { *r.Answered-- }).ok(t).body)
		require.Equal(t, body["call"], a.NextCall)
		require.Equal(t, first, rank1.post(path, body))
	}
	again("r0c1")
	again("r0c0")
	require.Len(t, j.mismatched(1), 1, "what is repeated is not counted again")
	rank0.step(1).ok(t)
	p := rank1.post("/v1/slots/r0c1/prune", rank1.body(members{"call": rank1.call - 1})).refused(t, events.CodeOrderMismatch)
	require.Equal(t, []string{"op", "slot", "args"}, p.Differs, "another call under a number that was used")
}

func TestAnEsperdThatRestartsAmidSwappedCallsIsNotNoticed(t *testing.T) {
	j := newJob(t, 2)
	rank0, rank1 := warn(j)
	germinated(t, rank0, rank1)
	var want []*api.Decision
	for _, slot := range []string{"r0c0", "r0c0", "r0c1"} { // TRAINING, BLENDING, and TRAINING
		want = append(want, rank0.advance(slot, measured("r0c0", health(0.9))).decision(t))
	}
	done := rank0.prune("r0c1").ok(t)

	a := rank1.restart()
	require.Equal(t, events.StageGerminated, a.Slots[0].Stage)
	require.Equal(t, want[2].Index, rank1.advance("r0c1").decision(t).Index)
	a = rank1.restart()
	require.Equal(t, want[2].Index, a.Index, "the latest entry that it has seen")
	require.Equal(t, events.StageBlending, a.Slots[0].Stage)
	require.Equal(t, want[0].Index, rank1.advance("r0c0").decision(t).Index)
	rank1.restart()
	require.Equal(t, want[1].Index, rank1.advance("r0c0").decision(t).Index, "the second one, though the first was made before")
	rank1.restart()
	require.Equal(t, done, rank1.prune("r0c1"))
	rank1.restart()

	// An answer that was lost with the esperd that gave it.
	rank0.germinate("r0c1").refused(t, events.CodeIllegalTransition)
	rank0.advance("r0c0", measured("r0c0", health(0.9))).ok(t)
	before := *rank1
	first := rank1.advance("r0c0", measured("r0c0", health(0.2)))
	*rank1 = before
	rank1.restart()
	require.Equal(t, unlocalBody(t, first), unlocalBody(t, rank1.advance("r0c0")))
	rank1.germinate("r0c1").refused(t, events.CodeIllegalTransition)

	require.Equal(t, rank0.step(1).fence(t), rank1.step(1).fence(t))
	rank1.restart()
	require.Equal(t, rank0.step(2).fence(t), rank1.step(2).fence(t))
	require.Nil(t, j.fault())
	require.NotContains(t, j.logs[1].String(), "bug in esperd")
	for _, m := range j.mismatched(1) {
		require.Equal(t, events.CodeOrderMismatch, m.Code, "nothing is missing: %+v", m)
	}
}

// What the trainer observed is lost with the restart, and known to be.
func TestOwnVerdictsAfterARestartAmidSwappedCalls(t *testing.T) {
	j := newJob(t, 2)
	rank0, rank1 := warn(j)
	germinated(t, rank0, rank1)
	rank0.advance("r0c1").ok(t)
	rank0.advance("r0c0").ok(t)
	rank1.advance("r0c0").ok(t)
	rank1.restart()
	rank1.advance("r0c1").ok(t)
	rank0.advance("r0c0", measured("r0c0", health(0.9))).ok(t)
	d := rank1.advance("r0c0", measured("r0c0", health(0.2))).decision(t)
	require.True(t, d.Passed)
	require.Nil(t, d.Local)
	require.Equal(t, rank0.step(1).fence(t), rank1.step(1).fence(t))
	require.NotContains(t, j.logs[1].String(), "bug in esperd")
	require.Empty(t, j.log.Node(1).Verdicts())
}

func TestIndexesThatWereNotMatchedAreRefused(t *testing.T) {
	j := newJob(t, 2)
	rank0, rank1 := warn(j)
	germinated(t, rank0, rank1)
	first := rank0.advance("r0c0").decision(t).Index
	rank0.advance("r0c1").ok(t)
	fence := rank0.step(1).fence(t).Index
	rank0.germinate("r0c0").refused(t, events.CodeIllegalTransition)
	rank1.advance("r0c1").ok(t)
	j.stop(1)
	j.start(1)
	for name, matched := range map[string][]uint64{
		"no index": {0}, "no call": {1}, "of an earlier stretch": {rank1.fenced - 1}, "the fence": {fence}, "of a later stretch": {fence + 1}, "twice": {first, first},
	} {
		p := rank1.returns(func(r *api.SessionRequest) { r.Matched = matched }).refused(t, events.CodeInvalidInput)
		require.Contains(t, p.Detail, "matched: expected calls of model main between the fence of entry", name)
		a := rank1.advance("r0c0") // nothing was opened by halves
		require.Contains(t, a.refused(t, events.CodeUnavailable).Detail, "is not open in this session", name)
	}
	rank1.returns().ok(t)
	require.Equal(t, first, rank1.advance("r0c0").decision(t).Index)
	require.Equal(t, fence, rank1.step(1).fence(t).Index)
}

func TestTheOrderingIsChosenOnce(t *testing.T) {
	j := newJob(t, 2)
	rank0, rank1 := warn(j)
	rank0.germinate("r0c0").ok(t)
	rank0.germinate("r0c1").ok(t)
	rank1.germinate("r0c1").ok(t)
	strict := func(r *api.SessionRequest) { r.Ordering = "strict" }
	p := rank1.returns(strict).refused(t, events.CodeConfigMismatch)
	require.Contains(t, p.Detail, `comes back with ordering="strict"`)
	rank1.germinate("r0c0").ok(t)

	all := j.trainers()
	all[1].returns(func(r *api.SessionRequest) { r.Ordering = "warn" }).refused(t, events.CodeConfigMismatch)
	all[0].step(0).ok(t)
	all[1].step(0).ok(t)
}

// A slot's own calls in another order are other calls: their answers would lead
// the slot back to where it was.
func TestASlotsCallsInAnotherOrderEndTheRound(t *testing.T) {
	j := newJob(t, 2)
	rank0, rank1 := warn(j)
	germinated(t, rank0, rank1)
	rank0.verdict("r0c0", "G1", members{"passed": true}).ok(t)
	rank0.prune("r0c0").ok(t)
	rank1.prune("r0c0").ok(t)
	p := rank1.verdict("r0c0", "G1", members{"passed": true}).refused(t, events.CodeOrderMismatch)
	require.Equal(t, []string{"call"}, p.Differs)
	require.Equal(t, uint64(1), j.fault().Rank)
}

// A germination that was left out does not change what the slot's next call is.
func TestALeftOutGerminationIsRecorded(t *testing.T) {
	j := newJob(t, 2)
	rank0, rank1 := warn(j)
	germinated(t, rank0, rank1)
	rank0.prune("r0c0").ok(t)
	rank1.prune("r0c0").ok(t)
	for epoch := range int64(7) {
		require.Equal(t, rank0.step(epoch+1).fence(t), rank1.step(epoch+1).fence(t))
	}
	rank0.germinate("r0c0").ok(t)
	d := rank0.advance("r0c0").decision(t)
	require.Equal(t, d, rank1.advance("r0c0").decision(t))
	require.Equal(t, rank0.step(8).fence(t), rank1.step(8).fence(t))
	require.Nil(t, j.fault())
}
