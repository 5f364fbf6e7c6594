package main

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/audit"
	"github.com/esperd/esperd/events"
)

// The commands that read logs, on the directory of an esperd that runs and then
// on what it left.
func TestReadingALog(t *testing.T) {
	home := t.TempDir()
	cmd := up(t, home)
	dir := filepath.Join(home, ".local/state/esperd/default/rank0")
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, cmd.Wait())
	export := filepath.Join(home, "log.jsonl")
	for _, c := range []struct {
		status int
		says   string
		args   []string
	}{
		{0, "CONSISTENT", []string{"audit", dir}},
		{0, `"outcome": "consistent"`, []string{"audit", "--json", dir}},
		{0, "founded", []string{"events", dir}},
		{0, "", []string{"events", dir, "--export", export}},
		{0, "founded", []string{"events", export}},
		{0, "CONSISTENT", []string{"audit", export, dir}},
		{0, "reaches all digests", []string{"replay", "--check", export}},
		{0, "run", []string{"replay", export}},
		{0, "founded", []string{"replay", export, "--steps"}},
		{0, "lineage", []string{"replay", dir, "--diff", "0:1"}},
		{0, `"index": 1`, []string{"replay", dir, "--to", "1", "--json"}},
		{1, "expected one up to there", []string{"replay", dir, "--to", "99999"}},
		{1, "no entry of", []string{"replay", dir, "--epoch", "3"}},
		{1, "no model", []string{"replay", dir, "--slot", "r0c0"}},
		{1, `no model "foo" after entry`, []string{"replay", dir, "--model", "foo"}},
		{1, `no model "foo" after entry`, []string{"replay", dir, "--model", "foo", "--diff", "0:1"}},
		{1, `no model "foo" up to entry`, []string{"replay", dir, "--model", "foo", "--slot", "r0c0", "--steps"}},
		{2, "expected --slot", []string{"replay", dir, "--model", "foo", "--steps"}},
		{2, "expected the index of an entry, 1 or more", []string{"replay", dir, "--to", "0"}},
		{2, "esperd replay --check " + home, []string{"replay", "--check", home}},
		{2, "expected two entries", []string{"replay", dir, "--diff", "x"}},
		{2, "INCOMPLETE", []string{"audit", dir, home}},
		{2, "INCOMPLETE", []string{"replay", "--check", home}},
		{2, "a PLACE is a data directory", []string{"audit"}},
		{2, "a PLACE is a data directory", []string{"replay"}},
		{1, "a PLACE is a data directory", []string{"events"}},
		{0, "CONSISTENT", []string{"audit", "--follow", "--every", "100ms", "--end-after", "1ms", dir}},
		{0, `"event":"report"`, []string{"audit", "-f", "--json", "--every", "100ms", "--end-after", "1ms", dir}},
		{2, "gets nothing", []string{"audit", "--follow", export}},
		{2, "without --follow", []string{"audit", "--since=end", dir}},
		{2, "expected an index, or end", []string{"audit", "--since=x", dir}},
		{2, "expected a duration", []string{"audit", "--follow", "--every=0s", dir}},
		{2, "reads a PLACE", []string{"events", "--export", export}},
	} {
		status, out, errs := finish(t, esperd(t, home, c.args...))
		require.Equal(t, c.status, status, "%v: %s%s", c.args, out, errs)
		require.Contains(t, out+errs, c.says, c.args)
	}
	before, err := os.ReadFile(export)
	require.NoError(t, err)
	require.Contains(t, string(before), `"format":"esperd-log"`)

	// Without its last line: what is there is shown, and that it is not all.
	require.NoError(t, os.WriteFile(export, before[:bytes.LastIndexByte(before[:len(before)-1], '\n')+1], 0o600))
	for _, args := range [][]string{{"events"}, {"events", "--json"}, {"replay"}, {"replay", "--steps"}} {
		status, out, errs := finish(t, esperd(t, home, append(args, export)...))
		require.Equal(t, exitIncomplete, status, args)
		require.NotEmpty(t, out, args)
		require.Contains(t, errs, "warning: INCOMPLETE: "+export, args)
	}
	for _, args := range [][]string{{"replay", "--to", "1"}, {"events", "--limit", "1"}} {
		status, _, errs := finish(t, esperd(t, home, append(args, export)...))
		require.Equal(t, exitOK, status, "%v: %s", args, errs)
	}
}

// A pipe in the place of a file is refused by all that read one, where opening it
// would wait for a writer for ever.
func TestPipesAreRefused(t *testing.T) {
	home := t.TempDir()
	node := filepath.Join(home, "rank0")
	require.NoError(t, os.Mkdir(node, 0o700))
	require.NoError(t, syscall.Mkfifo(filepath.Join(node, "history.db"), 0o600))
	for _, c := range []struct {
		status int
		args   []string
	}{
		{2, []string{"audit", node}},
		{2, []string{"replay", "--check", node}},
		{1, []string{"replay", node}},
		{1, []string{"events", node}},
		{1, []string{"recover", node}},
		{1, []string{"run", "--data-dir", node}},
	} {
		status, out, errs := finish(t, esperd(t, home, c.args...))
		require.Equal(t, c.status, status, "%v: %s%s", c.args, out, errs)
		require.Contains(t, out+errs, "history.db", c.args)
	}
	require.NoError(t, os.Remove(filepath.Join(node, "history.db")))
	require.NoError(t, syscall.Mkfifo(filepath.Join(node, "node.json"), 0o600))
	for status, command := range map[int]string{2: "audit", 1: "events"} {
		got, out, errs := finish(t, esperd(t, home, command, node))
		require.Equal(t, status, got, out+errs)
		require.Contains(t, out+errs, "node.json is a pipe, expected a regular file")
	}
}

