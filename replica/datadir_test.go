package replica

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func openDir(t *testing.T, path string) *DataDir {
	t.Helper()
	d, err := OpenDataDir(path, DataDirOptions{NoFsync: true})
	require.NoError(t, err)
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func TestDataDirKeepsItsNodeAndCountsBoots(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "data")
	d, err := OpenDataDir(path, DataDirOptions{})
	require.NoError(t, err)
	node := d.Node()
	require.Regexp(t, nodeIDPattern, string(node))
	require.EqualValues(t, 1, d.Boots())
	require.WithinRange(t, d.now().Created, time.Unix(1, 0), time.Now().Add(time.Hour))
	require.Equal(t, filepath.Join(path, "raft"), d.Path("raft"))
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
	require.NoError(t, d.Close())

	// A crash between writing the temporary file and renaming it.
	require.NoError(t, os.WriteFile(d.Path(nodeFileName+".tmp"), []byte(`{"for`), 0o600))
	d = openDir(t, path)
	require.Equal(t, node, d.Node())
	require.EqualValues(t, 2, d.Boots())

	other := openDir(t, t.TempDir())
	require.NotEqual(t, node, other.Node())
}

func TestDataDirIsOpenedOnce(t *testing.T) {
	path := t.TempDir()
	d := openDir(t, path)
	_, err := OpenDataDir(path, DataDirOptions{})
	require.ErrorContains(t, err, fmt.Sprintf("in use by process %d", os.Getpid()))
	require.ErrorContains(t, err, d.Path(lockFileName))
	require.ErrorContains(t, err, "--data-dir")

	require.NoError(t, d.Close())
	require.EqualValues(t, 2, openDir(t, path).Boots(), "the refused open is not a boot")
}

func TestDataDirRecordsItsRunForGood(t *testing.T) {
	path := t.TempDir()
	d := openDir(t, path)
	require.Empty(t, d.Run())
	require.NoError(t, d.SetRun("r1", ""))
	require.NoError(t, d.SetRun("r1", "l1"))
	require.NoError(t, d.SetRun("", ""))
	require.NoError(t, d.Close())

	d = openDir(t, path)
	require.Equal(t, "r1", d.Run())
	require.Equal(t, "l1", d.Lineage())
	for _, c := range []struct{ run, lineage, what, have, got string }{
		{"r2", "l1", "run", "r1", "r2"},
		{"r1", "l2", "lineage", "l1", "l2"},
	} {
		var mismatch *RunMismatchError
		require.ErrorAs(t, d.SetRun(c.run, c.lineage), &mismatch)
		require.Equal(t, RunMismatchError{Dir: path, What: c.what, Have: c.have, Got: c.got}, *mismatch)
		require.ErrorContains(t, mismatch, c.have)
		require.ErrorContains(t, mismatch, c.got)
	}
	require.Equal(t, "r1", d.Run())
	require.Equal(t, "l1", d.Lineage())
}

const goodNodeFile = `{"format":1,"node":"0123456789abcdef0123456789abcdef","created":"2026-01-02T03:04:05Z","boots":3}`

func TestDataDirRefusesAnIdentityItCannotTrust(t *testing.T) {
	edit := func(old, new string) string { return strings.Replace(goodNodeFile, old, new, 1) }
	for name, c := range map[string]struct{ file, want string }{
		"empty":         {"", "empty"},
		"truncated":     {goodNodeFile[:40], "garbled or truncated"},
		"not JSON":      {"\x00\x01", "garbled or truncated"},
		"two objects":   {goodNodeFile + goodNodeFile, "garbled or truncated"},
		"no format":     {edit(`"format":1,`, ``), `"format" is missing`},
		"newer":         {edit(`"format":1`, `"format":2`), "newer than the 1"},
		"newer fields":  {`{"format":2,"shape":"unknown"}`, "newer than the 1"},
		"format 0":      {edit(`"format":1`, `"format":0`), "expected format 1, got 0"},
		"short id":      {edit("0123", ""), "32 hexadecimal digits"},
		"no boots":      {edit(`,"boots":3`, ``), "count of boots"},
		"unknown field": {edit(`"boots"`, `"booots"`), "something else"},
		"no time":       {edit(`"created":"2026-01-02T03:04:05Z",`, ``), `"created" is missing`},
	} {
		t.Run(name, func(t *testing.T) {
			path := t.TempDir()
			file := filepath.Join(path, nodeFileName)
			require.NoError(t, os.WriteFile(file, []byte(c.file), 0o600))
			for range 2 { // the refusal leaves the lock free and the file alone
				_, err := OpenDataDir(path, DataDirOptions{})
				require.ErrorContains(t, err, c.want)
				require.ErrorContains(t, err, file)
				require.ErrorContains(t, err, "move "+path+" aside")
			}
			b, err := os.ReadFile(file)
			require.NoError(t, err)
			require.Equal(t, c.file, string(b))
		})
	}
}

func TestDataDirIsNeverResetSilently(t *testing.T) {
	for _, evidence := range []string{"raft", "history.db"} {
		path := t.TempDir()
		require.NoError(t, os.Mkdir(filepath.Join(path, evidence), 0o700))
		_, err := OpenDataDir(path, DataDirOptions{})
		require.ErrorContains(t, err, nodeFileName+" is missing although")
		require.ErrorContains(t, err, evidence)
		require.NoFileExists(t, filepath.Join(path, nodeFileName))
	}
}

func TestDataDirThatCannotBeWritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for _, path := range []string{file, filepath.Join(file, "below")} {
		_, err := OpenDataDir(path, DataDirOptions{})
		require.ErrorContains(t, err, path)
		require.ErrorContains(t, err, "ESPERD_DATA_DIR")
	}
}

func TestClassifyFS(t *testing.T) {
	for magic, want := range map[uint32]string{
		0x6969: "NFS", 0xff534d42: "CIFS", 0xfe534d42: "SMB2", 0x65735546: "FUSE", 0x01021997: "9p",
		0xef53: "", 0x58465342: "", 0x01021994: "", 0x9123683e: "", 0x794c7630: "", // ext4, xfs, tmpfs, btrfs, overlay
	} {
		name, network := classifyFS(magic)
		require.Equal(t, want, name)
		require.Equal(t, want != "", network)
	}
}

func FuzzParseNodeFile(f *testing.F) {
	f.Add([]byte(goodNodeFile))
	f.Add([]byte(goodNodeFile[:50]))
	f.Add([]byte(`{"format":2}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := parseNodeFile(b)
		if err != nil {
			require.NotEmpty(t, err.Error())
			require.Zero(t, n)
			return
		}
		// What was accepted survives being written again.
		again, err := json.Marshal(n)
		require.NoError(t, err)
		m, err := parseNodeFile(again)
		require.NoError(t, err)
		require.Equal(t, n, m)
	})
}
