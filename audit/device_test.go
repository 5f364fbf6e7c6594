package audit

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// attests writes what came of comparing the devices at the last fence: those of
// the ranks in odd hold something else in a tensor.
func (l *testLog) attests(odd ...uint64) (fence uint64) {
	l.t.Helper()
	fence = l.state.Index
	base := events.Attested{Round: 1, Model: "main", Generation: l.state.Model("main").Generation, Index: fence}
	part, whole := base, base
	part.What, part.Value, part.Ranks = "tensors", events.Digest{7}, uint64(l.ranks-len(odd))
	part.Others = []events.AttestedOther{{Value: events.Digest{8}, Ranks: odd, Tensors: []string{"r0c1/weight"}}}
	whole.What, whole.Value, whole.Ranks = "tensors", events.Digest{9}, part.Ranks
	evs := []events.Event{{Attested: &whole}}
	if len(odd) > 0 {
		evs = []events.Event{{Attested: &part}, {Attested: &whole}}
	}
	l.write(events.Entry{Kind: events.KindReport, Events: append(evs,
		events.Event{Reported: &events.Reported{Node: nodeOf(0), Sequence: l.state.Source(nodeOf(0)).Sequence + 1}})})
	return fence
}

// fence ends the epoch.
func (l *testLog) fence() {
	l.call("", fsm.StepEpoch{Epoch: l.state.Model("main").Epoch + 1})
}

// Where ranks' devices were found to differ, the log says so, and every kind of
// place tells it.
func TestDevice(t *testing.T) {
	l := newLog(t, 31, "run", 4)
	l.train(60)
	l.fence()
	l.attests()
	l.train(80)
	l.fence()
	at := l.attests(2)
	l.train(120)
	dir := (&replica{rank: 1, entries: l.entries}).write(t, t.TempDir())
	export := filepath.Join(t.TempDir(), "log.jsonl")
	p, err := Open(t.Context(), dir, Options{})
	require.NoError(t, err)
	f, err := os.Create(export)
	require.NoError(t, err)
	require.NoError(t, Export(t.Context(), f, p, 1, 120, "test"))
	require.NoError(t, f.Close())
	require.NoError(t, p.Close())
	var sent atomic.Int64
	for _, place := range []string{dir, export, serve(t, dir, 1, 4, l.state, &sent)} {
		r := auditOf(t, place)
		require.Equal(t, 1, r.Status, text(r))
		require.Len(t, r.Findings, 1, text(r))
		got := r.Findings[0]
		require.Equal(t, VerdictDevice, got.Verdict)
		require.Equal(t, SourceRecorded, got.Source)
		require.Equal(t, at, got.Index, "of the fence")
		require.Equal(t, at-1, got.Agreed.Index)
		require.EqualValues(t, 1, got.Round)
		require.Equal(t, events.KindCall, *got.Kind)
		require.Equal(t, decoded(t, l.entries[at-1]).Key.Epoch, *got.Epoch)
		require.Equal(t, "r0c1", got.Slot)
		require.Equal(t, []Difference{{"parameters", events.Digest{7}.String(), events.Digest{8}.String()}}, got.Differences)
		require.Len(t, got.AtFault, 1)
		require.EqualValues(t, 2, *got.AtFault[0].Rank)
		require.Equal(t, nodeOf(2), got.AtFault[0].Node)
		require.Equal(t, "host2", got.AtFault[0].Host)
		require.Len(t, got.Groups, 2)
		require.Equal(t, []uint64{0, 1, 3}, got.Groups[0].Ranks)
		require.True(t, got.Groups[0].Expected)
		require.Equal(t, []uint64{2}, got.Groups[1].Ranks)
		require.Equal(t, []string{"r0c1/weight"}, got.Groups[1].Tensors)
	}
	again := (&replica{rank: 2, entries: l.entries}).write(t, t.TempDir())
	urls := []string{serve(t, (&replica{rank: 0, entries: l.entries}).write(t, t.TempDir()), 0, 4, l.state, &sent), serve(t, again, 2, 4, l.state, &sent)}
	whole := Run(t.Context(), Config{Places: urls, Full: true})
	asked := auditOf(t, urls...) // none is downloaded
	require.Equal(t, 1, asked.Status, text(asked))
	require.Len(t, asked.Findings, 1, text(asked))
	require.EqualValues(t, 0, asked.Places[0].Replayed)
	require.EqualValues(t, 120, asked.Agreed.Index, "both hold the same beyond it")
	require.EqualValues(t, 120, whole.Agreed.Index)
	for _, f := range [][]Finding{whole.Findings, asked.Findings} { // an API tells no hosts, and not where slots stood
		f[0].AtFault[0].Host, f[0].StageBefore, f[0].StageAfter, f[0].Slot, f[0].Seed = "", "", "", "", 0
	}
	require.Equal(t, whole.Findings, asked.Findings)
	skips := Run(t.Context(), Config{Places: urls, Since: at + 1})
	require.Equal(t, Consistent, skips.Outcome, text(skips))
	require.EqualValues(t, 1, skips.Skipped)
	r := Run(t.Context(), Config{Places: []string{dir}, Since: at + 1})
	require.Equal(t, Consistent, r.Outcome, text(r))
	require.EqualValues(t, 1, r.Skipped)
}

