package e2e

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/events"
)

// TestResume: weights of epoch 40 with a log at 57, in a job that goes on and in
// one that starts again, with killed processes in between, and at last with no
// data directory left.
func TestResume(t *testing.T) {
	plain(t)
	t.Parallel()
	for _, mode := range []events.TrainerMode{events.ModeKeyed, events.ModeFollow} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := startWorld(t, 3)
			as := func(o *client.Options) { o.Mode = mode }
			j := w.newJob(as)
			j.onCallers(mode, func(c *client.Client) error {
				_, err := c.Germinate(j.ctx, slotNames[0], api.GerminateRequest{Blueprint: "conv"})
				return err
			})
			j.step(39)
			j.step(40)
			mark := j.mark()
			at40 := w.settled()[0].Models[0].Lifecycle
			j.onCallers(mode, func(c *client.Client) error {
				_, err := c.Advance(j.ctx, slotNames[0])
				return err
			})
			j.step(57)
			at57 := j.mark()

			j = w.newJob(as) // weights alone rewind nothing
			require.EqualValues(t, 57, w.settled()[0].Models[0].Epoch)
			for _, err := range j.each(func(c *client.Client) error { _, err := c.StepEpoch(j.ctx, 41); return err }) {
				require.ErrorIs(t, err, client.ErrInvalidInput)
			}
			j.refused("rank 0 brought the mark of epoch 57", func(rank int) []byte { return [][]byte{at57.Mark, mark.Mark, mark.Mark}[rank] })
			j.refused("rank 2 brought not a mark", func(rank int) []byte { return mark.Mark[:len(mark.Mark)-rank/2] })
			j.refused("ends at entry", func(int) []byte { return changed(t, mark.Mark, func(m *events.Mark) { m.Index = 1 << 40 }) })
			j.refused("of run", func(int) []byte {
				return changed(t, mark.Mark, func(m *events.Mark) { m.Run, m.Lineage, m.Chain = "another", "another", events.Digest{1} })
			})
			require.EqualValues(t, 57, w.settled()[0].Models[0].Epoch)

			j.interruptedResume(mark.Mark)
			require.Equal(t, at40, w.settled()[0].Models[0].Lifecycle)
			for epoch := int64(41); epoch < 45; epoch++ {
				j.step(epoch)
			}
			j.resume(at57.Mark)
			require.EqualValues(t, 57, w.settled()[1].Models[0].Epoch)
			j.resume(mark.Mark)
			require.Equal(t, at40, w.settled()[2].Models[0].Lifecycle)
			rewinds := 0
			for _, e := range w.nodes[1].events() {
				for _, ev := range e.Events {
					if ev.Rewound != nil {
						rewinds++
					}
				}
			}
			require.Equal(t, 3, rewinds)

			lost := newWorld(t, 3)
			lost.startAll()
			lost.settled()
			j = lost.newJob(func(o *client.Options) { o.Mode, o.Slots, o.Gates, o.Resume = mode, nil, nil, mark.Mark })
			states := lost.settled()
			require.Equal(t, at40, states[2].Models[0].Lifecycle)
			require.Equal(t, mark.Lineage, states[2].Ancestors[0].Lineage)
			j.step(41)
		})
	}
}

// onCallers makes a call on every rank that makes calls in a mode.
func (j *job) onCallers(mode events.TrainerMode, call func(*client.Client) error) {
	j.w.t.Helper()
	for rank, c := range j.trainers {
		if rank == 0 || mode == events.ModeKeyed {
			require.NoError(j.w.t, call(c))
		}
	}
}

// each makes a call on every rank at once.
func (j *job) each(call func(*client.Client) error) []error {
	errs := make([]error, len(j.trainers))
	var wg sync.WaitGroup
	for rank, c := range j.trainers {
		wg.Go(func() { errs[rank] = call(c) })
	}
	wg.Wait()
	return errs
}

