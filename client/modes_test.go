package client_test

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/door"
	"github.com/esperd/esperd/door/doortest"
	"github.com/esperd/esperd/events"
)

// pair is a job of two ranks.
type pair struct {
	log      *doortest.Log
	esperds  [2]*esperd
	trainers [2]*client.Client
}

func newPair(t *testing.T, mode events.TrainerMode, ordering string) *pair {
	t.Helper()
	j := &pair{log: doortest.New("run-1", 2)}
	errs := [2]error{}
	var wg sync.WaitGroup
	for rank := range j.trainers {
		j.esperds[rank] = newEsperd(t, j.log.Node(rank))
		wg.Go(func() {
			j.trainers[rank], errs[rank] = client.Connect(testContext(t), j.esperds[rank].socket, client.Options{Rank: uint64(rank), World: 2,
				Mode: mode, Ordering: ordering, Slots: []api.SlotRequest{{Name: "r0c0"}, {Name: "r0c1"}}})
		})
	}
	wg.Wait()
	for rank, c := range j.trainers {
		require.NoError(t, errs[rank])
		t.Cleanup(func() { require.NoError(t, c.Close()) })
	}
	return j
}

// fences lets both ranks fence and returns what they were told, which has to be
// the same.
func (j *pair) fences(t *testing.T, fence func(*client.Client) (*api.Fence, error)) *api.Fence {
	t.Helper()
	first, err := fence(j.trainers[0])
	require.NoError(t, err)
	second, err := fence(j.trainers[1])
	require.NoError(t, err)
	require.Equal(t, first, second)
	return first
}

func (j *pair) restart(rank int) {
	j.esperds[rank].stop()
	j.esperds[rank].start()
}

func TestFollowersOnlyFence(t *testing.T) {
	j := newPair(t, events.ModeFollow, "")
	ctx := testContext(t)
	_, err := j.trainers[0].Germinate(ctx, "r0c0", api.GerminateRequest{Blueprint: "conv"})
	require.NoError(t, err)
	require.Equal(t, events.StageDormant, j.trainers[0].Slots()[0].Stage, "it is seen at the fence, on rank 0 too")
	_, err = j.trainers[1].Germinate(ctx, "r0c0", api.GerminateRequest{Blueprint: "conv"})
	require.ErrorIs(t, err, client.ErrNotAuthority)
	j.restart(0)
	j.restart(1)
	_, err = j.trainers[0].Advance(ctx, "r0c0")
	require.NoError(t, err)
	f := j.fences(t, func(c *client.Client) (*api.Fence, error) { return c.Fence(ctx, 1) })
	require.Equal(t, events.StageTraining, f.Slots[0].Stage)
	require.Len(t, f.Changes, 1)
	for rank, c := range j.trainers {
		require.Equal(t, f.Slots, c.Slots())
		_, err := c.Fence(ctx, 1) // a refused fence is one that all have come to
		require.ErrorIs(t, err, client.ErrInvalidInput)
		j.restart(rank)
	}
	_, err = j.trainers[0].Prune(ctx, "r0c0", api.PruneRequest{})
	require.NoError(t, err)
	f = j.fences(t, func(c *client.Client) (*api.Fence, error) { return c.Fence(ctx, 2) })
	require.Equal(t, events.StagePruned, f.Changes[0].To)
	f = j.fences(t, func(c *client.Client) (*api.Fence, error) { return c.Reset(ctx) })
	require.Equal(t, events.StageDormant, f.Changes[0].To)
	require.Equal(t, int64(-1), f.Epoch)
	require.EqualValues(t, 2, j.log.Node(1).State().Model("main").Generation)
}

// What rank 1 has called in another order is known again after its esperd was
// started anew, between any two of its calls.
func TestOrderingWarnOutlivesTheEsperd(t *testing.T) {
	j := newPair(t, "", "warn")
	ctx := testContext(t)
	for epoch := range int64(2) {
		for _, slot := range []string{"r0c0", "r0c1"} {
			_, err := j.trainers[0].Advance(ctx, slot, events.StageTraining)
			require.NoError(t, err)
		}
		for _, slot := range []string{"r0c1", "r0c0"} {
			_, err := j.trainers[1].Advance(ctx, slot, events.StageTraining)
			require.NoError(t, err)
			j.restart(1)
		}
		j.fences(t, func(c *client.Client) (*api.Fence, error) { return c.StepEpoch(ctx, epoch) })
	}
	for _, c := range j.trainers { // a fence that is refused begins a stretch as well
		_, err := c.StepEpoch(ctx, 0)
		require.ErrorIs(t, err, client.ErrInvalidInput)
	}
	j.restart(1)
	j.fences(t, func(c *client.Client) (*api.Fence, error) { return c.StepEpoch(ctx, 2) })
	require.Nil(t, j.log.Node(0).State().Round.Fault)
	misplaced := 0
	for _, ev := range j.log.Node(1).Reports() {
		if m := ev.Mismatched; m != nil {
			require.Equal(t, events.CodeOrderMismatch, m.Code)
			misplaced++
		}
	}
	require.Equal(t, 2, misplaced, "one an epoch")
}

