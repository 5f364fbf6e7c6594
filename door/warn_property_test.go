package door_test

import (
	"flag"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// One rank makes the calls of each stretch in any order, its esperd restarts in
// between, and every call is answered as rank 0's of the same occurrence.
func TestCallsInAnyOrderAreAnsweredAsRank0s(t *testing.T) {
	defer fewerChecks(t)() // each opens two doors
	rapid.Check(t, func(rt *rapid.T) {
		j := newJob(t, 2)
		defer func() { j.stop(0); j.stop(1) }()
		slots := make([]api.SlotRequest, rapid.IntRange(1, 12).Draw(rt, "slots"))
		for i := range slots {
			slots[i].Name = fmt.Sprintf("r0c%d", i)
		}
		all := j.trainers(func(r *api.SessionRequest) { r.Ordering, r.Slots = "warn", slots })
		restart := rapid.IntRange(0, 400).Draw(rt, "restart")
		for epoch := range int64(2) {
			calls := drawCalls(rt, len(slots))
			want := answersTo(rt, all[0], calls)
			order := rapid.Permutation(calls).Draw(rt, "order")
			got := answersTo(rt, all[1], inTheOrderOfEachSlot(order, calls), func() {
				if restart--; restart == 0 {
					all[1].restart()
				}
			})
			require.Equal(rt, want, got)
			require.Equal(rt, unlocalBody(t, all[0].step(epoch)), unlocalBody(t, all[1].step(epoch)))
		}
		require.Nil(rt, j.fault())
		require.NotContains(rt, j.logs[1].String(), "bug in esperd")
		for _, m := range j.mismatched(1) {
			require.Equal(rt, events.CodeOrderMismatch, m.Code)
			require.NotEqual(rt, m.Got, m.Want)
		}
		require.NoError(rt, j.log.Node(1).WriteReports())
	})
}

type anyCall struct {
	slot, op string
	more     members
}

func drawCalls(t *rapid.T, slots int) []anyCall {
	ops := map[string]members{"germinate": {"blueprint": "conv"}, "advance": {}, "verdict": {"gate": "G1", "passed": true},
		"prune": {}, "alpha_target": {"target": 0.25, "ticks": 2}}
	calls := make([]anyCall, rapid.IntRange(0, 200).Draw(t, "calls"))
	for i := range calls {
		op := rapid.SampledFrom([]string{"germinate", "advance", "advance", "verdict", "prune", "alpha_target"}).Draw(t, "op")
		calls[i] = anyCall{fmt.Sprintf("r0c%d", rapid.IntRange(0, slots-1).Draw(t, "slot")), op, ops[op]}
	}
	return calls
}

// inTheOrderOfEachSlot gives each slot's calls the order that they have in want,
// in the places that the slot has in order: a call before a seed has germinated
// is not one after it.
func inTheOrderOfEachSlot(order, want []anyCall) []anyCall {
	bySlot := map[string][]anyCall{}
	for _, c := range want {
		bySlot[c.slot] = append(bySlot[c.slot], c)
	}
	out := make([]anyCall, len(order))
	for i, c := range order {
		out[i], bySlot[c.slot] = bySlot[c.slot][0], bySlot[c.slot][1:]
	}
	return out
}

// answersTo makes the calls and returns the answers by occurrence.
func answersTo(t *rapid.T, tr *trainer, calls []anyCall, between ...func()) map[string]string {
	answers, made := map[string]string{}, map[string]int{}
	for _, c := range calls {
		for _, do := range between {
			do()
		}
		key := c.op + " " + c.slot
		made[key]++
		// No two answers are alike: the observations tell of their call's number.
		a := tr.makes("/v1/slots/"+c.slot+"/"+c.op, c.more, measured(c.slot, health(float64(tr.call%100)/100)))
		require.Less(t, a.status, 500, a.body)
		answers[fmt.Sprintf("%s, %d", key, made[key])] = unlocalBody(tr.j.t, a)
	}
	return answers
}

func TestOwnVerdictsAfterSwappedCalls(t *testing.T) {
	j := newJob(t, 2)
	rank0, rank1 := warn(j)
	germinated(t, rank0, rank1)
	for _, tr := range []*trainer{rank0, rank1} {
		tr.verdict("r0c0", "G1").ok(t)
		tr.verdict("r0c1", "G1").ok(t)
		tr.step(1).ok(t)
	}
	rank0.advance("r0c0", measured("r0c0", health(0.2))).ok(t) // fails
	rank0.advance("r0c1", measured("r0c1", health(0.9))).ok(t)

	d := rank1.advance("r0c1", measured("r0c1", health(0.2))).decision(t)
	require.False(t, d.Local.Passed, "on its own measurements")
	require.False(t, d.Agreed)
	d = rank1.advance("r0c0", measured("r0c0", health(0.9))).decision(t)
	require.False(t, d.Passed)
	require.Nil(t, d.Local, "the entry was passed before the call was made")
	require.True(t, d.Agreed)
	require.Len(t, j.log.Node(1).Verdicts(), 1)
	for _, tr := range []*trainer{rank0, rank1} {
		tr.step(2).ok(t)
	}

	// What was measured with the call that came late is not lost.
	require.True(t, rank0.advance("r0c0", measured("r0c0", health(0.9))).decision(t).Passed)
	d = rank1.advance("r0c0").decision(t)
	require.True(t, d.Local.Passed)
	require.True(t, d.Agreed)

	// Nor is what came with a call in another one's place, or with a fence after
	// a call that is missing.
	rank0.germinate("r0c1").refused(t, events.CodeIllegalTransition)
	rank0.prune("r0c0").ok(t)
	for _, tr := range []*trainer{rank0, rank1} {
		tr.step(3, measured("r0c1", accuracy(81))).ok(t)
	}
	require.Len(t, j.log.Node(1).Verdicts(), 1)
	require.NotContains(t, j.logs[1].String(), "bug in esperd")
}

// fewerChecks has rapid draw less: its flag is the only way.
func fewerChecks(t *testing.T) (back func()) {
	checks := flag.Lookup("rapid.checks")
	before, few := checks.Value.String(), "30"
	if testing.Short() {
		few = "8"
	}
	require.NoError(t, checks.Value.Set(few))
	return func() { require.NoError(t, checks.Value.Set(before)) }
}
