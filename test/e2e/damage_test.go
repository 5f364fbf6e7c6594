package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
)

// sums are the checksums of a directory's files, less those that are a running
// process's.
func sums(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || d.Name() == "lock" {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		sum := sha256.Sum256(b)
		out[name] = hex.EncodeToString(sum[:])
		return err
	}))
	return out
}

// A damaged is a node with a log, whose directory is damaged copy by copy.
type damaged struct {
	w   *world
	n   *node
	dir string // as it was left
	log []api.Entry
}

func newDamaged(t *testing.T, args ...string) *damaged {
	w := newWorld(t, 1)
	w.nodes[0].args = append(w.nodes[0].args, args...)
	w.startAll()
	w.settled()
	l := w.train()
	l.progress(4 * answersBetween)
	l.finish()
	log := w.verify(l)
	w.terminate()
	d := &damaged{w: w, n: w.nodes[0], dir: w.nodes[0].dir + ".left", log: log}
	require.NoError(t, os.Rename(d.n.dir, d.dir))
	return d
}

// afresh puts the directory back as it was.
func (d *damaged) afresh() {
	d.w.t.Helper()
	require.NoError(d.w.t, os.RemoveAll(d.n.dir))
	require.NoError(d.w.t, exec.Command("cp", "-R", d.dir, d.n.dir).Run())
}

// boots reads how often a directory was opened, which alone may change.
func (d *damaged) boots() map[string]any {
	d.w.t.Helper()
	b, err := os.ReadFile(filepath.Join(d.n.dir, "node.json"))
	require.NoError(d.w.t, err)
	var file map[string]any
	require.NoError(d.w.t, json.Unmarshal(b, &file))
	delete(file, "boots")
	return file
}

// refused checks that esperd does not start on the directory, says why, and
// leaves the damaged file, and that there are others, as they are.
func (d *damaged) refused(t *testing.T, file string, words ...string) {
	t.Helper()
	before := sums(t, d.n.dir)
	for range 2 { // the first time must not make it look right for the second
		says(t, refuses(t, 1, d.w.dir, append([]string{"run"}, d.n.args...)...), append(words, filepath.Join(d.n.dir, file))...)
	}
	after := sums(t, d.n.dir)
	require.Equal(t, before[file], after[file], "%s was touched", file)
	for name := range before {
		require.Contains(t, after, name, "%s is gone", name)
	}
}

// restored checks that with the right file everything is there again.
func (d *damaged) restored(t *testing.T, file string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(d.dir, file))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(d.n.dir, file), b, 0o600))
	d.serves(t)
}

func (d *damaged) serves(t *testing.T) {
	t.Helper()
	d.n.start()
	d.w.settled()
	d.n.holds(d.log)
	d.w.terminate()
}

// damages are what may happen to a file, by name.
func damages(keep int) map[string]func([]byte) []byte {
	return map[string]func([]byte) []byte{
		"empty": func([]byte) []byte { return nil },
		// The end of a bbolt file may hold nothing yet.
		"truncated": func(b []byte) []byte { return b[:min(len(b)/2, 5*4096)] },
		"garbled": func(b []byte) []byte {
			for i := keep; i < len(b); i++ {
				b[i] ^= 0x5a
			}
			return b
		},
	}
}

func (d *damaged) each(t *testing.T, file string, keep int, words ...string) {
	t.Helper()
	for name, damage := range damages(keep) {
		t.Run(name, func(t *testing.T) {
			d.afresh()
			path := filepath.Join(d.n.dir, file)
			b, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path, damage(b), 0o600))
			d.refused(t, file, words...)
			d.restored(t, file)
		})
	}
}

const boltHeaders = 2 * 4096 // bytes; without either of the two it is no bbolt file at all

