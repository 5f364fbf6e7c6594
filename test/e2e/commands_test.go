package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/events"
)

// types runs a command against a node and returns what it prints.
func (n *node) types(args ...string) string {
	n.w.t.Helper()
	status, out, errs := finish(n.w.t, n.w.dir, append(args, "--socket", n.socket)...)
	require.Equal(n.w.t, 0, status, errs)
	return out
}

func decodeAs[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	require.NoError(t, json.Unmarshal([]byte(text), &v), "%s", text)
	return v
}

// TestCommands looks at a world of three that has trained, as people and as
// scripts do, then at what is left of it without a quorum.
func TestCommands(t *testing.T) {
	plain(t)
	t.Parallel()
	w := startWorld(t, 3)
	l := w.train()
	l.progress(answersBetween)
	l.finish()
	eventually(t, "the ranks' reports in the log", func() error {
		if got, want := shadowVerdicts(w.nodes[0].events()), disagreements(l); got != want {
			return fmt.Errorf("%d of %d", got, want)
		}
		return nil
	})
	log := w.verify(l) // nothing comes any more
	state := w.nodes[0].mustState()
	n := w.nodes[1]

	says(t, n.types("status"), "rank 1 of 3", "e2e (lineage "+state.Lineage[:12], "member, follower, voter", string(state.Leader[:8])+" (rank 0)", fmt.Sprintf("entry %d", len(log)), "main, generation 1, 4 slots")
	require.Equal(t, *n.mustState(), decodeAs[api.State](t, n.types("status", "--json")))
	slots := n.types("slots")
	says(t, slots, "SLOT", "STAGE", "ALPHA")
	require.Equal(t, state.Models[0], decodeAs[api.Model](t, n.types("slots", "--json")))
	for _, s := range state.Models[0].Slots {
		says(t, slots, s.Name, s.Stage.String())
	}
	says(t, n.types("ranks"), "leader", "follower", "connected", "127.0.0.1:"+w.nodes[2].port)
	for i, r := range decodeAs[api.Ranks](t, n.types("ranks", "--json")).Ranks {
		require.Equal(t, []any{uint64(i), state.Index, state.Chain, ""}, []any{r.Rank, r.Index, r.Chain, r.Unreachable})
		require.Equal(t, events.OpStepEpoch, r.Last.Key.Op)
	}
	logCommands(t, w, log)

	status, out, _ := finish(t, w.dir, "version", "--json")
	require.Equal(t, 0, status)
	require.Equal(t, state.Version, decodeAs[map[string]any](t, out)["version"])

	status, _, errs := finish(t, w.dir, "slots", "--model", "other", "--socket", n.socket)
	require.Equal(t, 1, status)
	says(t, errs, `no model "other"`, "[main]")
	withoutQuorum(t, w, log)
}

// logCommands: every rank prints the same bytes, whole, in part, and as the
// entries come.
func logCommands(t *testing.T, w *world, log []api.Entry) {
	t.Helper()
	all := w.nodes[0].types("events", "--json")
	for _, n := range w.nodes[1:] {
		require.Equal(t, all, n.types("events", "--json"), "rank %d", n.rank)
	}
	lines := strings.Split(strings.TrimSuffix(all, "\n"), "\n")
	var entries []api.Entry
	for _, line := range lines {
		entries = append(entries, decodeAs[api.Entry](t, line))
	}
	sameEntries(t, log, entries)
	require.Equal(t, strings.Join(lines[4:7], "\n")+"\n", w.nodes[2].types("events", "--json", "--from", "5", "--limit", "3"))
	require.Empty(t, w.nodes[2].types("events", "--json", "--from", fmt.Sprint(len(log)+1)))
	table := w.nodes[2].types("events")
	says(t, table, "INDEX", "log of run e2e founded", "round 1 opens with 3 ranks", "germinated: conv", `refused, unknown-slot: advance: model main has no slot "nonesuch"`)
	require.Len(t, strings.Split(strings.TrimSpace(table), "\n"), len(log)+1)
	require.Equal(t, lines[0]+"\n", w.nodes[2].types("events", "--json", "--follow", "--limit", "1"))

	// What comes later is followed too.
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	follow := command(ctx, w.dir, "events", "--follow", "--json", "--from", fmt.Sprint(len(log)+1), "--limit", "10", "--socket", w.nodes[2].socket)
	pipe, err := follow.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, follow.Start())
	l := w.train()
	scan := bufio.NewScanner(pipe)
	scan.Buffer(nil, 1<<20)
	var followed []api.Entry
	for scan.Scan() {
		followed = append(followed, decodeAs[api.Entry](t, scan.Text()))
	}
	require.NoError(t, follow.Wait())
	l.progress(1)
	l.finish()
	sameEntries(t, w.verify(l)[len(log):len(log)+10], followed)
}

// withoutQuorum: what is left answers from what it has, and says so.
func withoutQuorum(t *testing.T, w *world, log []api.Entry) {
	t.Helper()
	w.nodes[0].kill()
	w.nodes[1].kill()
	n := w.nodes[2]
	eventually(t, "a node that knows that it is alone", func() error {
		s, err := n.state()
		if err == nil && s.Quorum {
			err = errors.New("it has a quorum")
		}
		return err
	})
	s := n.mustState()
	says(t, n.types("status"), "NO QUORUM", fmt.Sprintf("What follows is what this node knew last, at entry %d", s.Index), "none known here", "member")
	state := decodeAs[api.State](t, n.types("status", "--json"))
	require.False(t, state.Quorum)
	require.Empty(t, state.Leader)
	says(t, n.types("ranks"), "UNREACHABLE")
	says(t, n.types("slots"), slotNames[0])
	n.holds(log)
	require.ErrorIs(t, n.ready(), client.ErrUnavailable)
	status, _, errs := finish(t, w.dir, "status", "--socket", w.nodes[0].socket)
	require.Equal(t, 1, status)
	says(t, errs, "no esperd answers at "+w.nodes[0].socket, "start it, or name another")
}
