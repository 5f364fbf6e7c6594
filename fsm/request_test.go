package fsm

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
)

// A request that makes no entry says why. (What becomes of one that does is in
// testdata/request.txt.)
func TestRefusedRequests(t *testing.T) {
	l := configured(t, "a")
	l.call("a", plainGermination)
	good := events.Requested{Node: testNode, Model: "main", Slot: "a", Action: events.ActionPrune}
	for _, c := range []struct {
		change func(*events.Requested)
		code   events.Code
		reason string
	}{
		{func(r *events.Requested) { r.Action = "sing" }, events.CodeInvalidInput, `expected "prune", got "sing"`},
		{func(r *events.Requested) { r.Model = "gan" }, events.CodeConfigMismatch, `expected a model of the log, got "gan"`},
		{func(r *events.Requested) { r.Model = strings.Repeat("x", 257) }, events.CodeInvalidInput, "256 bytes"},
		{func(r *events.Requested) { r.Slot = "\xff" }, events.CodeInvalidInput, "UTF-8"},
		{func(r *events.Requested) { r.Slot = "b" }, events.CodeUnknownSlot, "its slots are a"},
		{func(r *events.Requested) { r.Seed = 2 }, events.CodeIllegalTransition, "seed 1 is in the slot, not seed 2"},
		{func(r *events.Requested) { r.Reason = strings.Repeat("x", 1025) }, events.CodeInvalidInput, "reason: expected at most 1024 bytes"},
		{func(r *events.Requested) { r.Initiator = "\xff" }, events.CodeInvalidInput, "initiator"},
		{func(r *events.Requested) { r.Number = 1<<62 + 1 }, events.CodeInvalidInput, "number"},
	} {
		r := good
		c.change(&r)
		ev, pending, refused := DecideRequest(l.state, r)
		require.Nil(t, ev)
		require.Nil(t, pending)
		require.NotNil(t, refused)
		require.Equal(t, c.code, refused.Code)
		require.Contains(t, refused.Reason, c.reason)
	}
	ev, _, _ := DecideRequest(l.state, good)
	require.Equal(t, &events.Requested{Node: testNode, Number: 1, Model: "main", Generation: 1, Slot: "a", Seed: 1, Action: events.ActionPrune}, ev)
}

// Each node counts for itself; a gap is nothing to worry about, since a restart
// leaves one.
func TestRequestNumbers(t *testing.T) {
	l := newTestLog(t)
	l.call("", Configure{Slots: testSlots("a", "b", "c")})
	for _, slot := range []string{"a", "b", "c"} {
		l.call(slot, plainGermination)
	}
	ask := func(node events.NodeID, number uint64, slot string) uint64 {
		ev, pending, refused := DecideRequest(l.state, events.Requested{Node: node, Number: number, Model: "main", Slot: slot, Action: events.ActionPrune})
		require.Nil(t, refused)
		if pending != nil {
			return pending.Index
		}
		l.append(events.Entry{Kind: events.KindRequest, Events: []events.Event{{Requested: ev}}})
		return l.state.Index
	}
	first := ask("x", 1<<32+1, "a")
	require.Equal(t, first, ask("x", 1<<32+1, "a"), "sent again")
	require.Equal(t, first, ask("x", 1<<32+2, "a"), "asked again")
	require.Equal(t, first, ask("y", 7, "a"), "by another")
	second := ask("x", 2<<32+1, "b")
	third := ask("y", 8, "c")
	require.Equal(t, []uint64{first, first + 1, first + 2}, []uint64{first, second, third})
	l.call("", Fence{})
	require.Equal(t, second, ask("x", 2<<32+1, "b"), "sent again after it was done")
	require.Equal(t, third, ask("y", 8, "c"))
	require.Empty(t, l.state.Requests)
}

// Models have their own requests.
func TestRequestsOfTwoModels(t *testing.T) {
	l := configured(t, "a")
	l.call("a", plainGermination)
	do := func(slot string, args Args) {
		l.do(Call{Key: NextKey(l.state, "other", slot, args), Args: args})
	}
	do("", Configure{Slots: testSlots("a")})
	do("a", plainGermination)
	for _, model := range []string{"main", "other"} {
		ev, _, refused := DecideRequest(l.state, events.Requested{Node: testNode, Model: model, Slot: "a", Action: events.ActionPrune})
		require.Nil(t, refused)
		l.append(events.Entry{Kind: events.KindRequest, Events: []events.Event{{Requested: ev}}})
	}
	do("", Reset{})
	require.Empty(t, l.state.RequestsOf("other"))
	require.Len(t, l.state.RequestsOf("main"), 1)
	l.call("", Fence{})
	require.Empty(t, l.state.Requests)
	require.Equal(t, events.StagePruned, l.slot("a").Stage())
}

func TestTooManyRequests(t *testing.T) {
	l := configured(t, "a")
	l.call("a", plainGermination)
	full := *l.state
	for i := range uint64(maxRequests) {
		full.setRequest(Request{Index: i, Asked: events.Requested{Model: "main", Slot: "a", Seed: i + 2}})
	}
	ask := func(model string) *events.Refused {
		_, _, refused := DecideRequest(&full, events.Requested{Node: testNode, Model: model, Slot: "a", Action: events.ActionPrune})
		return refused
	}
	require.Equal(t, events.CodeUnavailable, ask("main").Code)
	require.Contains(t, ask("main").Reason, "1000 wait for the next fence of model main")
	require.NoError(t, full.removeRequest(5))
	require.Nil(t, ask("main"))
}
