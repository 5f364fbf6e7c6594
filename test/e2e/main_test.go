package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// binary is the esperd under test.
var binary string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if given := os.Getenv("ESPERD_BINARY"); given != "" {
		path, err := filepath.Abs(given)
		if err != nil {
			fmt.Fprintln(os.Stderr, "ESPERD_BINARY:", err)
			return 1
		}
		binary = path
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "esperd-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "esperd")
	// Without the commit: a checkout of another user's would not build.
	build := exec.Command("go", "build", "-buildvcs=false", "-o", binary, "github.com/esperd/esperd/cmd/esperd")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "building esperd:", err)
		return 1
	}
	return m.Run()
}
