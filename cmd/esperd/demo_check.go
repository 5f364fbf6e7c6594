package main

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// alphaTolerance is between a recorded alpha and ours: the recording ran on
// another implementation of sin and exp.
const alphaTolerance = 1e-9

// answer is what one rank's trainer got for one step of the recording.
type answer struct {
	asked, answered time.Time
	decision        *api.Decision // advance
	refused         bool          // prune, schedule_prune
	slots           []api.Slot    // step_epoch
}

// place names one call of one rank.
type place struct {
	Rank  int    `json:"rank"`
	Epoch int64  `json:"epoch"`
	Slot  string `json:"slot"`
	Call  uint64 `json:"call"` // number, from 1
}

func (p place) String() string {
	slot := ""
	if p.Slot != "" {
		slot = ", " + p.Slot
	}
	return fmt.Sprintf("rank %d, epoch %d%s (call %d)", p.Rank, p.Epoch, slot, p.Call)
}

// forCalls visits every rank's calls with their number.
func (r *Recording) forCalls(visit func(rank, step int, at place)) {
	for rank, steps := range r.Steps {
		n := uint64(0)
		for i := range steps {
			if steps[i].Call() {
				n++
				visit(rank, i, place{rank, steps[i].Epoch, steps[i].Slot, n})
			}
		}
	}
}

// differences compares what the ranks were answered with what was recorded. A
// difference is told once, in words.
func (r *Recording) differences(answers [][]answer) []string {
	var out []string
	r.forCalls(func(rank, i int, at place) {
		step, got := &r.Steps[rank][i], &answers[rank][i]
		add := func(format string, args ...any) {
			out = append(out, fmt.Sprintf("%s, line %d, %s: ", at, step.Line, step.Kind)+fmt.Sprintf(format, args...))
		}
		switch {
		case got.answered.IsZero():
			add("expected an answer, got none")
		case step.Kind == "advance":
			r.compareDecision(step, got.decision, add)
		case step.OK != nil && *step.OK == got.refused:
			add("recorded ok %t, got ok %t", *step.OK, !got.refused)
		case step.Kind == recordingStepEpoch:
			compareSlots(step.Slots, got.slots, add)
		}
	})
	return out
}

func (r *Recording) compareDecision(step *Step, got *api.Decision, add func(string, ...any)) {
	if want := step.Decided; got.Passed != want.Passed || got.Stage != want.Stage {
		add("recorded %s passed %t, then stage %s; got %s passed %t, then stage %s",
			step.Local.Gate, want.Passed, want.Stage, got.Gate, got.Passed, got.Stage)
	}
	switch local := got.Local; {
	case local == nil:
		add("recorded the rank's own %s passed %t, got no own verdict", step.Local.Gate, step.Local.Passed)
	case local.Gate != step.Local.Gate || local.Passed != step.Local.Passed:
		add("recorded the rank's own %s passed %t, got %s passed %t", step.Local.Gate, step.Local.Passed, local.Gate, local.Passed)
	}
}

func compareSlots(want map[string]SlotState, got []api.Slot, add func(string, ...any)) {
	if len(got) != len(want) {
		add("recorded %d slots, got %d", len(want), len(got))
	}
	for i := range got {
		w, known := want[got[i].Name]
		if !known || got[i].Stage != w.Stage || !(math.Abs(got[i].Alpha-w.Alpha) <= alphaTolerance) {
			add("slot %s: recorded %s with alpha %v, got %s with alpha %v", got[i].Name, w.Stage, w.Alpha, got[i].Stage, got[i].Alpha)
		}
	}
}

// recordedDisagreements are the calls at which a rank's own verdict was not
// rank 0's.
func (r *Recording) recordedDisagreements() []place {
	var out []place
	r.forCalls(func(rank, i int, at place) {
		if s := &r.Steps[rank][i]; s.Kind == "advance" && s.Local.Passed != s.Decided.Passed {
			out = append(out, at)
		}
	})
	return out
}

// answeredDisagreements are those that the trainers were told of.
func (r *Recording) answeredDisagreements(answers [][]answer) []place {
	var out []place
	r.forCalls(func(rank, i int, at place) {
		if d := answers[rank][i].decision; d != nil && !d.Agreed {
			out = append(out, at)
		}
	})
	return out
}

