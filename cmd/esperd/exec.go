package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"
)

// killAfter is how long the command may take to end when its esperd failed.
const killAfter = 10 * time.Second

const exitNotFound = 127 // as shells have it

type execCmd struct {
	RunFlags
	Command []string `arg:"" passthrough:"partial" help:"The command and its arguments, after --."`
}

// Help says more than the flags do.
func (*execCmd) Help() string {
	return "The command finds its esperd by ESPERD_SOCKET, ESPERD_DATA_DIR and, where it is known at the start, ESPERD_RUN_ID. It gets every signal that esperd exec gets (on a terminal, SIGINT, SIGQUIT and SIGHUP from the terminal itself), and on Linux SIGTERM when esperd exec is killed. Its exit status (128 + N after signal N) is esperd's own."
}

func (c *execCmd) Run(a *app) error {
	argv := c.Command
	if len(argv) > 0 && argv[0] == "--" {
		argv = argv[1:]
	}
	if len(argv) == 0 {
		return usageError{errors.New("expected a command after --, as in: esperd exec -- python train.py")}
	}
	cfg, err := resolve(c.RunFlags, a.surroundings)
	if err != nil {
		return usageError{err}
	}
	if _, err := exec.LookPath(argv[0]); err != nil {
		fmt.Fprintf(a.stderr, "esperd: error: cannot run the command: %v\n", err)
		return exitError(exitNotFound)
	}
	limitProcs(a.env)
	d, err := openDaemon(cfg, newLogger(a.stderr, &cfg))
	if err != nil {
		return err
	}
	d.announce()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)
	child := &supervisor{argv: argv, env: d.childEnv(a.env), a: a, signals: signals, failed: d.failed(), why: d.failure, killAfter: killAfter}
	err = child.run()
	if status, ok := errors.AsType[exitError](err); ok && status != 0 {
		d.trainerFailed(fmt.Sprintf("its command ended with status %d", status))
	}
	if drained := d.drain(child.hurry()); drained != nil && err != nil {
		d.log.Error(drained.Error()) // the command's own end matters more
	} else if drained != nil {
		err = drained
	}
	return err
}

// supervisor runs a command to its end.
type supervisor struct {
	argv, env []string
	a         *app
	signals   <-chan os.Signal // to pass on
	failed    <-chan struct{}  // closed: the command has to end
	why       func() error     // after failed
	killAfter time.Duration
	shared    bool // the command is in this process's group
}

// run returns the command's own end as an exitError; any other error is why it
// could not run, or had to end.
func (s *supervisor) run() error {
	cmd := exec.Command(s.argv[0], s.argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env = s.a.stdin, s.a.stdout, s.a.stderr, s.env
	// In a group of its own, a signal reaches all of the command, once. But a
	// terminal stops who reads it outside its foreground group.
	s.shared = underTerminal(s.a.stdin)
	cmd.SysProcAttr = tiedToParent(&syscall.SysProcAttr{Setpgid: !s.shared})
	ended, err := startTied(cmd)
	if err != nil {
		return fmt.Errorf("cannot start the command: %w", err)
	}
	to := -cmd.Process.Pid // the group
	if s.shared {
		to = cmd.Process.Pid
	}
	tell := func(n syscall.Signal) { _ = syscall.Kill(to, n) } // it may have ended
	failed := s.failed
	var failure error
	var kill <-chan time.Time
	for {
		select {
		case got := <-s.signals:
			if n, ok := got.(syscall.Signal); ok && !(s.shared && fromTerminal(n)) {
				tell(n)
			}
		case <-failed:
			failed, failure = nil, fmt.Errorf("%w; the command was told to end", s.why())
			tell(syscall.SIGTERM)
			kill = time.After(s.killAfter)
		case <-kill:
			tell(syscall.SIGKILL)
		case err := <-ended:
			if failure != nil {
				return failure
			}
			return exitOf(err)
		}
	}
}

// startTied starts a command on a thread that lives as long as the command:
// tiedToParent ties it to the thread.
func startTied(cmd *exec.Cmd) (ended <-chan error, err error) {
	started, end := make(chan error, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			end <- cmd.Wait()
		}
	}()
	return end, <-started
}

// underTerminal reports whether stdin is the terminal that controls this
// process: a command that reads it has to be in a group that the shell knows.
func underTerminal(stdin io.Reader) bool {
	if !isTerminal(stdin) {
		return false
	}
	tty, err := os.Open("/dev/tty") // there is none under torchrun, whose workers lead sessions
	if err != nil {
		return false
	}
	tty.Close()
	return true
}

// fromTerminal is about the signals that a terminal, or its shell, sends to a
// whole group.
func fromTerminal(n syscall.Signal) bool {
	return n == syscall.SIGINT || n == syscall.SIGQUIT || n == syscall.SIGHUP
}

// settles is for how long after the command's end a signal of the terminal is
// taken for the one that the command ended of.
const settles = 500 * time.Millisecond

// hurry are the signals that tell an esperd to stop at once whose command has
// ended, for as long as this process lives. What the terminal sent to both,
// esperd may see last.
func (s *supervisor) hurry() <-chan os.Signal {
	if !s.shared {
		return s.signals
	}
	ended, out := time.Now(), make(chan os.Signal, 1)
	go func() {
		for got := range s.signals {
			if n, ok := got.(syscall.Signal); ok && fromTerminal(n) && time.Since(ended) < settles {
				continue
			}
			select {
			case out <- got:
			default: // one is enough
			}
		}
	}()
	return out
}

// exitOf turns how a command ended into its status.
func exitOf(err error) error {
	if err == nil {
		return nil
	}
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return fmt.Errorf("waiting for the command: %w", err)
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return exitError(128 + int(status.Signal()))
	}
	return exitError(exit.ExitCode())
}

// childEnv tells the command where its esperd is, and who it is where flags said
// so; else its launcher has told it.
func (d *daemon) childEnv(env map[string]string) []string {
	own := map[string]string{"ESPERD_SOCKET": d.cfg.Socket, "ESPERD_DATA_DIR": d.cfg.DataDir, "ESPERD_RUN_ID": d.runID()}
	if d.cfg.From["round"] == "--round" { // otherwise it sees what was seen here
		own["ESPERD_ROUND"] = d.cfg.Round
	}
	if d.cfg.From["rank"] == "--rank" || d.cfg.From["world_size"] == "--world-size" {
		own["ESPERD_RANK"], own["ESPERD_WORLD_SIZE"] = fmt.Sprint(d.cfg.Rank), fmt.Sprint(d.cfg.World)
	}
	var out []string
	for k, v := range env {
		if _, ours := own[k]; !ours {
			out = append(out, k+"="+v)
		}
	}
	for k, v := range own {
		if v != "" {
			out = append(out, k+"="+v)
		}
	}
	return out
}
