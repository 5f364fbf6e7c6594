package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// What is measured from Python, beside the numbers of slots that a step ticks.
const (
	verdict = "verdict" // a gate result of the trainer's own: the call that takes a broadcast's place
	advance = "advance" // a gate of esperd's, with what it looks at
	check   = "check"   // the step check
)

// How a time of these is taken.
const (
	allRanks    = "all"   // from the first rank's call until the last rank's answer
	lateRank    = "late"  // the same from the last rank's call
	rankZero    = "rank0" // rank 0's call alone
	emptyCall   = "empty" // of check: a call of a function that does nothing
	ofProcessor = "processor"
)

const (
	broadcast  = "broadcast"
	relaxed    = "relaxed"
	versions   = "versions" // a line that tells them
	fewSlots   = 1
	manySlots  = 100
	slotsRanks = 4         // the world size in which slots are compared, or else the first one
	worldMax   = time.Hour // for one world size: something hangs

	ahead                    = 3 * time.Millisecond // enough for 8 ranks on 2 cores to hear of the moment
	checkLoops, checkRepeats = 100_000, 25
)

// pythonSpec is what python_ranks.py is told.
type pythonSpec struct {
	World   int            `json:"world"`
	Port    string         `json:"port"` // of torch's rendezvous
	Turns   int            `json:"turns"`
	Ops     int            `json:"ops"`
	Warmup  int            `json:"warmup"`
	Ahead   time.Duration  `json:"ahead"` // of the moment at which an operation begins
	Loops   int            `json:"check_loops"`
	Repeats int            `json:"check_repeats"` // 0: the step check is not measured
	Systems []pythonSystem `json:"systems"`
}

type pythonSystem struct {
	Name   string `json:"name"`
	Socket string `json:"socket"` // {rank} becomes the rank
	PIDs   []int  `json:"pids"`
	Slots  []int  `json:"slots"` // of the models whose steps are measured
}

// rankLine is what rank 0 says: a block of a system, or something about all.
type rankLine struct {
	System string             `json:"system"`
	What   string             `json:"what"`
	Turn   int                `json:"turn"`
	NS     map[string][]int64 `json:"ns"`
}

// pythonResults are everything that was measured from Python. The measures of a
// row are named by key.
type pythonResults struct {
	results
	versions string
	relaxed  bool     // the esperd has that durability
	check    measures // nil: the client has no step check
}

// key names a measure.
func key(what, how string) string { return what + " " + how }

// steps names the step of a model with so many slots.
func steps(slots int) string { return fmt.Sprintf("step %d", slots) }

// drivePython measures what trainers in Python see, and reports.
func drivePython(s settings) error {
	python, err := torchPython()
	if err != nil {
		fmt.Println("bench: skipped what is measured from Python:", err)
		return nil
	}
	dir, err := workDir(s.dir)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	machine, err := describe(dir)
	if err != nil {
		return err
	}
	fmt.Print(machine)
	b, err := prepare(ctx, dir, python)
	if err != nil {
		return err
	}
	if os.Getenv("ESPERD_BINARY") != "" {
		machine += "esperd is the one that ESPERD_BINARY names, not this tree's. "
	}
	r := &pythonResults{results: results{settings: s, machine: machine, began: time.Now()}}
	if r.relaxed, err = b.hasFlag(ctx, "--durability"); err != nil {
		return err
	}
	for _, n := range s.ranks {
		if err := r.world(ctx, b, n); err != nil {
			return fmt.Errorf("%d ranks: %w", n, err)
		}
	}
	fmt.Print("\n", r.markdown())
	if s.report == "" {
		return nil
	}
	return writeReport(s.report, pythonPart, r.markdown())
}

// torchPython finds an interpreter that has torch. Debian's comes first: it is
// the one that has Debian's torch.
func torchPython() (string, error) {
	var found []string
	for _, name := range []string{os.Getenv("ESPERD_PYTHON"), "/usr/bin/python3", "python3"} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		if exec.Command(path, "-c", "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)").Run() == nil {
			return path, nil
		}
		found = append(found, path)
	}
	return "", fmt.Errorf("expected an interpreter with torch, found none among %q: install it (apt-get install python3-torch), or name one by ESPERD_PYTHON", found)
}

// A build is what one run starts.
type build struct {
	dir, python, script, esperd string
}

// prepare builds esperd from this tree, unless ESPERD_BINARY names one.
func prepare(ctx context.Context, dir, python string) (build, error) {
	root, err := repository()
	if err != nil {
		return build{}, err
	}
	b := build{dir: dir, python: python, script: filepath.Join(root, "test", "bench", "python_ranks.py"), esperd: os.Getenv("ESPERD_BINARY")}
	if b.esperd != "" {
		b.esperd, err = filepath.Abs(b.esperd)
		return b, err
	}
	b.esperd = filepath.Join(dir, "esperd")
	// Without the commit: a checkout of another user's would not build.
	cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", b.esperd, "./cmd/esperd")
	cmd.Dir, cmd.Stderr = root, os.Stderr
	if err := cmd.Run(); err != nil {
		return b, fmt.Errorf("building esperd: %w", err)
	}
	return b, nil
}

