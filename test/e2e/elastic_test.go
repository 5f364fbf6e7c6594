package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/audit"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/test/internal/testesperd"
)

// again starts the job anew, each time at other ports: with these nodes, in the
// order of their ranks. Those that are left out stay down.
func (w *world) again(nodes ...*node) {
	w.t.Helper()
	w.nodes = nodes
	for rank, n := range nodes {
		n.rank, n.port = rank, testesperd.FreePort(w.t)
	}
	for _, n := range nodes {
		n.args = w.argsOf(n.rank, n.port, n.dir, n.socket)
	}
	w.startAll()
}

// another is a node with a directory that is still empty.
func (w *world) another(name string) *node {
	n := &node{w: w, program: binary, logFile: filepath.Join(w.dir, name+".log"), dir: filepath.Join(w.dir, name), socket: filepath.Join(w.dir, "s-"+name)}
	w.t.Cleanup(func() {
		if n.process != nil {
			n.process.end()
		}
		if w.t.Failed() {
			w.t.Logf("the log of %s ends with:\n%s", name, tail(n.logFile, 40))
		}
	})
	return n
}

// trains plays one round and checks that it is the next one.
func (w *world) trains(rounds *[]*load) {
	w.t.Helper()
	l := w.train()
	*rounds = append(*rounds, l)
	require.Equal(w.t, uint64(len(*rounds)), l.round)
	l.progress(answersBetween)
	l.finish()
	w.verify(*rounds...)
}

// TestElastic starts one job again and again: smaller, larger, at other ports,
// its nodes with other ranks, rank 0 on a node that did not vote or is new.
func TestElastic(t *testing.T) {
	plain(t)
	t.Parallel()
	w := startWorld(t, 4)
	a, b, c, d := w.nodes[0], w.nodes[1], w.nodes[2], w.nodes[3]
	t.Cleanup(func() {
		for _, n := range []*node{a, b, c, d} {
			n.process.end()
		}
	})
	var rounds []*load
	w.trains(&rounds)

	w.terminate()
	w.again(c, a, b)
	w.trains(&rounds)

	w.terminate()
	w.again(d, b, a, c)
	w.trains(&rounds)
	w.votes(d)

	w.killAll()
	e := w.another("e")
	w.again(e, c, d, a, b)
	w.trains(&rounds)
	w.votes(e)

	// Two of them never come back: one after the other, however they voted.
	w.killAll()
	w.again(e, a, d, b)
	w.trains(&rounds)
	w.goneFrom(c)
	w.killAll()
	w.again(b, e, a)
	w.trains(&rounds)
	w.goneFrom(c, d)

	w.killAll()
	w.again(a, b)
	w.trains(&rounds)
	w.goneFrom(c, d, e)
	eventually(t, "a single voter", func() error {
		if a.mustState().Voter && !b.mustState().Voter {
			return nil
		}
		return fmt.Errorf("rank 0 votes: %t, rank 1: %t", a.mustState().Voter, b.mustState().Voter)
	})
	w.terminate()
	w.again(a) // nobody else is needed
	w.trains(&rounds)
	w.terminate()
	w.again(a, b, w.another("f"))
	w.trains(&rounds)
	w.terminate()
	r := w.audit(a.dir, b.dir, c.dir, d.dir, e.dir)
	require.Equal(t, audit.Consistent, r.Outcome, "who has left lacks nothing: %+v", r.Coverage)
}

// id is the node's, up or down.
func (n *node) id() events.NodeID {
	n.w.t.Helper()
	b, err := os.ReadFile(filepath.Join(n.dir, "node.json"))
	require.NoError(n.w.t, err)
	var file struct{ Node events.NodeID }
	require.NoError(n.w.t, json.Unmarshal(b, &file))
	return file.Node
}

// votes waits until a node is a voter, which rank 0's has to be.
func (w *world) votes(n *node) {
	w.t.Helper()
	eventually(w.t, fmt.Sprintf("rank %d's vote", n.rank), func() error {
		s, err := n.state()
		if err == nil && !s.Voter {
			err = fmt.Errorf("it does not vote")
		}
		return err
	})
}

// goneFrom waits until the log says that nodes have left it.
func (w *world) goneFrom(nodes ...*node) {
	w.t.Helper()
	for _, n := range nodes {
		id := n.id()
		eventually(w.t, "the end of node "+string(id), func() error {
			if there(w.nodes[0].events(), id) {
				return fmt.Errorf("it is part of the log")
			}
			return nil
		})
	}
}

// there reports whether a node is part of the log at its end.
func there(log []api.Entry, id events.NodeID) (is bool) {
	for i := range log {
		for _, ev := range log[i].Events {
			switch {
			case ev.NodeJoined != nil && ev.NodeJoined.Node == id:
				is = true
			case ev.NodeLeft != nil && ev.NodeLeft.Node == id:
				is = false
			}
		}
	}
	return is
}

