package replica

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"
)

const logStoreTestEntries = 200 // enough for branch pages and overflow pages

func fillLogStore(t *testing.T, kind, dir string) {
	t.Helper()
	logs, stable, closer, err := openLogStore(kind, dir, true)
	require.NoError(t, err)
	var batch []*raft.Log
	for i := uint64(1); i <= logStoreTestEntries; i++ {
		batch = append(batch, &raft.Log{Index: i, Term: 1, Data: make([]byte, 100+i%7*1000)})
	}
	require.NoError(t, logs.StoreLogs(batch))
	require.NoError(t, stable.SetUint64([]byte("CurrentTerm"), 7))
	require.NoError(t, closer.Close())
}

func TestLogStoreKeepsLogAndVotes(t *testing.T) {
	for _, kind := range []string{logStoreBolt, logStoreWAL} {
		for _, noFsync := range []bool{false, true} {
			t.Run(fmt.Sprint(kind, noFsync), func(t *testing.T) {
				dir := t.TempDir()
				fillLogStore(t, kind, dir)
				for range 2 { // closing it leaves no lock behind
					logs, stable, closer, err := openLogStore(kind, dir, noFsync)
					require.NoError(t, err)
					last, err := logs.LastIndex()
					require.NoError(t, err)
					require.EqualValues(t, logStoreTestEntries, last)
					term, err := stable.GetUint64([]byte("CurrentTerm"))
					require.NoError(t, err)
					require.EqualValues(t, 7, term)
					require.NoError(t, closer.Close())
				}
			})
		}
	}
}

func TestLogStoreOfUnknownKind(t *testing.T) {
	_, _, _, err := openLogStore("rocks", t.TempDir(), false)
	require.EqualError(t, err, `unknown log store "rocks": expected one of ["auto" "boltdb" "wal"]`)
}

func TestLogStoreHeldByAnother(t *testing.T) {
	for kind, file := range map[string]string{logStoreBolt: "raft.db", logStoreWAL: "wal-meta.db"} {
		dir := t.TempDir()
		_, _, closer, err := openLogStore(kind, dir, false)
		require.NoError(t, err)
		_, _, _, err = openLogStore(kind, dir, false)
		require.ErrorContains(t, err, file)
		require.ErrorContains(t, err, "locked by another process")
		require.NoError(t, closer.Close())
	}
}

// TestLogStoreDamage opens stores that lost or changed bytes anywhere. The open
// must say so, or the store must be whole where the damage was in a free page:
// never a panic, and never an empty store.
func TestLogStoreDamage(t *testing.T) {
	for kind, file := range map[string]string{logStoreBolt: "raft.db", logStoreWAL: "wal/wal-meta.db"} {
		whole := t.TempDir()
		fillLogStore(t, kind, whole)
		b, err := os.ReadFile(filepath.Join(whole, file))
		require.NoError(t, err)
		damage := map[string][]byte{"empty": {}, "one byte": {1}, "garbage": []byte(string(make([]byte, 1<<16)) + "x")}
		page := os.Getpagesize()
		for cut := 2 * page; cut < len(b); cut += max(page, len(b)/16/page*page) { // after the two meta pages
			damage[fmt.Sprintf("cut at %d", cut)] = b[:cut]
			garbled := append([]byte(nil), b...)
			for i := cut; i < min(cut+page, len(b)); i++ {
				garbled[i] ^= 0xa5
			}
			damage[fmt.Sprintf("garbled at %d", cut)] = garbled
		}
		refused := 0
		for name, content := range damage {
			t.Run(kind+" "+name, func(t *testing.T) {
				dir := t.TempDir()
				require.NoError(t, os.CopyFS(dir, os.DirFS(whole)))
				require.NoError(t, os.WriteFile(filepath.Join(dir, file), content, 0o600))
				logs, stable, closer, err := openLogStore(kind, dir, true)
				if err != nil {
					refused++
					require.ErrorContains(t, err, filepath.Dir(filepath.Join(dir, file)))
					require.ErrorContains(t, err, "is damaged")
					require.ErrorContains(t, err, "as a new node")
					return
				}
				requireWhole(t, logs, stable, closer)
			})
		}
		require.Greater(t, refused, len(damage)/2)
	}
}

