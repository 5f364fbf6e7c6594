package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/test/internal/testesperd"
)

// TestUpgradeOneRankAtATime restarts the ranks of a running job with another
// build, one after the other, and one of them back. Each replays its history
// before it serves. A history that does not give what was recorded in it keeps
// its rank from starting.
func TestUpgradeOneRankAtATime(t *testing.T) {
	plain(t)
	t.Parallel()
	w := newWorld(t, 3)
	const before, after = "", "v9.9.9"
	builds := map[string]string{before: binary, after: filepath.Join(w.dir, "esperd-"+after)}
	require.NoError(t, testesperd.Release(builds[after], after))
	w.startAll()
	w.settled()
	l := w.train()
	l.progress(answersBetween)
	for _, n := range []*node{w.nodes[2], w.nodes[1], w.nodes[0]} {
		w.upgrade(n, after, builds)
		l.progress(answersBetween)
	}
	w.upgrade(w.nodes[1], before, builds) // going back works the same way
	l.progress(answersBetween)
	l.finish()
	w.verify(l)

	n := w.nodes[2]
	n.kill()
	n.start() // the same build: there is nothing to replay
	w.settled()
	n.kill()
	planted := n.plantDifference()
	n.program = builds[before]
	n.start()
	require.Equal(t, 1, n.process.wait(t).ExitCode())
	says(t, tail(n.logFile, 1), "esperd: error: ", n.dir, "verified last by: esperd "+after, planted, "start this rank with the build that it had before")
	b, err := os.ReadFile(n.logFile)
	require.NoError(t, err)
	require.Equal(t, 2, strings.Count(string(b), "replaying it before anybody is served"), "with the new build, and with the old one at the end")
	_, last, _ := strings.Cut(string(b), `"verified_by":"esperd `+after)
	require.NotContains(t, last, "the doors are open")
}

// upgrade stops a node as a scheduler does, and starts it with another build.
func (w *world) upgrade(n *node, version string, builds map[string]string) {
	w.t.Helper()
	n.process.signal(w.t, syscall.SIGTERM)
	state := n.process.wait(w.t)
	require.True(w.t, state.Success(), "rank %d: %s\n%s", n.rank, state, tail(n.logFile, 20))
	n.program = builds[version]
	n.start()
	awaitLog(w.t, n.logFile, "the history is verified", `"entries":`)
	awaitLog(w.t, n.logFile, "esperd is up", `"version":"`+version)
	w.led()
}

// plantDifference changes a digest in the history of a node that is down, as if
// the build that recorded it had come to another state. It returns what the
// next build has to say of it.
func (n *node) plantDifference() string {
	n.w.t.Helper()
	name := filepath.Join(n.dir, "history.db")
	old, err := events.OpenHistory(name, events.HistoryOptions{})
	require.NoError(n.w.t, err)
	planted, err := events.OpenHistory(name+".planted", events.HistoryOptions{})
	require.NoError(n.w.t, err)
	head, _, _ := old.Head()
	require.NoError(n.w.t, old.Range(1, head, func(r events.Record) error {
		if r.Index == 5 {
			r.Bookkeeping[0] ^= 1
		}
		return planted.Append(r, nil)
	}))
	require.NoError(n.w.t, old.Close())
	require.NoError(n.w.t, planted.Close())
	require.NoError(n.w.t, os.Rename(name+".planted", name))
	return "entry 5 is the first that differs: expected bookkeeping digest"
}
