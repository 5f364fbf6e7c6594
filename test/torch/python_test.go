package torch

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/test/internal/testesperd"
)

// TestPythonClient runs the client's own tests: before a door without an
// esperd, and with real ones. They wait more than they work, so that the files
// go side by side.
func TestPythonClient(t *testing.T) {
	python := needPython(t)
	t.Parallel()
	faulty := filepath.Join(t.TempDir(), "esperd-fault")
	require.NoError(t, testesperd.Faulty(faulty))
	files, err := filepath.Glob(filepath.Join(root, "python", "tests", "test_*.py"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".py")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
			defer cancel()
			cmd := group(exec.CommandContext(ctx, python, "-W", "error", "-m", "unittest", "--verbose", "tests."+name))
			cmd.Dir = filepath.Join(root, "python")
			cmd.Env = environment(t.TempDir(), "ESPERD_FAULTY_BINARY="+faulty)
			out, err := cmd.CombinedOutput()
			if strings.Contains(string(out), "\nRan 0 tests") { // newer Pythons make an error of it
				missing(t, name+" needs torch, and gcc for the stub of libcuda")
			}
			require.NoError(t, err, "%s", out)
			require.NotContains(t, string(out), "skipped", "a test that could not run")
		})
	}
}
