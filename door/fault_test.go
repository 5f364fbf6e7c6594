package door

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/replica"
)

func (b *bench) someFault(rank int, reason string) events.RoundFaulted {
	s := b.servers[rank]
	key := events.Key{Round: 1, Model: "main", Op: events.OpPrune, Slot: "r0c0", Call: 1}
	return events.RoundFaulted{Round: 1, Code: events.CodeUnavailable, Rank: s.rank, Node: s.node, Got: key, GotSite: "a.py:1", Want: key, WantSite: "b.py:1", Reason: reason}
}

// What no entry can hold keeps nobody from being told.
func TestAFaultThatNoEntryCanHoldIsWrittenWithLess(t *testing.T) {
	for name, spoil := range map[string]func(*events.RoundFaulted){
		"slot":   func(f *events.RoundFaulted) { f.Got.Slot = "r0\xffc0" },
		"model":  func(f *events.RoundFaulted) { f.Want.Model = "m\xc3" },
		"site":   func(f *events.RoundFaulted) { f.GotSite = "\xed\xa0\x80.py:1" },
		"reason": func(f *events.RoundFaulted) { f.Reason = "\x80" },
		"length": func(f *events.RoundFaulted) { f.WantSite = strings.Repeat("x", events.MaxEntryBytes) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, 1)
			defer b.close()
			b.connect()
			f := b.someFault(0, "it is gone")
			spoil(&f)
			b.servers[0].fault(t.Context(), f)
			got := b.log.Node(0).State().Round.Fault
			require.NotNil(t, got)
			require.Equal(t, []any{events.CodeUnavailable, uint64(0), events.OpPrune, "", ""}, []any{got.Code, got.Rank, got.Got.Op, got.GotSite, got.WantSite})
			require.NotEmpty(t, got.Reason)
			require.Contains(t, b.lines[0].String(), "cannot be written as it is; trying with less in it")
		})
	}
}

// Nor does it keep another fault of the round from being written.
func TestAFaultAfterOneThatCannotBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		defer b.close()
		b.connect()
		b.log.Node(0).Refuse(&replica.Error{Code: events.CodeInvalidInput, Reason: "no"})
		began := time.Now()
		b.servers[0].fault(t.Context(), b.someFault(0, "first"))
		require.Zero(t, time.Since(began))
		require.Contains(t, b.lines[0].String(), "the end of the round cannot be written\"")
		b.log.Node(0).Refuse(nil)
		b.servers[0].fault(t.Context(), b.someFault(0, "second"))
		require.Equal(t, "second", b.log.Node(0).State().Round.Fault.Reason)
	})
}