func badNodeFile(t *testing.T) {
	d := newDamaged(t)
	d.each(t, "node.json", 0, "expected", "restore the file from a backup, or move "+d.n.dir+" aside")
	t.Run("missing", func(t *testing.T) {
		d.afresh()
		require.NoError(t, os.Remove(filepath.Join(d.n.dir, "node.json")))
		d.refused(t, "node.json", "is missing although", "restore the file from a backup")
		require.NoFileExists(t, filepath.Join(d.n.dir, "node.json"))
		d.restored(t, "node.json")
	})
	t.Run("newer", func(t *testing.T) {
		d.afresh()
		path := filepath.Join(d.n.dir, "node.json")
		file := d.boots()
		file["boots"], file["format"] = 1, 99
		b, err := json.Marshal(file)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path, b, 0o600))
		d.refused(t, "node.json", "format 99 is newer than the 1 this esperd knows")
	})
}

func badRaftLog(t *testing.T) {
	d := newDamaged(t, "--log-store", "boltdb")
	d.each(t, "raft/raft.db", boltHeaders, "is damaged", "move its data directory aside")
	d.n.args = with(d.n.args, "--log-store", "auto")
	d.afresh()
	d.serves(t)
}

// badWAL: its list of segments is a bbolt file. Of a segment, only what may be
// a crash's is forgiven, and then the history tells what was there.
func badWAL(t *testing.T) {
	d := newDamaged(t)
	d.each(t, "raft/wal/wal-meta.db", boltHeaders, "is damaged", "move its data directory aside")
	files, err := filepath.Glob(filepath.Join(d.dir, "raft/wal/*.wal"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	segment, err := filepath.Rel(d.dir, files[0])
	require.NoError(t, err)
	whole, err := os.ReadFile(files[0])
	require.NoError(t, err)
	whole = bytes.TrimRight(whole, "\x00")
	flipped := bytes.Clone(whole)
	flipped[len(whole)/2] ^= 1
	for name, c := range map[string]struct {
		content []byte
		words   []string
	}{
		"empty":     {nil, []string{d.n.dir, "its raft log is gone"}},
		"truncated": {whole[:len(whole)/2], []string{d.n.dir, "its raft log ends at", "and its history at"}},
		"flipped":   {flipped, []string{filepath.Join(d.n.dir, segment), "is damaged", "does not match its checksum"}},
		"garbled":   {bytes.Repeat([]byte{3, 0x5a}, len(whole)), []string{d.n.dir, "its raft log is gone"}},
	} {
		t.Run(name, func(t *testing.T) {
			d.afresh()
			file := filepath.Join(d.n.dir, segment)
			require.NoError(t, os.WriteFile(file, c.content, 0o600))
			for range 2 {
				says(t, refuses(t, 1, d.w.dir, append([]string{"run"}, d.n.args...)...), append(c.words, "aside")...)
				left, err := os.ReadFile(file)
				require.NoError(t, err)
				require.Equal(t, sha256.Sum256(c.content), sha256.Sum256(left), "%s was touched", file)
			}
			d.restored(t, segment)
		})
	}
}

func badHistory(t *testing.T) {
	d := newDamaged(t)
	d.each(t, "history.db", boltHeaders, "is damaged", "move the file aside")
	t.Run("moved aside", func(t *testing.T) { // as the message says
		d.afresh()
		require.NoError(t, os.Remove(filepath.Join(d.n.dir, "history.db")))
		d.serves(t)
	})
}

// missingRaftLog: without the log of its votes a node might vote twice.
func missingRaftLog(t *testing.T) {
	d := newDamaged(t)
	d.afresh()
	require.NoError(t, os.RemoveAll(filepath.Join(d.n.dir, "raft")))
	identity := d.boots()
	before := sums(t, d.n.dir)
	for range 2 {
		says(t, refuses(t, 1, d.w.dir, append([]string{"run"}, d.n.args...)...),
			d.n.dir, "its raft log is gone", "might vote twice", "move the whole directory aside")
	}
	require.Equal(t, identity, d.boots())
	require.Equal(t, before["history.db"], sums(t, d.n.dir)["history.db"])
	d.afresh()
	d.serves(t)
}
