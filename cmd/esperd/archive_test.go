package main

import (
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/audit"
	"github.com/esperd/esperd/client"
)

// archived runs a daemon with an archive and a trainer that takes a checkpoint.
func archived(t *testing.T, dir string) (*daemon, *client.Client, uint64) {
	t.Helper()
	cfg, err := resolve(RunFlags{DataDir: str(t.TempDir()), ArchiveDir: &dir, RunID: str("kept")}, testSurroundings(nil))
	require.NoError(t, err)
	d, err := openDaemon(cfg, slog.New(slog.NewTextHandler(io.Discard, nil)))
	require.NoError(t, err)
	c, err := client.Connect(t.Context(), cfg.Socket, client.Options{Slots: []api.SlotRequest{{Name: "r0c0"}}})
	require.NoError(t, err)
	_, err = c.StepEpoch(t.Context(), 0)
	require.NoError(t, err)
	mark, err := c.Checkpoint(t.Context())
	require.NoError(t, err)
	return d, c, mark.Index
}

func (d *daemon) archiveState(t *testing.T) *api.Archive {
	t.Helper()
	admin := client.NewAdmin(d.adminURL)
	defer admin.Close()
	s, err := admin.State(t.Context())
	require.NoError(t, err)
	require.NotNil(t, s.Archive)
	return s.Archive
}

// The archive has a checkpoint's entry soon after it, and at the end all of the
// log but what the node's own end may add.
func TestArchive(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "archive")
	d, c, index := archived(t, dir)
	require.Eventually(t, func() bool { return d.archiveState(t).Index >= index }, time.Minute, 10*time.Millisecond)
	_, err := c.StepEpoch(t.Context(), 1)
	require.NoError(t, err)
	require.NoError(t, c.Close())
	file, lineage, node := d.archiveState(t).File, d.node.Status().Lineage, d.node
	require.Equal(t, filepath.Join(dir, "kept-"+lineage+".jsonl"), file)
	require.NoError(t, d.close(t.Context()))

	p, err := audit.Open(t.Context(), file, audit.Options{})
	require.NoError(t, err)
	require.Equal(t, node.State().Index, p.About().Head)
	require.Empty(t, p.About().Problem)
	require.NoError(t, p.Close())
	report, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NotEmpty(t, report)
}

// An archive that cannot be written fails no checkpoint, and is told of.
func TestArchiveThatCannotBeWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "archive")
	require.NoError(t, os.WriteFile(dir, nil, 0o600)) // no directory
	d, c, _ := archived(t, dir)
	require.Eventually(t, func() bool { return d.archiveState(t).Failures > 0 }, time.Minute, 10*time.Millisecond)
	require.Contains(t, d.archiveState(t).Problem, "not a directory")
	resp, err := http.Get(d.adminURL + "/metrics")
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Regexp(t, `(?m)^esperd_archive_failures_total [1-9]`, string(body))
	require.Regexp(t, `(?m)^esperd_archive_index 0$`, string(body))
	_, err = c.StepEpoch(t.Context(), 1)
	require.NoError(t, err)

	require.NoError(t, os.Remove(dir)) // mended while it runs
	_, err = c.Checkpoint(t.Context())
	require.NoError(t, err)
	require.Eventually(t, func() bool { s := d.archiveState(t); return s.Problem == "" && s.Index > 0 }, time.Minute, 10*time.Millisecond)
	require.NoError(t, c.Close())
	require.NoError(t, d.close(t.Context()))
}