func requireWhole(t *testing.T, logs raft.LogStore, stable raft.StableStore, closer io.Closer) {
	t.Helper()
	for i := uint64(1); i <= logStoreTestEntries; i++ {
		require.NoError(t, logs.GetLog(i, new(raft.Log)))
	}
	term, err := stable.GetUint64([]byte("CurrentTerm"))
	require.NoError(t, err)
	require.EqualValues(t, 7, term)
	require.NoError(t, closer.Close())
}

func TestWALWithoutItsMeta(t *testing.T) {
	dir := t.TempDir()
	fillLogStore(t, logStoreWAL, dir)
	require.NoError(t, os.Remove(filepath.Join(dir, "wal", "wal-meta.db")))
	_, _, _, err := openLogStore(logStoreWAL, dir, true)
	require.ErrorContains(t, err, "wal-meta.db is damaged: it is missing although")
}

func TestBoltStoreAfterACrashWhileCreating(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "raft.db.tmp"), []byte("half"), 0o600))
	fillLogStore(t, logStoreBolt, dir)
}

// A directory written with one store is not an empty one for the other.
func TestOtherLogStore(t *testing.T) {
	for kind, other := range map[string]string{logStoreBolt: logStoreWAL, logStoreWAL: logStoreBolt} {
		dir := t.TempDir()
		_, _, c, err := openLogStore(kind, dir, true)
		require.NoError(t, err)
		require.NoError(t, c.Close())
		_, _, _, err = openLogStore(other, dir, true)
		require.ErrorContains(t, err, "was written with --log-store "+kind)
	}
}

// An empty directory gets the wal, and what is there stays what it is.
func TestChooseLogStore(t *testing.T) {
	for name, c := range map[string]struct {
		has  []string
		kind string
		want string
		err  string
	}{
		"nothing":               {kind: logStoreAuto, want: logStoreWAL},
		"nothing, nothing said": {kind: "", want: logStoreWAL},
		"nothing, boltdb asked": {kind: logStoreBolt, want: logStoreBolt},
		"boltdb":                {has: []string{logStoreBolt}, kind: logStoreAuto, want: logStoreBolt},
		"wal":                   {has: []string{logStoreWAL}, kind: logStoreAuto, want: logStoreWAL},
		"boltdb, wal asked":     {has: []string{logStoreBolt}, kind: logStoreWAL, want: logStoreWAL, err: "was written with --log-store boltdb"},
		"both":                  {has: []string{logStoreBolt, logStoreWAL}, kind: logStoreAuto, want: logStoreBolt, err: "expected one"},
		"both, wal asked":       {has: []string{logStoreBolt, logStoreWAL}, kind: logStoreWAL, want: logStoreWAL, err: "expected one"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, kind := range c.has {
				one := t.TempDir()
				fillLogStore(t, kind, one)
				require.NoError(t, os.CopyFS(dir, os.DirFS(one)))
			}
			require.NoError(t, os.WriteFile(filepath.Join(dir, "raft.db.tmp"), nil, 0o600)) // of a crash: not a store
			got, err := chooseLogStore(c.kind, dir)
			require.NoError(t, err)
			require.Equal(t, c.want, got)
			_, _, closer, err := openLogStore(c.kind, dir, true)
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.NoError(t, closer.Close())
		})
	}
}

func TestStatusSaysLogStore(t *testing.T) {
	for _, has := range []string{"", logStoreBolt, logStoreWAL} {
		n, err := openWith(t, func(c *Config) {
			if has != "" {
				require.NoError(t, os.Mkdir(c.Dir.Path("raft"), 0o700))
				_, _, closer, err := openLogStore(has, c.Dir.Path("raft"), true)
				require.NoError(t, err)
				require.NoError(t, closer.Close())
			}
		})
		require.NoError(t, err)
		require.Equal(t, cmp.Or(has, logStoreWAL), n.Status().LogStore)
	}
}