// mark takes the mark of every rank, which is one.
func (j *job) mark() *api.Mark {
	j.w.t.Helper()
	marks := make([]*api.Mark, len(j.trainers))
	for rank, c := range j.trainers {
		var err error
		marks[rank], err = c.Checkpoint(j.ctx)
		require.NoError(j.w.t, err)
		require.Equal(j.w.t, marks[0], marks[rank])
	}
	return marks[0]
}

func (j *job) resume(mark []byte) *api.Fence {
	j.w.t.Helper()
	return j.fence(func(c *client.Client) (*api.Fence, error) { return c.Resume(j.ctx, mark) })
}

// refused resumes on every rank, which is refused on all.
func (j *job) refused(why string, mark func(rank int) []byte) {
	j.w.t.Helper()
	said := false
	ranks := map[*client.Client]int{}
	for rank, c := range j.trainers {
		ranks[c] = rank
	}
	for _, err := range j.each(func(c *client.Client) error { _, err := c.Resume(j.ctx, mark(ranks[c])); return err }) {
		require.ErrorIs(j.w.t, err, client.ErrMarkMismatch)
		require.ErrorContains(j.w.t, err, why)
		said = true
	}
	require.True(j.w.t, said)
}

func changed(t *testing.T, mark []byte, change func(*events.Mark)) []byte {
	m, _, err := events.DecodeMark(mark)
	require.NoError(t, err)
	change(m)
	b, _, err := events.EncodeMark(m)
	require.NoError(t, err)
	return b
}

// interruptedResume kills the esperds of rank 0 and of another rank while they
// wait in a resume for the last one.
func (j *job) interruptedResume(mark []byte) {
	t, w := j.w.t, j.w
	t.Helper()
	var early sync.WaitGroup
	errs := make([]error, len(j.trainers))
	for rank, c := range j.trainers[:2] {
		early.Go(func() { _, errs[rank] = c.Resume(j.ctx, mark) })
	}
	for rank := range 2 {
		n := w.nodes[rank]
		eventually(t, "both ranks in the resume", func() error {
			return w.nodes[2].ask(func(ctx context.Context, a *client.Admin) error {
				waits, err := a.Arrivals(ctx)
				if err == nil && len(waits.Waiting) < 2 {
					err = errors.New("not yet")
				}
				return err
			})
		})
		n.kill()
		n.start()
		w.led()
	}
	_, errs[2] = j.trainers[2].Resume(j.ctx, mark)
	early.Wait()
	require.NoError(t, errors.Join(errs...))
}

// TestResumeFigures takes the figures of a whole resume of 4 ranks in real processes, with marks of
// so many slots in use.
func TestResumeFigures(t *testing.T) {
	if os.Getenv("ESPERD_E2E_FIGURES") == "" {
		t.Skip("figures: ESPERD_E2E_FIGURES=1 takes them")
	}
	w := startWorld(t, 4)
	for _, slots := range []int{1, 10, 1000} {
		names := make([]api.SlotRequest, slots)
		for i := range names {
			names[i].Name = "s" + time.Unix(int64(i), 0).UTC().Format("150405")
		}
		model := "m" + names[len(names)-1].Name
		j := w.newJob(func(o *client.Options) { o.Model, o.Slots, o.Mode = model, names, events.ModeFollow })
		for _, s := range names {
			_, err := j.trainers[0].Germinate(j.ctx, s.Name, api.GerminateRequest{Blueprint: "conv"})
			require.NoError(t, err)
		}
		j.step(0)
		mark := j.mark()
		var took []time.Duration
		for range 20 {
			began := time.Now()
			j.resume(mark.Mark)
			took = append(took, time.Since(began))
		}
		began := time.Now()
		j.step(1)
		t.Logf("%d slots in use: a mark of %d bytes; a resume took %v of 4 ranks (a step %v)", slots, mark.Bytes, median(took), time.Since(began))
	}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}
