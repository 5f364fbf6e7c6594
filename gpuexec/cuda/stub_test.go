//go:build linux && !nocuda && (amd64 || arm64)

package cuda_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/ebitengine/purego"
	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/gpuexec/cuda"
	"github.com/esperd/esperd/gpuexec/device"
)

// The stub of libcuda, built once for all tests of this package.
var stubDir string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "stub")
	if err != nil {
		panic(err)
	}
	stubDir = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

var build = sync.OnceValues(func() (string, error) { return compile("libcuda.so.1") })

func compile(name string, flags ...string) (string, error) {
	path := filepath.Join(stubDir, name)
	args := append([]string{"-shared", "-fPIC", "-O2", "-Wall", "-Wno-unknown-pragmas", "-o", path, "testdata/stub.c"}, flags...)
	out, err := exec.Command("gcc", args...).CombinedOutput()
	if err != nil {
		err = &compileError{string(out), err}
	}
	return path, err
}

type compileError struct {
	out string
	err error
}

func (e *compileError) Error() string { return e.err.Error() + "\n" + e.out }

// A stub is the library as a test sets it up.
type stub struct {
	path  string
	Reset func()
	Fail  func(name string, after int32, code int32)
	Set   func(what string, v int64)
	Get   func(what string) int64
}

// newStub resets the library, and checks at the end that all was given back.
func newStub(t *testing.T) *stub {
	if _, err := exec.LookPath("gcc"); err != nil {
		if strings.Contains(os.Getenv("ESPERD_REQUIRE"), "gcc") {
			t.Fatal("gcc is missing, and ESPERD_REQUIRE asks for it")
		}
		t.Skip("gcc is missing, so there is no stub of libcuda: apt-get install gcc libc6-dev")
	}
	path, err := build()
	require.NoError(t, err)
	lib, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_LOCAL)
	require.NoError(t, err)
	s := &stub{path: path}
	purego.RegisterLibFunc(&s.Reset, lib, "stub_reset")
	purego.RegisterLibFunc(&s.Fail, lib, "stub_fail")
	purego.RegisterLibFunc(&s.Set, lib, "stub_set")
	purego.RegisterLibFunc(&s.Get, lib, "stub_get")
	s.Reset()
	before := s.Get("live")
	t.Cleanup(func() {
		if !t.Failed() {
			require.Equal(t, before, s.Get("live"), "objects that were not given back")
		}
	})
	return s
}

func (s *stub) open(t *testing.T) device.Device {
	d, err := cuda.Open(cuda.Options{Library: s.path})
	require.NoError(t, err)
	return d
}
