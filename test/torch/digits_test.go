package torch

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/test/internal/testesperd"
)

// TestDigits runs the example on 4 ranks, each with an esperd that it launches,
// under torch's own launcher: once rank 0 alone decides, once every rank asks.
// The network comes out the same.
func TestDigits(t *testing.T) {
	python := needTorch(t)
	t.Parallel()
	weights := map[string]string{}
	for _, mode := range []string{events.ModeFollow, events.ModeKeyed} {
		t.Run(mode, func(t *testing.T) {
			dir, err := os.MkdirTemp("/tmp", "digits-")
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
			got := digits(t, python, dir, mode)
			require.True(t, got.Same)
			require.Greater(t, got.Decisions, 10)
			require.Len(t, got.Ranks, 4)
			for _, r := range got.Ranks {
				require.Equal(t, got.Ranks[0].Stages, r.Stages)
				require.Equal(t, got.Ranks[0].Weights, r.Weights)
			}
			require.Equal(t, events.StageFossilized.String(), got.Ranks[0].Stages["r0c0"])
			require.Contains(t, []string{events.StagePruned.String(), events.StageEmbargoed.String()}, got.Ranks[0].Stages["r0c2"], "it contributes nothing")
			weights[mode] = got.Ranks[0].Weights
			replays(t, dir, got.Ranks[0].Stages)
		})
	}
	require.Equal(t, weights[events.ModeFollow], weights[events.ModeKeyed])
}

type digitsResult struct {
	Same      bool
	Decisions int
	Ranks     []struct {
		Stages    map[string]string
		Alphas    map[string]float64
		Lifecycle string
		Weights   string
	}
}

func digits(t *testing.T, python, dir, mode string) digitsResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	// Without -r and -t torchrun of Debian's torch 1.13 crashes.
	cmd := group(exec.CommandContext(ctx, python, "-m", "torch.distributed.run", "--nproc_per_node", "4", "--master_port", testesperd.FreePort(t), "-r", "1", "-t", "1",
		filepath.Join(root, "examples", "ddp_digits.py"), "--mode", mode, "--epochs", "18", "--data-dir", dir, "--json"))
	cmd.Env = environment(dir)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	require.NoError(t, cmd.Run(), "%s\n%s", &out, &errs)
	for line := range bytes.Lines(out.Bytes()) { // [default0]:{...}
		if at := bytes.IndexByte(line, '{'); at >= 0 {
			var got digitsResult
			require.NoError(t, json.Unmarshal(line[at:], &got), "%s", line)
			return got
		}
	}
	t.Fatalf("no result in\n%s", &out)
	return digitsResult{}
}

// replays applies each rank's whole history to nothing: it comes to the stages
// that the trainers had, and every rank's history is the same, but for the ends of
// trainers that those who had ended before do not have.
func replays(t *testing.T, dir string, stages map[string]string) {
	t.Helper()
	chains := make([][]events.Digest, 4)
	for rank := range 4 {
		h, err := events.OpenHistory(filepath.Join(dir, fmt.Sprintf("rank%d", rank), "history.db"), events.HistoryOptions{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
		require.NoError(t, err)
		index, _, _ := h.Head()
		require.Equal(t, uint64(1), h.CompleteFrom())
		s := fsm.New()
		require.NoError(t, h.Range(1, index, func(r events.Record) error {
			chains[rank] = append(chains[rank], r.Chain)
			e, err := events.Decode(r.Entry)
			if err != nil {
				return err
			}
			next, out, err := fsm.Apply(s, e)
			if out.Refused != "" {
				return fmt.Errorf("entry %d: %s", r.Index, out.Refused)
			}
			s = next
			return err
		}))
		require.NoError(t, h.Close())
		for i, slot := range s.Model("main").Config.Slots {
			require.Equal(t, stages[slot.Name], s.Model("main").Slots.At(i).Stage().String(), "rank %d, slot %s", rank, slot.Name)
		}
		n := min(len(chains[0]), len(chains[rank]))
		require.Equal(t, chains[0][:n], chains[rank][:n], "rank %d", rank)
	}
}
