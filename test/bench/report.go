package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// results are everything that was measured.
type results struct {
	settings settings
	machine  string
	began    time.Time
	rows     []*row
}

// row is one system in one size, round by round.
type row struct {
	setup  setup
	idle   time.Duration
	rounds []measures
}

// row returns the row of a system and size, nil if it has none.
func (r *results) row(b setup) *row {
	i := slices.IndexFunc(r.rows, func(w *row) bool { return w.setup.name() == b.name() && w.setup.Ranks == b.Ranks })
	if i < 0 {
		return nil
	}
	return r.rows[i]
}

// all returns the measures of all rounds.
func (w *row) all(what string) []time.Duration {
	var out []time.Duration
	for _, m := range w.rounds {
		out = append(out, m[what]...)
	}
	return out
}

// quantile is by nearest rank.
func quantile(list []time.Duration, q float64) time.Duration {
	if len(list) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(list))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f", float64(d.Microseconds())/1000) }

func (w *row) line() string {
	q := func(what string, q float64) string { return ms(quantile(w.all(what), q)) }
	return fmt.Sprintf("%d ranks, %-16s visible p50 %s p99 %s ms, answered p50 %s; through clients p50 %s p99 %s", w.setup.Ranks, w.setup.name(),
		q(direct, .5), q(direct, .99), q(commit, .5), q(through, .5), q(through, .99))
}

// ratio compares two systems turn by turn.
func ratio(a, b *row, what string) []float64 {
	return ratios(min(len(a.rounds), len(b.rounds)), func(turn int) (over, under []time.Duration) {
		return a.rounds[turn][what], b.rounds[turn][what]
	})
}

// ratios returns the turns' ratios of medians, sorted.
func ratios(turns int, of func(turn int) (over, under []time.Duration)) []float64 {
	var list []float64
	for turn := range turns {
		over, under := of(turn)
		list = append(list, float64(quantile(over, .5))/float64(quantile(under, .5)))
	}
	slices.Sort(list)
	return list
}

func middle(sorted []float64) float64 { return sorted[len(sorted)/2] }

// spread is the median and the quartiles.
func spread(sorted []float64) string {
	return fmt.Sprintf("%.2f (%.2f - %.2f)", middle(sorted), sorted[len(sorted)/4], sorted[len(sorted)*3/4])
}

const legend = `esperd: one node for each rank, TLS between them. etcd: 3 members, a watcher for each rank. Each system is one
process, its nodes durable and all on one disk. Latencies in ms: *visible* until the last rank has it applied (etcd:
until the last watcher has it), *answered* until rank 0 has its answer, both by the nodes' own interface in their
process; *clients* until the last rank's client has its answer over its socket (etcd: the last watcher, all over gRPC).
*Processor* is the processor time of all nodes for one operation, in ms, and *idle* in one second without any.
`

func (r *results) markdown() string {
	var out strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&out, format, args...) }
	p("%s, `%s`\n\n%s\n%s\n", r.began.UTC().Format("2006-01-02 15:04 UTC"), command(), r.machine, legend)
	p("%d operations of each kind and system, in %d turns of %d.\n\n", r.settings.rounds*r.settings.ops, r.settings.rounds, r.settings.ops)
	p("| system | ranks | visible p50 | p99 | answered p50 | p99 | clients p50 | p99 | processor | idle |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for _, w := range r.rows {
		p("| %s | %d |", w.setup.name(), w.setup.Ranks)
		for _, what := range []string{direct, commit, through} {
			p(" %s | %s |", ms(quantile(w.all(what), .5)), ms(quantile(w.all(what), .99)))
		}
		p(" %s | %s |\n", ms(quantile(w.all(processor), .5)), ms(w.idle))
	}
	p("\nRatios of the p50s, turn by turn: median (and the middle half of the turns).\n\n")
	p("| | ranks | visible | clients |\n|---|---|---|---|\n")
	for _, w := range r.rows {
		for _, tls := range []bool{false, true} {
			etcd := r.row(setup{System: "etcd", Ranks: w.setup.Ranks, TLS: tls})
			if etcd == nil || w.setup.System == "etcd" {
				continue
			}
			p("| %s / %s | %d |", w.setup.name(), etcd.setup.name(), w.setup.Ranks)
			for _, what := range []string{direct, through} {
				p(" %s |", spread(ratio(w, etcd, what)))
			}
			p("\n")
		}
	}
	p("\n%s", r.verdict())
	return out.String()
}

