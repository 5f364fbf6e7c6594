package torch

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/test/internal/testesperd"
)

// patience is how long anything may take that has to happen at all.
const patience = 90 * time.Second

// environment is what a process is told, beside what the test adds.
func environment(home string, more ...string) []string {
	return append([]string{"HOME=" + home, "TMPDIR=/tmp", "PATH=" + os.Getenv("PATH"), "ESPERD_BINARY=" + binary,
		"OMP_NUM_THREADS=1", "PYTHONDONTWRITEBYTECODE=1", "PYTHONUNBUFFERED=1"}, more...)
}

// group makes a command the leader of a process group that ends with ctx, all
// of it.
func group(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// A job is one esperd for each rank.
type job struct {
	t   *testing.T
	dir string
	n   int
}

// startJob starts the esperds of n ranks.
func startJob(t *testing.T, n int) *job {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "torch-") // t.TempDir would be too long for a socket
	require.NoError(t, err)
	j := &job{t: t, dir: dir, n: n}
	ctx, end := context.WithCancel(context.Background())
	first := testesperd.FreePort(t)
	var running []*exec.Cmd
	t.Cleanup(func() {
		end()
		for _, cmd := range running {
			_ = cmd.Wait() // it was killed
		}
		if t.Failed() {
			j.logs()
		}
		require.NoError(t, os.RemoveAll(dir))
	})
	for rank := range n {
		port := first
		if rank > 0 {
			port = testesperd.FreePort(t)
		}
		r := strconv.Itoa(rank)
		args := []string{"run", "--rank", r, "--world-size", strconv.Itoa(n), "--run-id", "torch", "--log-format", "json", "--listen", "127.0.0.1:" + port,
			"--data-dir", filepath.Join(dir, "rank"+r), "--socket", j.socket(rank)}
		if n > 1 {
			args = append(args, "--join", "127.0.0.1:"+first)
		}
		cmd := group(exec.CommandContext(ctx, binary, args...))
		cmd.Env = environment(dir)
		log, err := os.Create(filepath.Join(dir, "log"+r))
		require.NoError(t, err)
		cmd.Stderr = log
		require.NoError(t, cmd.Start())
		require.NoError(t, log.Close())
		running = append(running, cmd)
	}
	return j
}

func (j *job) socket(rank int) string { return filepath.Join(j.dir, "s"+strconv.Itoa(rank)) }

// sockets tells every rank where its esperd is.
func (j *job) sockets() string { return "ESPERD_SOCKET=" + filepath.Join(j.dir, "s{rank}") }

func (j *job) logs() {
	for rank := range j.n {
		b, _ := os.ReadFile(filepath.Join(j.dir, "log"+strconv.Itoa(rank)))
		j.t.Logf("the log of rank %d ends with:\n%s", rank, b[max(0, len(b)-3000):])
	}
}

// entries reads a rank's whole log, when every rank has all of it.
func (j *job) entries() []api.Entry {
	j.t.Helper()
	var first []api.Entry
	deadline := time.Now().Add(patience)
	for rank := 0; rank < j.n; {
		log := j.read(rank)
		if rank == 0 {
			first = log
		}
		if len(log) == len(first) && log[len(log)-1].Chain == first[len(first)-1].Chain {
			rank++
			continue
		}
		require.True(j.t, time.Now().Before(deadline), "rank %d does not get the log of rank 0", rank)
		rank = 0
		time.Sleep(20 * time.Millisecond)
	}
	return first
}

// settled reads the log when it has not grown for a while that is long for a
// report, which is on its way for a tenth of a second.
func (j *job) settled() []api.Entry {
	j.t.Helper()
	for {
		before := len(j.entries())
		time.Sleep(time.Second)
		if log := j.entries(); len(log) == before {
			return log
		}
	}
}

