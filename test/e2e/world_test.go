package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/test/internal/testesperd"
)

// A world is one esperd for each rank.
type world struct {
	t      *testing.T
	dir    string
	secret string // file
	nodes  []*node
}

// A node is one rank's esperd, over all its processes.
type node struct {
	w       *world
	rank    int
	dir     string
	socket  string
	logFile string
	port    string
	args    []string
	program string   // a build of esperd
	process *process // nil: none was started
}

// newWorld prepares a world; nothing runs yet.
func newWorld(t *testing.T, size int) *world {
	t.Helper()
	w := &world{t: t, dir: tempDir(t)}
	w.secret = newSecret(t, w.dir, "secret")
	for rank := range size {
		n := &node{w: w, rank: rank, program: binary, port: testesperd.FreePort(t), logFile: filepath.Join(w.dir, fmt.Sprintf("rank%d.log", rank))}
		n.dir = filepath.Join(w.dir, fmt.Sprintf("rank%d", rank))
		n.socket = filepath.Join(w.dir, fmt.Sprintf("s%d", rank))
		w.nodes = append(w.nodes, n)
	}
	for _, n := range w.nodes {
		n.args = w.argsOf(n.rank, n.port, n.dir, n.socket)
	}
	t.Cleanup(w.end)
	return w
}

// argsOf are the flags of a rank of this world.
func (w *world) argsOf(rank int, port, dir, socket string) []string {
	args := []string{"--rank", strconv.Itoa(rank), "--world-size", strconv.Itoa(len(w.nodes)), "--run-id", "e2e",
		"--listen", "127.0.0.1:" + port, "--data-dir", dir, "--socket", socket, "--secret-file", w.secret}
	if len(w.nodes) > 1 {
		args = append(args, "--join", "127.0.0.1:"+w.nodes[0].port)
	}
	return args
}

func newSecret(t *testing.T, dir, name string) string {
	t.Helper()
	file := filepath.Join(dir, name)
	require.NoError(t, os.WriteFile(file, []byte(strings.Repeat(name, 8)), 0o600))
	return file
}

// startWorld starts all ranks and waits until they are one world.
func startWorld(t *testing.T, size int) *world {
	t.Helper()
	w := newWorld(t, size)
	w.startAll()
	w.settled()
	return w
}

func (w *world) end() {
	for _, n := range w.nodes {
		if n.process != nil {
			n.process.end()
		}
	}
	if keep := os.Getenv("ESPERD_E2E_KEEP"); keep != "" {
		kept := filepath.Join(keep, strings.ReplaceAll(w.t.Name(), "/", "-"))
		w.t.Logf("kept in %s: %v", kept, errors.Join(os.MkdirAll(keep, 0o700), os.RemoveAll(kept), exec.Command("cp", "-r", w.dir, kept).Run()))
	}
	if !w.t.Failed() {
		return
	}
	for _, n := range w.nodes {
		w.t.Logf("the log of rank %d ends with:\n%s", n.rank, tail(n.logFile, 40))
	}
}

func (n *node) start() {
	n.w.t.Helper()
	n.process = startProgram(n.w.t, n.program, n.w.dir, n.logFile, n.args...)
}

func (w *world) startAll() {
	w.t.Helper()
	for _, n := range w.nodes {
		n.start()
	}
}

// kill ends the process as a crash does.
func (n *node) kill() {
	n.w.t.Helper()
	n.process.signal(n.w.t, syscall.SIGKILL)
	n.process.wait(n.w.t)
}

// terminate ends all processes as a scheduler does, which has to be in order.
func (w *world) terminate() {
	w.t.Helper()
	for _, n := range w.nodes {
		n.process.signal(w.t, syscall.SIGTERM)
	}
	for _, n := range w.nodes {
		state := n.process.wait(w.t)
		require.True(w.t, state.Success(), "rank %d: %s\n%s", n.rank, state, tail(n.logFile, 20))
	}
}

