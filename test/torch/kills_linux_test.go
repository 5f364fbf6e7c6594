package torch

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/test/internal/testesperd"
)

const (
	killEpochs = 20 // in which every slot has come to its end
	killsUsual = 2  // 4 ranks, 3, 4
)

// TestKills kills a whole job, launcher, esperds and trainers, at random moments:
// ESPERD_TORCH_KILLS of them, drawn from ESPERD_TORCH_SEED. It is started again
// from its last checkpoint with 4, 3, 4... ranks, and comes to the lifecycle of a
// job that nobody killed, whose world has another size.
func TestKills(t *testing.T) {
	python := needTorch(t)
	t.Parallel()
	kills, seed := number(t, "ESPERD_TORCH_KILLS", killsUsual), number(t, "ESPERD_TORCH_SEED", int(rand.Int32()))
	t.Logf("ESPERD_TORCH_SEED=%d", seed)
	undisturbed := make(chan digitsResult, 1)
	t.Run("jobs", func(t *testing.T) {
		t.Run("never killed", func(t *testing.T) {
			t.Parallel()
			j := newKillJob(t, python, 0)
			undisturbed <- j.finish(j.start(1))
		})
		t.Run("killed", func(t *testing.T) {
			t.Parallel()
			j := newKillJob(t, python, uint64(seed))
			for i := range kills {
				j.start(4-i%2).kill(j, kills-i)
			}
			got := j.finish(j.start(4 - kills%2))
			want := <-undisturbed
			for rank, r := range got.Ranks {
				require.Equal(t, want.Ranks[0].Stages, r.Stages, "rank %d", rank)
				require.Equal(t, want.Ranks[0].Alphas, r.Alphas, "rank %d", rank)
				require.Equal(t, want.Ranks[0].Lifecycle, r.Lifecycle, "rank %d", rank)
				require.Equal(t, got.Ranks[0].Weights, r.Weights, "rank %d", rank)
			}
			j.audit()
		})
	})
}

func number(t *testing.T, name string, usual int) int {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return usual
	}
	n, err := strconv.Atoi(s)
	require.NoError(t, err, name)
	return n
}

// killJob is a job under torchrun, start after start.
type killJob struct {
	t      *testing.T
	python string
	dir    string
	r      *rand.Rand
	starts int
	epoch  int // last one that was reported
}

func newKillJob(t *testing.T, python string, seed uint64) *killJob {
	dir, err := os.MkdirTemp("/tmp", "kills-")
	require.NoError(t, err)
	j := &killJob{t: t, python: python, dir: dir, r: rand.New(rand.NewPCG(seed, 1)), epoch: -1}
	t.Cleanup(func() {
		j.killAll()
		if !t.Failed() {
			require.NoError(t, os.RemoveAll(dir))
			return
		}
		t.Logf("everything is left in %s", dir)
	})
	return j
}

// started is one start of the job.
type started struct {
	cmd    *exec.Cmd
	stdout *os.File
	lines  chan string // of stdout; closed at its end
	log    string
	began  time.Time
	ranks  int
}

func (j *killJob) start(ranks int) *started {
	j.t.Helper()
	s := &started{lines: make(chan string, 1024), log: filepath.Join(j.dir, fmt.Sprintf("log%02d", j.starts)), began: time.Now(), ranks: ranks}
	j.starts++
	args := []string{"-m", "torch.distributed.run", "--nproc_per_node", strconv.Itoa(ranks), "--master_port", freeBlock(j.t, ranks), "-r", "1", "-t", "1", "--no_python",
		binary, "exec", "--", j.python, filepath.Join(root, "examples", "ddp_digits.py"), "--scripted", "--json",
		"--checkpoint", filepath.Join(j.dir, "checkpoint"), "--epochs", strconv.Itoa(killEpochs)}
	s.cmd = group(exec.Command(j.python, args...))
	s.cmd.Cancel = nil
	s.cmd.Env = environment(j.dir, "ESPERD_RUN_ID=kills", "ESPERD_DATA_DIR="+filepath.Join(j.dir, "rank{rank}"))
	log, err := os.Create(s.log)
	require.NoError(j.t, err)
	defer log.Close()
	s.cmd.Stderr = log
	read, write, err := os.Pipe()
	require.NoError(j.t, err)
	s.stdout, s.cmd.Stdout = read, write
	require.NoError(j.t, s.cmd.Start())
	require.NoError(j.t, write.Close())
	go func() {
		defer close(s.lines)
		in := bufio.NewScanner(read)
		in.Buffer(nil, 1<<20)
		for in.Scan() {
			s.lines <- in.Text()
		}
	}()
	return s
}

