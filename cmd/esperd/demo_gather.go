package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
)

// settleMax is how long the ranks' reports may take to be in the log, and the
// log to be on every rank.
const settleMax = 30 * time.Second

// gather reads from every rank what the comparison needs, once the log has all
// reports and every rank has the log.
func gather(ctx context.Context, c *cluster, answers [][]answer, disagreements int) (*evidence, error) {
	ev := &evidence{answers: answers}
	admins := make([]*client.Admin, len(c.ranks))
	for i, p := range c.ranks {
		admins[i] = client.NewAdmin(p.socket)
		defer admins[i].Close()
	}
	err := awaitShadows(ctx, admins[0], disagreements)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, settleMax, fmt.Errorf("the ranks do not all have the whole log after %s", settleMax))
	defer cancel()
	if ev.states, err = sameIndex(ctx, admins); err != nil {
		return nil, causeOf(ctx, err)
	}
	for rank, admin := range admins {
		var log []api.Entry
		err := pages(ctx, admin, 1, 0, func(e api.Entry) error {
			if e.Index <= ev.states[0].Index {
				log = append(log, e)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("the log of rank %d: %w", rank, causeOf(ctx, err))
		}
		ev.logs = append(ev.logs, log)
	}
	return ev, nil
}

// awaitShadows follows the log until it holds n shadow verdicts. That it does
// not in time is for the comparison to say.
func awaitShadows(ctx context.Context, admin *client.Admin, n int) error {
	if n == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, settleMax, errEnough)
	defer cancel()
	seen := 0
	err := admin.Follow(ctx, 1, func(e api.Entry) error {
		for _, ev := range e.Events {
			if ev.ShadowVerdict != nil {
				seen++
			}
		}
		if seen >= n {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) || errors.Is(context.Cause(ctx), errEnough) {
		return nil
	}
	return fmt.Errorf("waiting for the ranks' own verdicts in the log, have %d of %d: %w", seen, n, causeOf(ctx, err))
}

// sameIndex reads every rank's state after one and the same entry: each rank is
// followed up to the highest index seen until none has moved on.
func sameIndex(ctx context.Context, admins []*client.Admin) ([]*api.State, error) {
	var head uint64
	for {
		states := make([]*api.State, len(admins))
		same := true
		for rank, admin := range admins {
			if head > 0 {
				if err := awaitIndex(ctx, admin, head); err != nil {
					return nil, fmt.Errorf("rank %d does not have entry %d: %w", rank, head, err)
				}
			}
			s, err := admin.State(ctx)
			if err != nil {
				return nil, fmt.Errorf("the state of rank %d: %w", rank, err)
			}
			states[rank] = s
			same = same && s.Index == states[0].Index
			head = max(head, s.Index)
		}
		if same {
			return states, nil
		}
	}
}

func awaitIndex(ctx context.Context, admin *client.Admin, index uint64) error {
	err := admin.Follow(ctx, index, func(api.Entry) error { return errEnough })
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// causeOf prefers why ctx ended to what that looked like.
func causeOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("%w (%w)", cause, err)
	}
	return err
}
