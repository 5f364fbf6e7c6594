package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/replica"
)

// Directories of the same run that lie beside a named one count: its voters could
// simply be started.
func TestRecoverLooksBeside(t *testing.T) {
	run := t.TempDir()
	made := func(name, of string) string {
		dir := filepath.Join(run, name)
		require.NoError(t, os.Mkdir(dir, 0o700))
		if of != "" {
			node, err := replica.NewID()
			require.NoError(t, err)
			require.NoError(t, replica.WriteIdentity(dir, replica.DirIdentity{Node: events.NodeID(node), Run: of, Lineage: "1"}))
		}
		return dir
	}
	one, two := made("rank1", "run7"), made("rank2", "run7")
	made("rank3", "other")
	made("rank4", "") // no data directory
	made("rank2.evidence-1", "run7")
	require.NoError(t, os.Symlink(two, filepath.Join(run, "rank5")))
	require.Equal(t, []string{one, two}, withSiblings([]string{one}))
	require.Equal(t, []string{one, two}, withSiblings([]string{one, two}))
	away := filepath.Join(t.TempDir(), "copy")
	require.NoError(t, os.Rename(two, away))
	require.Equal(t, []string{away}, withSiblings([]string{away}), "a copy that is named otherwise has no siblings")
}
