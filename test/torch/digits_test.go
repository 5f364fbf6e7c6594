package torch

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
)

// TestDigits runs the example on 2 ranks, each with an esperd that it launches.
func TestDigits(t *testing.T) {
	python := needTorch(t)
	t.Parallel()
	dir, err := os.MkdirTemp("/tmp", "digits-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := group(exec.CommandContext(ctx, python, filepath.Join(root, "examples", "ddp_digits.py"), "--ranks", "2", "--epochs", "18", "--data-dir", dir, "--json"))
	cmd.Env = environment(dir)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	require.NoError(t, cmd.Run(), "%s\n%s", &out, &errs)

	lines := bytes.Split(bytes.TrimSpace(out.Bytes()), []byte("\n"))
	var got struct {
		Same      bool
		Decisions int
		Ranks     []struct {
			Stages  map[string]string
			Weights string
		}
	}
	require.NoError(t, json.Unmarshal(lines[len(lines)-1], &got), "%s", &out)
	require.True(t, got.Same)
	require.Greater(t, got.Decisions, 10)
	require.Len(t, got.Ranks, 2)
	require.Equal(t, got.Ranks[0], got.Ranks[1])
	require.Contains(t, []string{events.StagePruned.String(), events.StageEmbargoed.String()}, got.Ranks[0].Stages["r0c2"], "it contributes nothing\n%s", &out)
	require.Equal(t, events.StageFossilized.String(), got.Ranks[0].Stages["r0c0"], "%s", &out)
}
