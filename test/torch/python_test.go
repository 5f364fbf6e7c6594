package torch

import (
	"context"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestPythonClient runs the client's own tests: before a door without an
// esperd, and with real ones.
func TestPythonClient(t *testing.T) {
	python := needPython(t)
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := group(exec.CommandContext(ctx, python, "-W", "error", "-m", "unittest", "--verbose"))
	cmd.Dir = filepath.Join(root, "python")
	cmd.Env = environment(t.TempDir())
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NotContains(t, string(out), "skipped", "a test that could not run")
}
