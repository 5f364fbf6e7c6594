// Bench measures how long it takes until a decision of rank 0 is visible on
// every rank, and the same of a put into an embedded etcd until every watcher
// has it, in one run and in turns. With -python it measures what a trainer in
// Python sees, and the same of a broadcast.
//
//	go run -C test/bench . -report ../../docs/bench.md
//	go run -C test/bench . -python -report ../../docs/bench.md
//	go run -C test/bench . -restarts -report ../../docs/bench.md
//
// It is a module of its own, so that etcd is no dependency of esperd. Every
// system runs in a process of its own, on a directory of its own. For each
// number of ranks all systems run at once and take turns, in short blocks of
// operations, so that whatever else the machine does meets them alike.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// headlineRanks is the world size whose ratio has a target.
const headlineRanks = 3

type settings struct {
	rounds, ops, warmup int
	pause               time.Duration
	ranks               []int
	stores              []string
	dir                 string
	report              string
	target              float64
	profile             string
	python              bool
	restarts            bool
	entries             uint64
}

func main() {
	var s settings
	var ranks, stores, child string
	flag.IntVar(&s.rounds, "rounds", 40, "rounds: every system has one block in each")
	flag.IntVar(&s.ops, "ops", 50, "operations of a block")
	flag.IntVar(&s.warmup, "warmup", 100, "operations of a system before its first block")
	flag.DurationVar(&s.pause, "pause", 0, "between two operations; a trainer's are rare")
	flag.StringVar(&ranks, "ranks", "", "world sizes; default 2,3,4,8, with -python 2,4,8. etcd has a watcher for each rank where there are 3 or more")
	flag.StringVar(&stores, "log-store", "wal,boltdb", "raft logs of esperd; the first one also relaxed, from Python")
	flag.StringVar(&s.dir, "dir", "", "where to write, on a disk; default: a new directory beside the repository")
	flag.StringVar(&s.report, "report", "", "markdown file whose marked part is replaced by the results")
	flag.Float64Var(&s.target, "target", 1.0, "highest ratio that passes: to etcd at 3 ranks, to a broadcast at 4 and more")
	flag.StringVar(&s.profile, "profile", "", "directory for a CPU profile of each system")
	flag.BoolVar(&s.python, "python", false, "measure from Python, in processes of their own (needs torch), instead of etcd")
	flag.BoolVar(&s.restarts, "restarts", false, "measure what restarts cost: new rounds, marks, fetched histories")
	flag.Uint64Var(&s.entries, "entries", 1_000_000, "entries of the log that -restarts has fetched")
	flag.StringVar(&child, "child", "", "be one system, described in JSON; for the program itself")
	flag.Parse()
	s.stores = strings.Split(stores, ",")
	if ranks == "" {
		ranks = "2,3,4,8"
		if s.python {
			ranks = "2,4,8"
		}
	}
	for _, r := range strings.Split(ranks, ",") {
		n, err := strconv.Atoi(r)
		if err != nil || n < 1 {
			fmt.Fprintf(os.Stderr, "bench: -ranks: expected numbers, got %q\n", r)
			os.Exit(2)
		}
		s.ranks = append(s.ranks, n)
	}
	run := func() error { return drive(s) }
	switch {
	case s.restarts:
		run = func() error { return driveRestarts(s) }
	case s.python:
		run = func() error { return drivePython(s) }
	case child != "":
		run = func() error { return serve(child) }
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// A setup is one system in one size.
type setup struct {
	System     string        `json:"system"` // "esperd" or "etcd"; from Python "esperd" or "broadcast"
	Ranks      int           `json:"ranks"`  // nodes of esperd; watchers of etcd, which has 3 members
	Store      string        `json:"store,omitempty"`
	Durability string        `json:"durability,omitempty"` // of esperd, where it is not the default
	TLS        bool          `json:"tls,omitempty"`
	Ops        int           `json:"ops"`
	Warmup     int           `json:"warmup"`
	Pause      time.Duration `json:"pause"`
	Dir        string        `json:"dir"`
	Profile    string        `json:"profile,omitempty"`
}

func (b setup) name() string {
	switch {
	case b.System == broadcast:
		return broadcast
	case b.Durability != "":
		return "esperd, " + b.Store + ", " + b.Durability
	case b.System == "esperd":
		return "esperd, " + b.Store
	case b.TLS:
		return "etcd with TLS"
	default:
		return "etcd"
	}
}

// setups are the systems of one number of ranks.
func (s settings) setups(n int) []setup {
	var out []setup
	for _, store := range s.stores {
		out = append(out, setup{System: "esperd", Ranks: n, Store: store})
	}
	if n >= etcdMembers {
		out = append(out, setup{System: "etcd", Ranks: n})
	}
	if n == headlineRanks { // as esperd always has it between its nodes
		out = append(out, setup{System: "etcd", Ranks: n, TLS: true})
	}
	for i := range out {
		out[i].Ops, out[i].Warmup, out[i].Pause = s.ops, s.warmup, s.pause
		if s.profile != "" {
			out[i].Profile = filepath.Join(s.profile, fmt.Sprintf("%s-%d.pprof", strings.ReplaceAll(out[i].name(), ", ", "-"), n))
		}
	}
	return out
}

// drive runs all systems and reports.
func drive(s settings) error {
	dir, err := workDir(s.dir)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-interrupted
		_ = os.RemoveAll(dir)
		os.Exit(130) // the children end with their standard input
	}()
	machine, err := describe(dir)
	if err != nil {
		return err
	}
	fmt.Print(machine)
	results := &results{settings: s, machine: machine, began: time.Now()}
	for _, n := range s.ranks {
		if err := results.run(filepath.Join(dir, fmt.Sprint(n)), s.setups(n)); err != nil {
			return fmt.Errorf("%d ranks: %w", n, err)
		}
	}
	fmt.Print("\n", results.markdown())
	if s.report == "" {
		return nil
	}
	return writeReport(s.report, etcdPart, results.markdown())
}

// run has the systems take turns.
func (r *results) run(dir string, setups []setup) (err error) {
	var children []*process
	defer func() {
		for _, c := range children {
			err = errors.Join(err, c.close())
		}
	}()
	for i, b := range setups {
		b.Dir = filepath.Join(dir, fmt.Sprint(i))
		c, err := start(b)
		if err != nil {
			return fmt.Errorf("%s: %w", b.name(), err)
		}
		children = append(children, c)
		r.rows = append(r.rows, &row{setup: b, idle: c.idle[idle][0]})
	}
	rows := r.rows[len(r.rows)-len(setups):]
	for range r.settings.rounds {
		for i, c := range children {
			m, err := c.block()
			if err != nil {
				return fmt.Errorf("%s: %w", setups[i].name(), err)
			}
			rows[i].rounds = append(rows[i].rounds, m)
		}
	}
	for _, w := range rows {
		fmt.Println(w.line())
	}
	return nil
}

// workDir refuses file systems that keep nothing: fsync would cost nothing.
func workDir(dir string) (string, error) {
	if dir == "" {
		root, err := repository()
		if err != nil {
			return "", err
		}
		dir = filepath.Dir(root)
	}
	dir, err := os.MkdirTemp(dir, "esperd-bench-")
	if err != nil {
		return "", err
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return "", err
	}
	if name := fileSystem(&st); slices.Contains([]string{"tmpfs", "ramfs"}, name) {
		return "", errors.Join(fmt.Errorf("%s is on %s, where nothing is durable: give a directory on a disk with -dir", dir, name), os.RemoveAll(dir))
	}
	return dir, nil
}

// repository finds the module above this one.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		b, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(b), "module github.com/esperd/esperd\n") {
			return dir, nil
		}
	}
	return "", errors.New("not inside esperd's repository: give -dir")
}

// command is how this run was started.
func command() string {
	args := slices.DeleteFunc(slices.Clone(os.Args[1:]), func(a string) bool { return a == "" })
	return strings.TrimSpace("go run -C test/bench . " + strings.Join(args, " "))
}

// decodeSetup reads what start passes on.
func decodeSetup(s string) (b setup, err error) { return b, json.Unmarshal([]byte(s), &b) }
