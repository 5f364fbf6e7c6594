package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/events"
)

// killAll ends all processes as a power cut does.
func (w *world) killAll() {
	w.t.Helper()
	for _, n := range w.nodes {
		if !n.process.ended() {
			n.kill()
		}
	}
}

// lose moves a stopped node's directory away, and returns to where.
func (n *node) lose() string {
	n.w.t.Helper()
	lost := n.dir + ".lost"
	require.NoError(n.w.t, os.Rename(n.dir, lost))
	return lost
}

// askPrune asks for the prune of any seed, which is an entry, and returns its
// index.
func (n *node) askPrune() uint64 {
	n.w.t.Helper()
	var index uint64
	eventually(n.w.t, "a request in the log", func() error {
		return n.ask(func(ctx context.Context, a *client.Admin) error {
			var err error
			for _, slot := range slotNames {
				done, failed := a.Request(ctx, "", api.RequestRequest{Model: api.DefaultModel, Action: events.ActionPrune, Slot: slot})
				if err = failed; err == nil {
					index = done.Index
					return nil
				}
			}
			return err
		})
	})
	return index
}

// TestRecover: two of three voters lose their disks, and the third lacks what
// they decided last. The run goes on from it, its directory of before is kept as
// it was, and so is the directory of a voter that returns after all.
func TestRecover(t *testing.T) {
	plain(t)
	t.Parallel()
	w := startWorld(t, 3)
	first := w.train()
	first.progress(answersBetween)
	first.finish()
	log := w.verify(first)
	survivor := w.nodes[2]
	survivor.kill()
	require.Greater(t, w.nodes[0].askPrune(), uint64(len(log)))
	w.killAll()
	before := w.nodes[1].lose()
	w.nodes[0].lose()
	was := sums(t, survivor.dir)

	status, out, errs := finish(t, w.dir, "recover", "--secret-file", w.secret, survivor.dir)
	require.Zero(t, status, errs)
	says(t, out, "kept    everything up to entry ", "of the voters ", "This was a dry run", "esperd recover --yes --secret-file "+w.secret+" "+survivor.dir)
	require.Equal(t, was, sums(t, survivor.dir))

	status, out, errs = finish(t, w.dir, "recover", "--yes", "--json", "--secret-file", w.secret, survivor.dir)
	require.Zero(t, status, errs)
	var report struct {
		Done struct {
			Evidence, Lineage string
			Node              events.NodeID
		}
		Directories []struct {
			Last uint64 `json:"last_entry"`
		}
	}
	require.NoError(t, json.Unmarshal([]byte(out), &report))
	require.GreaterOrEqual(t, report.Directories[0].Last, uint64(len(log))) // a late report may follow
	require.Equal(t, was, sums(t, report.Done.Evidence))

	w.startAll()
	after := w.settled()
	require.Equal(t, report.Done.Lineage, after[0].Lineage)
	require.Equal(t, report.Done.Node, after[2].Node)
	sameEntries(t, log, w.nodes[0].events()[:len(log)])
	second := w.train()
	require.Equal(t, first.round+1, second.round)
	second.progress(answersBetween)
	second.finish()
	w.verify(first, second)

	// The disk of rank 1 was not lost after all, and has more than was kept.
	returned := sums(t, before)
	w.nodes[1].kill()
	require.NoError(t, os.RemoveAll(w.nodes[1].dir))
	require.NoError(t, os.Rename(before, w.nodes[1].dir))
	w.nodes[1].start()
	w.gaveWay(w.nodes[1], returned)
	w.verify(first, second)
}

// gaveWay waits until a node has kept its directory aside and is one of the
// world again, in the same process, and compares what it kept. Its count of boots
// has grown, and raft and the history may have written before it knew.
func (w *world) gaveWay(n *node, was map[string]string) {
	w.t.Helper()
	awaitLog(w.t, n.logFile, "THE RUN GOES ON AS ANOTHER LOG", n.dir+".evidence-1")
	states := w.settled()
	require.Equal(w.t, []string{n.dir + ".evidence-1"}, states[n.rank].Evidence)
	kept := sums(w.t, n.dir+".evidence-1")
	for name := range was {
		if filepath.Base(name) != "admin.addr" { // of the process that runs
			require.Contains(w.t, kept, name)
		}
	}
	status, out, errs := finish(w.t, w.dir, "status", "--socket", n.socket)
	require.Zero(w.t, status, errs)
	says(w.t, out, "an earlier history of this rank is kept at "+n.dir+".evidence-1")
}

