package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/audit"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/test/internal/testesperd"
)

// Faults of the build for tests (-tags esperdfault).
const (
	wrongMemory = "ESPERD_FAULT_MEMORY" // the live state after one entry
	wrongBuild  = "ESPERD_FAULT_APPLY"  // that entry, each time that it is applied
)

// TestDivergence runs one rank whose state goes wrong: the world notices at the
// next entry and names the rank, the trainers are told, and audit says which
// entry and field it was.
func TestDivergence(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds another esperd")
	}
	t.Parallel()
	faulty := filepath.Join(t.TempDir(), "esperd-fault")
	require.NoError(t, testesperd.Faulty(faulty))
	for _, c := range []struct {
		size, rank int
		how        string
	}{{3, 1, wrongMemory}, {3, 0, wrongMemory}, {2, 1, wrongMemory}, {2, 0, wrongMemory}, {3, 1, wrongBuild}, {3, 0, wrongBuild}, {2, 0, wrongBuild}} {
		t.Run(fmt.Sprintf("rank %d of %d %s", c.rank, c.size, c.how), func(t *testing.T) {
			t.Parallel()
			f := &faultyWorld{t: t, w: startWorld(t, c.size), rank: c.rank, how: c.how}
			f.begin(faulty)
			f.named()
			f.told()
			f.followed()
			f.audited()
			f.restarted()
			if c.rank == 0 {
				f.recovered()
			}
		})
	}
}

// A faultyWorld has one rank whose state is wrong after one entry.
type faultyWorld struct {
	t    *testing.T
	w    *world
	rank int
	how  string
	at   uint64 // the entry
	mark []byte // of before
	j    *job

	follower *follower
}

// begin has the world make calls until its states differ.
func (f *faultyWorld) begin(faulty string) {
	t, w := f.t, f.w
	j := w.newJob(func(o *client.Options) { o.Mode = events.ModeFollow })
	j.germinate(slotNames[0])
	j.step(0)
	f.mark = j.mark().Mark
	for _, c := range j.trainers {
		require.NoError(t, c.End(j.ctx, ""))
	}
	w.settled()
	w.terminate()
	for _, p := range w.audit(w.dirs()...).Places {
		f.at = max(f.at, p.Head)
	}
	f.at += 5 // after the next round and its configuration
	for _, n := range w.nodes {
		if n.rank == f.rank {
			n.startFaulty(faulty, fmt.Sprintf("%s=%d", f.how, f.at))
		} else {
			n.start()
		}
	}
	w.settled()
	places := w.dirs()
	for i := range places {
		if f.rank == 1 { // else the directories
			places[i] = w.nodes[i].adminURL()
		}
	}
	f.follower = w.follow(places...)
	f.follower.tells(audit.EventCaughtUp)
	f.j = w.newJob(func(o *client.Options) { o.Mode = events.ModeFollow })
	for range 12 { // each is an entry; only rank 0 makes them
		_, _ = f.j.trainers[0].Advance(f.j.ctx, slotNames[0])
	}
}

// named waits until every esperd that answers names the rank.
func (f *faultyWorld) named() {
	for _, n := range f.w.nodes {
		eventually(f.t, "the rank at fault, on every rank", func() error { return n.ask(f.names) })
	}
}

func (f *faultyWorld) names(ctx context.Context, a *client.Admin) error {
	d, err := a.Divergences(ctx)
	if err != nil {
		return err
	}
	if len(d.State) == 0 {
		return errors.New("nobody has diverged")
	}
	tellsItself := f.convinced()
	for _, s := range d.State {
		tellsItself = tellsItself || s.Rank == uint64(f.rank)
		switch {
		case s.Fault == "":
			return errors.New("it is still being looked at")
		case s.Index != f.at+1 || s.Which != "lifecycle" || s.Model != "main":
			return fmt.Errorf("expected the lifecycle of main at entry %d, got %+v", f.at+1, s)
		case f.how == wrongBuild && s.Fault != "undecided":
			return fmt.Errorf("expected undecided, got %+v", s)
		case f.how == wrongBuild:
		case s.AtFaultRank == nil || *s.AtFaultRank != uint64(f.rank):
			return fmt.Errorf("expected rank %d at fault, got %+v", f.rank, s)
		case (s.Fault == "self") != (s.Rank == uint64(f.rank)):
			return fmt.Errorf("rank %d says %s", s.Rank, s.Fault)
		case s.Rank == uint64(f.rank) && s.First != f.at:
			return fmt.Errorf("expected entry %d as the first wrong one, got %+v", f.at, s)
		}
	}
	if !tellsItself {
		return errors.New("the rank at fault does not know it")
	}
	return nil
}

