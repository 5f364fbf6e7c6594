// Package testesperd is what tests of real esperd processes share: the binary under
// test and ports that nobody else has.
package testesperd

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
)

// Binary returns the path of the esperd under test: the one that ESPERD_BINARY
// names, or one built for this test process. Call remove at the end.
func Binary() (path string, remove func(), err error) {
	if given := os.Getenv("ESPERD_BINARY"); given != "" {
		if path, err = filepath.Abs(given); err != nil {
			return "", nil, fmt.Errorf("ESPERD_BINARY: %w", err)
		}
		return path, func() {}, nil
	}
	dir, err := os.MkdirTemp("", "esperd-bin-")
	if err != nil {
		return "", nil, err
	}
	path = filepath.Join(dir, "esperd")
	if err := build(path); err != nil {
		return "", nil, err
	}
	return path, func() { _ = os.RemoveAll(dir) }, nil
}

// Release builds this code as the release of a version, into path.
func Release(path, version string) error { return build(path, "-ldflags", "-X main.version="+version) }

// Faulty builds this code into path with the faults of package fsm and replica,
// which variables of its environment ask for.
func Faulty(path string) error { return build(path, "-tags", "esperdfault") }

func build(path string, flags ...string) error {
	// Without the commit: a checkout of another user's would not build.
	args := append(append([]string{"build", "-buildvcs=false", "-o", path}, raceFlags...), flags...)
	cmd := exec.Command("go", append(args, "github.com/esperd/esperd/cmd/esperd")...)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("building esperd: %w", err)
	}
	return nil
}

// Main builds the binary, runs the tests and returns their exit status.
func Main(m *testing.M, binary *string) int {
	path, remove, err := Binary()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer remove()
	*binary = path
	return m.Run()
}

var nextPort atomic.Int64

// FreePort finds a loopback port below the range that systems give out by
// themselves. No two tests of this process get the same one.
func FreePort(t *testing.T) string {
	t.Helper()
	const low, span = 20000, 12000
	nextPort.CompareAndSwap(0, 1+rand.Int64N(span))
	for range span {
		port := strconv.FormatInt(low+nextPort.Add(1)%span, 10)
		l, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		return port
	}
	t.Fatal("no free port on loopback")
	return ""
}
