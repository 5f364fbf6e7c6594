package conformance

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"strconv"
	gostrings "strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	mutatedRecords  = 24 // of each file
	mutationsRecord = 6  // of each record, one at a time
)

// TestMutatedVectors changes single numbers of the committed vectors, wherever
// one is compared, and expects the comparison to name the record and the
// operation.
func TestMutatedVectors(t *testing.T) {
	for n, f := range files {
		t.Run(f.name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(uint64(n), 1))
			lines := readVectors(t, sampleDir, f.name)
			mutated := 0
			for range mutatedRecords {
				mutated += mutateRecord(t, rng, f.replay, lines[rng.IntN(len(lines))])
			}
			t.Logf("%d numbers changed, one at a time", mutated)
			require.Greater(t, mutated, mutatedRecords)
		})
	}
}

// mutateRecord changes some compared numbers of a record, one at a time, and
// returns how many.
func mutateRecord(t *testing.T, rng *rand.Rand, replay replay, line []byte) int {
	var places []place
	_, err := replay(line, &places)
	require.NoError(t, err)
	id := parse(t, line)["id"].(string)
	mutated := 0
	for range mutationsRecord {
		if len(places) == 0 {
			break
		}
		at := places[rng.IntN(len(places))]
		changed := parse(t, line)
		if !mutate(changed, at, rng) {
			continue // a bookkeeping key that did not change here, so it is not in this operation
		}
		b, err := json.Marshal(changed)
		require.NoError(t, err)
		_, err = replay(b, nil)
		var diff *Mismatch
		require.True(t, errors.As(err, &diff), "record %s, op %d, %s: the change went unnoticed: %v", id, at.op, at.path, err)
		require.Equal(t, id, diff.Record)
		require.Equal(t, at.op, diff.Op, "%v", diff)
		require.Contains(t, err.Error(), id)
		require.Contains(t, err.Error(), "op "+strconv.Itoa(at.op))
		mutated++
	}
	return mutated
}

func parse(t *testing.T, line []byte) map[string]any {
	var v map[string]any
	require.NoError(t, decode(line, &v))
	return v
}

// mutate changes the number at a place; false if the record has none there.
func mutate(record map[string]any, at place, rng *rand.Rand) bool {
	var node any = record
	if ops, ok := record["ops"].([]any); ok && at.op >= 0 && at.op < len(ops) {
		node = ops[at.op]
	}
	path := gostrings.Split(gostrings.TrimPrefix(at.path, "."), ".")
	for _, key := range path[:len(path)-1] {
		if node = child(node, key); node == nil {
			return false
		}
	}
	last := path[len(path)-1]
	v := child(node, last)
	if v == nil {
		return false
	}
	switch parent := node.(type) {
	case map[string]any:
		parent[last] = otherNumber(v, rng)
	case []any:
		i, _ := strconv.Atoi(last)
		parent[i] = otherNumber(v, rng)
	}
	return true
}

func child(node any, key string) any {
	switch node := node.(type) {
	case map[string]any:
		return node[key]
	case []any:
		if i, err := strconv.Atoi(key); err == nil && i < len(node) {
			return node[i]
		}
	}
	return nil
}

// otherNumber returns a number that is not the given one, nearby or not.
func otherNumber(v any, rng *rand.Rand) any {
	n, ok := v.(json.Number)
	if !ok {
		return json.Number("0") // instead of a non-finite one
	}
	if i, err := strconv.ParseInt(n.String(), 10, 64); err == nil {
		return json.Number(strconv.FormatInt(i+1-2*rng.Int64N(2), 10))
	}
	f, _ := n.Float64()
	delta := []float64{1e-11, 1e-6, 0.5}[rng.IntN(3)]
	if f+delta-f < delta/2 { // lost in f's last digit
		delta = 1
	}
	return json.Number(strconv.FormatFloat(f+delta, 'g', -1, 64))
}
