package fsm

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
)

// An entry that does not fit keeps its index and changes nothing else, and one
// that no correct leader writes stops the replica.
func TestApplyFits(t *testing.T) {
	l := configured(t, "a")
	l.call("a", plainGermination)
	s := l.state
	step := func(change func(*events.Entry)) *events.Entry {
		key := NextKey(s, "main", "", StepEpoch{})
		e := &events.Entry{Version: events.Version, Kind: events.KindCall, Node: testNode, Round: 1, Predecessor: s.Index, Key: &key,
			Bookkeeping: s.Bookkeeping(), Lifecycle: s.Lifecycle("main"),
			Events: []events.Event{{EpochStepped: &events.EpochStepped{Epoch: 0, Tick: 1}}}}
		change(e)
		return e
	}
	report := func(change func(*events.Entry)) *events.Entry {
		return step(func(e *events.Entry) { e.Kind, e.Key, e.Events = events.KindReport, nil, nil; change(e) })
	}
	stranger := events.NodeID("00000000000000000000000000000002")
	for name, c := range map[string]struct {
		entry   *events.Entry
		refused string
		err     string
	}{
		"fits":                {entry: step(func(*events.Entry) {})},
		"older predecessor":   {entry: step(func(e *events.Entry) { e.Predecessor-- }), refused: "decided on entry 3, but follows entry 4"},
		"unknown predecessor": {entry: step(func(e *events.Entry) { e.Predecessor++ }), err: "lacks entries"},
		"other round":         {entry: step(func(e *events.Entry) { e.Round = 7 }), refused: "belongs to round 7"},
		"other authority":     {entry: step(func(e *events.Entry) { e.Node = stranger }), refused: "rank 0 of round 1 is on node"},
		"other call":          {entry: step(func(e *events.Entry) { e.Key.Call = 9 }), refused: "the next is call 2"},
		"other fence":         {entry: step(func(e *events.Entry) { e.Key.Fence = 9 }), refused: "fence 9"},
		"no key":              {entry: step(func(e *events.Entry) { e.Key = nil }), refused: "without a key"},
		"founded twice":       {entry: report(func(e *events.Entry) { e.Kind = events.KindFound }), refused: "founded once"},
		"bookkeeping differs": {entry: step(func(e *events.Entry) { e.Bookkeeping[0]++ }), err: "bookkeeping digest"},
		"lifecycle differs":   {entry: step(func(e *events.Entry) { e.Lifecycle[0]++ }), err: "lifecycle of model main"},
		"event out of place": {entry: report(func(e *events.Entry) {
			e.Events = []events.Event{{RoundOpened: &events.RoundOpened{Round: 2}}}
		}), err: "round_opened does not belong"},
		"unknown slot": {entry: step(func(e *events.Entry) {
			e.Events = []events.Event{{Dwelled: &events.Dwelled{Slot: "b", Seed: 1}}}
		}), err: "stop, and keep this data directory"},
		"report of no rank": {entry: report(func(e *events.Entry) {
			e.Events = []events.Event{{ShadowVerdict: &events.ShadowVerdict{Rank: 5, Key: events.Key{Round: 1}}}}
		}), err: "a report of rank 5"},
		"a request again": {entry: report(func(e *events.Entry) {
			e.Kind, e.Events = events.KindRequest, []events.Event{{Requested: &events.Requested{Node: testNode}}}
		}), err: "request 0 of node " + string(testNode) + " follows its request 0"},
		"a request in a report": {entry: report(func(e *events.Entry) {
			e.Events = []events.Event{{Requested: &events.Requested{Node: testNode, Number: 1}}}
		}), err: "requested does not belong"},
		"a report in a request": {entry: report(func(e *events.Entry) {
			e.Kind, e.Events = events.KindRequest, []events.Event{{Mismatched: &events.Mismatched{Got: events.Key{Round: 1}}}}
		}), err: "mismatched does not belong"},
		"no such request": {entry: step(func(e *events.Entry) {
			e.Events = []events.Event{{RequestDone: &events.RequestDone{Request: 3}}}
		}), err: "request of entry 3 is done, but it is not pending"},
		"a fact in no slot": {entry: step(func(e *events.Entry) {
			e.Events = []events.Event{{Fact: &events.Fact{Slot: "b"}}}
		}), err: `model main has no slot "b"`},
		"a generation too far": {entry: step(func(e *events.Entry) {
			e.Events = []events.Event{{Configured: &events.Configured{Generation: 3, Slots: testSlots("a")}}}
		}), err: "generation 3 of model main follows generation 1"},
	} {
		t.Run(name, func(t *testing.T) {
			before, lifecycle := s.Bookkeeping(), s.Lifecycle("main")
			next, out, err := Apply(s, c.entry)
			require.Equal(t, before, s.Bookkeeping(), "the state before is never changed")
			require.Equal(t, lifecycle, s.Lifecycle("main"))
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				require.Nil(t, next)
				return
			}
			require.NoError(t, err)
			require.Equal(t, s.Index+1, next.Index)
			if c.refused == "" {
				require.Empty(t, out.Refused)
				require.NotEqual(t, lifecycle, next.Lifecycle("main"))
				require.EqualValues(t, 1, next.Cursor("main").Fence)
				return
			}
			require.Contains(t, out.Refused, c.refused)
			require.Equal(t, before, next.Bookkeeping())
			require.Equal(t, lifecycle, next.Lifecycle("main"))
		})
	}
}

