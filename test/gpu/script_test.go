//go:build linux

package gpu

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestScript builds bin/gpu-check and runs it as it is run on a machine with a GPU,
// on the stub of libcuda: what may go wrong there is then the hardware's. It takes
// a minute, and is run where ESPERD_GPU_SCRIPT is set.
func TestScript(t *testing.T) {
	if os.Getenv("ESPERD_GPU_SCRIPT") == "" || os.Getenv("ESPERD_TRAINER") != "" {
		t.Skip("make gpu-check-try runs it")
	}
	stub := buildStub(t)
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	build := exec.Command("sh", "test/gpu/build.sh")
	build.Dir = root
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	bundle := filepath.Join(t.TempDir(), "gpu-check")
	require.NoError(t, os.CopyFS(bundle, os.DirFS(filepath.Join(root, "bin/gpu-check"))))
	ctx, cancel := context.WithTimeout(t.Context(), 2*trainerMax)
	defer cancel()
	run := exec.CommandContext(ctx, "sh", "./run.sh")
	run.Dir = bundle
	run.Env = append(os.Environ(), "ESPERD_STUB="+stub, "LD_LIBRARY_PATH="+filepath.Dir(stub), "STUB_SET=limit=300000000", "ESPERD_GPU_SCRIPT=",
		"PYTHONPATH="+filepath.Join(root, "python")) // for the stub's part of torch; the client is the bundle's
	out, err = run.CombinedOutput()
	t.Logf("%s", out)
	require.NoError(t, err)
	report, err := os.ReadFile(filepath.Join(bundle, "report.txt"))
	require.NoError(t, err)
	for _, what := range []string{"--- PASS: TestDevice", "--- PASS: TestSameBitsAsHost", "--- PASS: TestFigures", "GB/s, ", "--- PASS: TestTrainer/GPU",
		"both are named", "exit status 0"} {
		require.Contains(t, string(report), what)
	}
	require.NotContains(t, string(report), "SKIP: TestTrainer/GPU")
}