func TestAuditText(t *testing.T) {
	rank, epoch := uint64(2), int64(41)
	r := &audit.Report{Outcome: audit.Diverged, Status: 1, Run: "run7", Lineage: "00112233445566778899aabbccddeeff", Agreed: audit.Point{Index: 4811},
		Findings: []audit.Finding{{Verdict: audit.VerdictApply, Source: audit.SourceReplay, Index: 4812, What: "replaying entry 4812 gives another digest", Agreed: audit.Point{Index: 4811},
			Round: 3, Model: "main", Generation: 1, Epoch: &epoch, Slot: "r0c1", Seed: 4, StageBefore: "TRAINING", StageAfter: "BLENDING",
			Differences: []audit.Difference{{Field: "main.r0c1.seed.amplitude.alpha", Expected: "0.25", Got: "0.5"}},
			Groups: []audit.Group{{Value: "lifecycle digest aa", Expected: true, Ranks: []uint64{0, 1}, Places: []string{"a", "b"}},
				{Value: "lifecycle digest bb", Ranks: []uint64{2}, Places: []string{"c"}}},
			AtFault: []audit.Party{{Rank: &rank, Host: "node-c"}},
			Sites:   []audit.Site{{Rank: 0, Site: "train.py:88", Call: &events.Key{Op: events.OpAdvance, Slot: "r0c1", Seed: 4}, Verdict: &events.Verdict{Gate: events.G2, Passed: true}}}}},
		Coverage: []string{"rank 2 (c): entries 1 to 4812 replayed"}, Build: audit.Build{Esperd: "v1", Go: "go", Entry: 2}, Reproduce: "esperd audit a b c"}
	var b bytes.Buffer
	require.NoError(t, auditText(&b, r))
	for _, want := range []string{
		"DIVERGED at entry 4812: apply, rank 2 on node-c, slot r0c1#4, field main.r0c1.seed.amplitude.alpha\n",
		"round 3, epoch 41, model main.1, slot r0c1#4, TRAINING -> BLENDING",
		"expected 0.25, got 0.5", "ranks 0 1", "rank 2", "rank 0: advance r0c1#4 at train.py:88; own verdict G2 passed",
		"up to entry 4811", "entries 1 to 4812 replayed", "esperd audit a b c",
	} {
		require.Contains(t, b.String(), want)
	}
}

// The life of a slot is what happened to it, and not every call that brought a
// measurement along.
func TestStepsOfASlot(t *testing.T) {
	observed := func(slot string) events.Event {
		return events.Event{Observed: &events.Observed{Slot: slot, Seed: 1}}
	}
	call := func(op events.Op, slot string, evs ...events.Event) *events.Entry {
		return &events.Entry{Kind: events.KindCall, Key: &events.Key{Op: op, Model: "main", Slot: slot}, Events: evs}
	}
	report := func(ev events.Event) *events.Entry {
		return &events.Entry{Kind: events.KindReport, Events: []events.Event{ev}}
	}
	dwelled := func(slot string) events.Event { return events.Event{Dwelled: &events.Dwelled{Slot: slot, Seed: 1}} }
	for _, c := range []struct {
		e    *events.Entry
		want bool
		left int // events that are shown
	}{
		{call(events.OpAdvance, "a", observed("b"), observed("a")), true, 1},
		{call(events.OpAdvance, "b", observed("b"), observed("a")), false, 1},
		{call(events.OpStepEpoch, "", dwelled("a"), dwelled("b"), events.Event{EpochStepped: &events.EpochStepped{}}), true, 2},
		{call(events.OpStepEpoch, "", dwelled("b"), events.Event{EpochStepped: &events.EpochStepped{}}), false, 1},
		{report(events.Event{ShadowVerdict: &events.ShadowVerdict{Key: events.Key{Model: "main", Slot: "a"}}}), true, 1},
		{report(events.Event{ShadowVerdict: &events.ShadowVerdict{Key: events.Key{Model: "gan", Slot: "a"}}}), false, 0},
		{report(events.Event{Voted: &events.Voted{Model: "main", Slot: "a"}}), true, 1},
		{report(events.Event{Attested: &events.Attested{Model: "main", Others: []events.AttestedOther{{Tensors: []string{"b/w", "a/w"}}}}}), true, 1},
		{report(events.Event{Attested: &events.Attested{Model: "main", Others: []events.AttestedOther{{Tensors: []string{"b/w"}}}}}), false, 0},
		{report(events.Event{Attested: &events.Attested{Model: "main"}}), false, 1},
	} {
		require.Equal(t, c.want, concerns(c.e, "main", "a"), "%+v", c.e)
		require.Len(t, withoutOthers(c.e, "main", "a"), c.left, "%+v", c.e)
	}
}
