package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// socketFitting is how long a unix socket's path may be, on every system.
const socketFitting = 100

// job is one esperd process for each rank, with TLS between them, as a user's
// are.
type job struct {
	dir   string
	world int
	cmds  []*exec.Cmd
	done  sync.WaitGroup
}

// startJob starts the processes, which end with ctx. One that ends by itself
// fails everything.
func startJob(ctx context.Context, fail context.CancelCauseFunc, esperd string, b setup) (*job, error) {
	j := &job{dir: b.Dir, world: b.Ranks}
	if p := j.socket("99"); len(p) > socketFitting {
		return nil, fmt.Errorf("expected room for a socket's path, at most %d characters, got %d (%s): give a shorter directory with -dir", socketFitting, len(p), p)
	}
	if err := os.MkdirAll(b.Dir, 0o700); err != nil {
		return nil, err
	}
	secret := filepath.Join(b.Dir, "secret")
	if err := os.WriteFile(secret, []byte(rand.Text()+rand.Text()+"\n"), 0o600); err != nil {
		return nil, err
	}
	ports, err := freePorts(b.Ranks)
	if err != nil {
		return nil, err
	}
	for rank := range b.Ranks {
		r := strconv.Itoa(rank)
		args := []string{"run", "--rank", r, "--world-size", strconv.Itoa(b.Ranks), "--run-id", "bench", "--log-store", b.Store,
			"--listen", "127.0.0.1:" + ports[rank], "--join", "127.0.0.1:" + ports[0], "--secret-file", secret,
			"--data-dir", filepath.Join(b.Dir, "rank"+r), "--socket", j.socket(r), "--log-format", "json", "--log-level", "warn"}
		if b.Durability != "" {
			args = append(args, "--durability", b.Durability)
		}
		if err := j.start(ctx, fail, rank, group(exec.CommandContext(ctx, esperd, args...))); err != nil {
			return j, err
		}
	}
	return j, nil
}

func (j *job) start(ctx context.Context, fail context.CancelCauseFunc, rank int, cmd *exec.Cmd) error {
	log, err := os.Create(j.log(rank))
	if err != nil {
		return err
	}
	defer log.Close() // the process has its own
	// As torchrun says it, which starts as many on one machine.
	cmd.Env, cmd.Stdout, cmd.Stderr = environment(j.dir, "LOCAL_WORLD_SIZE="+strconv.Itoa(j.world)), log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	j.cmds = append(j.cmds, cmd)
	j.done.Go(func() {
		err := cmd.Wait()
		if ctx.Err() == nil {
			fail(fmt.Errorf("expected the esperd of rank %d to stay, but it ended (%v); its log ends with:\n%s", rank, err, lastLines(j.log(rank), 5)))
		}
	})
	return nil
}

// wait returns when the processes have ended, after ctx.
func (j *job) wait() { j.done.Wait() }

func (j *job) socket(rank string) string { return filepath.Join(j.dir, "s"+rank) }

func (j *job) log(rank int) string { return filepath.Join(j.dir, "log"+strconv.Itoa(rank)) }

func (j *job) pids() []int {
	var out []int
	for _, cmd := range j.cmds {
		out = append(out, cmd.Process.Pid)
	}
	return out
}

// group makes a command the leader of a process group that ends with its
// context, all of it.
func group(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// environment leaves out what would tell a process something else than its
// flags do.
func environment(home string, more ...string) []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "ESPERD_") || strings.HasPrefix(v, "MASTER_") || strings.HasPrefix(v, "TORCHELASTIC_") || strings.HasPrefix(v, "HOME=")
	})
	return append(append(env, "HOME="+home), more...)
}

// given are the ports that jobs of this process have; it is used by one goroutine.
var given = map[string]bool{}

// freePorts finds loopback ports below the range that systems give out by
// themselves, so that nobody else takes one between here and its use.
func freePorts(n int) ([]string, error) {
	const low, span = 20000, 12000
	var ports []string
	start := mathrand.IntN(span)
	for i := range span {
		port := strconv.Itoa(low + (start+i)%span)
		if given[port] { // to a job that may not have opened it yet
			continue
		}
		l, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			return nil, err
		}
		given[port] = true
		if ports = append(ports, port); len(ports) == n {
			return ports, nil
		}
	}
	return nil, errors.New("expected free ports on 127.0.0.1 from 20000 on, found too few: stop what listens there")
}

// lastLines is the end of a log file, for an error.
func lastLines(file string, n int) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return "  " + string(bytes.Join(lines[max(0, len(lines)-n):], []byte("\n  ")))
}
