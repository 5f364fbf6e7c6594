package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/events"
)

func TestRequestPrune(t *testing.T) {
	home := t.TempDir()
	right, wrong := filepath.Join(home, "right"), filepath.Join(home, "wrong")
	require.NoError(t, os.WriteFile(right, []byte(strings.Repeat("the-right-one", 2)+"\n"), 0o600))
	require.NoError(t, os.WriteFile(wrong, []byte(strings.Repeat("a wrong one", 2)+"\n"), 0o644))
	up(t, home, "--token-file", right)
	dir := filepath.Join(home, ".local/state/esperd/default/rank0")
	b, err := os.ReadFile(filepath.Join(dir, adminAddrName))
	require.NoError(t, err)
	url := strings.TrimSpace(string(b))
	trainer, err := client.Connect(t.Context(), filepath.Join(dir, socketName), client.Options{Slots: []api.SlotRequest{{Name: "r0c0"}, {Name: "r0c1"}}})
	require.NoError(t, err)
	defer trainer.Close()
	for _, slot := range []string{"r0c0", "r0c1"} {
		_, err = trainer.Germinate(t.Context(), slot, api.GerminateRequest{Blueprint: "conv"})
		require.NoError(t, err)
	}

	refused := func(words string, args ...string) {
		t.Helper()
		status, out, errs := finish(t, esperd(t, home, append([]string{"request", "prune"}, args...)...))
		require.Equal(t, exitFailure, status, errs)
		require.Contains(t, errs, "esperd: error: "+words)
		require.Empty(t, out)
	}
	refused("unknown-slot: request: model main has no slot \"nonesuch\"", "nonesuch")
	refused("config-mismatch: request: expected a model of the log, got \"other\"", "r0c0", "--model", "other")
	refused("illegal-transition: request to prune r0c0: expected a living seed", "r0c0", "--seed", "2")
	refused("not-authority: expected this esperd's token", "r0c0", "--url", url)
	refused("the token file "+wrong+" has mode 0644", "r0c0", "--url", url, "--token-file", wrong)
	require.NoError(t, os.Chmod(wrong, 0o600))
	refused("the token file "+wrong+" holds white space", "r0c0", "--url", url, "--token-file", wrong)
	require.NoError(t, os.WriteFile(wrong, []byte(strings.Repeat("a-wrong-one", 2)), 0o600))
	refused("not-authority: expected this esperd's token", "r0c0", "--url", url, "--token-file", wrong)

	status, out, errs := finish(t, esperd(t, home, "request", "prune", "r0c1", "--seed", "1", "--reason", "it spikes", "--initiator", "eve", "--token-file", filepath.Join(home, "unread")))
	require.Equal(t, exitOK, status, errs)
	require.Regexp(t, `^prune of r0c1#1 \(model main\) is in the log, entry \d+; it is executed at the model's next fence\n$`, out)
	asking := esperd(t, home, "request", "prune", "r0c0", "--url", url, "--json")
	asking.Env = append(asking.Env, "ESPERD_TOKEN_FILE="+right)
	status, out, errs = finish(t, asking)
	require.Equal(t, exitOK, status, errs)
	var done api.Requested
	require.NoError(t, json.Unmarshal([]byte(out), &done))
	status, out, errs = finish(t, esperd(t, home, "status"))
	require.Equal(t, exitOK, status, errs)
	require.Contains(t, out, "prune of r0c1#1 (model main) by eve: it spikes; entry ")
	require.Contains(t, out, "prune of r0c0#1 (model main) by operator; entry ")

	f, err := trainer.StepEpoch(t.Context(), 0)
	require.NoError(t, err)
	require.Len(t, f.Changes, 2)
	require.Equal(t, events.StagePruned, f.Changes[0].To)
	require.Greater(t, f.Index, done.Index)
	refused("illegal-transition: request to prune r0c0: expected a living seed", "r0c0")
}

// Its source is logged, and never what it is.
func TestTheTokenIsNotLogged(t *testing.T) {
	home := t.TempDir()
	file, token := filepath.Join(home, "token"), strings.Repeat("not-to-be-seen", 2)
	require.NoError(t, os.WriteFile(file, []byte(token), 0o600))
	status, _, errs := finish(t, esperd(t, home, "exec", "--token-file", file, "--log-level", "debug", "--", "true"))
	require.Equal(t, exitOK, status, errs)
	require.Contains(t, errs, `"token_file":"`+file+`"`)
	require.Contains(t, errs, `"token_file":"--token-file"`)
	require.NotContains(t, errs, token)
}

// An esperd that does not answer keeps nobody from ending what asks it.
func TestInterruptWhileAsking(t *testing.T) {
	asked := make(chan struct{}, 1)
	hanging := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	}))
	defer hanging.Close()
	for _, args := range [][]string{{"status", "--url"}, {"slots", "--url"}, {"ranks", "--url"}, {"events", "--url"}, {"events"}, {"replay"}} {
		cmd := esperd(t, t.TempDir(), append(args, hanging.URL)...)
		var errs bytes.Buffer
		cmd.Stderr = &errs
		require.NoError(t, cmd.Start())
		<-asked
		require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
		require.Error(t, cmd.Wait(), args)
		require.Equal(t, exitFailure, cmd.ProcessState.ExitCode(), args)
		require.Contains(t, errs.String(), "esperd: error: interrupted", args)
	}
}
