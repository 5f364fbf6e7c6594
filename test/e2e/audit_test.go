package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/audit"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/events"
)

// audit runs esperd audit on places and returns its report.
func (w *world) audit(places ...string) *audit.Report {
	w.t.Helper()
	status, out, errs := finish(w.t, w.dir, append([]string{"audit", "--json"}, places...)...)
	var r audit.Report
	require.NoError(w.t, json.Unmarshal([]byte(out), &r), errs)
	require.Equal(w.t, r.Status, status)
	return &r
}

func (w *world) dirs() []string {
	var out []string
	for _, n := range w.nodes {
		out = append(out, n.dir)
	}
	return out
}

func (n *node) adminURL() string {
	b, err := os.ReadFile(filepath.Join(n.dir, "admin.addr"))
	require.NoError(n.w.t, err)
	return strings.TrimSpace(string(b))
}

// TestAudit: directories that esperds have open, of ones that stand still, are
// dead or ended, read-only ones, exported logs and admin doors are read as they
// are.
func TestAudit(t *testing.T) {
	t.Parallel()
	w := startWorld(t, 3)
	l := w.train()
	l.progress(5)
	for range 5 { // while they write
		r := w.audit(w.dirs()...)
		require.Equal(t, audit.Consistent, r.Outcome, "%+v", r)
		require.NotZero(t, r.Agreed.Index)
	}
	l.stop()
	states := w.settled()
	head := states[0].Index
	w.nodes[1].process.signal(t, syscall.SIGSTOP)
	eventually(t, "the last entries on disk", func() error {
		if r := w.audit(w.nodes[0].dir, w.nodes[2].dir); r.Agreed.Index < head {
			return fmt.Errorf("agreed up to %d of %d", r.Agreed.Index, head)
		}
		return nil
	})
	r := w.audit(append(w.dirs(), w.nodes[0].adminURL())...)
	require.Equal(t, audit.Consistent, r.Outcome, "%+v", r)
	require.Equal(t, "http", r.Places[3].Place[:4])
	require.GreaterOrEqual(t, r.Places[3].Compared, r.Places[1].Head)

	hangs := w.audit("--timeout", "1s", w.nodes[0].dir, w.nodes[1].adminURL())
	require.Equal(t, 2, hangs.Status)
	require.Contains(t, hangs.Places[1].Problem, "did not answer within 1s")
	require.GreaterOrEqual(t, hangs.Places[0].Replayed, head, "the other one is checked")
	w.nodes[1].process.signal(t, syscall.SIGCONT)
	w.settled()
	w.terminate()

	export := filepath.Join(w.dir, "log.jsonl")
	status, _, errs := finish(t, w.dir, "events", w.nodes[2].dir, "--export", export)
	require.Zero(t, status, errs)
	require.NoError(t, os.Chmod(filepath.Join(w.nodes[0].dir, "history.db"), 0o400))
	r = w.audit(w.nodes[0].dir, w.nodes[1].dir, export)
	require.Equal(t, audit.Consistent, r.Outcome, "%+v", r)
	require.GreaterOrEqual(t, r.Agreed.Index, head)
	status, out, errs := finish(t, w.dir, "replay", "--check", export)
	require.Zero(t, status, errs)
	says(t, out, "reaches all digests", r.Agreed.Chain.Short())
}

// TestAuditOfBadTrainers: what a rank's trainer did otherwise than rank 0's is in
// the log of every rank, and the verdict says what kind it is.
func TestAuditOfBadTrainers(t *testing.T) {
	t.Parallel()
	w := startWorld(t, 2)
	conv, norm := api.GerminateRequest{Blueprint: "conv"}, api.GerminateRequest{Blueprint: "norm"}
	type call = func(*job, *client.Client, int) error
	germinate := func(slot int, r api.GerminateRequest) call {
		return func(j *job, c *client.Client, _ int) error {
			_, err := c.Germinate(j.ctx, slotNames[slot], r)
			return err
		}
	}
	step := func(j *job, c *client.Client, n int) error {
		_, err := c.StepEpoch(j.ctx, int64(n))
		return err
	}
	cases := []struct {
		verdict audit.Verdict
		first   call // of rank 0
		other   call // of rank 1
	}{
		{audit.VerdictOrder, germinate(0, conv), germinate(1, conv)},
		{audit.VerdictPayload, germinate(1, conv), germinate(1, norm)},
		{audit.VerdictMissing, germinate(2, conv), step},
		{audit.VerdictExtra, step, germinate(3, conv)},
	}
	for i, c := range cases {
		j := w.newJob(func(*client.Options) {})
		_ = c.first(j, j.trainers[0], i) // its answer may be that the round is over
		require.Error(t, c.other(j, j.trainers[1], i))
		eventually(t, "the end of the round", func() error {
			if s := w.nodes[0].mustState(); s.Round.Fault == nil {
				return errors.New("it goes on")
			}
			return nil
		})
	}
	w.settled()
	var r *audit.Report
	eventually(t, "all of it on disk", func() error {
		if r = w.audit(w.dirs()...); len(r.Findings) < len(cases) {
			return fmt.Errorf("%d findings", len(r.Findings))
		}
		return nil
	})
	require.Equal(t, 1, r.Status)
	require.Len(t, r.Findings, len(cases))
	for i, c := range cases {
		f := r.Findings[i]
		require.Equal(t, c.verdict, f.Verdict, "%+v", f)
		require.Equal(t, audit.SourceRecorded, f.Source)
		require.EqualValues(t, 1, *f.AtFault[0].Rank)
		require.Len(t, f.Sites, 2)
		require.NotEmpty(t, f.Sites[1].Site)
		require.NotEqual(t, f.Sites[0].Call, f.Sites[1].Call)
	}
}