// Reports are counted by their kind, for the ranks of the open round only.
func TestTally(t *testing.T) {
	key := func(round uint64) events.Key { return events.Key{Round: round, Op: events.OpAdvance} }
	for name, c := range map[string]struct {
		ev   func(round uint64) events.Event
		want Tally
	}{
		"own verdict": {func(r uint64) events.Event {
			return events.Event{ShadowVerdict: &events.ShadowVerdict{Index: 1, Key: key(r), Verdict: events.Verdict{Gate: events.G1}}}
		}, Tally{Disagreements: 1}},
		"out of order": {func(r uint64) events.Event {
			return events.Event{Mismatched: &events.Mismatched{Code: events.CodeOrderMismatch, Got: key(r), Want: key(r)}}
		}, Tally{Misplaced: 1}},
		"made alone": {func(r uint64) events.Event {
			return events.Event{Mismatched: &events.Mismatched{Code: events.CodeMissingCall, Got: key(r), Want: key(r)}}
		}, Tally{Missing: 1}},
		"other outcome": {func(r uint64) events.Event {
			o := events.Outcome{Stage: events.StageTraining}
			return events.Event{OutcomeDiffers: &events.OutcomeDiffers{Key: key(r), Got: o, Want: o}}
		}, Tally{Differing: 1}},
		"ended": {func(r uint64) events.Event {
			return events.Event{TrainerEnded: &events.TrainerEnded{Round: r}}
		}, Tally{Ended: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			l := configured(t, "a")
			report := func(round uint64) {
				l.append(events.Entry{Kind: events.KindReport, Events: []events.Event{c.ev(round),
					{Reported: &events.Reported{Node: testNode, Sequence: l.state.Index}}}})
			}
			none := l.state.Bookkeeping()
			report(1)
			require.Equal(t, c.want, l.state.Round.Tally(0))
			require.Zero(t, l.state.Round.Tally(1))
			once := l.state
			report(1)
			require.Equal(t, c.want, once.Round.Tally(0), "an older state keeps its counters")
			require.NotEqual(t, c.want, l.state.Round.Tally(0))
			l.openRound(events.ModeKeyed)
			require.Zero(t, l.state.Round.Tally(0))
			before := l.state.Bookkeeping()
			require.NotEqual(t, none, before)
			report(1)
			require.Zero(t, l.state.Round.Tally(0), "of an older round")
			require.NotEqual(t, before, l.state.Bookkeeping(), "the sequence moved on")
		})
	}
}

// The counters are told apart in the digest, by their kind and by their rank.
func TestTallyDigests(t *testing.T) {
	seen := map[events.Digest]bool{}
	for _, round := range []Round{{Number: 1}, {Number: 1, Disagreements: []uint64{1, 0}}, {Number: 1, Misplaced: []uint64{1, 0}},
		{Number: 1, Missing: []uint64{1, 0}}, {Number: 1, Differing: []uint64{1, 0}}, {Number: 1, Differing: []uint64{0, 1}}, {Number: 1, Differing: []uint64{0, 2}},
		{Number: 1, Fault: &events.RoundFaulted{Code: events.CodeUnavailable}}, {Number: 1, Fault: &events.RoundFaulted{Code: events.CodeUnavailable, Reason: "killed"}}} {
		d := roundLeaf(round)
		require.False(t, seen[d], "%+v", round)
		seen[d] = true
	}
	require.Equal(t, roundLeaf(Round{Number: 1}), roundLeaf(Round{Number: 1, Misplaced: []uint64{0, 0}}), "none is none")
}
