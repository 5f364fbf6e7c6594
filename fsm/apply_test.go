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
		"verdict of no rank": {entry: report(func(e *events.Entry) {
			e.Events = []events.Event{{ShadowVerdict: &events.ShadowVerdict{Rank: 5, Key: events.Key{Round: 1}}}}
		}), err: "a verdict of rank 5"},
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

// Disagreements are counted for the ranks of the open round only.
func TestDisagreements(t *testing.T) {
	l := configured(t, "a")
	shadow := func(round uint64) {
		l.append(events.Entry{Kind: events.KindReport, Events: []events.Event{
			{ShadowVerdict: &events.ShadowVerdict{Index: 1, Key: events.Key{Round: round, Op: events.OpAdvance}, Verdict: events.Verdict{Gate: events.G1}}},
			{Reported: &events.Reported{Node: testNode, Sequence: l.state.Index}}}})
	}
	shadow(1)
	shadow(1)
	require.EqualValues(t, 2, l.state.Round.Disagreed(0))
	require.EqualValues(t, 0, l.state.Round.Disagreed(1))
	l.openRound()
	require.EqualValues(t, 0, l.state.Round.Disagreed(0))
	before := l.state.Bookkeeping()
	shadow(1)
	require.EqualValues(t, 0, l.state.Round.Disagreed(0), "of an older round")
	require.NotEqual(t, before, l.state.Bookkeeping(), "the sequence moved on")
}
