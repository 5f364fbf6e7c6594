package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// patience is how long anything may take that has to happen at all: a bound for
// a machine under load, and no measure.
const patience = 60 * time.Second

// tempDir is short enough for the path of a socket.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "e2e-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// command prepares an esperd in a home of its own.
func command(ctx context.Context, home string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = []string{"HOME=" + home, "TMPDIR=" + home, "PATH=" + os.Getenv("PATH"),
		"GORACE=halt_on_error=1"} // an esperd with a data race dies of it
	cmd.Dir = home
	cmd.SysProcAttr = childAttr()
	return cmd
}

// finish runs a command to its end.
func finish(t *testing.T, home string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := command(ctx, home, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	require.NoError(t, ctx.Err(), "esperd %s does not end\n%s", strings.Join(args, " "), &errs)
	if _, exited := errors.AsType[*exec.ExitError](err); !exited {
		require.NoError(t, err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// refuses runs a command that has to fail, and returns the last line that it
// wrote to stderr, which is for the user.
func refuses(t *testing.T, status int, home string, args ...string) string {
	t.Helper()
	got, _, errs := finish(t, home, args...)
	require.Equal(t, status, got, errs)
	_, message, found := strings.Cut("\n"+errs, "\nesperd: error: ")
	require.True(t, found, errs)
	return message
}

// says checks that a message names everything that a user needs to know.
func says(t *testing.T, message string, words ...string) {
	t.Helper()
	for _, w := range words {
		require.Contains(t, message, w)
	}
}

// A process is a running `esperd run`.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended; cmd.ProcessState says how
}

// start starts `esperd run`, which appends to a log file.
func start(t *testing.T, home, logFile string, args ...string) *process {
	t.Helper()
	return startProgram(t, binary, home, logFile, args...)
}

// startProgram is start with another build of esperd.
func startProgram(t *testing.T, program, home, logFile string, args ...string) *process {
	t.Helper()
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	require.NoError(t, err)
	defer log.Close() // the process has its own
	p := &process{cmd: command(context.Background(), home, append([]string{"run", "--log-format", "json"}, args...)...), done: make(chan struct{})}
	p.cmd.Path = program
	p.cmd.Stdout, p.cmd.Stderr = log, log
	require.NoError(t, p.cmd.Start())
	go func() {
		_ = p.cmd.Wait() // ProcessState has it
		close(p.done)
	}()
	return p
}

func (p *process) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	require.NoError(t, p.cmd.Process.Signal(s))
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// wait returns how the process ended.
func (p *process) wait(t *testing.T) *os.ProcessState {
	t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState
	case <-time.After(patience):
		t.Fatal("the process does not end")
		return nil
	}
}

// end is for cleaning up.
func (p *process) end() {
	_ = p.cmd.Process.Kill() // also one that is stopped
	<-p.done
}

// eventually waits until look returns nil.
func eventually(t *testing.T, what string, look func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 160*time.Millisecond) {
		err := look()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		if t.Context().Err() != nil {
			t.Fatal(what)
		}
		time.Sleep(pause)
	}
}

// awaitLog waits until a log file has a line with all of the words.
func awaitLog(t *testing.T, file string, words ...string) string {
	t.Helper()
	var found string
	eventually(t, fmt.Sprintf("a line in %s with %q", filepath.Base(file), words), func() error {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
	lines:
		for line := range strings.SplitSeq(string(b), "\n") {
			for _, w := range words {
				if !strings.Contains(line, w) {
					continue lines
				}
			}
			found = line
			return nil
		}
		return errors.New("it is not there")
	})
	return found
}

// tail is the end of a log file, for a failed test.
func tail(file string, n int) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
