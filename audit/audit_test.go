package audit

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

func TestConsistent(t *testing.T) {
	l := newLog(t, 1, "run", 3)
	l.train(300)
	var places []string
	for rank := range 3 {
		places = append(places, (&replica{rank: rank, entries: l.entries, images: 64}).write(t, t.TempDir()))
	}
	r := auditOf(t, places...)
	require.Equal(t, Consistent, r.Outcome, text(r))
	require.Zero(t, r.Status)
	require.EqualValues(t, 300, r.Agreed.Index)
	for rank, p := range r.Places {
		require.EqualValues(t, rank, *p.Rank)
		require.EqualValues(t, 300, p.Replayed)
		require.EqualValues(t, 300, p.Compared)
		require.NotEmpty(t, p.Host)
	}
	require.NotEmpty(t, r.Own, "own verdicts are counted and are no divergence")
}

func TestExportIsTheLog(t *testing.T) {
	l := newLog(t, 2, "run", 2)
	l.train(400)
	dir := (&replica{rank: 1, entries: l.entries}).write(t, t.TempDir())
	p, err := Open(t.Context(), dir, Options{})
	require.NoError(t, err)
	defer p.Close()
	file := filepath.Join(t.TempDir(), "log.jsonl")
	f, err := os.Create(file)
	require.NoError(t, err)
	require.NoError(t, Export(t.Context(), f, p, 1, 400, "test"))
	require.NoError(t, f.Close())

	e, err := Open(t.Context(), file, Options{})
	require.NoError(t, err)
	defer e.Close()
	for index := range uint64(400) {
		want, err := p.Link(t.Context(), index)
		require.NoError(t, err)
		got, err := e.Link(t.Context(), index)
		require.NoError(t, err, "entry %d", index)
		require.Equal(t, want, got)
	}
	r := auditOf(t, dir, file)
	require.Equal(t, Consistent, r.Outcome, text(r))
	require.EqualValues(t, 400, r.Places[1].Replayed)

	good, err := os.ReadFile(file)
	require.NoError(t, err)
	for at := 0; at < len(good); at += len(good) / 100 { // a bit anywhere
		bad := append([]byte(nil), good...)
		bad[at] ^= 1 << (at % 8)
		require.NoError(t, os.WriteFile(file, bad, 0o600))
		require.NotEqual(t, Consistent, auditOf(t, file).Outcome, "byte %d", at)
	}
	for cut := 0; cut < len(good); cut += len(good) / 30 {
		require.NoError(t, os.WriteFile(file, good[:cut], 0o600))
		require.NotEqual(t, Consistent, auditOf(t, file).Outcome, "cut at %d", cut)
	}
}

func TestTwoRuns(t *testing.T) {
	var places []string
	for i, run := range []string{"one", "one", "other"} {
		l := newLog(t, uint64(len(run)), run, 3)
		l.train(50)
		places = append(places, (&replica{rank: i, entries: l.entries}).write(t, t.TempDir()))
	}
	r := auditOf(t, places...)
	require.Equal(t, 2, r.Status, text(r))
	require.Empty(t, r.Findings)
	require.Contains(t, r.Places[2].Problem, `run "other"`)
	require.EqualValues(t, 50, r.Places[2].Replayed, "it is checked by itself")
	require.EqualValues(t, 50, r.Places[1].Compared)
}

func TestOneEndsEarlier(t *testing.T) {
	l := newLog(t, 3, "run", 3)
	l.train(90)
	places := []string{
		(&replica{rank: 0, entries: l.entries}).write(t, t.TempDir()),
		(&replica{rank: 1, entries: l.entries[:60]}).write(t, t.TempDir()),
		(&replica{rank: 2, entries: l.entries}).write(t, t.TempDir()),
	}
	r := auditOf(t, places...)
	require.Equal(t, 2, r.Status, text(r))
	require.Contains(t, r.Places[1].Problem, "entries 61 to 90")
	require.EqualValues(t, 90, r.Places[2].Compared, "the others go on")
}

// A run that went on from another log says so.
func TestBranch(t *testing.T) {
	l := newLog(t, 4, "run", 1)
	e := decoded(t, l.entries[0])
	e.Events[0].Founded.Parent = &events.Parent{Run: "before", Lineage: "11", Index: 7, Chain: events.Digest{1}, Image: []byte{1}}
	*l = testLog{t: t, rng: l.rng, ranks: 1, state: fsm.New()}
	l.write(events.Entry{Kind: events.KindFound, Events: e.Events})
	r := auditOf(t, (&replica{entries: l.entries}).write(t, t.TempDir()))
	require.Equal(t, Consistent, r.Outcome, text(r))
	require.Equal(t, []Branch{{Index: 1, Kind: "continues", Run: "before", Lineage: "11", From: Point{7, events.Digest{1}}}}, r.Branches)
}

