package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// asRecorded is the evidence of ranks that did everything right.
func asRecorded(t *testing.T) (*Recording, *evidence) {
	rec, err := loadRecording(embedded(t), defaultRecording)
	require.NoError(t, err)
	ev := &evidence{answers: make([][]answer, rec.World)}
	start := time.Unix(0, 0)
	shadows := api.Entry{Index: 2, Chain: events.Digest{2}}
	for rank, steps := range rec.Steps {
		ev.answers[rank] = make([]answer, len(steps))
	}
	rec.forCalls(func(rank, i int, at place) {
		s, a := &rec.Steps[rank][i], &ev.answers[rank][i]
		a.asked = start.Add(time.Duration(at.Call) * time.Second)
		a.answered = a.asked.Add(time.Duration(rank+1) * time.Millisecond)
		a.refused = s.OK != nil && !*s.OK
		if s.Kind == "advance" {
			agreed := s.Local.Passed == s.Decided.Passed
			a.decision = &api.Decision{Slot: s.Slot, Stage: s.Decided.Stage, Agreed: agreed, Local: s.Local,
				Verdict: events.Verdict{Gate: s.Local.Gate, Passed: s.Decided.Passed}}
			if !agreed {
				shadows.Events = append(shadows.Events, events.Event{ShadowVerdict: &events.ShadowVerdict{
					Rank: uint64(rank), Key: events.Key{Call: at.Call, Slot: s.Slot}}})
			}
		}
		for _, name := range rec.Slots {
			if s.Kind == recordingStepEpoch {
				a.slots = append(a.slots, api.Slot{Name: name, Stage: s.Slots[name].Stage, Alpha: s.Slots[name].Alpha})
			}
		}
	})
	for range rec.World {
		ev.logs = append(ev.logs, []api.Entry{{Index: 1, Chain: events.Digest{1}}, shadows})
		ev.states = append(ev.states, &api.State{Index: 2, Chain: events.Digest{2}, Models: []api.Model{{Name: "main", Lifecycle: events.Digest{7}}}})
	}
	return rec, ev
}

func TestReportOfARightRun(t *testing.T) {
	rec, ev := asRecorded(t)
	r := report(rec, "x", ev)
	require.Empty(t, r.Differences)
	require.True(t, r.ok())
	require.Equal(t, []int{4, 60, 111, 46, 15, 138}, []int{r.Ranks, r.Epochs, r.Calls, r.Decisions, r.ShadowDisagreements, r.verdictsOfOtherRanks})
	require.Equal(t, quantilesMS{4, 4}, r.VisibleMS)
	require.Len(t, r.Slots, 3)
	var out bytes.Buffer
	r.took = 1500 * time.Millisecond
	require.NoError(t, r.write(&out))
	golden(t, "demo.txt", out.Bytes())
	r.Durability = relaxed
	require.NoError(t, r.write(&out))
	require.Contains(t, out.String(), "RELAXED: a machine that crashes or loses power may lose decisions")
}

// Every kind of wrong answer has to be found: the demo is a check, not a show.
func TestReportFindsWhatIsWrong(t *testing.T) {
	find := func(rec *Recording, rank int, kind string) int {
		for i := range rec.Steps[rank] {
			if rec.Steps[rank][i].Kind == kind {
				return i
			}
		}
		t.Fatal(kind)
		return 0
	}
	for name, c := range map[string]struct {
		spoil func(*Recording, *evidence)
		word  string
	}{
		"no answer": {func(r *Recording, e *evidence) { e.answers[1][find(r, 1, "germinate")] = answer{} }, "got none"},
		"passed": {func(r *Recording, e *evidence) {
			d := e.answers[2][find(r, 2, "advance")].decision
			d.Passed = !d.Passed
		}, "rank 2, epoch 3, r0c0"},
		"stage": {func(r *Recording, e *evidence) {
			e.answers[3][find(r, 3, "advance")].decision.Stage = events.StageHolding
		}, "HOLDING"},
		"own verdict":      {func(r *Recording, e *evidence) { e.answers[1][find(r, 1, "advance")].decision.Local = nil }, "no own verdict"},
		"ok":               {func(r *Recording, e *evidence) { e.answers[1][find(r, 1, "prune")].refused = true }, "recorded ok true"},
		"alpha":            {func(r *Recording, e *evidence) { e.answers[1][find(r, 1, "step_epoch")].slots[0].Alpha += 2e-9 }, "alpha"},
		"slot gone":        {func(r *Recording, e *evidence) { a := &e.answers[1][find(r, 1, "step_epoch")]; a.slots = a.slots[:2] }, "3 slots"},
		"told to disagree": {func(r *Recording, e *evidence) { e.answers[1][find(r, 1, "advance")].decision.Agreed = false }, "the answers: got"},
		"not in the log":   {func(_ *Recording, e *evidence) { e.logs[0][1].Events = e.logs[0][1].Events[1:] }, "the log: recorded"},
		"twice in the log": {func(_ *Recording, e *evidence) {
			e.logs[0][1].Events = append(e.logs[0][1].Events, e.logs[0][1].Events[0])
		}, "the log: got"},
		"chain":             {func(_ *Recording, e *evidence) { e.logs[2][0].Chain[9]++ }, "rank 2, entry 1: the chain"},
		"log ends":          {func(_ *Recording, e *evidence) { e.logs[2] = e.logs[2][:1] }, "number of entries"},
		"lifecycle digest":  {func(_ *Recording, e *evidence) { e.states[3].Models[0].Lifecycle[0]++ }, "lifecycle digest"},
		"bookkeeping":       {func(_ *Recording, e *evidence) { e.states[3].Bookkeeping[0]++ }, "bookkeeping digest"},
		"no model":          {func(_ *Recording, e *evidence) { e.states[3].Models = nil }, "lifecycle digest"},
		"state's own chain": {func(_ *Recording, e *evidence) { e.states[1].Chain[0]++ }, "last entry"},
	} {
		t.Run(name, func(t *testing.T) {
			rec, ev := asRecorded(t)
			c.spoil(rec, ev)
			r := report(rec, "x", ev)
			require.False(t, r.ok())
			require.NotEmpty(t, r.Differences)
			require.Contains(t, r.Differences[0], c.word)
			var out bytes.Buffer
			require.NoError(t, r.write(&out))
			require.Contains(t, out.String(), "difference: ")
		})
	}
}

func TestQuantile(t *testing.T) {
	require.Zero(t, quantile(nil, 0.5))
	var d []time.Duration
	for i := range 100 {
		d = append(d, time.Duration(i+1))
	}
	require.Equal(t, time.Duration(50), quantile(d, 0.5))
	require.Equal(t, time.Duration(99), quantile(d, 0.99))
	require.Equal(t, time.Duration(1), quantile(d[:1], 0.99))
}