// convinced: a wrong build that leads finds its own replay as right as its state,
// and goes on. Another rank's replay says something else, and the round ends.
func (f *faultyWorld) convinced() bool { return f.how == wrongBuild && f.rank == 0 }

// told: a follower's fault ends the round for all, and only its own trainer may
// not trust what it was told; any other fault reaches every trainer as Diverged.
func (f *faultyWorld) told() {
	for rank, c := range f.j.trainers {
		want := client.ErrDiverged
		if f.rank != 0 && rank != f.rank && f.how == wrongMemory {
			want = client.ErrRoundFaulted
		}
		eventually(f.t, "the end of the round", func() error {
			if rank == f.rank || f.rank == 0 {
				return nil // without an entry
			}
			if s := f.w.nodes[rank].mustState(); s.Round.Fault == nil || s.Round.Fault.Code != events.CodeDiverged {
				return errors.New("it goes on")
			}
			return nil
		})
		_, err := c.StepEpoch(f.j.ctx, 1)
		require.ErrorIs(f.t, err, want, "rank %d", rank)
		var p *client.Problem
		require.ErrorAs(f.t, err, &p)
		require.NotNil(f.t, p.Fault, "%v", err)
		require.Equal(f.t, events.CodeDiverged, p.Fault.Code)
		require.EqualValues(f.t, f.at+1, p.Fault.Index)
		if f.how == wrongMemory {
			require.EqualValues(f.t, f.rank, p.Fault.Rank)
		}
	}
	bad := f.w.nodes[f.rank]
	if f.convinced() {
		bad = f.w.nodes[1]
	}
	err := bad.ready()
	require.ErrorContains(f.t, err, "diverged at entry")
	_, out, _ := finish(f.t, f.w.dir, "status", "--socket", bad.socket)
	says(f.t, out, "DIVERGED", fmt.Sprintf("entry %d", f.at+1))
	_, out, _ = finish(f.t, f.w.dir, "ranks", "--socket", f.w.nodes[len(f.w.nodes)-1].socket)
	says(f.t, out, "DIVERGED")
}

// followed: whoever follows the world is told, without asking again.
func (f *faultyWorld) followed() {
	r := f.follower.ends(f.t)
	require.Equal(f.t, 1, r.Status)
	g := r.Findings[0]
	require.Equal(f.t, audit.VerdictApply, g.Verdict, "%+v", g)
	require.Equal(f.t, f.at, g.Index)
	require.Len(f.t, g.AtFault, 1)
	require.EqualValues(f.t, f.rank, *g.AtFault[0].Rank)
}

// audited: the same from the directories, whatever the esperds found.
func (f *faultyWorld) audited() {
	t, w := f.t, f.w
	var r *audit.Report
	eventually(t, "the report", func() error {
		r = w.audit(w.dirs()...)
		if len(r.Findings) == 0 || len(r.Findings[0].Differences) == 0 {
			return fmt.Errorf("findings: %+v", r.Findings)
		}
		return nil
	})
	g := r.Findings[0]
	require.Len(t, r.Findings, 1, "%+v", r.Findings)
	require.Equal(t, audit.VerdictApply, g.Verdict, "%+v", g)
	require.Equal(t, f.at, g.Index)
	require.Equal(t, f.at-1, g.Agreed.Index)
	require.Len(t, g.AtFault, 1)
	require.EqualValues(t, f.rank, *g.AtFault[0].Rank)
	require.Equal(t, "main."+slotNames[0]+".seed.metrics.epochs", g.Differences[0].Field)
	require.Equal(t, slotNames[0], g.Slot)
	noted := f.rank
	if f.convinced() {
		noted = 1
	}
	e := r.Places[noted].Evidence
	require.NotNil(t, e, "%+v", r.Places[noted])
	require.Equal(t, f.at+1, e.Index)
	require.Contains(t, strings.Join(r.Places[noted].Notes, " "), "diverged at entry")
}

