package main

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// recordingOf writes the embedded recording's first ranks as a recording of its
// own, with one rank's lines changed.
func recordingOf(t *testing.T, ranks, changed int, change func(lines []string) []string) string {
	dir := t.TempDir()
	for rank := range ranks {
		b, err := fs.ReadFile(embedded(t), rankFile(rank))
		require.NoError(t, err)
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		lines[0] = strings.Replace(lines[0], `"world":4`, `"world":`+string(rune('0'+ranks)), 1)
		if rank == changed {
			lines = change(lines)
		}
		require.NoError(t, os.WriteFile(filepath.Join(dir, rankFile(rank)), []byte(strings.Join(lines, "\n")+"\n"), 0o600))
	}
	return dir
}

func lineWith(t *testing.T, lines []string, word string) int {
	for i, l := range lines {
		if strings.Contains(l, word) {
			return i
		}
	}
	t.Fatal(word)
	return 0
}

func demo(t *testing.T, args ...string) (status int, r demoReport, stderr string) {
	tmp := t.TempDir()
	cmd := esperd(t, t.TempDir(), append([]string{"demo", "--json"}, args...)...)
	cmd.Env = append(cmd.Env, "TMPDIR="+tmp, "ESPERD_RANK=7", "MASTER_PORT=1") // of no concern to its ranks
	status, out, stderr := finish(t, cmd)
	if out != "" {
		require.NoError(t, json.Unmarshal([]byte(out), &r))
	}
	left, err := os.ReadDir(tmp)
	require.NoError(t, err)
	require.Empty(t, left, "the demo cleans up")
	return status, r, stderr
}

func TestDemoOfAnotherRecording(t *testing.T) {
	status, r, errs := demo(t, "--recording", recordingOf(t, 2, -1, nil), "--durability", "relaxed")
	require.Equal(t, exitOK, status, errs)
	require.True(t, r.RecordingMatches && r.DigestsEqual && r.DisagreementsMatch)
	require.Equal(t, []int{2, 46, 8}, []int{r.Ranks, r.Decisions, r.ShadowDisagreements})
	require.Positive(t, r.VisibleMS.P50)
	require.Equal(t, "relaxed", r.Durability)
	require.Len(t, r.Slots[0].Ranks, 2)
}

func TestDemoSaysWhatIsNotAsRecorded(t *testing.T) {
	dir := recordingOf(t, 2, 1, func(lines []string) []string {
		i := lineWith(t, lines, `"passed":true,"stage":"TRAINING"`)
		lines[i] = strings.Replace(lines[i], `"stage":"TRAINING"`, `"stage":"BLENDING"`, 1)
		return lines
	})
	status, r, errs := demo(t, "--recording", dir)
	require.Equal(t, exitFailure, status)
	require.Contains(t, errs, "is not the recorded one")
	require.False(t, r.RecordingMatches)
	require.True(t, r.DigestsEqual && r.DisagreementsMatch)
	require.Len(t, r.Differences, 1)
	require.Contains(t, r.Differences[0], "rank 1, epoch 3, r0c0")
}

// Rank 1 swaps two gates: esperd names the rank and the two calls.
func TestDemoOfSwappedCalls(t *testing.T) {
	dir := recordingOf(t, 2, 1, func(lines []string) []string {
		for i := 1; i < len(lines); i++ {
			if strings.Contains(lines[i-1], `"advance"`) && strings.Contains(lines[i], `"advance"`) {
				var a, b Step
				require.NoError(t, json.Unmarshal([]byte(lines[i-1]), &a))
				require.NoError(t, json.Unmarshal([]byte(lines[i]), &b))
				seq := func(n *int) string { return `"seq":` + seqText(n) }
				lines[i-1], lines[i] = strings.Replace(lines[i], seq(b.Seq), seq(a.Seq), 1), strings.Replace(lines[i-1], seq(a.Seq), seq(b.Seq), 1)
				return lines
			}
		}
		t.Fatal("no two gates in a row")
		return nil
	})
	status, _, errs := demo(t, "--recording", dir)
	require.Equal(t, exitFailure, status)
	require.Contains(t, errs, "error: rank 1: rank1.jsonl, line 27, advance r0c1: order-mismatch")
}

func TestDemoOfACutRecording(t *testing.T) {
	dir := recordingOf(t, 2, 1, func(lines []string) []string {
		lines[99] = lines[99][:len(lines[99])/2]
		return lines[:100]
	})
	status, _, errs := demo(t, "--recording", dir)
	require.Equal(t, exitFailure, status)
	require.Contains(t, errs, filepath.Join(dir, "rank1.jsonl")+":100: the line is truncated")
}
