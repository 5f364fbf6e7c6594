package main

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

func TestTablesOfModesAndRequests(t *testing.T) {
	members := []events.Member{{Node: nodeA, Mode: events.ModeObserve}, {Rank: 1, Node: nodeB, Mode: events.ModeObserve}}
	asked := func(slot, reason, initiator string) events.Requested {
		return events.Requested{Model: "main", Generation: 1, Slot: slot, Seed: 2, Action: events.ActionPrune, Reason: reason, Initiator: initiator}
	}
	state := &api.State{Run: "r1", Lineage: "00112233445566778899aabbccddeeff", Node: nodeA, World: 2, Version: "v1",
		Phase: "member", Role: "leader", Voter: true, Leader: nodeA, Quorum: true, Index: 41, CompleteFrom: 1,
		Round:    &api.Round{Number: 2, Fingerprint: "h:29500/2/0", Members: members},
		Requests: []api.PendingRequest{{Index: 39, Requested: asked("r0c1", "it\nspikes", "operator")}, {Index: 40, Requested: asked("r0c0", "", "rank 1")}}}
	ranks := []api.Rank{
		{Rank: 0, Node: nodeA, Phase: "member", Role: "leader", Voter: true, Index: 41, Busy: &api.Busy{Reason: "evaluation", Seconds: 29.6}},
		{Rank: 1, Node: nodeB, Phase: "member", Role: "follower", Voter: true, Index: 41, Misplaced: 1, MissingCalls: 2,
			Waiting: []api.Arrival{{Rank: 1, What: "decision", Key: &events.Key{Op: events.OpFence, Model: "main"}, Seconds: 7.25, Missing: []uint64{0}}}},
		{Rank: 2, Phase: "member", Problem: "disk full", Role: "follower", Differing: 3},
		{Rank: 3, Unreachable: "connection refused", Misplaced: 4},
	}
	var out bytes.Buffer
	require.NoError(t, statusTable(&out, state, ranks))
	require.NoError(t, statusTable(&out, state, ranks[:1]))
	require.NoError(t, ranksTable(&out, ranks))
	require.NoError(t, ranksTable(&out, ranks[:1]))

	many := *state
	many.Round = &api.Round{Number: 3, Members: []events.Member{{Node: nodeA, Mode: events.ModeFollow}}}
	for range rowsShown {
		many.Requests = append(many.Requests, state.Requests...)
	}
	all := make([]api.Rank, rowsShown+1)
	for i := range all {
		all[i] = api.Rank{Rank: uint64(i), Differing: 1}
	}
	require.NoError(t, statusTable(&out, &many, all))
	golden(t, "modes.txt", out.Bytes())
}
