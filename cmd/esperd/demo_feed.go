package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
)

// connectMax is how long a rank may take until its round is open: it includes
// the start of every process.
const connectMax = time.Minute

// culpritMax is how long the rank that ended the round for all may take to be
// told so: its answer says more than theirs.
const culpritMax = 5 * time.Second

// feedAll makes every rank's calls, each rank in its own program order and all
// at the same time. As trainers do at every all-reduce, ranks wait for each
// other at the end of an epoch.
func feedAll(ctx context.Context, rec *Recording, c *cluster, p *progress) ([][]answer, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	epochs := newBarrier(rec.World)
	answers := make([][]answer, rec.World)
	errs := make([]error, rec.World)
	var wg sync.WaitGroup
	for rank := range rec.World {
		answers[rank] = make([]answer, len(rec.Steps[rank]))
		wg.Go(func() {
			errs[rank] = feed(ctx, rec, rank, c.ranks[rank].socket, answers[rank], epochs, p)
			if err := errs[rank]; errors.Is(err, client.ErrRoundFaulted) {
				time.AfterFunc(culpritMax, func() { cancel(err) })
			} else if err != nil {
				cancel(fmt.Errorf("rank %d: %w", rank, err))
			}
		})
	}
	wg.Wait()
	return answers, worst(ctx, errs)
}

// worst chooses the error that explains the others: one rank's mistake ends the
// calls of all.
func worst(ctx context.Context, errs []error) error {
	var rest error
	for rank, err := range errs {
		switch {
		case errors.Is(err, client.ErrOrderMismatch), errors.Is(err, client.ErrMissingCall):
			return fmt.Errorf("rank %d: %w", rank, err)
		case err != nil && rest == nil:
			if rest = context.Cause(ctx); rest == nil {
				rest = fmt.Errorf("rank %d: %w", rank, err)
			}
		}
	}
	return rest
}

// feed is one rank's trainer.
func feed(ctx context.Context, rec *Recording, rank int, socket string, answers []answer, epochs *barrier, p *progress) error {
	c, err := connect(ctx, rec, rank, socket)
	if err != nil {
		return fmt.Errorf("connecting: %w", err)
	}
	defer c.Close()
	for i := range rec.Steps[rank] {
		s := &rec.Steps[rank][i]
		if err := feedStep(ctx, c, s, &answers[i]); err != nil {
			return fmt.Errorf("%s, line %d, %s %s: %w", rankFile(rank), s.Line, s.Kind, s.Slot, err)
		}
		if rank == 0 {
			p.did(s)
		}
		if s.Kind == recordingStepEpoch {
			if err := epochs.wait(ctx); err != nil {
				return err
			}
		}
	}
	return c.End(ctx, "") // this process ends, and its ranks may be kept
}

func connect(parent context.Context, rec *Recording, rank int, socket string) (*client.Client, error) {
	ctx, cancel := context.WithTimeoutCause(parent, connectMax, fmt.Errorf("no round was open within %s", connectMax))
	defer cancel()
	c, err := client.Connect(ctx, socket, client.Options{Rank: uint64(rank), World: uint64(rec.World), Fingerprint: "demo",
		Slots: rec.SlotConfig(), Gates: &rec.Gates, AutoForward: rec.AutoForward, ConnectMax: connectMax})
	if err != nil && ctx.Err() != nil && parent.Err() == nil {
		err = causeOf(ctx, err)
	}
	return c, err
}

func feedStep(ctx context.Context, c *client.Client, s *Step, a *answer) error {
	a.asked = time.Now()
	var err error
	switch s.Kind {
	case "observe":
		c.Observe(s.Slot, s.Readings)
	case "germinate":
		_, err = c.Germinate(ctx, s.Slot, api.GerminateRequest{Blueprint: s.Blueprint, Blend: &s.Blend, Tempo: &s.Tempo})
	case "advance":
		a.decision, err = advance(ctx, c, s)
	case "prune":
		_, err = c.Prune(ctx, s.Slot, api.PruneRequest{Reason: s.Reason, Initiator: s.Initiator})
		a.refused, err = refusedIn(err)
	case "schedule_prune":
		r := api.SchedulePruneRequest{Ticks: s.Ticks, Curve: s.Curve, Steepness: s.Steepness, Reason: s.Reason, Initiator: s.Initiator}
		_, err = c.SchedulePrune(ctx, s.Slot, r)
		a.refused, err = refusedIn(err)
	case recordingStepEpoch:
		var f *api.Fence
		if f, err = c.StepEpoch(ctx, s.Epoch); err == nil {
			a.slots = slices.Clone(f.Slots) // the client goes on writing into its own
		}
	}
	a.answered = time.Now()
	return err
}

func advance(ctx context.Context, c *client.Client, s *Step) (*api.Decision, error) {
	if s.Target != nil {
		return c.Advance(ctx, s.Slot, *s.Target)
	}
	return c.Advance(ctx, s.Slot)
}

// refusedIn tells a call that the log refused, which a recording may have, from
// one that failed.
func refusedIn(err error) (bool, error) {
	if p, ok := errors.AsType[*client.Problem](err); ok && p.Index > 0 && errors.Is(err, client.ErrIllegalTransition) {
		return true, nil
	}
	return false, err
}

// barrier lets n goroutines wait for each other, again and again.
type barrier struct {
	n       int
	mu      sync.Mutex
	waiting int
	open    chan struct{}
}

func newBarrier(n int) *barrier { return &barrier{n: n, open: make(chan struct{})} }

func (b *barrier) wait(ctx context.Context) error {
	b.mu.Lock()
	open := b.open
	if b.waiting++; b.waiting == b.n {
		b.waiting, b.open = 0, make(chan struct{})
		close(open)
	}
	b.mu.Unlock()
	select {
	case <-open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
