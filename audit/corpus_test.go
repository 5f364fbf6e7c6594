package audit

import (
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// corpus is a history of every version of the log so far, with the digests that
// the build which wrote it had. It stands for the logs that users have.
const corpus = "../test/determinism/testdata"

func corpusRecords(t *testing.T) []api.Record {
	f, err := os.Open(filepath.Join(corpus, "history.cbor.gz"))
	require.NoError(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	digests, err := os.ReadFile(filepath.Join(corpus, "digests.txt"))
	require.NoError(t, err)
	lines := bufio.NewScanner(strings.NewReader(string(digests)))
	var out []api.Record
	for items := cbor.NewDecoder(z); ; {
		var r api.Record
		if err := items.Decode(&r.Entry); errors.Is(err, io.EOF) {
			return out
		} else {
			require.NoError(t, err)
		}
		require.True(t, lines.Scan())
		words := strings.Fields(lines.Text())
		_, err := fmt.Sscan(words[0], &r.Index)
		require.NoError(t, err)
		for i, d := range []*events.Digest{&r.Chain, &r.Lifecycle, &r.Bookkeeping} {
			require.NoError(t, d.UnmarshalText([]byte(words[i+1])))
		}
		out = append(out, r)
	}
}

// exported writes records as an exported log.
func exported(t *testing.T, records []api.Record) string {
	var b strings.Builder
	lines := json.NewEncoder(&b)
	require.NoError(t, lines.Encode(exportHead{Format: exportName, Version: exportVersion, Run: "golden", Lineage: fmt.Sprintf("%032x", 7), From: 1}))
	for _, r := range records {
		require.NoError(t, lines.Encode(r))
	}
	sum := sha256.Sum256([]byte(b.String()))
	require.NoError(t, lines.Encode(exportEnd{End: true, Entries: uint64(len(records)), Chain: records[len(records)-1].Chain, SHA256: sum}))
	path := filepath.Join(t.TempDir(), "golden.jsonl")
	require.NoError(t, os.WriteFile(path, []byte(b.String()), 0o600))
	return path
}

// The replay gate: this build reaches the digests of every version's history,
// and would say where it did not.
func TestReplayGate(t *testing.T) {
	records := corpusRecords(t)
	gate := func(records []api.Record) *Report {
		return Run(t.Context(), Config{Places: []string{exported(t, records)}, Since: math.MaxUint64})
	}
	r := gate(records)
	require.Equal(t, Consistent, r.Outcome, text(r))
	require.EqualValues(t, len(records), r.Places[0].Replayed)
	require.NotZero(t, r.Skipped, "what trainers did is not the gate's matter")

	for _, at := range []int{3, len(records) / 2, len(records) - 1} { // a build that applies one entry otherwise
		other := append([]api.Record(nil), records...)
		for i := at; i < len(other); i++ {
			other[i].Bookkeeping[5] ^= 1
		}
		r := gate(other)
		require.Equal(t, 1, r.Status)
		require.Equal(t, VerdictApply, r.Findings[0].Verdict)
		require.EqualValues(t, at+1, r.Findings[0].Index, text(r))
	}
}

// States are described field by field, whatever is in them.
func TestDiffStates(t *testing.T) {
	state, states := fsm.New(), []*fsm.State{}
	for _, r := range corpusRecords(t) {
		next, _ := applied(t, state, decoded(t, r.Entry))
		states = append(states, next)
		if bookkeeping, lifecycle := state.Bookkeeping() != next.Bookkeeping(), r.Lifecycle; bookkeeping || !lifecycle.IsZero() {
			diff := DiffStates(state, next)
			require.Equal(t, bookkeeping, len(diff) > 0 && bookkeeping, "entry %d: %v", r.Index, diff)
		}
		require.Empty(t, DiffStates(next, next))
		state = next
	}
	require.NotEmpty(t, DiffStates(states[10], states[len(states)-1]))
}
