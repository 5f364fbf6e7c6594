package main

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// What version 2 of the log added, in `esperd events`.
func TestEntriesOfVersion2(t *testing.T) {
	advance := events.Key{Op: events.OpAdvance, Slot: "r0c0", Seed: 1, Model: "main", Call: 7}
	other, step, germinate := advance, events.Key{Op: events.OpStepEpoch, Epoch: 4, Model: "main"}, events.Key{Op: events.OpGerminate, Slot: "r0c0", Model: "gan"}
	other.Slot = "r0c1"
	passed, failed := true, false
	half := events.Amplitude{Alpha: 0.5}
	var out bytes.Buffer
	entriesHeader(&out)
	for i, e := range []struct {
		kind events.Kind
		key  *events.Key
		evs  []events.Event
	}{
		{events.KindRequest, nil, []events.Event{{Requested: &events.Requested{Node: nodeB, Number: 1, Model: "main", Generation: 1, Slot: "r0c0", Seed: 1,
			Action: events.ActionPrune, Reason: "governor_nan", Initiator: "rank 2"}}}},
		{events.KindRequest, nil, []events.Event{{Requested: &events.Requested{Node: nodeB, Number: 2, Model: "gan", Generation: 1, Slot: "r0c1", Seed: 3, Action: events.ActionPrune}}}},
		{events.KindCall, &step, []events.Event{
			{StageChanged: &events.StageChanged{Slot: "r0c0", Seed: 1, From: events.StageTraining, To: events.StagePruned}},
			{Pruned: &events.Pruned{Slot: "r0c0", Seed: 1, Reason: "governor_nan", Initiator: "rank 2"}},
			{RequestDone: &events.RequestDone{Request: 1}},
			{RequestDone: &events.RequestDone{Request: 2, Skipped: "the slot is empty"}},
			{EpochStepped: &events.EpochStepped{Epoch: 4}}}},
		{events.KindCall, &events.Key{Op: events.OpReset, Model: "main"}, []events.Event{
			{RequestDone: &events.RequestDone{Request: 3, Skipped: "the model was reset"}},
			{Configured: &events.Configured{Generation: 2, Slots: []events.SlotConfig{{Name: "r0c0"}}}}}},
		{events.KindReport, nil, []events.Event{
			{Mismatched: &events.Mismatched{Rank: 2, Code: events.CodeOrderMismatch, Index: 9, Got: other, GotSite: "train.py:90", Want: advance, WantSite: "train.py:88"}},
			{Mismatched: &events.Mismatched{Rank: 2, Code: events.CodeMissingCall, Index: 9, Got: step, GotSite: "train.py:99", Want: advance, WantSite: "train.py:88"}},
			{Mismatched: &events.Mismatched{Rank: 2, Code: events.CodeMissingCall, Index: 9, Got: germinate, Want: step}},
			{OutcomeDiffers: &events.OutcomeDiffers{Rank: 2, Index: 9, Key: advance, Site: "train.py:88",
				Got:  events.Outcome{Slot: "r0c0", Stage: events.StageTraining, Passed: &failed},
				Want: events.Outcome{Slot: "r0c0", Stage: events.StageBlending, Alpha: 0.25, Passed: &passed}}},
			{Reported: &events.Reported{Node: nodeB, Sequence: 4}}}},
		{events.KindRound, nil, []events.Event{{RoundOpened: &events.RoundOpened{Round: 2, Fingerprint: "a:1/2/0", Members: []events.Member{{Mode: events.ModeObserve}, {Mode: events.ModeObserve}}}}}},
		{events.KindCall, &germinate, []events.Event{{Fact: &events.Fact{Slot: "r0c0", Seed: 1, Stage: events.StageGerminated, ID: "r0c0-norm", Blueprint: "norm"}}}},
		{events.KindCall, &advance, []events.Event{{Fact: &events.Fact{Slot: "r0c0", Seed: 1, Stage: events.StageBlending, Amplitude: half, Passed: &failed,
			Unexpected: "the gate failed, and the seed went from TRAINING to BLENDING"}}}},
		{events.KindCall, &step, []events.Event{
			{Fact: &events.Fact{Slot: "r0c0", Seed: 1, Stage: events.StagePruned, Reason: "slow"}},
			{Fact: &events.Fact{Slot: "r0c1", Seed: 3, Stage: events.StageDormant}},
			{EpochStepped: &events.EpochStepped{Epoch: 4}}}},
		{events.KindFault, nil, []events.Event{{RoundFaulted: &events.RoundFaulted{Round: 2, Code: events.CodeUnavailable, Rank: 1, Node: nodeB, Index: 40,
			Got: advance, GotSite: "train.py:90", Want: step, Reason: "killed"}}}},
		{events.KindCall, &events.Key{Op: events.OpResume, Model: "main"}, []events.Event{{Rewound: &events.Rewound{Index: 8, Model: events.ModelRecord{Generation: 1, Epoch: 40}}}}},
		{events.KindCall, &events.Key{Op: events.OpResume, Model: "gan"}, []events.Event{{Rewound: &events.Rewound{Lineage: "0123456789abcdef", Index: 812, Adopted: true,
			Model: events.ModelRecord{Generation: 2, Epoch: 7}}}}},
		{events.KindReport, nil, []events.Event{
			{Voted: &events.Voted{Rank: 1, Model: "main", Slot: "r0c0", Seed: 1}},
			{Voted: &events.Voted{Rank: 2, Model: "main", Slot: "r0c1", Seed: 3, Failed: true, Reason: "out of memory"}},
			{Attested: &events.Attested{Index: 12, What: "active", Ranks: 4}},
			{Attested: &events.Attested{Index: 13, Model: "gan", What: "tensors", Shard: "1/2", Ranks: 3, Others: []events.AttestedOther{{Ranks: []uint64{2}, Tensors: []string{"r0c0/weight"}}}, Missing: []uint64{7}}}}},
		{events.KindCall, &step, []events.Event{{Residency: &events.Residency{Ranks: 4}}, {Resided: &events.Resided{Slot: "r0c0", Seed: 1}}}},
		{events.KindRecover, nil, []events.Event{{Recovered: &events.Recovered{Lineage: "fedcba9876543210", From: events.Ancestor{Index: 90}}}}},
	} {
		require.NoError(t, entryLine(&out, &api.Entry{Index: uint64(i + 1), Chain: events.Digest{byte(i), 0xab},
			Entry: events.Entry{Kind: e.kind, Round: 2, Key: e.key, Time: int64(i) * 1e9, Events: e.evs}}))
	}
	golden(t, "entries2.txt", out.Bytes())
}
