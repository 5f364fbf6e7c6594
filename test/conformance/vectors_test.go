package conformance

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
)

// sampleDir holds the vectors that are committed with the tests.
const sampleDir = "testdata/vectors"

// tally counts what was compared.
type tally struct {
	Records  int
	Complete int // records compared to their end
	Ops      int
	Skipped  int // operations behind the stop set
}

func (a *tally) add(b tally) {
	a.Records += b.Records
	a.Complete += b.Complete
	a.Ops += b.Ops
	a.Skipped += b.Skipped
}

// replay compares one record, a line of a file. numbers, if not nil, collects
// where numbers were compared.
type replay func(line []byte, numbers *[]place) (tally, error)

// files are the vectors by name, with what the committed sample must reach at
// least: fewer comparisons mean that the test has become weaker.
var files = []struct {
	name   string
	replay replay
	floor  tally
}{
	{"alpha", replayAlpha, tally{Records: 390, Complete: 390, Ops: 14120}},
	{"gates", replayGates, tally{Records: 828, Complete: 828, Ops: 828}},
	{"lifecycle", replayLifecycle, tally{Records: 245, Complete: 180, Ops: 15474}},
	{"multi", replayMulti, tally{Records: 38, Complete: 22, Ops: 4821}},
}

func TestVectors(t *testing.T) {
	dir, sample := os.Getenv("ESPERD_VECTORS"), false
	if dir == "" {
		dir, sample = sampleDir, true
	} else if _, err := os.Stat(dir); err != nil && !filepath.IsAbs(dir) {
		dir = filepath.Join("..", "..", dir) // as it is typed in the root of the repository
	}
	found := 0
	for _, f := range files {
		if _, err := vectorFile(dir, f.name); errors.Is(err, fs.ErrNotExist) && !sample {
			t.Logf("%s: not in %s", f.name, dir)
			continue
		}
		found++
		t.Run(f.name, func(t *testing.T) {
			got := replayFile(t, dir, f.name, f.replay)
			report := fmt.Sprintf("%s: %d ops compared, %d behind the stop set; %d records, %d of them complete",
				f.name, got.Ops, got.Skipped, got.Records, got.Complete)
			fmt.Println(report)
			t.Log(report)
			require.Positive(t, got.Records, "the file has no records")
			if sample {
				require.GreaterOrEqual(t, got.Records, f.floor.Records)
				require.GreaterOrEqual(t, got.Complete, f.floor.Complete)
				require.GreaterOrEqual(t, got.Ops, f.floor.Ops)
			}
		})
	}
	require.Positive(t, found, "%s holds none of the four files", dir)
}

// TestVectorsFolder reads a folder as ESPERD_VECTORS names it: any of the four
// files, packed or not.
func TestVectorsFolder(t *testing.T) {
	dir := t.TempDir()
	_, err := vectorFile(dir, "gates")
	require.ErrorIs(t, err, fs.ErrNotExist)
	lines := readVectors(t, sampleDir, "gates")[:3]
	require.NoError(t, os.WriteFile(filepath.Join(dir, "gates.jsonl"), bytes.Join(lines, []byte("\n")), 0o600))
	require.Equal(t, lines, readVectors(t, dir, "gates"))
}

const maxReported = 20 // mismatches of one file

func replayFile(t *testing.T, dir, name string, replay replay) tally {
	var sum tally
	failed := 0
	for i, line := range readVectors(t, dir, name) {
		got, err := replay(line, nil)
		sum.add(got)
		if err == nil {
			continue
		}
		if failed++; failed <= maxReported {
			t.Errorf("%s, line %d: %v", name, i+1, err)
		}
	}
	if failed > maxReported {
		t.Errorf("%s: %d more records differ", name, failed-maxReported)
	}
	return sum
}

// vectorFile returns the path of a file of vectors, unpacked or packed.
func vectorFile(dir, name string) (string, error) {
	for _, ext := range []string{".jsonl", ".jsonl.gz"} {
		path := filepath.Join(dir, name+ext)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", fmt.Errorf("%s: %w", filepath.Join(dir, name+".jsonl[.gz]"), fs.ErrNotExist)
}

// readVectors returns the lines of a file of vectors.
func readVectors(t testing.TB, dir, name string) [][]byte {
	path, err := vectorFile(dir, name)
	require.NoError(t, err)
	file, err := os.Open(path)
	require.NoError(t, err)
	defer file.Close()
	var r io.Reader = file
	if filepath.Ext(path) == ".gz" {
		unpacked, err := gzip.NewReader(file)
		require.NoError(t, err)
		r = unpacked
	}
	var lines [][]byte
	for in := bufio.NewReader(r); ; {
		line, err := in.ReadBytes('\n')
		if line = bytes.TrimSpace(line); len(line) > 0 {
			lines = append(lines, line)
		}
		if errors.Is(err, io.EOF) {
			return lines
		}
		require.NoError(t, err)
	}
}

// decodeRecord reads a record; an error names it, if it can.
func decodeRecord(line []byte, v any) error {
	err := decode(line, v)
	if err == nil {
		return nil
	}
	var r struct{ ID string }
	_ = json.Unmarshal(line, &r) // whatever can be read
	return fmt.Errorf("record %s: %w", r.ID, err)
}

// decode reads JSON strictly: a field that this test does not know might be one
// that it should compare. Untyped numbers stay as they are written.
func decode(b []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	dec.DisallowUnknownFields()
	return dec.Decode(v)
}

// gateConfig is GATECFG of section 2.2.
type gateConfig struct {
	Permissive                   bool    `json:"permissive"`
	MinTrainingImprovement       float64 `json:"min_training_improvement"`
	MinBlendingEpochs            int64   `json:"min_blending_epochs"`
	MinSeedGradientRatio         float64 `json:"min_seed_gradient_ratio"`
	MinGradientHealthForBlending float64 `json:"min_gradient_health_for_blending"`
	MinProbationStability        float64 `json:"min_probation_stability"`
}

func (g gateConfig) config() events.GateConfig { return events.GateConfig(g) }

// verdictValue is RESULT of section 2.2.
func verdictValue(v events.Verdict) map[string]any {
	return map[string]any{"gate": string(v.Gate), "passed": v.Passed, "score": v.Score,
		"cp": strings(v.ChecksPassed), "cf": strings(v.ChecksFailed), "msg": v.Message}
}

func strings(list []string) []any {
	out := make([]any, len(list))
	for i, s := range list {
		out[i] = s
	}
	return out
}

// optional turns a value that may be missing into what comparer compares.
func optional[T any](v *T, value func(T) any) any {
	if v == nil {
		return nil
	}
	return value(*v)
}

func numValue(n events.Num) any { return float64(n) }
func boolValue(b bool) any      { return b }