// restarted: a follower whose memory was wrong has the log's state again, from its
// history, and takes part. Behind a wrong rank 0 the log's entries are wrong
// themselves: it gets the right state before them, and stops there like all others.
func (f *faultyWorld) restarted() {
	if f.how == wrongBuild {
		return
	}
	bad, good := f.w.nodes[f.rank], f.w.nodes[len(f.w.nodes)-1]
	if f.rank == len(f.w.nodes)-1 {
		good = f.w.nodes[0]
	}
	bad.kill()
	bad.start()
	if f.rank != 0 {
		f.w.settled()
		j := f.w.newJob(func(o *client.Options) { o.Mode = events.ModeFollow })
		j.step(1)
		f.w.settled()
		require.Nil(f.t, bad.mustState().Divergence)
		return
	}
	eventually(f.t, "the right state before the entry that is wrong", func() error {
		b, err := bad.state()
		if err != nil {
			return err
		}
		g := good.mustState()
		if b.Divergence == nil || b.Divergence.Fault != "self" {
			return fmt.Errorf("it says %+v", b.Divergence)
		}
		if b.Models[0].Lifecycle != g.Models[0].Lifecycle {
			return errors.New("its state is not that of the others")
		}
		return nil
	})
}

// recovered: behind a wrong rank 0 the log goes on from the last entry that
// follows from those before it, once somebody says that rank 0 was wrong.
func (f *faultyWorld) recovered() {
	t, w := f.t, f.w
	for _, n := range w.nodes {
		n.kill()
	}
	if f.how == wrongBuild { // another build would not serve what this one recorded
		w.nodes[0].lose()
	}
	args := []string{"recover", "--secret-file", w.secret}
	dirs := w.dirs()[1:]
	was := sums(t, dirs[0])
	status, out, errs := finish(t, w.dir, append(args, dirs...)...)
	require.Equal(t, 1, status, "%s", errs)
	says(t, out, fmt.Sprintf("ENTRIES %d TO ", f.at+1), "DO NOT FOLLOW", "rank 0's node", fmt.Sprintf("everything up to entry %d;", f.at), "AGAINST IT", "would be dropped")
	require.Equal(t, was, sums(t, dirs[0]))
	status, out, errs = finish(t, w.dir, append(append(args, "--yes", "--force"), dirs...)...)
	require.Zero(t, status, errs)
	says(t, out, "Done: ", fmt.Sprintf("which goes on at entry %d.", f.at+1))
	w.startAll()
	for _, s := range w.settled() {
		require.Nil(t, s.Divergence)
	}
	j := w.newJob(func(o *client.Options) { o.Mode = events.ModeFollow })
	j.resume(f.mark)
	j.step(1)
	w.settled()
	r := w.audit(w.dirs()...)
	require.Equal(t, audit.Consistent, r.Outcome, "%+v", r.Findings)
	recovered := slices.IndexFunc(r.Branches, func(b audit.Branch) bool { return b.Kind == audit.BranchRecovered })
	require.GreaterOrEqual(t, recovered, 0, "%+v", r.Branches)
	require.Equal(t, f.at, r.Branches[recovered].From.Index)
}

// startFaulty starts a build for tests that can be wrong.
func (n *node) startFaulty(binary, fault string) {
	n.w.t.Helper()
	log, err := os.OpenFile(n.logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	require.NoError(n.w.t, err)
	defer log.Close()
	p := &process{cmd: command(n.w.t.Context(), n.w.dir, append([]string{"run", "--log-format", "json"}, n.args...)...), done: make(chan struct{})}
	p.cmd.Path, p.cmd.Args[0] = binary, binary
	p.cmd.Env = append(p.cmd.Env, fault)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	require.NoError(n.w.t, p.cmd.Start())
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	n.process = p
}