// ask lets look read from a node's socket.
func (n *node) ask(look func(context.Context, *client.Admin) error) error {
	ctx, cancel := context.WithTimeout(n.w.t.Context(), 10*time.Second)
	defer cancel()
	a := client.NewAdmin(n.socket)
	defer a.Close()
	return look(ctx, a)
}

// state reads a node's state, as far as it answers.
func (n *node) state() (s *api.State, err error) {
	err = n.ask(func(ctx context.Context, a *client.Admin) error {
		s, err = a.State(ctx)
		return err
	})
	return s, err
}

func (n *node) mustState() *api.State {
	n.w.t.Helper()
	s, err := n.state()
	require.NoError(n.w.t, err)
	return s
}

func (n *node) ready() error {
	return n.ask(func(ctx context.Context, a *client.Admin) error { return a.Ready(ctx) })
}

// settled waits until the whole world is as it should be when nothing is going
// on: rank 0's node leads, and every node has the whole log and the same state.
func (w *world) settled() []*api.State {
	w.t.Helper()
	var states []*api.State
	eventually(w.t, "a settled world", func() error {
		states = nil
		for _, n := range w.nodes {
			if n.process.ended() {
				w.t.Fatalf("the esperd of rank %d has ended: %s\n%s", n.rank, n.process.cmd.ProcessState, tail(n.logFile, 20))
			}
			s, err := n.state()
			if err == nil {
				err = n.ready()
			}
			if err != nil {
				return fmt.Errorf("rank %d: %w", n.rank, err)
			}
			states = append(states, s)
		}
		return unsettled(states)
	})
	return states
}

func unsettled(states []*api.State) error {
	first := states[0]
	if first.Role != "leader" {
		return fmt.Errorf("rank 0's node is %s, expected the leader", first.Role)
	}
	for rank, s := range states {
		switch {
		case s.Phase != "member" || s.Problem != "":
			return fmt.Errorf("rank %d is %s, expected a member without a problem: %s", rank, s.Phase, s.Problem)
		case s.Leader != first.Node:
			return fmt.Errorf("rank %d takes %s for the leader, expected rank 0's %s", rank, s.Leader, first.Node)
		case s.CompleteFrom != 1:
			return fmt.Errorf("rank %d has the history from entry %d on", rank, s.CompleteFrom)
		case s.Index != first.Index || s.Chain != first.Chain:
			return fmt.Errorf("rank %d is at entry %d, chain %s, expected %d, %s", rank, s.Index, s.Chain.Short(), first.Index, first.Chain.Short())
		case s.Bookkeeping != first.Bookkeeping:
			return fmt.Errorf("rank %d has another bookkeeping digest than rank 0", rank)
		case len(s.Models) != len(first.Models):
			return fmt.Errorf("rank %d has %d models, rank 0 %d", rank, len(s.Models), len(first.Models))
		}
		for i, m := range s.Models {
			if m.Lifecycle != first.Models[i].Lifecycle {
				return fmt.Errorf("rank %d has another lifecycle digest of model %s than rank 0", rank, m.Name)
			}
		}
	}
	return nil
}

// inParallel does something for each node at once and waits for all.
func (w *world) inParallel(do func(*node)) {
	var wg sync.WaitGroup
	for _, n := range w.nodes {
		wg.Go(func() { do(n) })
	}
	wg.Wait()
}

// events reads a node's whole log.
func (n *node) events() []api.Entry {
	n.w.t.Helper()
	var log []api.Entry
	err := n.ask(func(ctx context.Context, a *client.Admin) error {
		for from := uint64(1); ; {
			page, err := a.Events(ctx, from, 1000)
			if err != nil {
				return err
			}
			log = append(log, page.Entries...)
			if from = page.Next; from == 0 {
				return nil
			}
		}
	})
	require.NoError(n.w.t, err)
	return log
}

// alive fails the test if a process ended that should serve.
func (w *world) alive() error {
	for _, n := range w.nodes {
		if n.process.ended() {
			return fmt.Errorf("the esperd of rank %d has ended: %s\n%s", n.rank, n.process.cmd.ProcessState, tail(n.logFile, 20))
		}
	}
	return nil
}