// TestAuditOfAWrongTransition runs one rank with a build that applies one entry
// wrongly: the world notices, and audit says which entry, rank and field.
func TestAuditOfAWrongTransition(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds another esperd")
	}
	t.Parallel()
	faulty := filepath.Join(t.TempDir(), "esperd-fault")
	build := exec.Command("go", "build", "-buildvcs=false", "-tags", "esperdfault", "-o", faulty, "github.com/esperd/esperd/cmd/esperd")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, c := range []struct{ size, rank int }{{3, 1}, {3, 0}, {2, 1}, {2, 0}} {
		t.Run(fmt.Sprintf("rank %d of %d", c.rank, c.size), func(t *testing.T) {
			t.Parallel()
			wrongTransition(t, faulty, c.size, c.rank)
		})
	}
}

func wrongTransition(t *testing.T, faulty string, size, rank int) {
	w := startWorld(t, size)
	j := w.newJob(func(o *client.Options) { o.Mode = events.ModeFollow })
	j.germinate(slotNames[0])
	j.step(0)
	for _, c := range j.trainers {
		require.NoError(t, c.End(j.ctx, ""))
	}
	w.settled()
	w.terminate()
	at := uint64(0)
	for _, p := range w.audit(w.dirs()...).Places {
		at = max(at, p.Head)
	}
	at += 5 // after the next round and its configuration
	for _, n := range w.nodes {
		if n.rank == rank {
			n.startFaulty(faulty, at)
		} else {
			n.start()
		}
	}
	w.settled()
	j = w.newJob(func(o *client.Options) { o.Mode = events.ModeFollow })
	for range 12 { // each is an entry; only rank 0 makes them
		_, _ = j.trainers[0].Advance(j.ctx, slotNames[0])
	}
	eventually(t, "a replica that has diverged", func() error {
		for _, n := range w.nodes {
			if s, err := n.state(); err == nil && s.Phase == "diverged" {
				return nil
			}
		}
		return errors.New("none has")
	})
	var r *audit.Report
	eventually(t, "the report", func() error {
		if r = w.audit(w.dirs()...); len(r.Findings) == 0 {
			return errors.New("nothing found")
		}
		return nil
	})
	f := r.Findings[0]
	require.Len(t, r.Findings, 1, "%+v", r.Findings)
	require.Equal(t, audit.VerdictApply, f.Verdict, "%+v", f)
	require.Equal(t, at, f.Index)
	require.Equal(t, at-1, f.Agreed.Index)
	require.Len(t, f.AtFault, 1)
	require.EqualValues(t, rank, *f.AtFault[0].Rank)
	if rank != 0 { // its frozen state is kept as evidence
		require.NotEmpty(t, f.Differences, "%+v", f)
		require.Equal(t, "main."+slotNames[0]+".seed.metrics.epochs", f.Differences[0].Field)
		require.Equal(t, slotNames[0], f.Slot)
	}
}

// startFaulty starts a build that applies an entry wrongly.
func (n *node) startFaulty(binary string, at uint64) {
	n.w.t.Helper()
	log, err := os.OpenFile(n.logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	require.NoError(n.w.t, err)
	defer log.Close()
	p := &process{cmd: command(n.w.t.Context(), n.w.dir, append([]string{"run", "--log-format", "json"}, n.args...)...), done: make(chan struct{})}
	p.cmd.Path, p.cmd.Args[0] = binary, binary
	p.cmd.Env = append(p.cmd.Env, fmt.Sprintf("ESPERD_FAULT_APPLY=%d", at))
	p.cmd.Stdout, p.cmd.Stderr = log, log
	require.NoError(n.w.t, p.cmd.Start())
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	n.process = p
}
