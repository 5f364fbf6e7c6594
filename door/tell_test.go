package door_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/events"
)

func observe(j *job) (rank0, rank1 *trainer) {
	all := j.trainers(inMode(events.ModeObserve))
	return all[0], all[1]
}

// became is the outcome of one slot.
func became(slot string, stage events.Stage, alpha float64) events.Outcome {
	return events.Outcome{Slot: slot, Stage: stage, Alpha: events.Num(alpha)}
}

func passed(o events.Outcome, ok bool) events.Outcome { o.Passed = &ok; return o }

func outcomes(list ...events.Outcome) members { return members{"outcomes": list} }

// told returns once what the trainers of both ranks told up to a step is
// recorded.
func (j *job) told(epoch int64) {
	j.t.Helper()
	a := client.NewAdmin(j.socket(0))
	defer a.Close()
	require.Eventually(j.t, func() bool {
		r, err := a.Ranks(j.ctx())
		require.NoError(j.t, err)
		for _, rank := range r.Ranks {
			if rank.Last == nil || rank.Last.Key.Op != events.OpStepEpoch || rank.Last.Key.Epoch != epoch {
				return false
			}
		}
		return true
	}, 20*time.Second, time.Millisecond)
}

func (j *job) differing(rank int) []events.OutcomeDiffers {
	var out []events.OutcomeDiffers
	for _, ev := range j.log.Node(rank).Reports() {
		if ev.OutcomeDiffers != nil {
			out = append(out, *ev.OutcomeDiffers)
		}
	}
	return out
}

// calls returns the operations in the log, in its order.
func (j *job) calls() (out []string) {
	for i := uint64(1); i <= j.head(0); i++ {
		e, _, err := j.log.Node(0).Entry(i)
		require.NoError(j.t, err)
		if e.Key != nil {
			out = append(out, strings.TrimSpace(fmt.Sprint(e.Key.Op, " ", e.Key.Slot)))
		}
	}
	return out
}

func TestWhatIsObservedIsAnsweredAtOnce(t *testing.T) {
	j := newJob(t, 2)
	rank0, rank1 := observe(j)
	j.log.Node(0).Hold()
	j.log.Node(1).Hold()
	head := j.head(0)
	for _, tr := range []*trainer{rank0, rank1} { // neither waits for the log, nor for the other
		done := decodeAs[api.Done](t, tr.germinate("r0c0", outcomes(became("r0c0", events.StageGerminated, 0))).ok(t).body)
		require.Equal(t, api.Done{Slot: "r0c0", Stage: events.StageGerminated}, done)
		d := tr.advance("r0c0", outcomes(passed(became("r0c0", events.StageTraining, 0), true))).decision(t)
		require.Equal(t, &api.Decision{Verdict: events.Verdict{Passed: true, ChecksPassed: []string{}, ChecksFailed: []string{}},
			Slot: "r0c0", Stage: events.StageTraining, Agreed: true}, d)
		d = tr.verdict("r0c1", "G2", members{"score": 0.5, "checks_failed": []string{"mine"}}).decision(t)
		require.Equal(t, &api.Decision{Verdict: events.Verdict{Gate: events.G2, Passed: true, Score: 0.5, ChecksPassed: []string{}, ChecksFailed: []string{"mine"}},
			Slot: "r0c1", Stage: events.StageDormant, Agreed: true}, d, "without an outcome")
		f := tr.step(4, outcomes(became("r0c0", events.StageBlending, 0.25), became("r0c1", events.StageDormant, 0))).fence(t)
		require.Equal(t, &api.Fence{Epoch: 4, Changes: []api.Change{}, Slots: []api.Slot{{Name: "r0c0", Stage: events.StageBlending, Alpha: 0.25}, {Name: "r0c1", Stage: events.StageDormant}}}, f)
		require.Equal(t, int64(-1), tr.fenceAt(1).fence(t).Epoch)
		tr.reset().ok(t)
		tr.prune("nowhere").ok(t) // nothing raises
		tr.step(9).ok(t)
	}
	require.Equal(t, head, j.head(0))
	j.log.Node(0).Release()
	j.log.Node(1).Release()
	j.told(9)
	require.Equal(t, []string{"configure", "germinate r0c0", "advance r0c0", "verdict r0c1", "step_epoch", "fence", "reset", "prune nowhere", "step_epoch"}, j.calls())
	require.Empty(t, j.log.Node(1).Reports())
	require.Equal(t, uint64(2), j.log.Node(0).State().Model("main").Generation)
}