// So does one whose model went back to a mark, and one that was recovered.
func TestBranchesOfRestarts(t *testing.T) {
	l := newLog(t, 8, "run", 1)
	chain := func() (c events.Digest) {
		for i, b := range l.entries {
			c = events.Chain(c, uint64(i)+1, b)
		}
		return c
	}
	l.train(20)
	marked, lineage := chain(), l.state.Lineage
	mark := l.state.Mark(l.state.Model("main"), 20, marked)
	_, sum, err := events.EncodeMark(mark)
	require.NoError(t, err)
	l.train(30)
	l.call("", fsm.Resume{Mark: mark, Sum: sum, Held: true})
	lost := chain()
	l.write(events.Entry{Kind: events.KindRecover, Events: []events.Event{
		{Recovered: &events.Recovered{Lineage: "new", From: events.Ancestor{Lineage: lineage, Index: 31, Chain: lost}}},
		{NodeJoined: &events.NodeJoined{Node: nodeOf(0), Version: events.Version}}}})
	r := auditOf(t, (&replica{entries: l.entries}).write(t, t.TempDir()))
	require.Equal(t, Consistent, r.Outcome, text(r))
	require.Equal(t, "new", r.Lineage)
	require.Equal(t, []Branch{
		{Index: 31, Kind: BranchRewound, Run: "run", Lineage: lineage, Model: "main", From: Point{20, marked}, LeftFrom: 21, LeftTo: 30},
		{Index: 32, Kind: BranchRecovered, Run: "run", Lineage: lineage, From: Point{31, lost}},
	}, r.Branches)
}

// What a recovered log has left is compared up to there, and its own end is no
// difference: an operator compares a directory with its evidence.
func TestAuditOfARecoveredLog(t *testing.T) {
	before := func() *testLog {
		l := newLog(t, 8, "run", 1)
		l.train(20)
		return l
	}
	old, l := before(), before()
	at, lineage, chain := uint64(len(l.entries)), l.state.Lineage, events.Digest{}
	for i, b := range l.entries {
		chain = events.Chain(chain, uint64(i)+1, b)
	}
	old.train(29)
	l.write(events.Entry{Kind: events.KindRecover, Events: []events.Event{
		{Recovered: &events.Recovered{Lineage: "new", From: events.Ancestor{Lineage: lineage, Index: at, Chain: chain}}},
		{NodeJoined: &events.NodeJoined{Node: nodeOf(0), Version: events.Version}}}})
	evidence := (&replica{entries: old.entries}).write(t, t.TempDir())
	shorter := (&replica{entries: old.entries[:at-3]}).write(t, t.TempDir())
	for range 2 { // in any order
		r := auditOf(t, evidence, (&replica{entries: l.entries}).write(t, t.TempDir()), shorter)
		require.Equal(t, Consistent, r.Outcome, text(r))
		require.Equal(t, "new", r.Lineage)
		require.Contains(t, strings.Join(r.Coverage, "\n"), fmt.Sprintf("its own entries %d to %d are a branch that was left", at+1, at+9))
		evidence, shorter = shorter, evidence
	}
	tampered := slices.Clone(old.entries)
	tampered[at-5] = slices.Clone(tampered[at-4])
	r := auditOf(t, (&replica{entries: l.entries}).write(t, t.TempDir()), (&replica{entries: tampered}).write(t, t.TempDir()))
	require.NotEqual(t, Consistent, r.Outcome, text(r))
}

func TestBadPlaces(t *testing.T) {
	l := newLog(t, 6, "run", 2)
	l.train(40)
	good := (&replica{rank: 0, entries: l.entries}).write(t, t.TempDir())
	empty := t.TempDir()
	noise := filepath.Join(t.TempDir(), "noise")
	require.NoError(t, os.WriteFile(noise, []byte("{\"a\":1}\n"), 0o600))
	newer := (&replica{rank: 1, entries: l.entries}).write(t, t.TempDir())
	require.NoError(t, os.WriteFile(filepath.Join(newer, "node.json"), []byte(`{"format":2}`), 0o600))
	joining := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(joining, "node.json"), []byte(`{"format":1,"node":"00"}`), 0o600))
	zero := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(zero, historyName), nil, 0o600))
	for place, says := range map[string]string{
		empty:                    "is no data directory",
		filepath.Join(good, "x"): "there is nothing",
		noise:                    "is not that of one",
		newer:                    "format 2 is newer",
		joining:                  "has not joined a log yet",
		zero:                     "it is empty",
		"http://127.0.0.1:1":     "connection refused",
	} {
		r := auditOf(t, good, place)
		require.Equal(t, 2, r.Status, text(r))
		require.Contains(t, r.Places[1].Problem, says)
		require.EqualValues(t, 40, r.Places[0].Replayed, "the other one is checked")
	}
}
