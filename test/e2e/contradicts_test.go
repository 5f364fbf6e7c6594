package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/test/internal/testesperd"
)

// with returns flags with some of their values changed.
func with(args []string, changed ...string) []string {
	out := slices.Clone(args)
	for i := 0; i < len(changed); i += 2 {
		out[slices.Index(out, changed[i])+1] = changed[i+1]
	}
	return out
}

// without returns flags less one and its value.
func without(args []string, flag string) []string {
	i := slices.Index(args, flag)
	return slices.Delete(slices.Clone(args), i, i+2)
}

// anotherRun: a data directory belongs to its run.
func anotherRun(t *testing.T) {
	w := startWorld(t, 1)
	w.terminate()
	n := w.nodes[0]
	before := sums(t, n.dir)
	says(t, refuses(t, 1, w.dir, append([]string{"run"}, with(n.args, "--run-id", "other")...)...),
		n.dir, `run "e2e"`, `"other"`, "--data-dir")
	after := sums(t, n.dir)
	delete(before, "node.json") // counts its boots
	delete(after, "node.json")
	require.Equal(t, before, after)
	w.startAll()
	w.settled()
}

// anotherWorld: a trainer and the esperd beside it are of one world.
func anotherWorld(t *testing.T) {
	w := startWorld(t, 1)
	c := newCaller(w.nodes[0])
	status, answer := c.connect(nil)
	require.Equal(t, http.StatusOK, status, "%s", answer)
	status, answer = c.connect(fields{"world_size": 2, "incarnation": strings.Repeat("02", 16)})
	problem(t, status, answer, http.StatusConflict, events.CodeConfigMismatch, "2", "1")
	w.terminate()
}

// badClaims: a node that contradicts a world that is training does not become
// part of it, and the world goes on.
func badClaims(t *testing.T) {
	w := startWorld(t, 2)
	l := w.train()
	l.progress(1)
	first, ports := w.nodes[0], []string{testesperd.FreePort(t), testesperd.FreePort(t), testesperd.FreePort(t)}
	here := func(i int, rank string, changed ...string) []string {
		name := filepath.Join(w.dir, fmt.Sprintf("claim%d", i))
		return append([]string{"run"}, with(w.nodes[1].args, append([]string{"--rank", rank, "--listen", "127.0.0.1:" + ports[i], "--data-dir", name, "--socket", name + ".s"}, changed...)...)...)
	}
	// These may be of a start before or after, and wait.
	for i, claim := range []struct{ args, words []string }{
		{here(0, "0"), []string{"rank 0 is claimed by two nodes", "127.0.0.1:" + first.port, "127.0.0.1:" + ports[0], "the second one waits for the end of the first", "stop one, or correct its --rank"}},
		{here(1, "1", "--world-size", "3"), []string{"(rank 1 of 3) was not started together with", "(rank 0 of 2)", "waits until this one has ended"}},
	} {
		log := filepath.Join(w.dir, fmt.Sprintf("claim%d.log", i))
		p := start(t, w.dir, log, claim.args[1:]...)
		t.Cleanup(p.end)
		awaitLog(t, log, append(claim.words, `"level":"WARN"`, "not part of the log yet")...)
		require.False(t, p.ended())
		p.end()
	}
	says(t, refuses(t, 1, w.dir, here(2, "1", "--run-id", "other")...),
		"run id", `(rank 0) has "e2e"`, `(rank 1) has "other"`, "give every rank the same --run-id")
	l.progress(answersBetween)
	l.finish()
	log := w.verify(l)
	require.Equal(t, 2, joined(log), "nobody else has become part of the log")
}

func joined(log []api.Entry) int {
	n := 0
	for i := range log {
		for _, ev := range log[i].Events {
			if ev.NodeJoined != nil {
				n++
			}
		}
	}
	return n
}

// badSecrets: a node without the job's secret is kept out, and both sides say
// why.
func badSecrets(t *testing.T) {
	w := startWorld(t, 2)
	l := w.train()
	first := w.nodes[0]
	args := without(w.nodes[1].args, "--secret-file")
	for i, stranger := range []struct {
		name         string
		secret       []string
		world, there []string // what each side says
	}{
		{"none", nil, []string{"it speaks no TLS"}, []string{"wants TLS, this node has no secret", "--secret-file"}},
		{"another", []string{"--secret-file", newSecret(t, w.dir, "other")}, []string{"bad certificate"}, []string{"does not hold this job's secret", "--secret-file"}},
	} {
		data := filepath.Join(w.dir, stranger.name)
		log := data + ".log"
		p := start(t, w.dir, log, append(with(args, "--data-dir", data, "--socket", fmt.Sprintf("%s/x%d", w.dir, i), "--listen", "127.0.0.1:"+testesperd.FreePort(t)), stranger.secret...)...)
		t.Cleanup(p.end)
		awaitLog(t, first.logFile, append(stranger.world, `"level":"WARN"`, "does not hold this job's secret", "--secret-file")...)
		awaitLog(t, log, append(stranger.there, "127.0.0.1:"+first.port)...)
		require.False(t, p.ended())
		l.progress(answersBetween)
		p.end()
	}
	l.finish()
	require.Equal(t, 2, joined(w.verify(l)))
	b, err := os.ReadFile(w.secret)
	require.NoError(t, err)
	for _, n := range w.nodes {
		log, err := os.ReadFile(n.logFile)
		require.NoError(t, err)
		require.NotContains(t, string(log), string(b), "the secret is nobody's business")
	}
}
