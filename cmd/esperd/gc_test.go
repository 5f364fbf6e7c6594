package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/events"
)

// gcHome has runs that ended long ago: each a data directory with something in
// it, and evidence beside it.
func gcHome(t *testing.T, runs ...string) (home, state string) {
	t.Helper()
	home = t.TempDir()
	state = filepath.Join(home, ".local/state/esperd")
	for _, run := range runs {
		for _, dir := range []string{"rank0", "rank1", "rank1.evidence-1"} {
			putFile(t, filepath.Join(state, run, dir, "node.json"), "{}")
			putFile(t, filepath.Join(state, run, dir, "lock"), "1\n")
			putFile(t, filepath.Join(state, run, dir, "raft/wal/x.wal"), strings.Repeat("x", 10_000))
		}
		age(t, filepath.Join(state, run), 40*24*time.Hour)
	}
	return home, state
}

func putFile(t *testing.T, name, text string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o700))
	require.NoError(t, os.WriteFile(name, []byte(text), 0o600))
}

// age makes everything below a directory so old.
func age(t *testing.T, dir string, by time.Duration) {
	t.Helper()
	then := time.Now().Add(-by)
	require.NoError(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Type()&fs.ModeSymlink != 0 {
			return err
		}
		return os.Chtimes(path, then, then)
	}))
}

func gc(t *testing.T, home string, args ...string) (status int, out, errs string) {
	t.Helper()
	return finish(t, esperd(t, home, append([]string{"gc"}, args...)...))
}

func gcJSON(t *testing.T, home string, args ...string) map[string]*stateRun {
	t.Helper()
	_, out, errs := gc(t, home, append(args, "--json")...)
	var report gcReport
	require.NoError(t, json.Unmarshal([]byte(out), &report), errs)
	runs := map[string]*stateRun{}
	for _, r := range report.Runs {
		runs[r.Run] = r
	}
	return runs
}

func TestGC(t *testing.T) {
	home := t.TempDir()
	status, out, _ := gc(t, home)
	require.Equal(t, exitOK, status)
	require.Contains(t, out, "no runs under "+home)

	home, state := gcHome(t, "old", "older", "young")
	age(t, filepath.Join(state, "older"), 400*24*time.Hour)
	age(t, filepath.Join(state, "young/rank1"), time.Hour)
	putFile(t, filepath.Join(state, "old/checkpoints/epoch40.pt"), "weights")
	putFile(t, filepath.Join(state, "notes/todo.txt"), "no run")
	atLive := []string{"--run-id", "live", "--data-dir", filepath.Join(state, "live/rank0")}
	live := up(t, home, atLive...)
	trainer, err := client.Connect(t.Context(), filepath.Join(state, "live/rank0", socketName), client.Options{World: 1, Fingerprint: "x", Slots: []api.SlotRequest{{Name: "a"}}})
	require.NoError(t, err)
	for epoch := range int64(3) {
		_, err := trainer.StepEpoch(t.Context(), epoch)
		require.NoError(t, err)
	}
	trainer.Close()

	runs := gcJSON(t, home)
	require.Len(t, runs, 4, "notes is no run")
	require.Equal(t, []string{"rank0", "rank1"}, runs["old"].Ranks)
	require.Equal(t, []string{"rank1.evidence-1"}, runs["old"].Aside)
	require.Equal(t, []string{"checkpoints"}, runs["old"].Other)
	require.Greater(t, runs["old"].Bytes, int64(30_000))
	require.WithinDuration(t, time.Now().Add(-time.Hour), runs["young"].LastUse, time.Minute)
	require.Contains(t, runs["live"].InUse, "process ")
	for _, r := range runs {
		require.False(t, r.Chosen || r.Removed)
	}

	status, out, _ = gc(t, home, "--older-than", "30d")
	require.Equal(t, exitOK, status)
	require.Contains(t, out, "2 runs would be removed")
	require.Contains(t, out, "in use by process")
	require.Contains(t, out, "also holds checkpoints, which no esperd made")
	require.DirExists(t, filepath.Join(state, "older"))

	gcRemoves(t, home, state)
	gcAfterTheEnd(t, home, state, live, atLive)
}

