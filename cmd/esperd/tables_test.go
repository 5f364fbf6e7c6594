package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares with testdata/name.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.WriteFile(file, got, 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err, "`go test ./cmd/esperd -update` writes it")
	require.Equal(t, string(want), string(got))
}

// TestMain lets the test binary be esperd, for tests of real processes.
func TestMain(m *testing.M) {
	time.Local = time.UTC
	if os.Getenv(asEsperd) != "" {
		main()
	}
	os.Exit(m.Run())
}

const asEsperd = "TEST_BINARY_IS_ESPERD"

const (
	nodeA = events.NodeID("aaaaaaaa00000000aaaaaaaa00000000")
	nodeB = events.NodeID("bbbbbbbb00000000bbbbbbbb00000000")
)

func num(v events.Num) *events.Num { return &v }

func exampleFault() *events.RoundFaulted {
	return &events.RoundFaulted{Round: 2, Code: events.CodeOrderMismatch, Rank: 1, Node: nodeB, Index: 40,
		Got:     events.Key{Op: events.OpAdvance, Slot: "r0c1", Seed: 1, Model: "main", Call: 7},
		GotSite: "train.py:90", WantSite: "train.py:88",
		Want: events.Key{Op: events.OpAdvance, Slot: "r0c0", Seed: 1, Model: "main", Call: 7}}
}

func exampleSlots() []api.Slot {
	return []api.Slot{
		{Name: "r0c0", Stage: events.StageBlending, Alpha: 1.0 / 3, Germinations: 1, Seed: 1, Blueprint: "conv_light",
			Controller: &events.Controller{Mode: events.ModeUp, Target: 1, Total: 3, Done: 1},
			Metrics:    &events.Metrics{Epochs: 12, EpochsInStage: 1, Accuracy: 88.1234, Contribution: num(1.5)}},
		{Name: "r0c1", Stage: events.StageFossilized, Alpha: 1, Germinations: 2, Seed: 2, Blueprint: "norm",
			Controller: &events.Controller{}, Metrics: &events.Metrics{}},
		{Name: "r0c\t2", Stage: events.StageDormant},
	}
}

func TestTables(t *testing.T) {
	state := &api.State{Run: "r1", Lineage: "00112233445566778899aabbccddeeff", Node: nodeA, World: 2, Version: "v1",
		Phase: "member", Role: "leader", Voter: true, Leader: nodeA, Quorum: true, Index: 41, CompleteFrom: 1, LogStore: "wal",
		Round:  &api.Round{Number: 2, Fingerprint: "h:29500/2/0", Members: []events.Member{{Node: nodeA}, {Rank: 1, Node: nodeB}}},
		Models: []api.Model{{Name: "main", Generation: 1, Epoch: 9, Calls: 30, Slots: exampleSlots()}}}
	alone := *state
	alone.Quorum, alone.Leader, alone.Role, alone.CompleteFrom, alone.Problem = false, "", "candidate", 12, "disk full"
	alone.Durability = relaxed
	alone.Round = &api.Round{Number: 2, Fault: exampleFault()}
	joining := api.State{Node: nodeB, Rank: 1, World: 2, Phase: "joining", Role: "none"}
	refused := joining
	refused.Problem = "peer 10.0.0.1:7400 does not hold this job's secret:\tgive every node the same --secret-file"
	ranks := []api.Rank{
		{Rank: 0, Node: nodeA, Host: "h0", Address: "10.0.0.1:7400", Role: "leader", Voter: true, Index: 41, Session: true,
			Last: &api.LastCall{Key: events.Key{Op: events.OpStepEpoch, Epoch: 9, Call: 30, Model: "main"}, Site: "train.py:99"}},
		{Rank: 1, Node: nodeB, Host: "h1", Address: "10.0.0.2:7401", Role: "follower", Index: 40, Disagreements: 3,
			Waiting: []api.Arrival{{Rank: 1, What: "decision", Key: &events.Key{Op: events.OpAdvance, Slot: "r0c0", Seed: 1, Model: "gan"}, Seconds: 7.25, Missing: []uint64{0}}}},
		{Rank: 2, Address: "10.0.0.3:7402", Unreachable: "connection refused"},
		{Rank: 3, Waiting: []api.Arrival{{Rank: 3, What: "round", Seconds: 60, Missing: []uint64{1, 2}}}},
		{Rank: 4, Phase: "joining", Problem: "no answer from 10.0.0.1:7400", Waiting: []api.Arrival{{Rank: 4, What: "round", Seconds: 1, Missing: []uint64{1}}}},
		{Rank: 5, Phase: "diverged", Role: "follower"},
		{Rank: 6, Phase: "member", Role: "follower", Voter: true, Problem: "disk full"},
	}
	var out bytes.Buffer
	for _, s := range []*api.State{state, &alone, &joining, &refused} {
		require.NoError(t, statusTable(&out, s, nil))
		out.WriteString("--\n")
	}
	require.NoError(t, slotsTable(&out, exampleSlots()))
	out.WriteString("--\n")
	require.NoError(t, ranksTable(&out, ranks))
	golden(t, "tables.txt", out.Bytes())
}

