package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
)

// benchEntries is how many entries each rank has; ESPERD_AUDIT_ENTRIES changes
// it.
const benchEntries = 1_000_000

// BenchmarkAudit is esperd audit, the program, on the directories of two ranks:
// entries verified a second and in a second of a processor, and its memory; and
// then what two admin doors send that agree.
func BenchmarkAudit(b *testing.B) {
	n := uint64(benchEntries)
	if s := os.Getenv("ESPERD_AUDIT_ENTRIES"); s != "" {
		var err error
		n, err = strconv.ParseUint(s, 10, 64)
		require.NoError(b, err)
	}
	binary := filepath.Join(b.TempDir(), "esperd")
	out, err := exec.Command("go", "build", "-buildvcs=false", "-o", binary, "github.com/esperd/esperd/cmd/esperd").CombinedOutput()
	require.NoError(b, err, "%s", out)
	dirs, l := bigHistories(b, n)
	b.Run("directories", func(b *testing.B) {
		var wall, processor time.Duration
		memory := int64(0)
		for b.Loop() {
			cmd := exec.Command(binary, append([]string{"audit", "--json"}, dirs...)...)
			began := time.Now()
			var stdout bytes.Buffer
			cmd.Stdout = &stdout
			require.NoError(b, cmd.Start())
			peak := watchMemory(cmd.Process.Pid)
			require.NoError(b, cmd.Wait(), "%s", &stdout)
			wall += time.Since(began)
			var r Report
			require.NoError(b, json.Unmarshal(stdout.Bytes(), &r))
			require.Equal(b, n, r.Places[1].Replayed)
			processor += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
			memory = max(memory, <-peak)
		}
		entries := float64(len(dirs)) * float64(n) * float64(b.N)
		b.ReportMetric(entries/wall.Seconds(), "entries/s")
		b.ReportMetric(entries/processor.Seconds(), "entries/cpu-s")
		b.ReportMetric(float64(memory)/1024, "peak-MB")
	})
	b.Run("admin doors", func(b *testing.B) {
		var sent atomic.Int64
		var urls []string
		for rank, dir := range dirs {
			urls = append(urls, serve(b, dir, rank, len(dirs), l.state, &sent))
		}
		for b.Loop() {
			r := Run(b.Context(), Config{Places: urls})
			require.Equal(b, Consistent, r.Outcome, text(r))
			require.Equal(b, n, r.Places[1].Compared)
		}
		b.ReportMetric(float64(sent.Load())/float64(b.N), "bytes-sent")
	})
}

// watchMemory tells, once a process has ended, the most memory in KiB that it
// had. The kernel's own account begins with what this process has.
func watchMemory(pid int) <-chan int64 {
	out := make(chan int64, 1)
	go func() {
		peak := int64(0)
		for ; ; time.Sleep(5 * time.Millisecond) {
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			_, after, found := strings.Cut(string(status), "VmHWM:")
			if err != nil || !found {
				out <- peak
				return
			}
			_, _ = fmt.Sscan(after, &peak)
		}
	}()
	return out
}

// bigHistories writes one log into the directories of two ranks.
func bigHistories(b *testing.B, n uint64) (dirs []string, l *testLog) {
	l = newLog(b, 31, "run", 2)
	var open []*events.History
	for rank := range 2 {
		r := &replica{rank: rank}
		dirs = append(dirs, r.write(b, b.TempDir()))
		h, err := events.OpenHistory(filepath.Join(dirs[rank], historyName), events.HistoryOptions{NoSync: true})
		require.NoError(b, err)
		open = append(open, h)
	}
	first, chain := l.entries, events.Digest{}
	keep := func(raw []byte, s events.Record, call *events.CallID) {
		chain = events.Chain(chain, s.Index, raw)
		s.Chain, s.RaftIndex, s.Entry = chain, s.Index, raw
		for _, h := range open {
			require.NoError(b, h.Append(s, call))
		}
	}
	records, calls, _ := (&replica{entries: first}).rows(b)
	for i := range records {
		keep(first[i], records[i], calls[i])
	}
	l.sink = func(raw []byte) {
		e := decoded(b, raw)
		s := events.Record{Index: l.state.Index, Bookkeeping: l.state.Bookkeeping()}
		var call *events.CallID
		if e.Key != nil {
			s.Lifecycle = l.state.Lifecycle(e.Key.Model)
			call = &events.CallID{Round: e.Key.Round, Model: e.Key.Model, Call: e.Key.Call}
		}
		keep(raw, s, call)
		if s.Index%10_000 == 0 { // else the tails in memory grow
			for _, h := range open {
				require.NoError(b, h.Flush())
			}
		}
	}
	l.train(n)
	for _, h := range open {
		require.NoError(b, h.Close())
	}
	return dirs, l
}
