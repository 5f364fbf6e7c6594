package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const recording = "../../cmd/esperd/recordings/digits-ddp4"

type demoReport struct {
	Decisions           int      `json:"decisions"`
	ShadowDisagreements int      `json:"shadow_disagreements"`
	RecordingMatches    bool     `json:"recording_matches"`
	DigestsEqual        bool     `json:"digests_equal"`
	Differences         []string `json:"differences"`
}

func demo(t *testing.T, args ...string) (status int, r demoReport, stderr string) {
	t.Helper()
	status, out, errs := finish(t, tempDir(t), append([]string{"demo", "--json"}, args...)...)
	require.NoError(t, json.Unmarshal([]byte(out), &r), "%s%s", out, errs)
	return status, r, errs
}

// TestDemo is what the README begins with.
func TestDemo(t *testing.T) {
	plain(t)
	t.Parallel()
	status, r, errs := demo(t)
	require.Equal(t, 0, status, errs)
	require.Equal(t, demoReport{Decisions: 46, ShadowDisagreements: 15, RecordingMatches: true, DigestsEqual: true, Differences: []string{}}, r)
}

// TestDemoFalsified: the demo compares. One alpha that was recorded otherwise
// is found, on its rank, in its epoch, at its slot.
func TestDemoFalsified(t *testing.T) {
	plain(t)
	t.Parallel()
	dir := tempDir(t)
	require.NoError(t, os.CopyFS(dir, os.DirFS(recording)))
	slot, epoch := falsify(t, filepath.Join(dir, "rank2.jsonl"))
	status, r, errs := demo(t, "--recording", dir)
	require.Equal(t, 1, status, errs)
	says(t, errs, "is not the recorded one")
	require.Len(t, r.Differences, 1)
	says(t, r.Differences[0], "rank 2, epoch "+strconv.FormatInt(epoch, 10), "slot "+slot, "alpha")
	require.False(t, r.RecordingMatches)
	require.True(t, r.DigestsEqual, "the ranks themselves agree")
}

// falsify changes one alpha on the way from 0 to 1 by a millionth.
func falsify(t *testing.T, file string) (slot string, epoch int64) {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	lines := strings.Split(string(b), "\n")
	for i := range lines {
		var step struct {
			Kind  string `json:"kind"`
			Epoch int64  `json:"epoch"`
			Slots map[string]struct {
				Alpha float64 `json:"alpha"`
			} `json:"slots"`
		}
		if json.Unmarshal([]byte(lines[i]), &step) != nil || step.Kind != "step_epoch" {
			continue
		}
		for name, s := range step.Slots {
			if s.Alpha == 0 || s.Alpha == 1 {
				continue
			}
			_, rest, found := strings.Cut(lines[i], `"`+name+`":{`)
			require.True(t, found)
			_, rest, found = strings.Cut(rest, `"alpha":`)
			require.True(t, found)
			lines[i] = strings.TrimSuffix(lines[i], rest) + strconv.FormatFloat(s.Alpha+1e-6, 'g', -1, 64) + rest[strings.IndexAny(rest, ",}"):]
			require.NoError(t, os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o600))
			return name, step.Epoch
		}
	}
	t.Fatal("no alpha on its way")
	return "", 0
}
