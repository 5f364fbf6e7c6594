package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
)

// Exit statuses. exec has its command's.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

type cli struct {
	Run     runCmd     `cmd:"" help:"Run the esperd of one rank, until it is told to stop."`
	Exec    execCmd    `cmd:"" help:"Run a command, such as a trainer, together with its esperd."`
	Demo    demoCmd    `cmd:"" help:"Replay a recorded training run of several ranks on this machine, and compare."`
	Status  statusCmd  `cmd:"" help:"Show what a node knows."`
	Slots   slotsCmd   `cmd:"" help:"Show a model's slots."`
	Ranks   ranksCmd   `cmd:"" help:"Show every rank: where it is and what it waits for."`
	Events  eventsCmd  `cmd:"" help:"Show the log, an entry a line, or export it."`
	Audit   auditCmd   `cmd:"" help:"Verify the logs of ranks, and find where they differ."`
	Replay  replayCmd  `cmd:"" help:"Show the state at any entry of a log, or check that this build still reaches it."`
	Request requestCmd `cmd:"" help:"Ask for something at a model's next fence."`
	Recover recoverCmd `cmd:"" help:"Continue a run whose quorum is lost from a data directory that is left."`
	GC      gcCmd      `cmd:"" name:"gc" help:"List the runs on this machine, and remove old ones."`
	Version versionCmd `cmd:"" help:"Show the version."`
}

// app is the process around a command.
type app struct {
	ctx            context.Context // ends at the first SIGINT or SIGTERM
	signals        <-chan os.Signal
	stdin          io.Reader
	stdout, stderr io.Writer
	surroundings
}

// usageError is what the caller has to write differently.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// exitError is a command's own status, which is passed on.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func main() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	dir, err := os.Getwd()
	if err != nil {
		fmt.Fprintln(os.Stderr, "esperd: the working directory:", err)
		os.Exit(exitFailure)
	}
	a := &app{
		ctx: context.Background(), signals: signals,
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		surroundings: surroundings{env: environment(os.Environ()), dir: dir, isDir: isDir},
	}
	os.Exit(a.run(os.Args[1:]))
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func environment(list []string) map[string]string {
	env := make(map[string]string, len(list))
	for _, kv := range list {
		if k, v, ok := strings.Cut(kv, "="); ok {
			env[k] = v
		}
	}
	return env
}

// run is main without the process.
func (a *app) run(args []string) int {
	exit := -1
	parser, err := kong.New(&cli{}, a.kongOptions(func(status int) { exit = status })...)
	if err != nil {
		panic(err) // a tag in this package is wrong
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	parsed, err := parser.Parse(args)
	if exit >= 0 { // --help
		return exit
	}
	if err != nil {
		err = usageError{err}
	} else {
		err = parsed.Run(a)
	}
	return a.report(err)
}

func (a *app) report(err error) int {
	if err == nil {
		return exitOK
	}
	if status, ok := errors.AsType[exitError](err); ok {
		return int(status)
	}
	if signaled, ok := errors.AsType[interruptedError](err); ok && !strings.HasPrefix(err.Error(), signaled.Error()) {
		err = signaled // the rest says what did not answer, as if it were broken
	} else if errors.Is(err, context.Canceled) {
		err = errors.New("interrupted") // nothing but signals ends a command's context
	}
	fmt.Fprintln(a.stderr, "esperd: error:", err)
	if _, ok := errors.AsType[usageError](err); ok {
		fmt.Fprintln(a.stderr, "`esperd --help` and `esperd COMMAND --help` say what can be given.")
		return exitUsage
	}
	return exitFailure
}

func (a *app) kongOptions(exit func(int)) []kong.Option {
	return []kong.Option{
		kong.Name("esperd"),
		kong.Description("Keeps growing networks the same on every rank of a data-parallel training job."),
		kong.Writers(a.stdout, a.stderr),
		kong.Exit(exit),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, FlagsLast: true}),
		kong.ExplicitGroups([]kong.Group{
			{Key: "who", Title: "Who this is (else from torchrun, SLURM, MPI; else rank 0 of 1)"},
			{Key: "where", Title: "Where its data and doors are"},
			{Key: "peers", Title: "Its peers, the esperds of the other ranks"},
			{Key: "tuning", Title: "Tuning"},
			{Key: "target", Title: "Which esperd to ask (default: rank 0's on this machine)"},
		}),
		// The variable behind a flag: kong itself must not read it, or the
		// source that won would be lost.
		kong.ValueFormatter(func(v *kong.Value) string {
			help := kong.DefaultHelpValueFormatter(v)
			if name := v.Tag.Get("source"); name != "" {
				help += " ($" + name + ")"
			}
			return help
		}),
	}
}

// interruptedError is the cause of a context that a signal has ended.
type interruptedError struct{ os.Signal }

func (e interruptedError) Error() string { return fmt.Sprintf("interrupted (%s)", e.Signal) }

// stopped returns a context that ends with the first signal.
func (a *app) stopped() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(a.ctx)
	go func() {
		select {
		case s := <-a.signals:
			cancel(interruptedError{s})
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}