// TestRecoverTwo: the world's only voter loses its disk, and rank 1's copy goes
// on. The lost one, which could lead alone, returns and gives way.
func TestRecoverTwo(t *testing.T) {
	plain(t)
	t.Parallel()
	w := startWorld(t, 2)
	first := w.train()
	first.progress(answersBetween)
	first.finish()
	w.verify(first)
	w.nodes[1].kill()
	w.nodes[0].askPrune()
	w.killAll()
	lost := w.nodes[0].lose()
	status, _, errs := finish(t, w.dir, "recover", "--yes", "--secret-file", w.secret, w.nodes[1].dir)
	require.Zero(t, status, errs)
	w.startAll()
	w.settled()
	second := w.train()
	second.progress(answersBetween)
	second.finish()
	w.verify(first, second)

	was := sums(t, lost)
	w.nodes[0].kill()
	require.NoError(t, os.RemoveAll(w.nodes[0].dir))
	require.NoError(t, os.Rename(lost, w.nodes[0].dir))
	// The only voter of the log that goes on was rank 0's, whose disk is gone now.
	w.nodes[1].kill()
	status, _, errs = finish(t, w.dir, "recover", "--yes", "--secret-file", w.secret, w.nodes[1].dir)
	require.Zero(t, status, errs)
	w.startAll()
	w.gaveWay(w.nodes[0], was)
	w.verify(first, second)
}

// TestRecoverRefused: a world that needs no recovery is left alone, with the
// reason, and so is a directory that is in use or damaged.
func TestRecoverRefused(t *testing.T) {
	plain(t)
	t.Parallel()
	w := startWorld(t, 3)
	first := w.train()
	first.progress(answersBetween)
	first.finish()
	w.verify(first)
	n := w.nodes[2]
	recovers := func(dir string, words ...string) {
		t.Helper()
		says(t, refuses(t, 1, w.dir, "recover", "--yes", "--force", "--secret-file", w.secret, dir), words...)
	}
	recovers(n.dir, "the world is healthy", "rank 2", "nothing needs to be recovered")
	n.kill()
	recovers(n.dir, w.nodes[0].dir, "in use", "the world is healthy", "follows a leader") // it lies beside the named one

	alone := filepath.Join(w.dir, "alone") // as on a machine of its own
	require.NoError(t, os.Rename(n.dir, alone))
	was := sums(t, alone)
	recovers(alone, "nothing was changed", "the world is healthy", "follows a leader", string(w.nodes[0].mustState().Node))
	says(t, refuses(t, 1, w.dir, "recover", "--yes", alone), "does not let this one ask", "--secret-file")
	door := "http://" + adminOf(t, w.nodes[1])
	says(t, refuses(t, 1, w.dir, "recover", "--yes", "--force", "--url", door, alone), "the world is healthy", door)
	require.Equal(t, was, sums(t, alone))

	require.NoError(t, os.Rename(alone, n.dir))
	n.start()
	w.settled()
	w.nodes[0].kill()
	w.nodes[1].kill()
	eventually(t, "a node without a leader", func() error {
		s, err := n.state()
		if err == nil && s.Quorum {
			err = fmt.Errorf("it follows %s", s.Leader)
		}
		return err
	})
	recovers(n.dir, fmt.Sprintf("in use by process %d", n.process.cmd.Process.Pid), "stop it first", "knows no leader")
	n.kill()
	says(t, refuses(t, 1, w.dir, "recover", "--yes", n.dir), "3 of 3 voters are here", "start their esperds")

	require.NoError(t, os.Rename(n.dir, alone))
	history := filepath.Join(alone, "history.db")
	b, err := os.ReadFile(history)
	require.NoError(t, err)
	for i := 2 * os.Getpagesize(); i < len(b); i++ { // all but bbolt's meta pages
		b[i] = 0xff
	}
	require.NoError(t, os.WriteFile(history, b, 0o600))
	was = sums(t, alone)
	says(t, refuses(t, 1, w.dir, "recover", "--yes", alone), "none of the directories can be continued")
	require.Equal(t, was, sums(t, alone))
	says(t, refuses(t, 1, w.dir, "recover", filepath.Join(w.dir, "nowhere")), "nowhere", "no such file")
}

func adminOf(t *testing.T, n *node) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(n.dir, "admin.addr"))
	require.NoError(t, err)
	var address string
	_, err = fmt.Sscanf(string(b), "http://%s", &address)
	require.NoError(t, err)
	return address
}

// TestFoundedAnew: a directory of a log that the run has lost, and that its new
// one does not know, is kept aside as well.
func TestFoundedAnew(t *testing.T) {
	plain(t)
	t.Parallel()
	w := startWorld(t, 3)
	w.killAll()
	lost := w.nodes[2].lose()
	was := sums(t, lost)
	for _, n := range w.nodes[:2] {
		n.lose()
	}
	w.startAll()
	w.settled()
	w.nodes[2].kill()
	require.NoError(t, os.RemoveAll(w.nodes[2].dir))
	require.NoError(t, os.Rename(lost, w.nodes[2].dir))
	w.nodes[2].start()
	w.gaveWay(w.nodes[2], was)
}
