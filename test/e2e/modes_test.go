package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/events"
)

// A job is a trainer on every rank, which the test leads step by step.
type job struct {
	w        *world
	ctx      context.Context
	trainers []*client.Client
	seen     map[string]bool // stages that the fences have told of, as "r0c0 PRUNED"
}

// newJob connects a trainer on every rank.
func (w *world) newJob(change func(*client.Options)) *job {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 3*patience)
	w.t.Cleanup(cancel)
	j := &job{w: w, ctx: ctx, trainers: make([]*client.Client, len(w.nodes)), seen: map[string]bool{}}
	errs := make([]error, len(w.nodes))
	w.inParallel(func(n *node) {
		o := w.optionsOf(n.rank)
		change(&o)
		j.trainers[n.rank], errs[n.rank] = client.Connect(ctx, n.socket, o)
	})
	require.NoError(w.t, errors.Join(errs...))
	w.t.Cleanup(func() {
		for _, c := range j.trainers {
			require.NoError(w.t, c.Close())
		}
	})
	return j
}

// fence lets every rank fence at once and returns what all of them were told.
func (j *job) fence(fence func(*client.Client) (*api.Fence, error)) *api.Fence {
	j.w.t.Helper()
	fences, errs := make([]*api.Fence, len(j.trainers)), make([]error, len(j.trainers))
	var wg sync.WaitGroup
	for rank, c := range j.trainers {
		wg.Go(func() { fences[rank], errs[rank] = fence(c) })
	}
	wg.Wait()
	require.NoError(j.w.t, errors.Join(errs...))
	for rank, f := range fences {
		require.Equal(j.w.t, fences[0], f, "rank %d", rank)
	}
	for _, c := range fences[0].Changes {
		j.seen[c.Slot+" "+c.To.String()] = true
	}
	return fences[0]
}

func (j *job) step(epoch int64) *api.Fence {
	j.w.t.Helper()
	return j.fence(func(c *client.Client) (*api.Fence, error) { return c.StepEpoch(j.ctx, epoch) })
}

func (j *job) germinate(slot string) {
	j.w.t.Helper()
	_, err := j.trainers[0].Germinate(j.ctx, slot, api.GerminateRequest{Blueprint: "conv", Tempo: new(int64(1))})
	require.NoError(j.w.t, err)
}

// TestFollow: rank 0 calls, the others only fence, and every rank is told the
// same, whoever asked for it.
func TestFollow(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	token := newSecret(t, w.dir, "token-")
	for _, n := range w.nodes {
		n.args = append(n.args, "--token-file", token)
	}
	w.startAll()
	w.settled()
	j := w.newJob(func(o *client.Options) {
		o.Mode, o.AutoForward = events.ModeFollow, []events.Gate{events.G1, events.G2, events.G3}
	})
	epoch := int64(0)
	steps := func(until string) {
		t.Helper()
		for first := epoch; !j.seen[until]; epoch++ {
			require.Less(t, epoch, first+20, "%s; so far %v", until, j.seen)
			j.trainers[0].Observe(slotNames[0], api.Readings{Accuracy: api.Value(events.Num(40 + 5*epoch)), GradientRatio: api.Value(events.Num(1)), Health: api.Value(events.Num(1))})
			j.step(epoch)
		}
	}
	j.germinate(slotNames[0])
	steps("r0c0 HOLDING") // by auto-forward alone
	_, err := j.trainers[0].SchedulePrune(j.ctx, slotNames[0], api.SchedulePruneRequest{Ticks: 2})
	require.NoError(t, err)
	steps("r0c0 PRUNED") // at the end of the ramp
	for _, stage := range []string{"TRAINING", "BLENDING"} {
		require.True(t, j.seen["r0c0 "+stage], "%v", j.seen)
	}
	epoch = requests(t, j, token, epoch)
	killInStretch(t, j, epoch)

	f := j.fence(func(c *client.Client) (*api.Fence, error) { return c.Reset(j.ctx) })
	require.Equal(t, int64(-1), f.Epoch)
	for _, s := range w.settled() {
		require.EqualValues(t, 2, s.Models[0].Generation)
	}
	j.germinate(slotNames[0])
	f = j.step(0)
	require.Equal(t, events.StageTraining, f.Slots[0].Stage)
	require.EqualValues(t, 1, f.Slots[0].Seed, "as after the first one")
	w.verify()
}