// gcRemoves goes on from there with --yes.
func gcRemoves(t *testing.T, home, state string) {
	t.Helper()
	runs := gcJSON(t, home, "old", "young", "--older-than", "30d")
	require.True(t, runs["old"].Chosen)
	require.False(t, runs["young"].Chosen || runs["older"].Chosen)

	status, out, errs := gc(t, home, "older", "gone", "--yes")
	require.Equal(t, exitFailure, status)
	require.Empty(t, out)
	require.Contains(t, errs, `no run "gone"`)
	require.DirExists(t, filepath.Join(state, "older"), "a name that is wrong removes nothing")

	require.NoError(t, os.MkdirAll(filepath.Join(state, trashPrefix+"7-0-x/deep"), 0o700))
	status, out, errs = gc(t, home, "--older-than", "30d", "--yes")
	require.Equal(t, exitOK, status, errs)
	require.Contains(t, out, "removed")
	left := names(t, state)
	require.Equal(t, []string{"live", "notes", "old", "young"}, left, "and what an earlier removal left is gone")
	require.Equal(t, []string{"checkpoints"}, names(t, filepath.Join(state, "old")))
	require.NotContains(t, gcJSON(t, home), "old", "nothing of an esperd is left there")

	status, _, errs = gc(t, home, "live", "young", "--yes")
	require.Equal(t, exitFailure, status)
	require.Contains(t, errs, "run live was not removed: it is in use by process")
	require.NoDirExists(t, filepath.Join(state, "young"))
}

// gcAfterTheEnd looks at a run whose esperd ends.
func gcAfterTheEnd(t *testing.T, home, state string, live *exec.Cmd, atLive []string) {
	t.Helper()
	require.NoError(t, live.Process.Signal(syscall.SIGTERM))
	require.NoError(t, live.Wait())
	before := tree(t, filepath.Join(state, "live"))
	r := gcJSON(t, home)["live"]
	require.Empty(t, r.InUse)
	require.Greater(t, r.Entries, uint64(5))
	require.NotNil(t, r.Epoch)
	require.EqualValues(t, 2, *r.Epoch)
	require.Equal(t, before, tree(t, filepath.Join(state, "live")), "looking changes nothing")
	require.NotEmpty(t, before)
	up(t, home, atLive...)
}

func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// tree is what is in a directory, and when it was written.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		out[path] = info.ModTime().String() + string(b)
		return err
	}))
	return out
}