func TestFactsAreWrittenInOrderAndFlagged(t *testing.T) {
	j := newJob(t, 1)
	tr := j.trainers(inMode(events.ModeObserve))[0]
	tr.germinate("r0c0", outcomes(became("r0c0", events.StageGerminated, 0)), measured("r0c0", accuracy(1))).ok(t)
	tr.advance("r0c0", outcomes(passed(became("r0c0", events.StageBlending, 0.1), true)), measured("r0c0", accuracy(61))).ok(t)
	tr.step(0, outcomes(became("r0c0", events.StageBlending, 0.5), became("r0c1", events.StageTraining, 0))).ok(t)
	tr.prune("r0c0", outcomes(became("r0c0", events.StagePruned, 0)), members{"reason": "nan"}).ok(t)
	tr.step(1, outcomes(became("r0c0", events.StageDormant, 0), became("r0c1", events.StageTraining, 0))).ok(t)
	j.told(1)
	var facts []string
	for i := uint64(1); i <= j.head(0); i++ {
		e, _, err := j.log.Node(0).Entry(i)
		require.NoError(t, err)
		for _, ev := range e.Events {
			if f := ev.Fact; f != nil {
				facts = append(facts, fmt.Sprintf("%s %s#%d %s %v %q", e.Key.Op, f.Slot, f.Seed, f.Stage, f.Amplitude.Alpha, f.Unexpected))
			}
		}
	}
	require.Equal(t, []string{
		`germinate r0c0#1 GERMINATED 0 ""`,
		`advance r0c0#1 BLENDING 0.1 "there is no edge from GERMINATED to BLENDING"`,
		`step_epoch r0c0#1 BLENDING 0.5 ""`, `step_epoch r0c1#1 TRAINING 0 "there is no edge from DORMANT to TRAINING"`,
		`prune r0c0#1 PRUNED 0 ""`,
		`step_epoch r0c0#1 DORMANT 0 "there is no edge from PRUNED to DORMANT"`,
	}, facts)
	m := j.log.Node(0).State().Model("main")
	require.Equal(t, int64(1), m.Epoch)
	require.Nil(t, m.Slot("r0c0").Seed)
	require.Equal(t, events.StageTraining, m.Slot("r0c1").Stage())
}

func TestWhatABroadcastWouldHaveMadeOfIt(t *testing.T) {
	step := func(epoch int64, list ...events.Outcome) func(*trainer) {
		return func(tr *trainer) { tr.step(epoch, outcomes(list...)) }
	}
	grow := func(slot string) func(*trainer) {
		return func(tr *trainer) { tr.germinate(slot, outcomes(became(slot, events.StageGerminated, 0))) }
	}
	ask := func(slot string, ok bool) func(*trainer) {
		return func(tr *trainer) {
			stage := map[bool]events.Stage{true: events.StageTraining, false: events.StageGerminated}[ok]
			tr.advance(slot, outcomes(passed(became(slot, stage, 0), ok)))
		}
	}
	both := []func(*trainer){grow("r0c0"), grow("r0c1"), step(0)}
	for name, tc := range map[string]struct {
		rank0, rank1 []func(*trainer)
		mismatched   []string // code, got and want
		differing    []string // key, got and want
	}{
		"the same": {rank0: []func(*trainer){ask("r0c0", true)}, rank1: []func(*trainer){ask("r0c0", true)}},
		"swapped": {
			[]func(*trainer){ask("r0c0", true), ask("r0c1", false)}, []func(*trainer){ask("r0c1", false), ask("r0c0", true)},
			[]string{"order-mismatch advance r0c1 advance r0c0", "order-mismatch advance r0c0 advance r0c1"}, nil,
		},
		"missing": {
			[]func(*trainer){ask("r0c0", true), ask("r0c1", true)}, []func(*trainer){ask("r0c0", true)},
			[]string{"missing-call step_epoch  advance r0c1"}, nil,
		},
		"extra": {
			[]func(*trainer){ask("r0c0", true)}, []func(*trainer){ask("r0c0", true), ask("r0c1", true)},
			[]string{"missing-call advance r0c1 step_epoch "}, nil,
		},
		"passed": {
			[]func(*trainer){ask("r0c0", true)}, []func(*trainer){ask("r0c0", false)},
			nil, []string{"advance r0c0: GERMINATED 0 false, TRAINING 0 true"},
		},
		"alpha": {
			[]func(*trainer){step(1, became("r0c0", events.StageBlending, 0.5), became("r0c1", events.StageGerminated, 0))},
			[]func(*trainer){step(1, became("r0c0", events.StageBlending, 0.25), became("r0c1", events.StageGerminated, 0))},
			nil, []string{"step_epoch : BLENDING 0.25 , BLENDING 0.5 "},
		},
		"stage": {
			[]func(*trainer){step(1, became("r0c0", events.StageTraining, 0))}, []func(*trainer){step(1, became("r0c0", events.StageDormant, 0))},
			nil, []string{"step_epoch : DORMANT 0 , TRAINING 0 "},
		},
		"a step more": {
			nil, []func(*trainer){step(1)},
			[]string{"missing-call step_epoch  step_epoch "}, nil,
		},
		"a step less": {
			[]func(*trainer){step(1), ask("r0c1", true), step(2)}, []func(*trainer){step(2)},
			[]string{"missing-call step_epoch  step_epoch ", "missing-call step_epoch  advance r0c1"}, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			j := newJob(t, 2)
			rank0, rank1 := observe(j)
			for _, tr := range []*trainer{rank1, rank0} { // whoever is the first
				script := map[*trainer][]func(*trainer){rank0: tc.rank0, rank1: tc.rank1}[tr]
				for _, call := range append(append(append([]func(*trainer){}, both...), script...), step(9), step(10)) {
					call(tr)
				}
			}
			j.told(10)
			var mismatched, differing []string
			for _, m := range j.mismatched(1) {
				mismatched = append(mismatched, fmt.Sprint(m.Code, " ", m.Got.Op, " ", m.Got.Slot, " ", m.Want.Op, " ", m.Want.Slot))
				require.Equal(t, uint64(1), m.Rank)
				require.NotZero(t, m.Index)
				require.Contains(t, m.GotSite, "rank1.py:")
				require.Contains(t, m.WantSite, "rank0.py:")
			}
			for _, d := range j.differing(1) {
				differing = append(differing, fmt.Sprintf("%s %s: %s, %s", d.Key.Op, d.Key.Slot, brief(d.Got), brief(d.Want)))
				require.Contains(t, d.Site, "rank1.py:")
			}
			require.Equal(t, tc.mismatched, mismatched)
			require.Equal(t, tc.differing, differing)
			require.Nil(t, j.fault(), "nothing ends in this mode")
			require.NoError(t, j.log.Node(1).WriteReports())
			tally := j.log.Node(0).State().Round.Tally(1)
			require.Equal(t, uint64(len(mismatched)), tally.Misplaced+tally.Missing)
			require.Equal(t, uint64(len(differing)), tally.Differing)
		})
	}
}