// freeBlock returns a port for torch whose esperds' ports are free, too.
func freeBlock(t *testing.T, ranks int) string {
	t.Helper()
	for {
		port := testesperd.FreePort(t)
		n, err := strconv.Atoi(port)
		require.NoError(t, err)
		free := true
		for rank := range ranks {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", n+100+rank))
			if free = free && err == nil; err == nil {
				require.NoError(t, l.Close())
			}
		}
		if free {
			return port
		}
	}
}

var epochLine = regexp.MustCompile(`\]:epoch +(\d+) `)

// reports returns the epoch that a line of rank 0 is about.
func (j *killJob) reports(line string) bool {
	m := epochLine.FindStringSubmatch(line)
	if m == nil {
		return false
	}
	n, err := strconv.Atoi(m[1])
	require.NoError(j.t, err)
	j.epoch = n
	return true
}

// kill ends everything of the job: while it starts, or some epochs later. So many
// kills are to come, this one included, before the last epochs.
func (s *started) kill(j *killJob, left int) {
	t, room := j.t, killEpochs-4-j.epoch
	starting := room < 1 || j.starts > 1 && j.r.IntN(4) == 0 // the first kill leaves something to resume
	delay, epochs := time.Duration(j.r.Int64N(int64(8*time.Second))), 1
	if !starting {
		delay, epochs = time.Duration(j.r.Int64N(int64(700*time.Millisecond))), min(room, 1+j.r.IntN(2*room/left+1))
	}
	limit := time.NewTimer(2 * patience)
	defer limit.Stop()
	var due <-chan time.Time
	if starting {
		due = time.After(delay)
	}
	seen := 0
	for waiting := true; waiting; {
		select {
		case line, ok := <-s.lines:
			require.True(t, ok, "start %d has ended by itself, before it was killed:\n%s", j.starts, s.tail())
			if j.reports(line) {
				seen++
			}
			if seen == epochs && starting {
				waiting = false
			} else if seen == epochs && due == nil {
				due = time.After(delay)
			}
		case <-due:
			waiting = false
		case <-limit.C:
			t.Fatalf("start %d with %d ranks came to %d of %d epochs in %s:\n%s", j.starts, s.ranks, seen, epochs, 2*patience, s.tail())
		}
	}
	at := time.Since(s.began)
	j.killAll()
	_ = s.cmd.Wait() // it was killed
	for line := range s.lines {
		j.reports(line)
	}
	require.NoError(t, s.stdout.Close())
	t.Logf("start %d, %d ranks: killed after %.1f s, epoch %d", j.starts, s.ranks, at.Seconds(), j.epoch)
}

// killAll kills every process whose home is the job's directory, until there is
// none: torchrun gives its workers sessions of their own.
func (j *killJob) killAll() {
	mine := []byte("HOME=" + j.dir + "\x00")
	for found := true; found; {
		found = false
		names, err := filepath.Glob("/proc/[0-9]*/environ")
		require.NoError(j.t, err)
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err != nil || !bytes.Contains(append(b, 0), mine) {
				continue // gone, dead, or another user's
			}
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			require.NoError(j.t, err)
			found = true
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				j.t.Fatal(err)
			}
		}
	}
}

// finish lets a start come to its end, and returns what its ranks say.
func (j *killJob) finish(s *started) digitsResult {
	j.t.Helper()
	defer s.stdout.Close()
	limit := time.NewTimer(2 * patience)
	defer limit.Stop()
	var got digitsResult
	for open := true; open; {
		select {
		case line, ok := <-s.lines:
			open = ok
			j.reports(line)
			if _, object, found := bytes.Cut([]byte(line), []byte(`]:{`)); found {
				require.NoError(j.t, json.Unmarshal(append([]byte("{"), object...), &got), "%s", line)
			}
		case <-limit.C:
			j.t.Fatalf("the last start does not end:\n%s", s.tail())
		}
	}
	require.NoError(j.t, s.cmd.Wait(), "%s", s.tail())
	require.True(j.t, got.Same)
	require.Len(j.t, got.Ranks, s.ranks)
	j.t.Logf("start %d, %d ranks: ended after %.1f s", j.starts, s.ranks, time.Since(s.began).Seconds())
	return got
}

func (s *started) tail() string {
	b, _ := os.ReadFile(s.log)
	return string(b[max(0, len(b)-6000):])
}

// audit verifies the logs of all ranks, and compares them.
func (j *killJob) audit() {
	j.t.Helper()
	places, err := filepath.Glob(filepath.Join(j.dir, "rank?"))
	require.NoError(j.t, err)
	require.Len(j.t, places, 4)
	ctx, cancel := context.WithTimeout(j.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, append([]string{"audit"}, places...)...)
	cmd.Env = environment(j.dir)
	out, err := cmd.CombinedOutput()
	require.NoError(j.t, err, "%s", out)
}