// verdict is the target, plainly.
func (r *results) verdict() string {
	etcd := r.row(setup{System: "etcd", Ranks: headlineRanks})
	var out strings.Builder
	for _, store := range r.settings.stores {
		w := r.row(setup{System: "esperd", Ranks: headlineRanks, Store: store})
		if etcd == nil || w == nil {
			continue
		}
		median := middle(ratio(w, etcd, direct))
		word := "PASS"
		if median > r.settings.target {
			word = "MISS"
		}
		fmt.Fprintf(&out, "**%s**: esperd (%s) is visible on %d ranks in %.2f times the time of etcd; the target is at most %.2f.\n\n", word, store, headlineRanks, median, r.settings.target)
	}
	return strings.TrimSuffix(out.String(), "\n")
}

// Parts of the document that this program writes.
const (
	etcdPart     = "test/bench"
	restartsPart = "test/bench -restarts"
	pythonPart   = "test/bench -python"
)

// writeReport replaces a part of the file, between its marks, and leaves the
// rest.
func writeReport(name, part, text string) error {
	begin, end := "<!-- begin: written by "+part+" -->", "<!-- end: written by "+part+" -->"
	text = begin + "\n" + text + end
	old, err := os.ReadFile(name)
	if os.IsNotExist(err) {
		return os.WriteFile(name, []byte("# Measurements\n\n"+text+"\n"), 0o644)
	}
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(old), begin)
	_, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		return fmt.Errorf("%s has no part between %q and %q to replace", name, begin, end)
	}
	return os.WriteFile(name, []byte(before+text+after), 0o644)
}

// describe says what the figures were taken on.
func describe(dir string) (string, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return "", err
	}
	sync, err := fdatasync(dir)
	if err != nil {
		return "", err
	}
	var uts syscall.Utsname
	if err := syscall.Uname(&uts); err != nil {
		return "", err
	}
	load, _ := os.ReadFile("/proc/loadavg") // for people
	return fmt.Sprintf("Machine: %s, %s cores, Linux %s, %s; load average before the run %s. fdatasync of one 4 KiB page p50 %s ms,\np99 %s ms. All nodes share the machine and its disk.\n",
		cpuModel(), cores(), cString(uts.Release[:]), fileSystem(&st), firstWord(string(load)), ms3(quantile(sync, .5)), ms3(quantile(sync, .99))), nil
}

func ms3(d time.Duration) string { return fmt.Sprintf("%.3f", float64(d.Nanoseconds())/1e6) }

// fdatasync times overwriting a page of an allocated file, which is what logs
// do that are worth their name.
func fdatasync(dir string) ([]time.Duration, error) {
	f, err := os.CreateTemp(dir, "fdatasync-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	page := make([]byte, 4096)
	if _, err := f.Write(make([]byte, 1<<20)); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	var out []time.Duration
	for i := range 500 {
		page[0] = byte(i)
		began := time.Now()
		if _, err := f.WriteAt(page, int64(i%256)*4096); err != nil {
			return nil, err
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			return nil, err
		}
		out = append(out, time.Since(began))
	}
	return out, nil
}

func cpuModel() string {
	b, _ := os.ReadFile("/proc/cpuinfo") // for people
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown processor"
}

func cores() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	return fmt.Sprint(strings.Count("\n"+string(b), "\nprocessor\t"))
}

func cString(b []int8) string {
	var out []byte
	for _, c := range b {
		if c == 0 {
			break
		}
		out = append(out, byte(c))
	}
	return string(out)
}

func firstWord(s string) string {
	word, _, _ := strings.Cut(s, " ")
	return word
}

var fileSystems = map[int64]string{0xef53: "ext4", 0x58465342: "xfs", 0x9123683e: "btrfs", 0x2fc12fc1: "zfs",
	0x01021994: "tmpfs", 0x858458f6: "ramfs", 0x794c7630: "overlayfs", 0x6969: "NFS", 0xf2f52010: "f2fs"}

func fileSystem(st *syscall.Statfs_t) string {
	if name, ok := fileSystems[int64(st.Type)]; ok {
		return name
	}
	return fmt.Sprintf("file system %#x", st.Type)
}