// hasFlag asks esperd run for a flag.
func (b build) hasFlag(ctx context.Context, flag string) (bool, error) {
	help, err := exec.CommandContext(ctx, b.esperd, "run", "--help").Output()
	if err != nil {
		return false, fmt.Errorf("%s run --help: %w", b.esperd, err)
	}
	return strings.Contains(string(help), flag), nil
}

// pythonSetups are the esperds of one number of ranks. The first one is what
// users get who choose nothing.
func (r *pythonResults) pythonSetups(n int) []setup {
	var out []setup
	for _, store := range r.settings.stores {
		out = append(out, setup{System: "esperd", Ranks: n, Store: store})
	}
	if r.relaxed {
		out = append(out, setup{System: "esperd", Ranks: n, Store: r.settings.stores[0], Durability: relaxed})
	}
	return out
}

// world measures one number of ranks: all jobs of esperds are up at once, and
// the same processes are the ranks of all.
func (r *pythonResults) world(ctx context.Context, b build, n int) error {
	ctx, fail := context.WithCancelCause(ctx)
	ctx, end := context.WithTimeout(ctx, worldMax)
	var jobs []*job
	defer func() {
		end()
		fail(nil)
		for _, j := range jobs {
			j.wait()
		}
	}()
	spec := pythonSpec{World: n, Turns: r.settings.rounds, Ops: r.settings.ops, Warmup: r.settings.warmup, Ahead: ahead, Loops: checkLoops}
	if n == r.settings.ranks[0] {
		spec.Repeats = checkRepeats
	}
	rows := map[string]*row{broadcast: {setup: setup{System: broadcast, Ranks: n}}}
	r.rows = append(r.rows, rows[broadcast])
	for i, one := range r.pythonSetups(n) {
		one.Dir = filepath.Join(b.dir, fmt.Sprint(n), fmt.Sprint(i))
		j, err := startJob(ctx, fail, b.esperd, one)
		if j != nil {
			jobs = append(jobs, j)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", one.name(), err)
		}
		s := pythonSystem{Name: one.name(), Socket: j.socket("{rank}"), PIDs: j.pids(), Slots: []int{}}
		if i == 0 && n == r.slotsWorld() {
			s.Slots = []int{fewSlots, manySlots}
		}
		spec.Systems = append(spec.Systems, s)
		rows[s.Name] = &row{setup: one}
		r.rows = append(r.rows, rows[s.Name])
	}
	ports, err := freePorts(1)
	if err != nil {
		return err
	}
	spec.Port = ports[0]
	if err := r.ranks(ctx, b, spec, rows); err != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	for _, w := range r.rows[len(r.rows)-len(rows):] {
		fmt.Println(w.pythonLine())
	}
	return nil
}

// slotsWorld is the world size in which the slots are compared.
func (r *pythonResults) slotsWorld() int {
	for _, n := range r.settings.ranks {
		if n == slotsRanks {
			return n
		}
	}
	return r.settings.ranks[0]
}

// ranks runs python_ranks.py and sorts what it says into rows.
func (r *pythonResults) ranks(ctx context.Context, b build, spec pythonSpec, rows map[string]*row) error {
	told, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	cmd := group(exec.CommandContext(ctx, b.python, b.script, string(told)))
	cmd.Env = environment(b.dir, "OMP_NUM_THREADS=1", "PYTHONDONTWRITEBYTECODE=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	read := r.read(out, rows)
	if read != nil { // it would wait for somebody to read on
		_ = cmd.Cancel()
	}
	return errors.Join(read, cmd.Wait())
}

func (r *pythonResults) read(out io.Reader, rows map[string]*row) error {
	for in := json.NewDecoder(out); ; {
		var l rankLine
		if err := in.Decode(&l); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("what python_ranks.py wrote: %w", err)
		}
		m := measures{}
		for how, list := range l.NS {
			for _, ns := range list {
				m[key(l.What, how)] = append(m[key(l.What, how)], time.Duration(ns))
			}
		}
		switch w := rows[l.System]; {
		case l.What == versions:
			r.versions = l.System
		case l.What == check:
			r.check = m
		case w == nil:
			return fmt.Errorf("python_ranks.py: expected one of the systems that it was told, got %q", l.System)
		default:
			for len(w.rounds) <= l.Turn {
				w.rounds = append(w.rounds, measures{})
			}
			for k, list := range m {
				w.rounds[l.Turn][k] = list
			}
		}
	}
}

// pythonLine is a row for who waits.
func (w *row) pythonLine() string {
	out := fmt.Sprintf("%d ranks, %-24s", w.setup.Ranks, w.setup.name())
	for _, what := range []string{verdict, advance} {
		if list := w.all(key(what, allRanks)); len(list) > 0 {
			out += fmt.Sprintf(" %s p50 %s p99 %s ms", what, ms(quantile(list, .5)), ms(quantile(list, .99)))
		}
	}
	return out
}