func TestToldOutcomesGoWithTheNextCall(t *testing.T) {
	j := newPair(t, events.ModeObserve, "")
	ctx := testContext(t)
	passed := true
	for _, c := range j.trainers {
		c.Told(events.Outcome{Slot: "r0c0", Stage: events.StageGerminated})
		d, err := c.Germinate(ctx, "r0c0", api.GerminateRequest{Blueprint: "conv"})
		require.NoError(t, err)
		require.Equal(t, events.StageGerminated, d.Stage)
	}
	j.restart(1)
	for _, c := range j.trainers {
		c.Told(events.Outcome{Slot: "r0c0", Stage: events.StageTraining, Passed: &passed}, events.Outcome{Slot: "r0c1", Stage: events.StageHolding, Alpha: 0.5})
		f, err := c.StepEpoch(ctx, 0)
		require.NoError(t, err)
		require.Equal(t, []events.Stage{events.StageTraining, events.StageHolding}, []events.Stage{f.Slots[0].Stage, f.Slots[1].Stage})
		f, err = c.StepEpoch(ctx, 1)
		require.NoError(t, err)
		require.Empty(t, f.Slots, "they went with one call")
		require.NoError(t, c.End(ctx, ""), "all that was told is in the log then")
	}
	m := j.log.Node(0).State().Model("main")
	require.Equal(t, int64(1), m.Epoch)
	require.Equal(t, events.StageHolding, m.Slots.At(1).Stage())
}

func TestRequests(t *testing.T) {
	j := newPair(t, "", "")
	ctx := testContext(t)
	for _, c := range j.trainers {
		for _, slot := range []string{"r0c0", "r0c1"} {
			_, err := c.Germinate(ctx, slot, api.GerminateRequest{Blueprint: "conv"})
			require.NoError(t, err)
		}
	}
	index, err := j.trainers[1].Request(ctx, api.RequestRequest{Action: events.ActionPrune, Slot: "r0c0"})
	require.NoError(t, err)
	j.restart(1)
	again, err := j.trainers[1].Request(ctx, api.RequestRequest{Action: events.ActionPrune, Slot: "r0c0"})
	require.NoError(t, err)
	require.Equal(t, index, again, "asking twice is asking once")
	_, err = j.trainers[1].Request(ctx, api.RequestRequest{Action: events.ActionPrune, Slot: "nonesuch"})
	require.ErrorIs(t, err, client.ErrUnknownSlot)

	j.esperds[0].stop()
	e := j.esperds[0]
	e.doors, err = door.Open(door.Options{Replica: e.node, Socket: e.socket, Token: "the right one", Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	require.NoError(t, err)
	ask := func(target, token string) error {
		a := client.NewAdmin(target)
		defer a.Close()
		_, err := a.Request(ctx, token, api.RequestRequest{Action: events.ActionPrune, Slot: "r0c1"})
		return err
	}
	url := "http://" + e.doors.AdminAddr()
	require.ErrorIs(t, ask(url, ""), client.ErrNotAuthority)
	require.ErrorIs(t, ask(url, "a wrong one"), client.ErrNotAuthority)
	require.NoError(t, ask(url, "the right one"))
	require.NoError(t, ask(e.socket, ""))
	f := j.fences(t, func(c *client.Client) (*api.Fence, error) { return c.StepEpoch(ctx, 0) })
	require.Equal(t, []events.Stage{events.StagePruned, events.StagePruned}, []events.Stage{f.Changes[0].To, f.Changes[1].To})
}

func TestBusyAndEnd(t *testing.T) {
	j := newPair(t, "", "")
	ctx := testContext(t)
	busy := func() *api.Busy {
		a := client.NewAdmin(j.esperds[1].socket)
		defer a.Close()
		r, err := a.Ranks(ctx)
		require.NoError(t, err)
		return r.Ranks[0].Busy
	}
	require.NoError(t, j.trainers[0].Busy(ctx, "evaluation", time.Hour))
	require.Equal(t, "evaluation", busy().Reason)
	require.InDelta(t, 3600, busy().Seconds, 300)
	require.NoError(t, j.trainers[0].Busy(ctx, "", 0))
	require.Nil(t, busy())

	require.NoError(t, j.trainers[0].End(ctx, ""))
	require.Nil(t, j.log.Node(0).State().Round.Fault)
	require.NoError(t, j.trainers[1].End(ctx, "out of memory"))
	fault := j.log.Node(0).State().Round.Fault
	require.NotNil(t, fault)
	require.Equal(t, []any{events.CodeUnavailable, uint64(1)}, []any{fault.Code, fault.Rank})
	require.Contains(t, fault.Reason, "it failed: out of memory")
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	require.ErrorIs(t, j.trainers[0].End(cancelled, ""), context.Canceled)
}