func brief(o events.Outcome) string {
	s := fmt.Sprint(o.Stage, " ", float64(o.Alpha), " ")
	if o.Passed != nil {
		s += fmt.Sprint(*o.Passed)
	}
	return s
}

func TestATellerThatHasTooMuchToTellGoesDeaf(t *testing.T) {
	j := newJob(t, 1)
	tr := j.trainers(inMode(events.ModeObserve))[0]
	j.log.Node(0).Hold()
	head := j.head(0)
	for epoch := range int64(4096 + 3) {
		tr.step(epoch).ok(t)
	}
	require.Equal(t, head, j.head(0))
	require.Contains(t, j.logs[0].String(), "the log has not taken what this trainer told: it is not recorded any more in this round, and training goes on")
	require.Equal(t, 200, tr.post("/v1/close", members{"session": tr.req.Incarnation}).status, "it does not wait for what is not recorded")
	j.log.Node(0).Release()
	tr.step(5000).ok(t)
	require.Eventually(t, func() bool { return j.head(0) > head }, 5*time.Second, time.Millisecond)

	// The next round is recorded again.
	tr = j.trainers(inMode(events.ModeObserve))[0]
	tr.step(6000).ok(t)
	j.told(6000)
}

func TestClosingRecordsWhatWasTold(t *testing.T) {
	j := newJob(t, 2)
	rank0, rank1 := observe(j)
	j.log.Node(0).Hold()
	head := j.head(0)
	for _, tr := range []*trainer{rank0, rank1} {
		for epoch := range int64(10) {
			tr.step(epoch, outcomes(became("r0c0", events.StageTraining, float64(tr.rank)))).ok(t)
		}
	}
	closed := later(func() reply { return rank0.post("/v1/close", members{"session": rank0.req.Incarnation}) })
	j.log.Node(0).Release()
	(<-closed).ok(t)
	require.Equal(t, head+11, j.head(0), "and that rank 0 has ended")
	rank1.post("/v1/close", members{"session": rank1.req.Incarnation}).ok(t)
	require.Len(t, j.differing(1), 1, "once for as long as the two stay as they are")
	require.Nil(t, j.fault())
}