// Nothing in the state directory leads out of it, or makes gc fail for the
// other runs.
func TestGCHostileContents(t *testing.T) {
	home, state := gcHome(t, "plain", "damaged", "linked", "pipes", "odd", "deep")
	outside := filepath.Join(home, "outside")
	putFile(t, filepath.Join(outside, "rank0/node.json"), "{}")
	putFile(t, filepath.Join(outside, "precious"), "weights")
	link := func(to, name string) {
		require.NoError(t, os.RemoveAll(name))
		require.NoError(t, os.Symlink(to, name))
	}
	link(outside, filepath.Join(state, "away"))                                 // a run that is a link
	link(filepath.Join(outside, "rank0"), filepath.Join(state, "linked/rank1")) // a rank that is one
	link("../../outside", filepath.Join(state, "plain/rank0/raft/up"))          // and something below
	link(outside, filepath.Join(state, "plain/rank1.evidence-1/raft"))
	link("/", filepath.Join(state, trashPrefix+"0-0-root"))
	putFile(t, filepath.Join(state, "damaged/rank0/history.db"), strings.Repeat("garbage", 5000))
	putFile(t, filepath.Join(state, "damaged/rank1/history.db"), "")
	link(filepath.Join(outside, "precious"), filepath.Join(state, "damaged/rank1.evidence-1/history.db"))
	require.NoError(t, os.Remove(filepath.Join(state, "pipes/rank0/lock")))
	require.NoError(t, syscall.Mkfifo(filepath.Join(state, "pipes/rank0/lock"), 0o600))
	require.NoError(t, syscall.Mkfifo(filepath.Join(state, "odd/rank0/history.db"), 0o600))
	putFile(t, filepath.Join(state, "odd/rank1\n\x1b[31m/node.json"), "{}")
	putFile(t, filepath.Join(state, "\x1b[31mred/rank0/node.json"), "{}") // no run has such a name
	require.NoError(t, os.MkdirAll(filepath.Join(state, "deep/rank0", strings.Repeat("d/", 300)), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(state, "file"), nil, 0o600))

	status, out, errs := gc(t, home)
	require.Equal(t, exitOK, status, errs)
	require.NotContains(t, out, "\x1b")
	runs := gcJSON(t, home)
	require.Len(t, runs, 7)
	require.Contains(t, runs["away"].Problem, "it is a link")
	require.Contains(t, runs["linked"].Problem, "rank1 is a link")
	require.Contains(t, runs["pipes"].Problem, "expected a file")
	require.Zero(t, runs["damaged"].Entries)

	status, _, errs = gc(t, home, "--yes", "plain", "damaged", "linked", "pipes", "odd", "deep", "away")
	require.Equal(t, exitFailure, status)
	for _, run := range []string{"away", "linked", "pipes"} {
		require.Contains(t, errs, "run "+run+" was not removed")
	}
	require.Equal(t, []string{"\x1b[31mred", "away", "file", "linked", "pipes"}, names(t, state))
	require.Equal(t, []string{"rank0", "rank1", "rank1.evidence-1"}, names(t, filepath.Join(state, "linked")), "all of it or nothing")
	require.Equal(t, []string{"precious", "rank0"}, names(t, outside))
	require.FileExists(t, filepath.Join(outside, "rank0/node.json"))
}

// An esperd that starts between the look and the removal keeps its run.
func TestGCRefusesWhatIsTakenMeanwhile(t *testing.T) {
	_, state := gcHome(t, "a")
	root, err := os.OpenRoot(state)
	require.NoError(t, err)
	defer root.Close()
	s := &stateDir{path: state, root: root}
	runs, _, err := s.runs()
	require.NoError(t, err)
	require.Empty(t, runs[0].InUse)
	release, held, err := s.hold("a/rank1") // an esperd starts
	require.NoError(t, err)
	require.Empty(t, held)
	require.ErrorContains(t, s.remove(runs[0]), "it is in use by process 1")
	require.Len(t, names(t, filepath.Join(state, "a")), 3)
	release()
	require.NoError(t, s.remove(runs[0]))
	require.Empty(t, names(t, state))
}

func TestGCUsage(t *testing.T) {
	home, state := gcHome(t, "a")
	for _, args := range [][]string{{"--yes"}, {"--older-than", "soon"}, {"--older-than", "0d"}, {"--older-than", "-3h"}, {"--older-than", "99999999d"}, {"--older-than", "d"}} {
		status, _, errs := gc(t, home, args...)
		require.Equal(t, exitUsage, status, args)
		require.Contains(t, errs, "expected", args)
	}
	for _, name := range []string{"../esperd/a", "a/rank0", "", ".", "..", "/"} {
		status, _, errs := gc(t, home, "--yes", "--", name)
		require.Equal(t, exitFailure, status, name)
		require.Contains(t, errs, "there is no run", name)
	}
	require.DirExists(t, filepath.Join(state, "a/rank0"))
}

// What can be told without the state is told.
func TestGCWithoutAState(t *testing.T) {
	home, state := gcHome(t, "a")
	h, err := events.OpenHistory(filepath.Join(state, "a/rank1/history.db"), events.HistoryOptions{})
	require.NoError(t, err)
	r := gcJSON(t, home)["a"]
	require.Zero(t, r.Entries, "an esperd has it open")
	require.NoError(t, errors.Join(h.Rebase(12, events.Digest{1}, 20, nil), h.Close()))
	r = gcJSON(t, home)["a"]
	require.EqualValues(t, 12, r.Entries)
	require.Nil(t, r.Epoch)
}