// requests: the seeds of which a follower and an operator want the end have it
// at the next step, on every rank.
func requests(t *testing.T, j *job, token string, epoch int64) int64 {
	t.Helper()
	for _, slot := range slotNames[1:3] {
		j.germinate(slot)
	}
	j.step(epoch)
	index, err := j.trainers[2].Request(j.ctx, api.RequestRequest{Action: events.ActionPrune, Slot: slotNames[1], Reason: "it spikes"})
	require.NoError(t, err)
	n := j.w.nodes[1]
	addr, err := os.ReadFile(filepath.Join(n.dir, "admin.addr"))
	require.NoError(t, err)
	ask := []string{"request", "prune", slotNames[2], "--url", strings.TrimSpace(string(addr))}
	says(t, refuses(t, 1, j.w.dir, ask...), "not-authority", "--token-file")
	says(t, refuses(t, 1, j.w.dir, append(ask, "--token-file", newSecret(t, j.w.dir, "wrong-"))...), "not-authority", "--token-file")
	status, out, errs := finish(t, j.w.dir, append(ask, "--token-file", token)...)
	require.Equal(t, 0, status, errs)
	require.Regexp(t, `^prune of r0c2#1 \(model main\) is in the log, entry \d+; it is executed at the model's next fence\n$`, out)
	says(t, n.types("status"), "mode follow", "prune of r0c1#1 (model main) by rank 2: it spikes", "prune of r0c2#1 (model main) by operator")
	pending := n.mustState().Requests
	require.Len(t, pending, 2)
	require.Equal(t, index, pending[0].Index)

	f := j.step(epoch + 1)
	require.Equal(t, []events.Stage{events.StagePruned, events.StagePruned}, []events.Stage{f.Slots[1].Stage, f.Slots[2].Stage})
	require.Empty(t, n.mustState().Requests)
	return epoch + 2
}

// killInStretch kills a follower's esperd in the middle of a stretch, between
// two of rank 0's calls. The follower, which waits meanwhile, goes on.
func killInStretch(t *testing.T, j *job, epoch int64) {
	t.Helper()
	n := j.w.nodes[1]
	j.germinate(slotNames[3])
	waits := make(chan error, 1)
	var got *api.Fence
	go func() {
		var err error
		got, err = j.trainers[n.rank].StepEpoch(j.ctx, epoch)
		waits <- err
	}()
	j.w.awaitWait(n.rank, "decision")
	n.kill()
	_, err := j.trainers[0].Advance(j.ctx, slotNames[3])
	require.NoError(t, err)
	n.start()
	want, err := j.trainers[0].StepEpoch(j.ctx, epoch)
	require.NoError(t, err)
	other, err := j.trainers[2].StepEpoch(j.ctx, epoch)
	require.NoError(t, err)
	require.NoError(t, <-waits)
	require.Equal(t, want, other)
	require.Equal(t, want, got)
	require.NotEmpty(t, want.Changes)
	j.step(epoch + 1)
}

// awaitWait waits until a rank's trainer waits.
func (w *world) awaitWait(rank int, what string) {
	w.t.Helper()
	eventually(w.t, fmt.Sprintf("rank %d's wait for a %s", rank, what), func() error {
		return w.nodes[rank].ask(func(ctx context.Context, a *client.Admin) error {
			r, err := a.Ranks(ctx)
			if err != nil {
				return err
			}
			for _, waits := range r.Ranks[rank].Waiting {
				if waits.What == what {
					return nil
				}
			}
			return errors.New("it waits for none")
		})
	})
}

// TestOrderingWarn: a rank that calls in another order gets the answers that
// belong to its calls, also when its esperd is killed between them, and the log
// has where it differed.
func TestOrderingWarn(t *testing.T) {
	plain(t)
	t.Parallel()
	w := startWorld(t, 3)
	j := w.newJob(func(o *client.Options) { o.Ordering = "warn" })
	for _, c := range j.trainers {
		_, err := c.Germinate(j.ctx, slotNames[0], api.GerminateRequest{Blueprint: "conv"})
		require.NoError(t, err)
	}
	j.step(0)
	advance := func(rank int, slot string) *api.Decision {
		d, err := j.trainers[rank].Advance(j.ctx, slot)
		require.NoError(t, err, "rank %d", rank)
		d.Local, d.Agreed = nil, false // the rank's own
		return d
	}
	orders := [][]string{{"r0c0", "r0c1", "r0c2"}, {"r0c2", "r0c1", "r0c0"}, {"r0c0", "r0c1", "r0c2"}}
	answers := make([]map[string]*api.Decision, len(orders))
	for rank, order := range orders {
		answers[rank] = map[string]*api.Decision{}
		for i, slot := range order {
			answers[rank][slot] = advance(rank, slot)
			if rank == 1 && i == 0 { // what it had to report of that call may go with it
				w.nodes[rank].kill()
				w.nodes[rank].start()
			}
		}
		require.Equal(t, answers[0], answers[rank])
	}
	require.True(t, answers[1]["r0c0"].Passed)
	require.False(t, answers[1]["r0c1"].Passed)
	f := j.step(1)
	require.Equal(t, events.StageTraining, f.Slots[0].Stage)
	j.counted(func(ranks []api.Rank) bool { return ranks[1].Misplaced > 0 })
	ranks := j.ranks()
	require.Equal(t, []uint64{0, 0}, []uint64{ranks[0].Misplaced, ranks[2].Misplaced})
	says(t, w.nodes[2].types("ranks"), "MISPLACED")
	j.step(2)
	w.settled()
	w.verify()
}

