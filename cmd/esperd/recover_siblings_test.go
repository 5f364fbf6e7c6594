package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/recovery"
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

// What --force would do is said with its command; what is no candidate has to be
// moved aside.
func TestRecoverSaysWhatIsNext(t *testing.T) {
	kept := &replica.Kept{State: fsm.New()}
	good, bad := &recovery.Survivor{Dir: "good", Kept: kept}, &recovery.Survivor{Dir: "bad", Problem: errors.New("torn")}
	for final, says := range map[bool]string{false: "esperd recover --yes --force good", true: "AGAINST IT: because"} {
		r := recoverReport{Plan: &recovery.Plan{Survivors: []*recovery.Survivor{good, bad}, Chosen: good}, Against: []recovery.Reason{{Why: "because", Final: final}}}
		var b bytes.Buffer
		require.NoError(t, r.write(&b, "again", (&recoverCmd{}).again([]string{"good"}, true)))
		require.Contains(t, b.String(), says)
		require.Equal(t, !final, strings.Contains(b.String(), "--force"))
		require.Contains(t, b.String(), "bad: no candidate; move it aside before its esperd starts")
		require.NotContains(t, b.String(), "rejoins bad")
	}
}
