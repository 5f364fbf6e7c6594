package events

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// What was in an entry's memory before, and how reading ended then, is nothing to
// the next one; and what is shared with states, payloads, is never written again.
func TestDecodeInto(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := &filler{draw: func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "") }}
		var used Entry
		var kept []Event // of entries before
		var as [][]byte
		for range rapid.IntRange(2, 8).Draw(t, "entries") {
			types := rapid.SliceOfN(rapid.IntRange(0, len(payloadNames)-1), 0, 5).Draw(t, "types")
			e := f.entry(types...)
			if rapid.Bool().Draw(t, "no call") {
				e.Key, e.Kind = nil, KindReport
			}
			b, err := Encode(e)
			require.NoError(t, err)
			if rapid.Bool().Draw(t, "after one that is cut off") {
				require.Error(t, DecodeInto(&used, b[:rapid.IntRange(0, len(b)-1).Draw(t, "bytes")]))
			}
			require.NoError(t, DecodeInto(&used, b))
			want, err := Decode(b)
			require.NoError(t, err)
			require.Equal(t, want.Key == nil, used.Key == nil)
			again, err := encMode.Marshal(&used)
			require.NoError(t, err)
			require.Equal(t, b, again)
			for i := range used.Events {
				b, err := encMode.Marshal(&used.Events[i])
				require.NoError(t, err)
				kept, as = append(kept, used.Events[i]), append(as, b)
			}
		}
		for i := range kept {
			b, err := encMode.Marshal(&kept[i])
			require.NoError(t, err)
			require.True(t, bytes.Equal(as[i], b), "the payload of an entry of before")
		}
	})
}

// The memory of an unusually long list is not held on to.
func TestDecodeIntoLetsLongListsGo(t *testing.T) {
	long := advanceEntry()
	for len(long.Events) <= eventsKept {
		long.Events = append(long.Events, long.Events...)
	}
	b, err := Encode(long)
	require.NoError(t, err)
	short, err := Encode(advanceEntry())
	require.NoError(t, err)
	var e Entry
	require.NoError(t, DecodeInto(&e, b))
	require.Len(t, e.Events, len(long.Events))
	require.NoError(t, DecodeInto(&e, short))
	require.LessOrEqual(t, cap(e.Events), eventsKept)
}