// A log that differs comes before a device that does, where it did so first: what
// the device holds may come of it.
func TestDeviceAndLog(t *testing.T) {
	for _, logFirst := range []bool{true, false} {
		l := newLog(t, 32, "run", 3)
		l.train(60)
		if !logFirst {
			l.fence()
			l.attests(2)
		}
		at := l.state.Index + 1
		for ; ; at++ {
			l.train(at)
			if e := decoded(t, l.entries[at-1]); e.Key != nil && e.Key.Slot != "" && e.Events[0].Observed != nil {
				break
			}
		}
		wrong := decoded(t, l.entries[at-1])
		wrong.Events[0].Observed.Metrics.Accuracy++
		l.fence()
		device := l.attests(2)
		l.train(at + 40)
		dir := t.TempDir()
		r := auditOf(t, (&replica{rank: 0, entries: l.entries}).write(t, dir),
			(&replica{rank: 2, entries: l.entries, applied: map[uint64]*events.Entry{at: wrong}}).write(t, dir))
		require.Equal(t, 1, r.Status)
		i := 0
		if !logFirst {
			i = 1
			require.Equal(t, VerdictDevice, r.Findings[0].Verdict, text(r))
			require.NotContains(t, r.Findings[0].What, "may be why")
		}
		require.Len(t, r.Findings, i+2, text(r))
		require.Equal(t, VerdictApply, r.Findings[i].Verdict, text(r))
		require.Equal(t, at, r.Findings[i].Index)
		require.Equal(t, VerdictDevice, r.Findings[i+1].Verdict)
		require.Equal(t, device, r.Findings[i+1].Index)
		require.True(t, strings.Contains(r.Findings[i+1].What, "may be why"), r.Findings[i+1].What)
	}
}

// A device's table that somebody else wrote into is named by slot, also where no
// rank's says what the log does.
func TestDeviceTable(t *testing.T) {
	l := newLog(t, 32, "run", 2)
	l.train(60)
	l.fence()
	at := l.state.Index
	l.write(events.Entry{Kind: events.KindReport, Events: []events.Event{
		{Attested: &events.Attested{Round: 1, Model: "main", Generation: l.state.Model("main").Generation, Index: at, What: "active", Value: events.Digest{7},
			Others: []events.AttestedOther{{Value: events.Digest{8}, Ranks: []uint64{0, 1}, Tensors: []string{"r0c1"}}}}},
		{Reported: &events.Reported{Node: nodeOf(0), Sequence: l.state.Source(nodeOf(0)).Sequence + 1}}}})
	r := auditOf(t, (&replica{rank: 1, entries: l.entries}).write(t, t.TempDir()))
	require.Len(t, r.Findings, 1, text(r))
	got := r.Findings[0]
	require.Equal(t, VerdictDevice, got.Verdict)
	require.Equal(t, at, got.Index)
	require.Equal(t, "r0c1", got.Slot)
	require.Contains(t, got.What, "the devices of 2 ranks do not hold the active set that the log says")
	require.Len(t, got.AtFault, 2)
}
