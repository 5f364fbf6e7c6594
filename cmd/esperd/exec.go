package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
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
	return "The command finds its esperd by ESPERD_SOCKET, ESPERD_DATA_DIR and ESPERD_RUN_ID. It gets every signal that esperd exec gets, and its exit status (128 + N after signal N) is esperd's own."
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
	if drained := d.drain(signals); drained != nil && err != nil {
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
}

// run returns the command's own end as an exitError; any other error is why it
// could not run, or had to end.
func (s *supervisor) run() error {
	cmd := exec.Command(s.argv[0], s.argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env = s.a.stdin, s.a.stdout, s.a.stderr, s.env
	// In a group of its own, a signal reaches all of the command, once.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot start the command: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	tell := func(n syscall.Signal) { _ = syscall.Kill(-cmd.Process.Pid, n) } // it may have ended
	failed := s.failed
	var failure error
	var kill <-chan time.Time
	for {
		select {
		case got := <-s.signals:
			if n, ok := got.(syscall.Signal); ok {
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

// childEnv tells the command where its esperd is. Who it is, its launcher has
// told it.
func (d *daemon) childEnv(env map[string]string) []string {
	own := map[string]string{"ESPERD_SOCKET": d.cfg.Socket, "ESPERD_DATA_DIR": d.cfg.DataDir, "ESPERD_RUN_ID": d.runID()}
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
