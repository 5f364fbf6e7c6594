package audit

import (
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/esperd/esperd/events"
)

// TestTruthOfTheReport plants one difference into one rank's history of a random
// log and asks for exactly that: index, slot, field, who agrees with whom, and
// who is at fault.
func TestTruthOfTheReport(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ranks := rapid.IntRange(2, 5).Draw(t, "ranks")
		l := newLog(t, rapid.Uint64().Draw(t, "seed"), "run", ranks)
		l.train(rapid.Uint64Range(40, 120).Draw(t, "entries"))
		victim := rapid.IntRange(0, ranks-1).Draw(t, "victim")
		p := plant(t, l, victim, rapid.SampledFrom([]Verdict{VerdictPayload, VerdictOrder, VerdictMissing, VerdictExtra, VerdictApply}).Draw(t, "kind"))
		dir, err := os.MkdirTemp("", "truth-")
		require.NoError(t, err)
		defer os.RemoveAll(dir)
		var places []string
		for rank := range ranks {
			r := &replica{rank: rank, entries: l.entries, images: 16}
			if rank == victim {
				r.entries, r.applied = p.entries, p.applied
			}
			places = append(places, r.write(t, dir))
		}
		got := Run(t.Context(), Config{Places: places})
		require.Equal(t, Diverged, got.Outcome, text(got))
		require.Equal(t, 1, got.Status)
		first := got.Findings[0]
		require.Equal(t, p.verdict, first.Verdict, text(got))
		require.Equal(t, p.index, first.Index, text(got))
		require.Equal(t, p.index-1, first.Agreed.Index)
		require.Equal(t, events.Digest(p.agreed), first.Agreed.Chain)
		require.Len(t, got.Findings, 1, "one difference was planted: %s", text(got))
		if p.verdict == VerdictPayload || p.verdict == VerdictApply {
			require.Equal(t, p.slot, first.Slot, text(got))
			require.NotEmpty(t, first.StageBefore)
		}
		p.checkFields(t, &first)
		p.checkRanks(t, &first, ranks, victim)
		require.NotEmpty(t, got.Around)
	})
}

// planted is what the report has to say.
type planted struct {
	verdict Verdict
	index   uint64
	agreed  events.Digest
	slot    string
	field   string // one of the fields that differ ends in it
	entries [][]byte
	applied map[uint64]*events.Entry
}

// plant changes one thing at a random call about a slot.
func plant(t *rapid.T, l *testLog, victim int, kind Verdict) *planted {
	var about []int // entries with an observation, and another call after them
	for i := 3; i+1 < len(l.entries); i++ {
		e, next := decoded(t, l.entries[i]), decoded(t, l.entries[i+1])
		if e.Key != nil && e.Key.Slot != "" && e.Events[0].Observed != nil && next.Key != nil && content(e) != content(next) {
			about = append(about, i)
		}
	}
	if len(about) == 0 {
		t.Skip("no call in this log observes anything")
	}
	at := rapid.SampledFrom(about).Draw(t, "at")
	e := decoded(t, l.entries[at])
	p := &planted{verdict: kind, index: uint64(at) + 1, slot: e.Key.Slot, field: "metrics.accuracy", entries: slices.Clone(l.entries)}
	for i := range at {
		p.agreed = events.Chain(p.agreed, uint64(i)+1, l.entries[i])
	}
	e.Events[0].Observed.Metrics.Accuracy += 1
	changed, err := events.Encode(e)
	require.NoError(t, err)
	switch kind {
	case VerdictPayload:
		p.entries[at] = changed
	case VerdictOrder:
		p.entries[at], p.entries[at+1] = p.entries[at+1], p.entries[at]
	case VerdictMissing:
		p.entries = slices.Delete(p.entries, at, at+1)
	case VerdictExtra: // another call of the same rank, as if made twice
		again := decoded(t, l.entries[at-1])
		again.Time++
		b, err := events.Encode(again)
		require.NoError(t, err)
		p.entries = slices.Insert(p.entries, at, b)
		p.slot = ""
	case VerdictApply:
		p.applied = map[uint64]*events.Entry{p.index: e}
	}
	return p
}

func (p *planted) checkFields(t *rapid.T, f *Finding) {
	if p.verdict != VerdictPayload && p.verdict != VerdictApply {
		return
	}
	require.True(t, slices.ContainsFunc(f.Differences, func(d Difference) bool {
		_, last, _ := cutLast(d.Field)
		return last == "accuracy" && d.Expected != d.Got
	}), "%+v", f)
	if p.verdict == VerdictApply {
		require.Equal(t, "main."+p.slot+".seed.metrics.accuracy", f.Differences[0].Field)
	}
}

func (p *planted) checkRanks(t *rapid.T, f *Finding, ranks, victim int) {
	odd := victim // also of two: only one's entries follow from each other
	require.Len(t, f.AtFault, 1)
	require.NotNil(t, f.AtFault[0].Rank)
	require.EqualValues(t, odd, *f.AtFault[0].Rank)
	require.Len(t, f.Groups, 2)
	for _, g := range f.Groups {
		var want []uint64
		for rank := range ranks {
			if (rank == odd) != g.Expected {
				want = append(want, uint64(rank))
			}
		}
		require.Equal(t, want, g.Ranks, "%+v", f.Groups)
	}
}

// The leader applied an entry wrongly and went on deciding on that: every rank's
// log shows it, also without the leader's own.
func TestLeaderAppliedWrongly(t *testing.T) {
	l := newLog(t, 12, "run", 3)
	l.train(60)
	wrong := decoded(t, l.entries[50])
	for wrong.Key == nil || wrong.Key.Slot == "" || wrong.Events[0].Observed == nil {
		l.entries = l.entries[:len(l.entries)-1]
		wrong = decoded(t, l.entries[len(l.entries)-1])
	}
	at := uint64(len(l.entries))
	l.state = stateOf(t, l.entries[:at-1])
	wrong.Events[0].Observed.Metrics.Accuracy += 1
	b := l.entries[at-1]
	l.state, _ = applied(t, l.state, wrong) // what the leader made of it
	l.train(at + 20)
	require.Equal(t, b, l.entries[at-1])
	dir := t.TempDir()
	leader := (&replica{rank: 0, entries: l.entries, applied: map[uint64]*events.Entry{at: wrong}}).write(t, dir)
	follower := (&replica{rank: 1, entries: l.entries}).write(t, dir)
	// A leader that was contradicted has kept the state that it decided on.
	kept := (&replica{rank: 0, entries: l.entries, applied: map[uint64]*events.Entry{at: wrong}, images: at}).write(t, t.TempDir())
	for _, places := range [][]string{{leader, follower}, {follower}, {leader}, {follower, leader}, {kept, follower}, {follower, kept}, {kept}} {
		r := auditOf(t, places...)
		require.Equal(t, Diverged, r.Outcome)
		require.Len(t, r.Findings, 1, text(r))
		f := r.Findings[0]
		require.Equal(t, VerdictApply, f.Verdict)
		require.Equal(t, at, f.Index, text(r))
		require.EqualValues(t, 0, *f.AtFault[0].Rank)
		require.Equal(t, "main", f.Model)
		if !slices.Contains(places, kept) {
			require.Empty(t, f.Differences)
			continue
		}
		require.Len(t, f.Differences, 1, text(r))
		require.Equal(t, "main."+wrong.Key.Slot+".seed.metrics.accuracy", f.Differences[0].Field)
		require.Equal(t, wrong.Key.Slot, f.Slot)
	}
}
