package fsm

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/esperd/esperd/events"
)

func (l *testLog) mark() []byte {
	b, _, err := events.EncodeMark(l.state.Mark(l.model(), l.state.Index, l.chains[l.state.Index]))
	require.NoError(l.t, err)
	return b
}

// A resumed model is the mark's to the last bit, whatever happened since, and
// whatever was only changed in a mark is refused and changes nothing.
func TestResumeIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := configured(t, "a", "b", "c")
		step := func(n int) {
			for range n {
				slot := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "slot")
				args := rapid.SampledFrom([]Args{plainGermination, Advance{}, Prune{Reason: "x"}, Reset{}, nil, nil}).Draw(t, "call")
				if args == nil {
					l.epoch(accuracy(slot, rapid.Float64Range(0, 100).Draw(t, "accuracy")))
					continue
				}
				if _, resets := args.(Reset); resets {
					slot = ""
				}
				l.call(slot, args)
			}
		}
		step(rapid.IntRange(0, 30).Draw(t, "before"))
		b, want := l.mark(), l.model().Digest()
		step(rapid.IntRange(0, 30).Draw(t, "after"))
		cursor := l.state.Cursor("main")
		l.call("", l.resumes(b))
		require.Equal(t, want, l.model().Digest())
		require.Equal(t, cursor.Calls+1, l.state.Cursor("main").Calls, "call numbers never go back")
		require.Equal(t, cursor.Fence+1, l.state.Cursor("main").Fence)
		require.Equal(t, l.model().Digest(), l.throughImage().Model("main").Digest())
		step(3)
	})
}

func TestMarksThatAreRefused(t *testing.T) {
	made := func(t *testing.T) (*testLog, *events.Mark) {
		l := configured(t, "a")
		l.call("a", plainGermination)
		l.epoch()
		m, _, err := events.DecodeMark(l.mark())
		require.NoError(t, err)
		l.epoch()
		return l, m
	}
	for name, c := range map[string]struct {
		change func(*events.Mark)
		says   string
	}{
		"of another run":        {func(m *events.Mark) { m.Run = "other" }, `of run "other", this log is run "test"`},
		"of a made run":         {func(m *events.Mark) { m.Run = MadeRun("0123456789") }, `of run "run-01234567"`},
		"of another model":      {func(m *events.Mark) { m.Model = "gan" }, `of model "gan", expected one of model "main"`},
		"of the future":         {func(m *events.Mark) { m.Index = 99 }, "of entry 99, and this log ends at entry 6"},
		"with another chain":    {func(m *events.Mark) { m.Chain[0]++ }, "where this log has another"},
		"of another log":        {func(m *events.Mark) { m.Lineage = "9" }, "call reset() first"},
		"with another stage":    {func(m *events.Mark) { m.Record.Slots[0].Seed.Stage = events.StageHolding }, "lifecycle digest"},
		"with another epoch":    {func(m *events.Mark) { m.Record.Epoch = 7 }, "lifecycle digest"},
		"with another digest":   {func(m *events.Mark) { m.Lifecycle[3]++ }, "lifecycle digest"},
		"with a slot too many":  {func(m *events.Mark) { m.Record.Slots[0].Slot = 1 }, "has 1 slots, but slot 1 is in use"},
		"with a slot twice":     {func(m *events.Mark) { m.Record.Slots = append(m.Record.Slots, m.Record.Slots[0]) }, "slot 0 of model main follows slot 0"},
		"with too few seeds":    {func(m *events.Mark) { m.Record.Slots[0].Germinations = 0 }, "which has had 0"},
		"with a huge tick":      {func(m *events.Mark) { m.Record.Tick = 1 << 60 }, "tick 1152921504606846976"},
		"without a generation":  {func(m *events.Mark) { m.Record.Generation = 0 }, "generation 0"},
		"with a negative count": {func(m *events.Mark) { m.Record.Slots[0].Seed.Metrics.Epochs = -1 }, "counters are out of range"},
	} {
		t.Run(name, func(t *testing.T) {
			l, m := made(t)
			c.change(m)
			held := m.Index < uint64(len(l.chains)) && l.chains[m.Index] == m.Chain && m.Lineage == "1" && m.Run == "test"
			before := l.model().Digest()
			why := l.refused(events.CodeMarkMismatch, "", Resume{Mark: m, Held: held})
			require.Contains(t, why, c.says)
			require.True(t, strings.HasSuffix(why, "nothing was changed"), why)
			require.Equal(t, before, l.model().Digest())
		})
	}
	l, m := made(t)
	m.Slots[0].AutoForward = []events.Gate{events.G1}
	require.Contains(t, l.refused(events.CodeConfigMismatch, "", Resume{Mark: m, Held: true}), "auto_forward is [] in the log, [G1] here")
	require.Contains(t, l.refused(events.CodeMarkMismatch, "", Resume{}), "got none")
}

// Run ids that nobody gave are made anew with each log; a mark is of the same run
// all the same.
func TestAMarkOfAMadeRun(t *testing.T) {
	old := configured(t, "a")
	old.epoch()
	m, _, err := events.DecodeMark(old.mark())
	require.NoError(t, err)
	m.Run, m.Lineage = MadeRun("aaaaaaaabbbb"), "aaaaaaaabbbb"

	l := &testLog{t: t, state: New(), chains: make([]events.Digest, 1)}
	l.append(events.Entry{Kind: events.KindFound, Events: []events.Event{{Founded: &events.Founded{Run: MadeRun("cccccccc"), Lineage: "cccccccc"}}}})
	l.openRound(events.ModeKeyed)
	l.call("", Configure{Slots: testSlots("a")})
	l.call("", Resume{Mark: m})
	require.Equal(t, m.Lifecycle, l.model().Digest())
	require.Equal(t, []events.Ancestor{{Lineage: "aaaaaaaabbbb"}}, l.state.Ancestors)
	l.call("", Reset{})
	l.call("", Resume{Mark: m})
	require.Len(t, l.state.Ancestors, 1, "noted once")
}

func TestRecoveredContradicts(t *testing.T) {
	l := configured(t, "a")
	s := l.state
	for name, ev := range map[string]events.Recovered{
		"another lineage": {Lineage: "2", From: events.Ancestor{Lineage: "9", Index: s.Index}},
		"another entry":   {Lineage: "2", From: events.Ancestor{Lineage: "1", Index: s.Index - 1}},
		"no lineage":      {From: events.Ancestor{Lineage: "1", Index: s.Index}},
	} {
		_, _, err := Apply(s, &events.Entry{Version: 3, Kind: events.KindRecover, Node: testNode, Round: s.Round.Number, Predecessor: s.Index,
			Bookkeeping: s.Bookkeeping(), Events: []events.Event{{Recovered: &ev}}})
		require.ErrorContains(t, err, "follows entry", name)
	}
	l.recover("2")
	require.Equal(t, "2", l.state.Lineage)
	require.Len(t, l.state.Nodes, 1)
	require.Equal(t, l.state.Bookkeeping(), l.throughImage().Bookkeeping())
}
