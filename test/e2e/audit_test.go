package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/audit"
	"github.com/esperd/esperd/client"
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
	plain(t)
	t.Parallel()
	w := startWorld(t, 3)
	l := w.train()
	l.progress(5)
	eventually(t, "histories with entries", func() error { // written behind the decisions
		for _, p := range w.audit(w.dirs()...).Places {
			if p.Head == 0 {
				return fmt.Errorf("%s has none yet", p.Place)
			}
		}
		return nil
	})
	toTheEnd := w.follow(append(w.dirs(), "--end-after", "2s")...)
	toTheEnd.tells(audit.EventCaughtUp)
	var urls []string
	for _, n := range w.nodes {
		urls = append(urls, n.adminURL())
	}
	live := w.follow(append(urls, "--timeout", "1s")...)
	live.tells(audit.EventCaughtUp)
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
	live.tells(audit.EventPlace, audit.StateUnreachable, 1)
	w.nodes[1].process.signal(t, syscall.SIGCONT)
	live.tells(audit.EventPlace, audit.StateOK, 1)
	live.signal(t, syscall.SIGINT)
	r = live.ends(t)
	require.Equal(t, audit.Consistent, r.Outcome, "%+v", r)
	require.GreaterOrEqual(t, r.Agreed.Index, head)
	w.settled()
	w.terminate()
	r = toTheEnd.ends(t)
	require.Equal(t, audit.Consistent, r.Outcome, "%+v", r.Coverage)
	require.GreaterOrEqual(t, r.Agreed.Index, head)

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
	plain(t)
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
