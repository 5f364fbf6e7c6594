package replica

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// nodeDir is a directory as a node leaves it.
func nodeDir(t *testing.T) (dir string, id DirIdentity) {
	dir = filepath.Join(t.TempDir(), "rank0")
	d, err := OpenDataDir(dir, DataDirOptions{NoFsync: true})
	require.NoError(t, err)
	require.NoError(t, d.SetRun("r", "l"))
	require.NoError(t, d.Close())
	require.NoError(t, os.Mkdir(filepath.Join(dir, "raft"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "raft", "raft.db"), []byte("votes"), 0o600))
	id, err = ReadIdentity(dir)
	require.NoError(t, err)
	require.Equal(t, DirIdentity{Node: d.Node(), Run: "r", Lineage: "l"}, id)
	return dir, id
}

func isEmptyNode(t *testing.T, dir string, was DirIdentity) {
	d, err := OpenDataDir(dir, DataDirOptions{NoFsync: true})
	require.NoError(t, err)
	require.NotEqual(t, was.Node, d.Node())
	require.Empty(t, d.Run())
	require.NoError(t, d.Close())
}

func TestSetAside(t *testing.T) {
	dir, id := nodeDir(t)
	require.Empty(t, Evidence(dir))
	kept, err := SetAside(dir)
	require.NoError(t, err)
	require.Equal(t, dir+".evidence-1", kept)
	again, err := ReadIdentity(kept)
	require.NoError(t, err)
	require.Equal(t, id, again)
	require.FileExists(t, filepath.Join(kept, "raft", "raft.db"))
	isEmptyNode(t, dir, id)
	kept, err = SetAside(dir)
	require.NoError(t, err)
	require.Equal(t, []string{dir + ".evidence-1", kept}, Evidence(dir))
}

// A link to the directory stays one, and what is kept is beside the directory.
func TestSetAsideBehindALink(t *testing.T) {
	dir, id := nodeDir(t)
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(dir, link))
	kept, err := SetAside(link)
	require.NoError(t, err)
	require.Equal(t, []string{dir + ".evidence-1"}, []string{kept})
	require.Equal(t, []string{kept}, Evidence(link))
	isEmptyNode(t, link, id)
}

// A mount point cannot be renamed: what makes it a node's goes inside.
func TestSetAsideInside(t *testing.T) {
	dir, id := nodeDir(t)
	kept, err := setAsideInside(dir)
	require.NoError(t, err)
	require.Equal(t, filepath.Join(dir, "evidence-1"), kept)
	again, err := ReadIdentity(kept)
	require.NoError(t, err)
	require.Equal(t, id, again)
	require.FileExists(t, filepath.Join(kept, "raft", "raft.db"))
	isEmptyNode(t, dir, id)
	kept, err = setAsideInside(dir)
	require.NoError(t, err)
	require.Equal(t, []string{filepath.Join(dir, "evidence-1"), kept}, Evidence(dir))
}