func TestEntryLines(t *testing.T) {
	seed := func(stage events.Stage) *events.StageChanged {
		return &events.StageChanged{Slot: "r0c0", Seed: 1, From: events.StageTraining, To: stage}
	}
	gate := func(passed, own bool) *events.GateEvaluated {
		v := events.Verdict{Gate: events.G2, Passed: passed, Message: "Improvement: 1.20%", ChecksFailed: []string{"seed_not_ready", "x"}}
		return &events.GateEvaluated{Slot: "r0c0", Seed: 1, Target: events.StageBlending, Verdict: v, Own: own}
	}
	advance := &events.Key{Op: events.OpAdvance, Slot: "r0c0", Seed: 1, Model: "main"}
	list := []struct {
		kind events.Kind
		key  *events.Key
		evs  []events.Event
	}{
		{events.KindFound, nil, []events.Event{{Founded: &events.Founded{Run: "r1", Lineage: "00112233445566778899aabbccddeeff",
			Parent: &events.Parent{Run: "r0", Lineage: "ff", Index: 9}}}, {NodeJoined: &events.NodeJoined{Node: nodeA, Host: "h0"}}}},
		{events.KindMembership, nil, []events.Event{{NodeLeft: &events.NodeLeft{Node: nodeB, Reason: "replaced"}}}},
		{events.KindRound, nil, []events.Event{{RoundOpened: &events.RoundOpened{Round: 1, Fingerprint: "h:1/2/0", Members: make([]events.Member, 2)}}}},
		{events.KindCall, &events.Key{Op: events.OpConfigure, Model: "main"}, []events.Event{{Configured: &events.Configured{Generation: 1,
			Slots: []events.SlotConfig{{Name: "r0c0"}, {Name: "r0c1"}}}}}},
		{events.KindCall, &events.Key{Op: events.OpGerminate, Slot: "r0c0", Model: "gan"}, []events.Event{
			{Germinated: &events.Germinated{Slot: "r0c0", Seed: 1, Blueprint: "norm", Blend: "sigmoid", Tempo: 3, Target: 1}}}},
		{events.KindCall, advance, []events.Event{{Observed: &events.Observed{}}, {GateEvaluated: gate(true, false)}, {StageChanged: seed(events.StageBlending)}}},
		{events.KindCall, advance, []events.Event{{GateEvaluated: gate(false, true)}}},
		{events.KindCall, advance, []events.Event{{Decided: &events.Decided{Slot: "r0c0", Verdict: events.Verdict{Gate: events.G0, ChecksFailed: []string{"no_active_seed"}}}}}},
		{events.KindCall, &events.Key{Op: events.OpStepEpoch, Epoch: 4, Model: "main"}, []events.Event{
			{AmplitudeSet: &events.AmplitudeSet{Slot: "r0c0", Seed: 1, Amplitude: events.Amplitude{Alpha: 0.25, Controller: events.Controller{Mode: events.ModeUp, Target: 1, Done: 1, Total: 3}}}},
			{AmplitudeSet: &events.AmplitudeSet{Slot: "r0c1", Seed: 1, Amplitude: events.Amplitude{Alpha: 0.9999999}}},
			{Dwelled: &events.Dwelled{Slot: "r0c2", Seed: 1, EpochsInStage: 2}},
			{EpochStepped: &events.EpochStepped{Epoch: 4}}}},
		{events.KindCall, &events.Key{Op: events.OpPrune, Slot: "r0c0", Seed: 1}, []events.Event{{StageChanged: seed(events.StagePruned)},
			{Pruned: &events.Pruned{Slot: "r0c0", Seed: 1, Reason: "gone\nbad", Initiator: "policy"}}}},
		{events.KindCall, &events.Key{Op: events.OpSchedulePrune, Slot: "r0c0", Seed: 1}, []events.Event{{PruneScheduled: &events.PruneScheduled{Slot: "r0c0", Seed: 1, Reason: "slow"}}}},
		{events.KindCall, advance, []events.Event{{Fossilized: &events.Fossilized{Slot: "r0c0", Seed: 1, Blueprint: "norm", Improvement: 2.5}}}},
		{events.KindCall, advance, []events.Event{{Refused: &events.Refused{Code: events.CodeUnknownSlot, Reason: "no slot"}}}},
		{events.KindCall, &events.Key{Op: events.OpFence}, []events.Event{{Fenced: &events.Fenced{N: 3}}}},
		{events.KindReport, nil, []events.Event{{Reported: &events.Reported{Node: nodeB, Sequence: 4}},
			{ShadowVerdict: &events.ShadowVerdict{Rank: 1, Index: 6, Key: *advance, Verdict: events.Verdict{Gate: events.G2}}}}},
		{events.KindFault, nil, []events.Event{{RoundFaulted: exampleFault()}}},
		{events.KindCall, nil, []events.Event{{}}},
	}
	var out bytes.Buffer
	entriesHeader(&out)
	for i, e := range list {
		entry := api.Entry{Index: uint64(i + 1), Chain: events.Digest{byte(i), 0xab}, Entry: events.Entry{Kind: e.kind, Round: 1, Key: e.key, Time: int64(i) * 1e9, Events: e.evs}}
		if i == len(list)-1 {
			entry.Refused = "wrong predecessor"
		}
		require.NoError(t, entryLine(&out, &entry))
	}
	golden(t, "entries.txt", out.Bytes())
}

// A new event needs words of its own.
func TestEveryEventIsDescribed(t *testing.T) {
	for i := range reflect.TypeFor[events.Event]().NumField() {
		var ev events.Event
		field := reflect.ValueOf(&ev).Elem().Field(i)
		field.Set(reflect.New(field.Type().Elem()))
		name, _ := ev.Payload()
		text := describe(&api.Entry{Entry: events.Entry{Events: []events.Event{ev}}})
		require.NotEmpty(t, text, name)
		require.NotEqual(t, strings.ReplaceAll(name, "_", " "), text)
	}
}
