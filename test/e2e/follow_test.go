package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/audit"
)

// A follower is a running `esperd audit --follow --json`.
type follower struct {
	*process
	w    *world
	file string // what it tells
}

func (w *world) follow(args ...string) *follower {
	w.t.Helper()
	f := &follower{process: &process{done: make(chan struct{})}, w: w}
	out, err := os.CreateTemp(w.dir, "follow-")
	require.NoError(w.t, err)
	defer out.Close() // the process has its own
	f.file = out.Name()
	errs, err := os.Create(f.file + ".err")
	require.NoError(w.t, err)
	defer errs.Close()
	f.cmd = command(context.Background(), w.dir, append([]string{"audit", "--follow", "--json"}, args...)...)
	f.cmd.Stdout, f.cmd.Stderr = out, errs
	require.NoError(w.t, f.cmd.Start())
	w.t.Cleanup(f.process.end)
	go func() {
		_ = f.cmd.Wait() // ProcessState has it
		close(f.done)
	}()
	return f
}

// tells waits for an event; of a place with its state and rank.
func (f *follower) tells(event string, place ...any) {
	f.w.t.Helper()
	words := []string{fmt.Sprintf(`"event":%q`, event)}
	if len(place) > 0 {
		words = append(words, fmt.Sprintf(`"state":%q`, place[0]), fmt.Sprintf(`"rank":%d,`, place[1]))
	}
	awaitLog(f.w.t, f.file, words...)
}

// ends waits for the end and returns the report.
func (f *follower) ends(t *testing.T) *audit.Report {
	t.Helper()
	state := f.wait(t)
	b, err := os.ReadFile(f.file)
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	for _, line := range lines {
		var e audit.Event
		require.NoError(t, json.Unmarshal([]byte(line), &e), line)
		require.Equal(t, audit.FollowVersion, e.Version)
		require.False(t, e.Time.IsZero())
	}
	var last audit.Event
	require.NoError(t, json.Unmarshal([]byte(lines[len(lines)-1]), &last))
	require.NotNil(t, last.Report, "%s\n%s", lines[len(lines)-1], tail(f.file+".err", 5))
	require.Equal(t, last.Report.Status, state.ExitCode(), filepath.Base(f.file))
	return last.Report
}
