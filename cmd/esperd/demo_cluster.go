package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// stopGrace is how long an esperd may take to drain before it is killed.
const stopGrace = 20 * time.Second

// cluster is one `esperd run` process for each rank, on loopback.
type cluster struct {
	dir   string // of everything that it writes
	ranks []*rankProcess
}

// rankProcess is the esperd of one rank.
type rankProcess struct {
	rank            int
	dataDir, socket string
	logFile         string
	cmd             *exec.Cmd
	done            chan struct{} // closed when it has ended
	err             error         // how; valid after done
}

// startCluster starts the processes; it does not wait until they serve.
func startCluster(world int, durability string, env map[string]string) (*cluster, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("cannot find the esperd binary to start the ranks from: %w", err)
	}
	dir, err := demoDir()
	if err != nil {
		return nil, err
	}
	c := &cluster{dir: dir}
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte(rand.Text()+"\n"), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot write the secret of the demo: %w", err), c.remove())
	}
	ports, err := freePorts(world)
	if err != nil {
		return nil, errors.Join(err, c.remove())
	}
	run := "demo-" + strings.ToLower(rand.Text()[:8])
	for rank := range world {
		p, err := startRank(exe, dir, rank, world, []string{"run",
			"--rank", strconv.Itoa(rank), "--world-size", strconv.Itoa(world), "--run-id", run,
			"--listen", "127.0.0.1:" + ports[rank], "--join", "127.0.0.1:" + ports[0],
			"--secret-file", secret, "--durability", durability, "--log-format", "json"}, env)
		if err != nil {
			c.stop()
			return nil, errors.Join(err, c.remove())
		}
		c.ranks = append(c.ranks, p)
	}
	return c, nil
}

// watch returns a context that a rank which ends cancels, with what it wrote
// last as the cause.
func (c *cluster) watch(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	for _, p := range c.ranks {
		go func() {
			select {
			case <-p.done:
				cancel(fmt.Errorf("the esperd of rank %d ended (%w) while it was needed; its log ends with:\n%s", p.rank, p.ended(), lastLines(p.logFile, 5)))
			case <-ctx.Done():
			}
		}()
	}
	return ctx, func() { cancel(nil) }
}

// ended says how the process ended, after done.
func (p *rankProcess) ended() error {
	if p.err != nil {
		return p.err
	}
	return errors.New("exit status 0")
}

// demoDir is short enough for unix sockets.
func demoDir() (string, error) {
	dir, err := os.MkdirTemp("", "esperd-demo-")
	if err == nil && len(filepath.Join(dir, "rank99", socketName)) > socketFitting {
		os.Remove(dir)
		dir, err = os.MkdirTemp("/tmp", "esperd-demo-")
	}
	if err != nil {
		return "", fmt.Errorf("cannot make a directory for the ranks' data: %w: set TMPDIR to a writable one", err)
	}
	return dir, nil
}

func startRank(exe, dir string, rank, world int, args []string, env map[string]string) (*rankProcess, error) {
	p := &rankProcess{rank: rank, done: make(chan struct{}), logFile: filepath.Join(dir, fmt.Sprintf("rank%d.log", rank))}
	p.dataDir = filepath.Join(dir, fmt.Sprintf("rank%d", rank))
	p.socket = filepath.Join(p.dataDir, socketName)
	log, err := os.OpenFile(p.logFile, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot write the log of rank %d: %w", rank, err)
	}
	defer log.Close() // the process has its own
	p.cmd = exec.Command(exe, append(args, "--data-dir", p.dataDir, "--socket", p.socket)...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.Env = append(cleanEnv(env), "LOCAL_WORLD_SIZE="+strconv.Itoa(world)) // as a launcher says it
	// An interrupt at the terminal is for the demo, which stops its ranks.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start %s for rank %d: %w", exe, rank, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// cleanEnv leaves out what would tell a rank something else than its flags do.
func cleanEnv(env map[string]string) []string {
	var out []string
	for k, v := range env {
		if strings.HasPrefix(k, "ESPERD_") || strings.HasPrefix(k, "MASTER_") || strings.HasPrefix(k, "TORCHELASTIC_") || k == "LOCAL_WORLD_SIZE" {
			continue
		}
		out = append(out, k+"="+v)
	}
	return out
}

// freePorts finds loopback ports below the range that systems give out by
// themselves, so that nobody else takes one between here and the rank's start.
func freePorts(n int) ([]string, error) {
	const low, span = 20000, 12000
	start, err := rand.Int(rand.Reader, big.NewInt(span))
	if err != nil {
		return nil, err
	}
	var ports []string
	for i := range int64(span) {
		port := strconv.FormatInt(low+(start.Int64()+i)%span, 10)
		l, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err != nil {
			continue
		}
		l.Close()
		if ports = append(ports, port); len(ports) == n {
			return ports, nil
		}
	}
	return nil, fmt.Errorf("found %d free ports on 127.0.0.1 from %d to %d, expected %d: stop what listens there", len(ports), low, low+span-1, n)
}

// stop ends every rank: together, because each waits for the others to have
// the whole log.
func (c *cluster) stop() {
	var wg sync.WaitGroup
	for _, p := range c.ranks {
		wg.Go(func() {
			_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
			select {
			case <-p.done:
			case <-time.After(stopGrace):
				_ = p.cmd.Process.Kill()
				<-p.done
			}
		})
	}
	wg.Wait()
}

func (c *cluster) remove() error { return os.RemoveAll(c.dir) }

// lastLines is the end of a log file, for an error.
func lastLines(file string, n int) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return "  " + string(bytes.Join(lines[max(0, len(lines)-n):], []byte("\n  ")))
}
