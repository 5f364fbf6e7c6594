//go:build linux

package gpu

import (
	"bufio"
	"cmp"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/gpuexec"
	"github.com/esperd/esperd/gpuexec/device"
	"github.com/esperd/esperd/gpuexec/element"
	"github.com/esperd/esperd/gpuexec/exectest"
)

// python is one that has torch, which Debian's has and another need not.
var python = cmp.Or(os.Getenv("PYTHON"), "/usr/bin/python3")

// A trainer with torch on an arena, on the GPU and on the host.
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
	for _, spec := range []string{"host", cmp.Or(os.Getenv("ESPERD_DEVICE"), "cuda")} {
		t.Run(spec, func(t *testing.T) {
			if spec != "host" {
				d, _, err := gpuexec.OpenDevice(spec, "")
				if err != nil {
					if required("cuda") {
						t.Fatal(err)
					}
					t.Skip(err)
				}
				require.NoError(t, d.Close())
			}
			socket := filepath.Join(t.TempDir(), "s")
			self, err := os.Executable()
			require.NoError(t, err)
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
			require.NoError(t, err)
			f, err := l.File()
			require.NoError(t, err)
			l.SetUnlinkOnClose(false)
			server := exec.Command(self, "-test.run", "^TestServe$", "-test.v")
			server.Env = append(os.Environ(), "ESPERD_SERVE="+spec)
			server.ExtraFiles = []*os.File{f}
			server.Stderr = os.Stderr
			require.NoError(t, server.Start())
			l.Close()
			f.Close()
			out, err := exec.Command(python, cmp.Or(os.Getenv("ESPERD_TRAINER"), "trainer.py"), socket, fmt.Sprint(server.Process.Pid)).CombinedOutput()
			t.Logf("%s", out)
			require.NoError(t, err)
			require.ErrorContains(t, server.Wait(), "killed", "the trainer kills it, and goes on")
		})
	}
}

// TestServe is the executor's process: for one connection, that it inherits.
func TestServe(t *testing.T) {
	spec := os.Getenv("ESPERD_SERVE")
	if spec == "" {
		t.Skip("this is TestTrainer's other process")
	}
	d, _, err := gpuexec.OpenDevice(spec, "")
	require.NoError(t, err)
	l, err := net.FileListener(os.NewFile(3, "socket"))
	require.NoError(t, err)
	conn, err := l.Accept()
	require.NoError(t, err)
	s := &server{c: conn.(*net.UnixConn), log: exectest.NewLog(t, exectest.Slots([]string{"a", "b"}, block)...)}
	s.x = gpuexec.New(gpuexec.Options{Run: exectest.Run, Model: "main", Device: d})
	s.x.Fence(s.log.State)
	in := bufio.NewScanner(conn)
	for in.Scan() {
		answer, err := s.command(in.Text())
		if err != nil {
			answer = map[string]any{"error": err.Error()}
		}
		if answer != nil {
			text, err := json.Marshal(answer)
			require.NoError(t, err)
			_, err = conn.Write(append(text, '\n'))
			require.NoError(t, err)
		}
	}
}

type server struct {
	c   *net.UnixConn
	x   *gpuexec.Executor
	log *exectest.Log
}

// command does what the trainer asks for. Every stage change is a fence.
func (s *server) command(what string) (any, error) {
	switch what {
	case "attach":
		o, err := s.x.Attach("trainer.py")
		if err != nil {
			return nil, err
		}
		return nil, device.Send(s.c, o)
	case "view":
		return s.x.View("a", block.Tensors)
	case "attest":
		return s.x.Attest()
	case "first": // bytes of the first parameter, as the log makes them
		p := element.Parameter{Run: exectest.Run, Model: "main", Generation: 1, Slot: "a", Germination: 1, Tensor: block.Tensors[0].Name}
		b, err := gpuexec.Initial(p, block.Tensors[0], 64)
		return map[string]string{"bytes": hex.EncodeToString(b)}, err
	case "germinate":
		s.log.Germinate("a", "block")
	case "train":
		s.log.Pass("a", events.G1)
	case "blend":
		s.log.Pass("a", events.G2)
		s.log.Epoch()
	case "hold":
		s.log.Epoch()
		s.log.Pass("a", events.G3)
	default:
		return nil, fmt.Errorf("unknown command %q", what)
	}
	return s.x.Fence(s.log.State), nil
}
