package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/client"
)

// asTrainer, in the environment, makes the test binary a trainer.
const asTrainer = "TEST_BINARY_IS_TRAINER"

func init() {
	if os.Getenv(asTrainer) != "" {
		beTrainer()
		os.Exit(0)
	}
}

// beTrainer connects and does what it is told line by line, until stdin ends.
// Of everything it says in a line what came of it.
func beTrainer() {
	rank, _ := strconv.ParseUint(os.Getenv("ESPERD_RANK"), 10, 64)
	world, _ := strconv.ParseUint(os.Getenv("ESPERD_WORLD_SIZE"), 10, 64)
	ctx := context.Background()
	var c *client.Client
	do := func(words []string) (string, error) {
		var err error
		switch words[0] {
		case "connect":
			c, err = client.Connect(ctx, os.Getenv("ESPERD_SOCKET"), client.Options{Rank: rank, World: world, Fingerprint: "e2e", Mode: strings.Join(words[1:], ""), Slots: slotRequests(slotNames)})
			if err != nil {
				return "", err
			}
			return fmt.Sprintf("in round %d as process %d", c.Session().Round, os.Getpid()), nil
		case "step":
			epoch, _ := strconv.ParseInt(words[1], 10, 64)
			_, err = c.StepEpoch(ctx, epoch)
		case "end":
			err = c.End(ctx, strings.Join(words[1:], " "))
		case "exit":
			status, _ := strconv.Atoi(words[1])
			os.Exit(status)
		}
		return "done: " + strings.Join(words, " "), err
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		said, err := do(strings.Fields(lines.Text()))
		if err != nil {
			said = "failed: " + err.Error()
		}
		fmt.Println(said)
	}
}

// A trainerProcess is a trainer that is a process of its own.
type trainerProcess struct {
	t    *testing.T
	rank int
	cmd  *exec.Cmd
	in   io.WriteCloser
	said chan string
	done chan struct{} // closed when it has ended
}

// newTrainer starts a trainer of a rank.
func (n *node) newTrainer() *trainerProcess {
	n.w.t.Helper()
	exe, err := os.Executable()
	require.NoError(n.w.t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "ESPERD_SOCKET="+n.socket, fmt.Sprintf("ESPERD_RANK=%d", n.rank), fmt.Sprintf("ESPERD_WORLD_SIZE=%d", len(n.w.nodes)))
	return n.runTrainer(cmd)
}

// execTrainer starts a rank's esperd together with its trainer.
func (n *node) execTrainer() *trainerProcess {
	n.w.t.Helper()
	exe, err := os.Executable()
	require.NoError(n.w.t, err)
	log, err := os.OpenFile(n.logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	require.NoError(n.w.t, err)
	defer log.Close() // the process has its own
	cmd := command(context.Background(), n.w.dir, append(append([]string{"exec", "--log-format", "json"}, n.args...), "--", exe)...)
	cmd.Stderr = log
	p := n.runTrainer(cmd)
	n.process = &process{cmd: cmd, done: p.done}
	return p
}

func (n *node) runTrainer(cmd *exec.Cmd) *trainerProcess {
	t := n.w.t
	t.Helper()
	cmd.Env, cmd.SysProcAttr = append(cmd.Env, asTrainer+"=1"), childAttr()
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	p := &trainerProcess{t: t, rank: n.rank, cmd: cmd, in: in, said: make(chan string, 64), done: make(chan struct{})}
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.said <- lines.Text()
		}
		_ = cmd.Wait() // ProcessState has it
		close(p.done)
	}()
	t.Cleanup(p.kill)
	return p
}

// tell has the trainer do something. It does not wait.
func (p *trainerProcess) tell(what string) {
	p.t.Helper()
	_, err := io.WriteString(p.in, what+"\n")
	require.NoError(p.t, err)
}

// says waits for what the trainer says next, which has to have the words.
func (p *trainerProcess) says(words ...string) string {
	p.t.Helper()
	select {
	case line := <-p.said:
		for _, w := range words {
			require.Contains(p.t, line, w, "rank %d", p.rank)
		}
		return line
	case <-time.After(patience):
		p.t.Fatalf("rank %d says nothing, expected %q", p.rank, words)
		return ""
	}
}

// connected waits until the trainer is in a round and returns its process' id.
func (p *trainerProcess) connected(round uint64) (pid int) {
	p.t.Helper()
	line := p.says(fmt.Sprintf("in round %d as process ", round))
	pid, err := strconv.Atoi(line[strings.LastIndex(line, " ")+1:])
	require.NoError(p.t, err)
	return pid
}

func (p *trainerProcess) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// exited waits for the end of the process and returns its status.
func (p *trainerProcess) exited() int {
	p.t.Helper()
	state := (&process{cmd: p.cmd, done: p.done}).wait(p.t)
	return state.ExitCode()
}