// loggedDisagreements are those in the log. A call that is no advance of the
// recording keeps its number alone.
func (r *Recording) loggedDisagreements(entries []api.Entry) []place {
	byCall := map[place]place{} // by rank and number
	r.forCalls(func(rank, _ int, at place) { byCall[place{Rank: rank, Call: at.Call}] = at })
	var out []place
	for i := range entries {
		for _, ev := range entries[i].Events {
			v := ev.ShadowVerdict
			if v == nil {
				continue
			}
			id := place{Rank: int(v.Rank), Call: v.Key.Call}
			if at, ok := byCall[id]; ok && at.Slot == v.Key.Slot {
				id = at
			}
			out = append(out, id)
		}
	}
	slices.SortFunc(out, func(a, b place) int {
		if a.Rank != b.Rank {
			return a.Rank - b.Rank
		}
		return int(a.Call) - int(b.Call)
	})
	return out
}

// comparePlaces says where got is not want; both are in rank and call order.
func comparePlaces(what string, got, want []place) []string {
	var out []string
	for _, p := range want {
		if !slices.Contains(got, p) {
			out = append(out, fmt.Sprintf("%s: recorded a disagreement at %s, got none", what, p))
		}
	}
	seen := map[place]bool{}
	for _, p := range got {
		if !slices.Contains(want, p) || seen[p] {
			out = append(out, fmt.Sprintf("%s: got a disagreement at %s, recorded none (more)", what, p))
		}
		seen[p] = true
	}
	return out
}

// compareReplicas checks that every rank holds the same log and, after its last
// entry, the same state. All states are at one index.
func compareReplicas(states []*api.State, logs [][]api.Entry) []string {
	var out []string
	add := func(rank int, what string, index uint64, want, got any) {
		out = append(out, fmt.Sprintf("rank %d, entry %d: %s is %v, expected rank 0's %v", rank, index, what, got, want))
	}
	for rank := 1; rank < len(states); rank++ {
		for i, want := range logs[0] {
			if i >= len(logs[rank]) {
				add(rank, "the number of entries", want.Index, len(logs[0]), len(logs[rank]))
				break
			}
			if got := logs[rank][i]; got.Index != want.Index || got.Chain != want.Chain || got.Refused != want.Refused {
				add(rank, "the chain", want.Index, want.Chain, got.Chain)
				break
			}
		}
		want, got := states[0], states[rank]
		if got.Index != want.Index || got.Chain != want.Chain {
			add(rank, "the last entry's chain", want.Index, want.Chain, got.Chain)
		}
		if got.Bookkeeping != want.Bookkeeping {
			add(rank, "the bookkeeping digest", want.Index, want.Bookkeeping, got.Bookkeeping)
		}
		if !slices.EqualFunc(want.Models, got.Models, func(a, b api.Model) bool { return a.Name == b.Name && a.Lifecycle == b.Lifecycle }) {
			add(rank, "the lifecycle digest", want.Index, lifecycles(want), lifecycles(got))
		}
	}
	return out
}

func lifecycles(s *api.State) map[string]events.Digest {
	out := map[string]events.Digest{}
	for _, m := range s.Models {
		out[m.Name] = m.Lifecycle
	}
	return out
}

// quantiles of the time from rank 0's request to the moment at which the
// slowest rank's trainer had the decision, over all advance calls.
func (r *Recording) visible(answers [][]answer) []time.Duration {
	asked, last := map[uint64]time.Time{}, map[uint64]time.Time{}
	r.forCalls(func(rank, i int, at place) {
		if r.Steps[rank][i].Kind != "advance" {
			return
		}
		if rank == 0 {
			asked[at.Call] = answers[rank][i].asked
		}
		if t := answers[rank][i].answered; t.After(last[at.Call]) {
			last[at.Call] = t
		}
	})
	out := make([]time.Duration, 0, len(asked))
	for call, t := range asked {
		out = append(out, last[call].Sub(t))
	}
	slices.Sort(out)
	return out
}

// quantile of sorted values, by nearest rank; 0 of none.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, max(0, int(math.Ceil(q*float64(len(sorted))))-1))]
}
