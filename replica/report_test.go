package replica

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
)

// A fault that no entry can hold is refused at once, on the leader and elsewhere:
// trying again would not help.
func TestFaultThatNoEntryCanHold(t *testing.T) {
	inMemWorld(t, 2, func(t *testing.T, w *memWorld) {
		key := events.Key{Round: 1, Model: "main", Op: events.OpFence, Call: 3}
		good := events.RoundFaulted{Round: 1, Code: events.CodeUnavailable, Rank: 1, Node: w.nodes[1].ID(), Got: key, Want: key}
		for name, spoil := range map[string]func(*events.RoundFaulted){
			"a name":   func(f *events.RoundFaulted) { f.Got.Slot = "\xff" },
			"an op":    func(f *events.RoundFaulted) { f.Got.Op = "no such" },
			"its size": func(f *events.RoundFaulted) { f.GotSite = strings.Repeat("x", events.MaxEntryBytes) },
		} {
			for _, n := range w.nodes {
				bad, began := good, time.Now()
				spoil(&bad)
				var refused *Error
				require.ErrorAs(t, n.Fault(t.Context(), bad), &refused, name)
				require.Equal(t, events.CodeInvalidInput, refused.Code, name)
				require.Less(t, time.Since(began), time.Second, name)
			}
		}
		require.Nil(t, w.nodes[0].State().Round.Fault)
		require.NoError(t, w.nodes[1].Fault(t.Context(), good))
		w.settle()
		require.Equal(t, &good, w.nodes[0].State().Round.Fault)
	})
}

// A report that no entry can hold does not hold up those that come after it.
func TestReportThatNoEntryCanHold(t *testing.T) {
	inMemWorld(t, 2, func(t *testing.T, w *memWorld) {
		report := func(op events.Op) events.Event {
			return events.Event{ShadowVerdict: &events.ShadowVerdict{Key: events.Key{Round: 1, Model: "main", Op: op, Call: 1}, Rank: 1, Verdict: events.Verdict{Gate: events.G2}}}
		}
		n := w.nodes[1]
		n.Report(report("no such"))
		n.Report(report(events.OpAdvance))
		w.settle()
		require.Equal(t, uint64(1), w.nodes[0].State().Round.Tally(1).Disagreements)
	})
}
