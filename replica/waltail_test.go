package replica

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"
)

// walOfBatches writes entries 1 to n, each in a batch of its own, and returns
// the only segment and where each batch ends.
func walOfBatches(t *testing.T, dir string, n uint64) (segment string, ends []int) {
	t.Helper()
	s, err := openWALStore(filepath.Join(dir, "wal"), true, 4096)
	require.NoError(t, err)
	for i := uint64(1); i <= n; i++ {
		require.NoError(t, s.StoreLog(&raft.Log{Index: i, Term: 1, Data: bytes.Repeat([]byte{byte(i)}, 100)}))
		files, err := filepath.Glob(filepath.Join(dir, "wal", "*.wal"))
		require.NoError(t, err)
		require.Len(t, files, 1)
		segment = files[0]
		b, err := os.ReadFile(segment)
		require.NoError(t, err)
		tail := readTail(b, 1, i)
		require.Equal(t, i, tail.entries)
		ends = append(ends, tail.end)
	}
	require.NoError(t, s.SetUint64([]byte("CurrentTerm"), 7))
	require.NoError(t, s.Close())
	return segment, ends
}

// TestWALTail: a last batch that is not whole was torn by a crash, and goes
// without a trace. Anything else that is not whole was whole once.
func TestWALTail(t *testing.T) {
	const n = 9
	// The bytes of a batch: a frame of 8, entry, and padding, a commit frame of 8.
	for name, c := range map[string]struct {
		damage func(b []byte, ends []int) []byte
		last   uint64
		err    string
	}{
		"nothing":                {damage: func(b []byte, _ []int) []byte { return b }, last: n},
		"an entry, torn":         {damage: func(b []byte, ends []int) []byte { b[ends[n-2]+20] ^= 1; return b }, last: n - 1},
		"a commit, torn":         {damage: func(b []byte, ends []int) []byte { b[ends[n-1]-1] ^= 1; return b }, last: n - 1},
		"a commit, not written":  {damage: func(b []byte, ends []int) []byte { clear(b[ends[n-1]-8:]); return b }, last: n - 1},
		"an entry, not written":  {damage: func(b []byte, ends []int) []byte { clear(b[ends[n-2] : ends[n-1]-8]); return b }, last: n - 1},
		"the file ends in it":    {damage: func(b []byte, ends []int) []byte { return b[:ends[n-1]-30] }, last: n - 1},
		"the file ends after it": {damage: func(b []byte, ends []int) []byte { return b[:ends[n-1]] }, last: n},
		"garbage after it":       {damage: func(b []byte, ends []int) []byte { b[ends[n-1]+9] = 3; return b }, last: n},
		"an older commit after it": {damage: func(b []byte, ends []int) []byte {
			copy(b[ends[n-1]:], b[ends[n-2]-8:ends[n-2]])
			return b
		}, last: n},
		"an empty commit after it": {damage: func(b []byte, ends []int) []byte { b[ends[n-1]] = 3; return b }, last: n},
		"an older batch": {damage: func(b []byte, ends []int) []byte { b[ends[3]+20] ^= 1; return b },
			err: "does not match its checksum, and was not written last"},
		"an older batch's frame":  {damage: func(b []byte, ends []int) []byte { b[ends[3]+4] ^= 0x70; return b }, err: "was not written last"},
		"an older batch's commit": {damage: func(b []byte, ends []int) []byte { b[ends[3]-1] ^= 1; return b }, err: "was not written last"},
		"the header":              {damage: func(b []byte, _ []int) []byte { b[9] ^= 1; return b }, err: "what follows byte 0 does not match its checksum"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			segment, ends := walOfBatches(t, dir, n)
			b, err := os.ReadFile(segment)
			require.NoError(t, err)
			b = c.damage(b, ends)
			require.NoError(t, os.WriteFile(segment, b, 0o600))
			for range 2 { // opening it changes nothing
				logs, stable, closer, err := openLogStore(logStoreWAL, dir, true)
				left, _ := os.ReadFile(segment)
				require.Equal(t, b, left)
				if c.err != "" {
					require.ErrorContains(t, err, c.err)
					require.ErrorContains(t, err, segment)
					require.ErrorContains(t, err, "is damaged")
					continue
				}
				require.NoError(t, err)
				last, err := logs.LastIndex()
				require.NoError(t, err)
				require.Equal(t, c.last, last)
				term, err := stable.GetUint64([]byte("CurrentTerm"))
				require.NoError(t, err)
				require.EqualValues(t, 7, term)
				require.NoError(t, closer.Close())
			}
			if c.err != "" {
				return
			}
			for i := range uint64(2) { // shorter than what was there
				logs, _, closer, err := openLogStore(logStoreWAL, dir, true)
				require.NoError(t, err)
				require.NoError(t, logs.StoreLog(&raft.Log{Index: c.last + 1 + i, Term: 2}))
				require.NoError(t, closer.Close())
				b, err := os.ReadFile(segment)
				require.NoError(t, err)
				require.Empty(t, bytes.TrimLeft(b[readTail(b, 1, 100).end:], "\x00"), "nothing is left behind")
			}
		})
	}
}

// The last file can be lost as a whole: the wal takes that for one that was not
// made yet, and the node knows better (lookForLog).
func TestNodeWhoseLogEndsBeforeItsHistory(t *testing.T) {
	for _, kind := range []string{logStoreBolt, logStoreWAL} {
		t.Run(kind, func(t *testing.T) {
			_, err := openWith(t, func(c *Config) {
				c.LogStore = kind
				n := &Node{cfg: *c, log: c.Logger}
				stores, err := n.openStores()
				require.NoError(t, err)
				for _, l := range logOf(t, 5) {
					require.NoError(t, stores.Log.StoreLog(&raft.Log{Index: l.Index, Term: 1, Data: l.Data}))
				}
				m, err := newMachine(c.Logger, stores.History, 0)
				require.NoError(t, err)
				for _, l := range logOf(t, 5) {
					require.Empty(t, m.Apply(l).(applied).refused)
				}
				last, err := stores.Log.LastIndex()
				require.NoError(t, err)
				require.NoError(t, stores.Log.DeleteRange(last, last))
				require.NoError(t, stores.History.Close())
				require.NoError(t, n.closers[0].Close())
			})
			require.ErrorContains(t, err, "its raft log ends at raft's entry 6, and its history at 7")
			require.ErrorContains(t, err, "move the whole directory aside")
		})
	}
}
