//go:build linux

package gpu

import (
	"bufio"
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/gpuexec"
	"github.com/esperd/esperd/gpuexec/element"
	"github.com/esperd/esperd/test/internal/testesperd"
)

const (
	trainerMax = 4 * time.Minute
	runID      = "gpu-check"
)

// python is one that has torch, which Debian's has and another need not.
var python = cmp.Or(os.Getenv("PYTHON"), "/usr/bin/python3")

// Two ranks with torch, the Python client and an esperd each: on a GPU, or where
// the sources are on the stub of libcuda.
func TestTrainer(t *testing.T) {
	if testing.Short() {
		t.Skip("the race detector sees nothing of other processes")
	}
	if out, err := exec.Command(python, "-c", "import torch").CombinedOutput(); err != nil {
		if required("torch") {
			t.Fatalf("torch is missing, and ESPERD_REQUIRE asks for it: %s", out)
		}
		t.Skipf("%s has no torch", python)
	}
	binary, remove, err := testesperd.Binary()
	require.NoError(t, err)
	t.Cleanup(remove)
	t.Run("stub", func(t *testing.T) {
		if os.Getenv("ESPERD_TRAINER") != "" {
			t.Skip("it is run where the sources are, not by run.sh")
		}
		stub := buildStub(t)
		train(t, binary, "cuda", "ESPERD_STUB="+stub, "LD_LIBRARY_PATH="+filepath.Dir(stub))
	})
	t.Run("GPU", func(t *testing.T) {
		open(t) // or skip
		train(t, binary, cmp.Or(os.Getenv("ESPERD_DEVICE"), "cuda"))
	})
}

// buildStub compiles the stub of libcuda.
func buildStub(t *testing.T) string {
	if _, err := exec.LookPath("gcc"); err != nil {
		if required("gcc") {
			t.Fatal("gcc is missing, and ESPERD_REQUIRE asks for it")
		}
		t.Skip("gcc is missing, so there is no stub of libcuda")
	}
	path := filepath.Join(t.TempDir(), "libcuda.so.1")
	out, err := exec.Command("gcc", "-shared", "-fPIC", "-O2", "-Wno-unknown-pragmas", "-o", path, "../../gpuexec/cuda/testdata/stub.c").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return path
}

// expected returns the first bytes of the trainer's parameters.
func expected(t *testing.T) string {
	first := map[string]string{}
	for slot, tensors := range map[string][]events.Tensor{
		"a": {{Name: "weight", Shape: []uint64{256, 384}, DType: "float32", Init: uniform(0.1)},
			{Name: "bias", Shape: []uint64{384}, DType: "float32", Init: &events.Init{Rule: events.InitConstant, Value: 0.5}},
			{Name: "sixteen", Shape: []uint64{1000, 33}, DType: "float16", Init: uniform(0.3)}},
		"b": {{Name: "brain", Shape: []uint64{5_234_567}, DType: "bfloat16", Init: uniform(2), Master: true}},
	} {
		for _, x := range tensors {
			b, err := gpuexec.Initial(element.Parameter{Run: runID, Model: "main", Generation: 1, Slot: slot, Germination: 1, Tensor: x.Name}, x, 64)
			require.NoError(t, err)
			first[x.Name] = hex.EncodeToString(b)
		}
	}
	text, err := json.Marshal(first)
	require.NoError(t, err)
	return string(text)
}

// A rank is a trainer and its esperd, which it has killed and started again.
type rank struct {
	t       *testing.T
	ctx     context.Context
	binary  string
	args    []string
	env     []string
	esperd  *exec.Cmd
	log     *os.File
	trainer *exec.Cmd
	said    strings.Builder
}

func train(t *testing.T, binary, device string, env ...string) {
	dir, err := os.MkdirTemp("/tmp", "gpu-") // t.TempDir would be too long for a socket
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), trainerMax)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	first, rendezvous, want := testesperd.FreePort(t), testesperd.FreePort(t), expected(t)
	env = append(append(os.Environ(), "HOME="+dir, "ESPERD_DEVICE="+device, "PYTHONDONTWRITEBYTECODE=1", "OMP_NUM_THREADS=1", "MASTER_ADDR=127.0.0.1",
		"MASTER_PORT="+rendezvous, "GLOO_SOCKET_IFNAME=lo"), env...)
	if os.Getenv("ESPERD_TRAINER") == "" {
		env = append(env, "PYTHONPATH=../../python")
	}
	var ranks [2]*rank
	for i := range ranks {
		r, socket, port := strconv.Itoa(i), filepath.Join(dir, fmt.Sprint("s", i)), first
		args := []string{"run", "--rank", r, "--world-size", "2", "--run-id", runID, "--device", device, "--data-dir", filepath.Join(dir, "rank"+r), "--socket", socket}
		if i > 0 {
			port = testesperd.FreePort(t)
			args = append(args, "--join", "127.0.0.1:"+first)
		}
		ranks[i] = &rank{t: t, ctx: ctx, binary: binary, args: append(args, "--listen", "127.0.0.1:"+port), env: env}
		ranks[i].log, err = os.Create(filepath.Join(dir, "log"+r))
		require.NoError(t, err)
		t.Cleanup(ranks[i].end)
		ranks[i].start()
		ranks[i].trainer = exec.CommandContext(ctx, python, cmp.Or(os.Getenv("ESPERD_TRAINER"), "trainer.py"), r, socket, want)
		ranks[i].trainer.Env = env
	}
	defer func() {
		cancel()
		for _, r := range ranks {
			_ = r.esperd.Wait() // it was killed
		}
	}()
	var wg sync.WaitGroup
	var errs [2]error
	for i, r := range ranks {
		wg.Go(func() {
			if errs[i] = r.run(); errs[i] != nil {
				cancel() // the other one waits for it
			}
		})
	}
	wg.Wait()
	for i, r := range ranks {
		t.Logf("rank %d\n%s", i, r.said.String())
	}
	for i := range ranks {
		require.NoError(t, errs[i], "rank %d", i)
	}
}

func (r *rank) start() {
	r.esperd = exec.CommandContext(r.ctx, r.binary, r.args...)
	r.esperd.Env = r.env
	r.esperd.Stderr = r.log
	require.NoError(r.t, r.esperd.Start())
}

func (r *rank) end() {
	if r.t.Failed() {
		text, _ := os.ReadFile(r.log.Name())
		r.t.Logf("esperd's log ends with\n%s", text[max(0, len(text)-4000):])
	}
	require.NoError(r.t, r.log.Close())
}

// run runs the trainer, and does what it asks for.
func (r *rank) run() error {
	r.trainer.Stderr = &r.said
	in, err := r.trainer.StdinPipe()
	if err != nil {
		return err
	}
	out, err := r.trainer.StdoutPipe()
	if err != nil {
		return err
	}
	if err := r.trainer.Start(); err != nil {
		return err
	}
	var lines []string
	for s := bufio.NewScanner(out); s.Scan(); {
		switch s.Text() {
		case "@kill":
			_ = r.esperd.Process.Kill()
			_ = r.esperd.Wait() // it was killed
		case "@start":
			r.start()
		default:
			lines = append(lines, s.Text())
			continue
		}
		if _, err := in.Write([]byte("done\n")); err != nil {
			return err
		}
	}
	err = r.trainer.Wait()
	r.said.WriteString(strings.Join(lines, "\n"))
	return err
}
