package audit

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
)

// placeSource is a node's log, up to an entry.
type placeSource struct {
	Place
	t *testing.T
}

func (s placeSource) Records(from, to uint64, fn func(events.Record) error) error {
	return s.Place.Records(s.t.Context(), from, to, func(b *events.Batch) error {
		for _, r := range b.Records {
			if err := fn(r); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s placeSource) ChainAt(index uint64) (events.Digest, error) {
	l, err := s.Link(s.t.Context(), index)
	return l.Chain, err
}

func source(t *testing.T, seed uint64, entries uint64) placeSource {
	l := newLog(t, seed, "run", 2)
	l.train(entries)
	p, err := Open(t.Context(), (&replica{rank: 0, entries: l.entries}).write(t, t.TempDir()), Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return placeSource{p, t}
}

const archivedLineage = "0123456789abcdef"

func upTo(head uint64) *About {
	rank := uint64(0)
	return &About{Run: "run", Lineage: archivedLineage, Node: "node", Rank: &rank, Version: "test", From: 1, Head: head}
}

// archiveOf returns what a directory's archive holds.
func archiveOf(t *testing.T, dir string) []byte {
	b, err := os.ReadFile(filepath.Join(dir, "run-"+archivedLineage+".jsonl"))
	require.NoError(t, err)
	return b
}

// An archive that grew is what an export of the whole log would have written,
// whether one process wrote it or several.
func TestArchiveGrows(t *testing.T) {
	src, dir := source(t, 3, 200), filepath.Join(t.TempDir(), "new", "archive")
	a := &Archive{Dir: dir}
	for i, head := range []uint64{1, 40, 40, 41, 120, 90, 200} {
		if i%2 == 0 {
			a = &Archive{Dir: dir}
		}
		last, err := a.Update(t.Context(), src, upTo(head))
		require.NoError(t, err)
		require.EqualValues(t, max(head, last), last, "one that is ahead of the node stays")
		p, err := Open(t.Context(), filepath.Join(dir, "run-"+archivedLineage+".jsonl"), Options{})
		require.NoError(t, err)
		require.Equal(t, last, p.About().Head)
		require.Empty(t, p.About().Problem)
		require.NoError(t, p.Close())
	}
	var want bytes.Buffer
	require.NoError(t, Export(t.Context(), &want, named{src.Place}, 1, 200, "test"))
	require.Equal(t, want.String(), string(archiveOf(t, dir)))
	r := auditOf(t, src.Place.About().Place, filepath.Join(dir, "run-"+archivedLineage+".jsonl"))
	require.Empty(t, r.Findings, text(r))
}

// named is a place under the names of upTo.
type named struct{ Place }

func (n named) About() *About {
	a := upTo(n.Place.About().Head)
	a.HeadChain = n.Place.About().HeadChain
	return a
}

// A writer that ends anywhere leaves what the next one mends.
func TestArchiveMendsWhatIsTorn(t *testing.T) {
	src, dir := source(t, 4, 12), t.TempDir()
	whole := func(head uint64) []byte {
		d := t.TempDir()
		_, err := (&Archive{Dir: d}).Update(t.Context(), src, upTo(head))
		require.NoError(t, err)
		return archiveOf(t, d)
	}
	before, after := whole(8), whole(12)
	kept := bytes.LastIndex(bytes.TrimSuffix(before, []byte("\n")), []byte("\n")) + 1 // where its last line begins
	path := filepath.Join(dir, "run-"+archivedLineage+".jsonl")
	for size := range after {
		if size%29 != 0 && after[size] != '\n' && (size == 0 || after[size-1] != '\n') {
			continue // every line, before and behind its end, and within
		}
		require.NoError(t, os.WriteFile(path, after[:size], 0o600))
		last, err := (&Archive{Dir: dir}).Update(t.Context(), src, upTo(12))
		require.NoError(t, err, "torn after %d bytes", size)
		require.EqualValues(t, 12, last)
		require.Equal(t, string(after), string(archiveOf(t, dir)), "torn after %d bytes", size)
	}
	require.Equal(t, string(before[:kept]), string(after[:kept]), "what is there is never written again")
}

// What stops in the middle ends the file behind what it wrote.
func TestArchiveThatIsInterrupted(t *testing.T) {
	src, dir := source(t, 5, 50), t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	a := &Archive{Dir: dir}
	_, err := a.Update(ctx, interrupted{src, cancel}, upTo(50))
	require.ErrorIs(t, err, context.Canceled)
	p, err := Open(t.Context(), filepath.Join(dir, "run-"+archivedLineage+".jsonl"), Options{})
	require.NoError(t, err)
	require.EqualValues(t, 10, p.About().Head)
	require.Empty(t, p.About().Problem)
	require.NoError(t, p.Close())
	last, err := a.Update(t.Context(), src, upTo(50))
	require.NoError(t, err)
	require.EqualValues(t, 50, last)
}

type interrupted struct {
	placeSource
	cancel func()
}

func (s interrupted) Records(from, to uint64, fn func(events.Record) error) error {
	return s.placeSource.Records(from, to, func(r events.Record) error {
		if r.Index == 11 {
			s.cancel()
		}
		return fn(r)
	})
}

// What is not this log's archive is left as it is.
func TestArchiveRefuses(t *testing.T) {
	src, other := source(t, 6, 60), source(t, 7, 60)
	good := t.TempDir()
	_, err := (&Archive{Dir: good}).Update(t.Context(), src, upTo(40))
	require.NoError(t, err)
	whole := string(archiveOf(t, good))
	lines := strings.SplitAfter(whole, "\n")
	join := func(change func(lines []string)) string {
		c := append([]string{}, lines...)
		change(c)
		return strings.Join(c, "")
	}
	for name, c := range map[string]struct{ content, says string }{
		"a text":            {"hello\n", "it is no exported log"},
		"a text, torn":      {"hello", "it is no exported log"},
		"zeros":             {strings.Repeat("\x00", 5000), "it is no exported log"},
		"no end of a line":  {strings.Repeat("x", exportLineMax+70000), "it is no exported log"},
		"another run":       {strings.Replace(whole, `"run":"run"`, `"run":"ruin"`, 1), "expected run run"},
		"another lineage":   {strings.Replace(whole, archivedLineage, "fedcba9876543210", 1), "expected run run"},
		"a newer format":    {strings.Replace(whole, `"format_version":1`, `"format_version":2`, 1), "version"},
		"a later beginning": {strings.Replace(whole, `"from":1`, `"from":2`, 1), "it begins at entry 2"},
		"a changed entry":   {join(func(l []string) { l[20] = strings.Replace(l[20], `"entry":"q`, `"entry":"r`, 1) }), "it is damaged after entry 19"},
		"a changed digest":  {join(func(l []string) { l[20] = strings.Replace(l[20], `"lifecycle":"`, `"lifecycle":"0`, 1) }), "it is damaged after entry 19"},
		"an entry less":     {join(func(l []string) { l[20] = "" }), "it is damaged after entry 19"},
		"an entry twice":    {join(func(l []string) { l[20] += l[20] }), "it is damaged after entry 20"},
		"another end":       {join(func(l []string) { l[41] = strings.Replace(l[41], `"entries":40`, `"entries":41`, 1) }), "its last line is about other bytes"},
		"more after it":     {whole + "{}\n", "something follows its last line"},
	} {
		t.Run(name, func(t *testing.T) {
			require.False(t, c.content == whole, "nothing was changed")
			dir := t.TempDir()
			path := filepath.Join(dir, "run-"+archivedLineage+".jsonl")
			require.NoError(t, os.WriteFile(path, []byte(c.content), 0o600))
			_, err := (&Archive{Dir: dir}).Update(t.Context(), src, upTo(60))
			require.ErrorContains(t, err, c.says)
			require.ErrorContains(t, err, moveAside)
			require.Equal(t, c.content, string(archiveOf(t, dir)))
		})
	}
	t.Run("another log", func(t *testing.T) {
		_, err := (&Archive{Dir: good}).Update(t.Context(), other, upTo(60))
		require.ErrorContains(t, err, "it holds another log")
		require.Equal(t, whole, string(archiveOf(t, good)))
	})
	t.Run("history that is not here yet", func(t *testing.T) {
		of := upTo(60)
		of.From = 50
		_, err := (&Archive{Dir: good}).Update(t.Context(), src, of)
		require.ErrorContains(t, err, "entries 41 to 49 are not on this node yet")
	})
	t.Run("names", func(t *testing.T) {
		for _, run := range []string{"", "../run", "a/b", ".", strings.Repeat("a", 200)} {
			_, err := (&Archive{Dir: good}).Path(run, archivedLineage)
			require.ErrorContains(t, err, "cannot be named", run)
		}
	})
	for name, place := range map[string]func(path string) error{
		"a link":      func(path string) error { return os.Symlink("/dev/null", path) },
		"a pipe":      func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"a directory": func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			require.NoError(t, place(filepath.Join(dir, "run-"+archivedLineage+".jsonl")))
			_, err := (&Archive{Dir: dir}).Update(t.Context(), src, upTo(60))
			require.Error(t, err)
		})
	}
	t.Run("two writers", func(t *testing.T) {
		f, _, err := openArchive(filepath.Join(good, "run-"+archivedLineage+".jsonl"))
		require.NoError(t, err)
		_, err = (&Archive{Dir: good}).Update(t.Context(), src, upTo(60))
		require.ErrorContains(t, err, "another process")
		require.NoError(t, f.Close())
		last, err := (&Archive{Dir: good}).Update(t.Context(), src, upTo(60))
		require.NoError(t, err)
		require.EqualValues(t, 60, last)
	})
}

func FuzzArchive(f *testing.F) {
	head := fmt.Sprintf(`{"format":"esperd-log","format_version":1,"run":"run","lineage":%q,"from":1}`+"\n", archivedLineage)
	f.Add([]byte(head))
	f.Add([]byte(head + `{"end":true,"entries":0}` + "\n"))
	f.Add([]byte(head + `{"index":1,"entry":"AA=="}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "x")
		require.NoError(t, os.WriteFile(path, b, 0o600))
		file, info, err := openArchive(path)
		require.NoError(t, err)
		defer file.Close()
		h, err := readArchive(t.Context(), file, info, upTo(1))
		require.True(t, (h == nil) == (err != nil))
		if h != nil {
			require.LessOrEqual(t, h.at, int64(len(b)))
		}
	})
}
