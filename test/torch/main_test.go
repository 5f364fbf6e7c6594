package torch

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/test/internal/testesperd"
)

// binary is the esperd under test, root the repository.
var binary, root string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	var err error
	if root, err = filepath.Abs(filepath.Join("..", "..")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return testesperd.Main(m, &binary)
}

// needPython returns the interpreter, which is Debian's where there is one: it
// is the one that has Debian's torch.
func needPython(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("what runs here is Python and an esperd without the race detector")
	}
	sources(t)
	for _, name := range []string{os.Getenv("ESPERD_PYTHON"), "/usr/bin/python3", "python3"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	missing(t, "python3 is missing: install it (apt-get install python3-torch)")
	return ""
}

func needTorch(t *testing.T) string {
	t.Helper()
	python := needPython(t)
	if err := exec.Command(python, "-c", "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)").Run(); err != nil {
		missing(t, python+" has no torch: install it (apt-get install python3-torch), or name another interpreter by ESPERD_PYTHON")
	}
	return python
}

func missing(t *testing.T, why string) {
	t.Helper()
	if strings.Contains(os.Getenv("ESPERD_REQUIRE"), "torch") {
		t.Fatal("ESPERD_REQUIRE asks for torch: " + why)
	}
	t.Skip(why)
}

// sources looks at every file that a test depends on without Go's knowledge, so
// that go test does not take a result from its cache when one has changed.
func sources(t *testing.T) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := d.Name(); d.IsDir() && path != root && (strings.HasPrefix(name, ".") || name == "__pycache__" || name == "bin") {
			return fs.SkipDir
		}
		switch filepath.Ext(path) {
		case ".py", ".go", ".mod", ".toml", ".gz", ".c", ".h", ".ptx", ".json":
			_, err = os.Stat(path)
		}
		return err
	}))
}