func (j *job) ranks() []api.Rank {
	j.w.t.Helper()
	return decodeAs[api.Ranks](j.w.t, j.w.nodes[2].types("ranks", "--json")).Ranks
}

// counted waits until the ranks' counters, which are reports, are in the log.
func (j *job) counted(enough func([]api.Rank) bool) {
	j.w.t.Helper()
	eventually(j.w.t, "the ranks' counters", func() error {
		if ranks := j.ranks(); !enough(ranks) {
			return fmt.Errorf("%+v", ranks)
		}
		return nil
	})
}

// TestObserve: the trainers decide by themselves and tell. While rank 0's esperd
// is stopped, nobody waits for it; the log has later where the ranks differed.
func TestObserve(t *testing.T) {
	plain(t)
	t.Parallel()
	w := startWorld(t, 3)
	j := w.newJob(func(o *client.Options) { o.Mode = events.ModeObserve })
	tell := func(rank int, slots []string, epoch int64, stage events.Stage) {
		t.Helper()
		c, passed := j.trainers[rank], stage == events.StageTraining
		for _, slot := range slots {
			c.Told(events.Outcome{Slot: slot, Stage: stage, Passed: &passed})
			d, err := c.Advance(j.ctx, slot)
			require.NoError(t, err)
			require.Equal(t, []any{passed, stage}, []any{d.Passed, d.Stage})
		}
		c.Told(events.Outcome{Slot: slotNames[0], Stage: stage}, events.Outcome{Slot: slotNames[1], Stage: stage})
		f, err := c.StepEpoch(j.ctx, epoch)
		require.NoError(t, err)
		require.Equal(t, epoch, f.Epoch)
	}
	for rank := range j.trainers {
		for _, slot := range slotNames[:2] {
			j.trainers[rank].Told(events.Outcome{Slot: slot, Stage: events.StageGerminated})
			_, err := j.trainers[rank].Germinate(j.ctx, slot, api.GerminateRequest{Blueprint: "conv"})
			require.NoError(t, err)
		}
		tell(rank, slotNames[:2], 0, events.StageTraining)
	}
	says(t, w.nodes[1].types("status"), "mode observe", "no rank has done otherwise than rank 0 so far")
	first := w.nodes[0]
	first.process.signal(t, syscall.SIGSTOP)
	const epochs = 20
	for epoch := range int64(epochs) {
		tell(1, []string{"r0c1", "r0c0"}, 1+epoch, events.StageTraining)
		tell(2, []string{"r0c0"}, 1+epoch, events.StageGerminated)
	}
	first.process.signal(t, syscall.SIGCONT)
	for epoch := range int64(epochs) {
		tell(0, slotNames[:2], 1+epoch, events.StageTraining)
	}
	j.counted(func(ranks []api.Rank) bool {
		return ranks[1].Misplaced == 2*epochs && ranks[2].MissingCalls == epochs && ranks[2].Differing >= epochs
	})
	ranks := j.ranks()
	require.Equal(t, make([]uint64, 5), []uint64{ranks[0].Misplaced, ranks[0].MissingCalls, ranks[0].Differing, ranks[1].MissingCalls, ranks[1].Differing})
	says(t, w.nodes[2].types("status"), "rank 1: 40 calls in another order than rank 0's: a broadcast would have given one call's verdict to another",
		"20 calls made by it or by rank 0 alone: a collective would have hung", "outcomes other than rank 0's: the ranks have parted")
	says(t, w.nodes[2].types("ranks"), "MISPLACED", "MISSING", "DIFFERING")
	for _, c := range j.trainers {
		require.NoError(t, c.End(j.ctx, ""))
	}
	for _, s := range w.settled() {
		require.Nil(t, s.Round.Fault)
		require.Equal(t, int64(epochs), s.Models[0].Epoch)
	}
	w.verify()
}