// TestElasticOverlap: an esperd of the start before is still there when the job
// is started again without it, and one of another job asks at the wrong door.
func TestElasticOverlap(t *testing.T) {
	plain(t)
	t.Parallel()
	w := startWorld(t, 3)
	var rounds []*load
	w.trains(&rounds)
	a, b, c := w.nodes[0], w.nodes[1], w.nodes[2]
	t.Cleanup(a.process.end)
	for _, n := range []*node{b, c} {
		n.kill()
	}
	d := w.another("d")
	w.nodes = []*node{d, b, c}
	d.rank, d.port = 0, testesperd.FreePort(t)
	for rank, n := range w.nodes {
		n.args = w.argsOf(rank, n.port, n.dir, n.socket)
		n.start()
	}
	awaitLog(t, d.logFile, `"level":"WARN"`, "not part of the log yet", "rank 0 is claimed by two nodes", "waits for the end of the first")
	require.False(t, d.process.ended())
	a.kill()
	w.trains(&rounds)

	// Another job, which was given no run id, has rank 0's address of this one.
	other := w.another("other")
	args := without(w.argsOf(1, testesperd.FreePort(t), other.dir, other.socket), "--run-id")
	other.process = start(t, w.dir, other.logFile, append(with(args, "--world-size", "4"), "--round", "other")...)
	awaitLog(t, other.logFile, "not part of the log yet", "was not started together with this one", "MASTER_PORT")
	require.Equal(t, 4, joined(w.verify(rounds...)))
	w.terminate()
}

// TestElasticFirstMissing: after a move, rank 0 does not come back at first; the
// others find each other all the same.
func TestElasticFirstMissing(t *testing.T) {
	plain(t)
	t.Parallel()
	w := startWorld(t, 3)
	w.terminate()
	w.again(w.nodes...)
	var rounds []*load
	w.trains(&rounds)
	for _, n := range w.nodes {
		eventually(t, "the others' places", func() error {
			b, err := os.ReadFile(filepath.Join(n.dir, "peers.json"))
			for _, other := range w.nodes {
				if other != n && err == nil && !strings.Contains(string(b), "127.0.0.1:"+other.port+"#") {
					err = fmt.Errorf("rank %d has %s", n.rank, b)
				}
			}
			return err
		})
	}
	w.killAll()
	for _, n := range w.nodes[1:] {
		n.start()
	}
	eventually(t, "a leader without rank 0", func() error {
		s, err := w.nodes[2].state()
		if err == nil && s.Leader == "" {
			err = fmt.Errorf("none: %s", s.Problem)
		}
		return err
	})
	w.nodes[0].start()
	w.trains(&rounds)
	w.terminate()
}

// TestCopied: a data directory is started twice.
func TestCopied(t *testing.T) {
	plain(t)
	t.Parallel()
	w := startWorld(t, 3)
	var rounds []*load
	w.trains(&rounds)
	w.terminate()
	for rank, n := range w.nodes { // as of before the start
		require.NoError(t, os.CopyFS(copyOf(n, rank), os.DirFS(n.dir)))
	}
	w.startAll()
	w.settled()
	for rank, n := range w.nodes {
		dir := copyOf(n, rank)
		port := testesperd.FreePort(t)
		args := with(n.args, "--data-dir", dir, "--socket", dir+".s", "--listen", "127.0.0.1:"+port)
		says(t, refuses(t, 1, w.dir, append([]string{"run"}, args...)...), "is alive at 127.0.0.1:"+n.port+" and at 127.0.0.1:"+port, "was copied", "aside")
	}
	w.trains(&rounds)
	w.terminate()
}

func copyOf(n *node, rank int) string { return filepath.Join(n.w.dir, fmt.Sprintf("copy%d", rank)) }

// TestNoQuorum: what is left of a world says what it is, and whom it lacks.
func TestNoQuorum(t *testing.T) {
	plain(t)
	t.Parallel()
	w := startWorld(t, 3)
	ports := []string{w.nodes[0].port, w.nodes[1].port}
	lineage := w.nodes[2].mustState().Lineage
	w.killAll()
	w.nodes[2].start()
	eventually(t, "what it lacks", func() error {
		s, err := w.nodes[2].state()
		if err == nil && !strings.HasPrefix(s.Problem, "no leader") {
			err = fmt.Errorf("it says %q", s.Problem)
		}
		return err
	})
	says(t, w.nodes[2].mustState().Problem, "no leader", `run "e2e"`, lineage, "2 of 3", "127.0.0.1:"+ports[0], "127.0.0.1:"+ports[1], "esperd recover")
	awaitLog(t, w.nodes[2].logFile, `"level":"WARN"`, "no leader is known", "esperd recover")

	// Rank 0 on an empty directory says where the log is.
	w.nodes[0].lose()
	w.nodes[0].start()
	awaitLog(t, w.nodes[0].logFile, `"level":"WARN"`, "it waits for the esperds of ranks [1]", "rank 2 (host", lineage, "esperd recover")
}
