package replica

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"
)

func TestAdmit(t *testing.T) {
	const thisBoot, otherBoot, noMark = "boot-2", "boot-1", "no mark"
	const wentDown, unknown = `its machine went down before that was on disk, or this is another machine (boot "boot-1" then, "boot-2" now)`,
		"nothing tells whether all that it wrote is on disk"
	for name, c := range map[string]struct {
		mark, boot string
		relaxed    bool
		left, err  string
	}{
		"durable always":                     {mark: noMark, boot: thisBoot, left: noMark},
		"durable always, no boot id":         {mark: noMark, left: noMark},
		"relaxed, new or after a clean stop": {mark: noMark, boot: thisBoot, relaxed: true, left: thisBoot},
		"relaxed, no boot id":                {mark: noMark, relaxed: true, left: ""},
		"killed":                             {mark: thisBoot, boot: thisBoot, relaxed: true, left: thisBoot},
		"killed, then durable":               {mark: thisBoot, boot: thisBoot, left: noMark},
		"machine down":                       {mark: otherBoot, boot: thisBoot, relaxed: true, left: otherBoot, err: wentDown},
		"machine down, then durable":         {mark: otherBoot, boot: thisBoot, left: otherBoot, err: wentDown},
		"no boot id then":                    {mark: "", boot: thisBoot, left: "", err: unknown},
		"no boot id now":                     {mark: otherBoot, relaxed: true, left: otherBoot, err: unknown},
		"no boot id then and now":            {mark: "", relaxed: true, left: "", err: unknown},
		"no boot id, then durable":           {mark: "", left: "", err: unknown},
	} {
		t.Run(name, func(t *testing.T) {
			data := t.TempDir()
			dir := filepath.Join(data, "raft")
			require.NoError(t, os.Mkdir(dir, 0o700))
			if c.mark != noMark {
				require.NoError(t, os.WriteFile(filepath.Join(dir, relaxedMark), []byte(c.mark+"\n"), 0o600))
			}
			err := admit(dir, c.relaxed, c.boot)
			if c.err == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, c.err)
				require.ErrorContains(t, err, "decisions may be missing and votes forgotten")
				require.ErrorContains(t, err, "move the whole data directory "+data+" aside")
			}
			b, err := os.ReadFile(filepath.Join(dir, relaxedMark))
			if c.left == noMark {
				require.ErrorIs(t, err, os.ErrNotExist)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.left+"\n", string(b))
		})
	}
}

// What a killed process leaves is a copy of the directory while the store is open.
func TestRelaxedStoreOfAKilledProcess(t *testing.T) {
	if bootID() == "" {
		t.Skip("no boot id here: such a store is refused")
	}
	for _, kind := range []string{logStoreBolt, logStoreWAL} {
		whole := t.TempDir()
		logs, stable, closer, err := openLogStore(kind, whole, true)
		require.NoError(t, err)
		for i := uint64(1); i <= logStoreTestEntries; i++ {
			require.NoError(t, logs.StoreLog(&raft.Log{Index: i, Term: 1, Data: make([]byte, 100)}))
		}
		require.NoError(t, stable.SetUint64([]byte("CurrentTerm"), 7))
		killed := func() string {
			dir := t.TempDir()
			require.NoError(t, os.CopyFS(dir, os.DirFS(whole)))
			require.FileExists(t, filepath.Join(dir, relaxedMark))
			return dir
		}
		for _, relaxed := range []bool{false, true} {
			dir := killed()
			logs, stable, closer, err := openLogStore(kind, dir, relaxed)
			require.NoError(t, err)
			_, err = os.Stat(filepath.Join(dir, relaxedMark))
			require.Equal(t, relaxed, err == nil)
			requireWhole(t, logs, stable, closer)
			require.NoFileExists(t, filepath.Join(dir, relaxedMark), "closed, and so synced")

			dir = killed()
			require.NoError(t, os.WriteFile(filepath.Join(dir, relaxedMark), []byte("another boot\n"), 0o600))
			_, _, _, err = openLogStore(kind, dir, relaxed)
			require.ErrorContains(t, err, "did not stop cleanly, and its machine went down")
		}
		require.NoError(t, closer.Close())
		require.NoFileExists(t, filepath.Join(whole, relaxedMark))
	}
}

func TestRelaxedStoreIsNotMadeBeforeItsMark(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, relaxedMark+".tmp"), 0o700)) // in the way
	_, _, _, err := openLogStore(logStoreBolt, dir, true)
	require.ErrorContains(t, err, "cannot write "+filepath.Join(dir, relaxedMark))
	require.NoFileExists(t, filepath.Join(dir, "raft.db"))
}

// A store of the other kind is refused before it is marked: it may be a durable one.
func TestOtherLogStoreIsNotMarked(t *testing.T) {
	dir := t.TempDir()
	fillLogStore(t, logStoreBolt, dir)
	_, _, _, err := openLogStore(logStoreWAL, dir, true)
	require.ErrorContains(t, err, "was written with --log-store boltdb")
	require.NoFileExists(t, filepath.Join(dir, relaxedMark))
}

// A node says so, in either durability, and its directory is left as evidence.
func TestNodeAfterItsMachineWentDown(t *testing.T) {
	for _, durability := range []string{durabilityDurable, durabilityRelaxed} {
		var raftDir string
		_, err := openWith(t, func(c *Config) {
			c.Durability = durability
			raftDir = c.Dir.Path("raft")
			require.NoError(t, os.Mkdir(raftDir, 0o700))
			require.NoError(t, os.WriteFile(filepath.Join(raftDir, relaxedMark), []byte("another boot\n"), 0o600))
		})
		require.ErrorContains(t, err, "this node ran with --durability relaxed and did not stop cleanly")
		files, err := os.ReadDir(raftDir)
		require.NoError(t, err)
		require.Len(t, files, 1)
	}
}