func TestAnObservedTrainerComesBack(t *testing.T) {
	j := newJob(t, 2)
	rank0, rank1 := observe(j)
	all := []*trainer{rank0, rank1}
	for _, tr := range all {
		tr.germinate("r0c0", outcomes(became("r0c0", events.StageGerminated, 0))).ok(t)
		body := tr.body(outcomes(passed(became("r0c0", events.StageTraining, 0), true)))
		first := tr.makes("/v1/slots/r0c0/advance", body)
		require.Equal(t, first, tr.post("/v1/slots/r0c0/advance", body), "an answer that was lost")
		a := decodeAs[api.SessionAnswer](t, tr.returns(func(r *api.SessionRequest) { *r.Answered-- }).ok(t).body)
		require.Equal(t, tr.call-1, a.NextCall)
		require.Equal(t, first, tr.post("/v1/slots/r0c0/advance", body))
		p := tr.post("/v1/slots/r0c1/advance", body).refused(t, events.CodeInvalidInput) // and nothing ends
		require.Contains(t, p.Detail, "is another call than the one that was answered under that number")
		tr.step(0).ok(t)
	}
	j.told(0)
	require.Equal(t, []string{"configure", "germinate r0c0", "advance r0c0", "step_epoch"}, j.calls())
	for epoch := range int64(3) {
		for _, tr := range all {
			tr.restart()
			tr.advance("r0c0").ok(t)
			tr.step(epoch + 1).ok(t)
		}
		j.told(epoch + 1)
	}
	require.Equal(t, []string{"advance r0c0", "step_epoch"}, j.calls()[8:])
	require.Empty(t, j.log.Node(1).Reports())
	require.Nil(t, j.fault())
}

// Rank 0's node has not applied all of the log again when its trainer is back.
func TestAnObservedTrainerIsBackBeforeItsNodeIs(t *testing.T) {
	j := newJob(t, 1)
	tr := j.trainers(inMode(events.ModeObserve))[0]
	at := j.head(0)
	for epoch := range int64(5) {
		tr.step(epoch).ok(t)
	}
	j.told(4)
	j.stop(0)
	j.log.Node(0).Behind(at + 2)
	j.start(0)
	tr.returns().ok(t)
	for epoch := range int64(5) {
		tr.step(epoch + 5).ok(t)
	}
	j.log.Node(0).Release()
	j.told(9)
	require.Equal(t, at+10, j.head(0), "every call is in the log, each once")
	require.Equal(t, int64(9), j.log.Node(0).State().Model("main").Epoch)
}

// While rank 1's esperd was away its trainer went on, and so did rank 0's: how
// far cannot be told from what is left.
func TestLostCallsAreNotTakenForOthers(t *testing.T) {
	for name, ahead := range map[string][2]int64{"rank 0 is ahead": {4, 2}, "rank 1 is ahead": {2, 4}} {
		t.Run(name, func(t *testing.T) {
			j := newJob(t, 2)
			rank0, rank1 := observe(j)
			play := func(tr *trainer, from, to int64) {
				for epoch := from; epoch < to; epoch++ {
					tr.advance("r0c0").ok(t)
					tr.advance("r0c1").ok(t)
					tr.step(epoch).ok(t)
				}
			}
			play(rank0, 0, ahead[0])
			play(rank1, 0, ahead[1])
			rank1.advance("r0c0").ok(t)
			rank1.restart()
			rank1.advance("r0c1").ok(t)
			rank1.step(ahead[1]).ok(t)
			play(rank0, ahead[0], 8)
			play(rank1, ahead[1]+1, 8)
			rank0.advance("r0c0").ok(t)
			rank0.step(8).ok(t)
			rank1.step(8).ok(t)
			j.told(8)
			m := j.mismatched(1)
			require.Len(t, m, 1, "%+v", m)
			require.Equal(t, events.CodeMissingCall, m[0].Code, "what it did not do since")
			require.Equal(t, int64(8), m[0].Got.Epoch)
		})
	}
}

func TestRequestsHaveNoPlaceWhereNothingIsDecided(t *testing.T) {
	j := newJob(t, 1)
	tr := j.trainers(inMode(events.ModeObserve))[0]
	tr.germinate("r0c0", outcomes(became("r0c0", events.StageGerminated, 0))).ok(t)
	tr.step(0).ok(t)
	j.told(0)
	p := tr.post("/v1/requests", members{"session": tr.req.Incarnation, "action": "prune", "slot": "r0c0"}).refused(t, events.CodeNotAuthority)
	require.Contains(t, p.Detail, "only observed")
}

func TestOutcomesAreReadStrictly(t *testing.T) {
	j := newJob(t, 1)
	tr := j.trainers(inMode(events.ModeObserve))[0]
	for body, text := range map[string]string{
		`{"slot":"r0c0","stage":"BLOOMING","alpha":0}`:            "stage",
		`{"slot":"r0c0","stage":"TRAINING","alpha":"much"}`:       "alpha",
		`{"slot":"r0c0","stage":"TRAINING","alpha":0,"passed":1}`: "passed",
		`{"stage":"TRAINING","alpha":0}`:                          "slot",
	} {
		p := tr.step(0, members{"outcomes": []json.RawMessage{json.RawMessage(body)}}).refused(t, events.CodeInvalidInput)
		require.Contains(t, p.Detail, text)
	}
	tr.step(0, members{"outcomes": []json.RawMessage{json.RawMessage(`{"slot":"r0c0","stage":"TRAINING","alpha":"NaN"}`)}}).ok(t)
	j.told(0)
}