func (j *job) read(rank int) []api.Entry {
	j.t.Helper()
	a := client.NewAdmin(j.socket(rank))
	defer a.Close()
	var log []api.Entry
	for from := uint64(1); from > 0; {
		page, err := a.Events(j.t.Context(), from, 10_000)
		require.NoError(j.t, err)
		log = append(log, page.Entries...)
		from = page.Next
	}
	return log
}

// A line is what one rank of a case said.
type line struct {
	What string  `json:"what"`
	At   float64 `json:"at"` // seconds, by a clock that all ranks share

	Epoch    int     `json:"epoch"`
	Step     int     `json:"step"`
	Slot     string  `json:"slot"`
	Stage    string  `json:"stage"`
	Alpha    float64 `json:"alpha"`
	Index    uint64  `json:"index"`
	Accuracy float64 `json:"accuracy"`
	Passed   bool    `json:"passed"`
	Agreed   *bool   `json:"agreed"`
	About    string  `json:"about"` // the slot that a verdict was made for
	Message  string  `json:"message"`

	Ranks   []int    `json:"ranks"`
	Tensors []string `json:"tensors"`

	Digest string `json:"digest"`
	Host   string `json:"host"`
	Seed   string `json:"seed"`

	Digests        []string `json:"digests"`
	HeadWasAnother int      `json:"head_was_another"`
	Polls          int      `json:"polls"`

	Error    string `json:"error"`
	Text     string `json:"text"`
	Code     string `json:"code"`
	Got      string `json:"got"`
	GotSite  string `json:"got_site"`
	Want     string `json:"want"`
	WantSite string `json:"want_site"`
	Culprit  *int   `json:"culprit"`
}

// said is what each rank said, in rank order.
type said [][]line

// ranks runs a case of workers/ on n ranks, and returns what they said. A case
// may fail: that is what it shows.
func ranks(t *testing.T, python string, n int, name, way string, env ...string) said {
	t.Helper()
	return ranksFor(t, patience, python, n, name, way, env...)
}

// ranksFor gives a long case more time.
func ranksFor(t *testing.T, limit time.Duration, python string, n int, name, way string, env ...string) said {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := group(exec.CommandContext(ctx, python, filepath.Join("workers", "ranks.py"), name, way, dir))
	cmd.Env = environment(dir, append(env, "RANKS="+strconv.Itoa(n), "MASTER_PORT="+testesperd.FreePort(t), fmt.Sprintf("HANG_MAX_S=%.0f", limit.Seconds()*2/3))...)
	out, err := cmd.CombinedOutput()
	require.NoError(t, ctx.Err(), "%s %s does not end\n%s", name, way, out)
	require.NoError(t, err, "%s", out)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s %s wrote:\n%s", name, way, out)
		}
	})
	result := make(said, n)
	for rank := range n {
		result[rank] = readLines(t, filepath.Join(dir, fmt.Sprintf("rank%d.jsonl", rank)))
	}
	return result
}

func readLines(t *testing.T, file string) []line {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	var out []line
	for in := bufio.NewReader(bytes.NewReader(b)); ; {
		text, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return out
		}
		require.NoError(t, err)
		var l line
		require.NoError(t, json.Unmarshal(text, &l))
		out = append(out, l)
	}
}

// with runs a case beside the job's esperds.
func (j *job) with(python, name, way string, env ...string) said {
	j.t.Helper()
	return ranks(j.t, python, j.n, name, way, append(env, j.sockets())...)
}

// all returns the lines of a kind of one rank.
func (s said) all(rank int, what string) []line {
	var out []line
	for _, l := range s[rank] {
		if l.What == what {
			out = append(out, l)
		}
	}
	return out
}

// last returns a rank's last line of a kind; there has to be one.
func (s said) last(t *testing.T, rank int, what string) line {
	t.Helper()
	lines := s.all(rank, what)
	require.NotEmpty(t, lines, "rank %d has no line %q", rank, what)
	return lines[len(lines)-1]
}
