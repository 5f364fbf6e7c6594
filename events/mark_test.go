package events

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"github.com/stretchr/testify/require"
)

func someMark() *Mark {
	return &Mark{Run: "run", Lineage: "1", Model: "main", Index: 812, Chain: Digest{1}, Lifecycle: Digest{2}, Slots: []SlotConfig{{Name: "r0c0"}},
		Record: ModelRecord{Generation: 1, Epoch: 40, FenceN: -1, Tick: 41, Slots: []SlotRecord{{Germinations: 2, Seed: &SeedRecord{Count: 2, Stage: StageBlending,
			Amplitude: Amplitude{Alpha: 0.5, Algorithm: AlgorithmAdd, Controller: Controller{Curve: CurveLinear, Steepness: 12}}}}}}}
}

func TestMarkRoundTrip(t *testing.T) {
	b, sum, err := EncodeMark(someMark())
	require.NoError(t, err)
	m, again, err := DecodeMark(b)
	require.NoError(t, err)
	require.Equal(t, someMark(), m)
	require.Equal(t, sum, again)
}

// Every changed byte and every cut is noticed, and what is no mark says so.
func TestMarksThatAreNone(t *testing.T) {
	b, _, err := EncodeMark(someMark())
	require.NoError(t, err)
	for i := range b {
		changed := bytes.Clone(b)
		changed[i] ^= 1
		for _, bad := range [][]byte{changed, b[:i]} {
			_, _, err := DecodeMark(bad)
			var wrong *MarkError
			require.ErrorAs(t, err, &wrong, "byte %d", i)
		}
	}
	remade := func(body []byte) []byte { // by somebody who knows the form
		sum := sha256.Sum256(body)
		return append(append([]byte(markMagic), sum[:]...), body...)
	}
	body := b[len(markMagic)+sha256.Size:]
	for says, bad := range map[string][]byte{
		"got \"\"":               nil,
		"got \"\\x80\\x02pickle": []byte("\x80\x02pickled"),
		"a format that this":     []byte("esperd mark 2\n..."),
		"truncated":              []byte(markMagic),
		"at most":                make([]byte, MarkBytesMax+1),
		"follow it":              remade(append(bytes.Clone(body), 0)),
		"missing":                remade([]byte{0xa0}),
	} {
		_, _, err := DecodeMark(bad)
		require.ErrorContains(t, err, says)
	}
}

func FuzzDecodeMark(f *testing.F) {
	b, _, err := EncodeMark(someMark())
	require.NoError(f, err)
	head := len(markMagic) + sha256.Size
	f.Add(b[head:])
	f.Fuzz(func(t *testing.T, body []byte) {
		sum := sha256.Sum256(body)
		m, _, err := DecodeMark(append(append([]byte(markMagic), sum[:]...), body...))
		if err != nil {
			return
		}
		again, _, err := EncodeMark(m)
		require.NoError(t, err)
		require.Equal(t, body, again[head:], "one value has one encoding")
	})
}
