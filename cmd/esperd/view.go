package main

import (
	"context"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/events"
)

type statusCmd struct {
	targetFlags
}

// Help says more than the flags do.
func (*statusCmd) Help() string {
	return "The node answers from what it has itself, so it also answers without a quorum; the status is still 0 then."
}

func (c *statusCmd) Run(a *app) error {
	return c.ask(a, func(ctx context.Context, admin *client.Admin) error {
		s, err := admin.State(ctx)
		if err != nil {
			return err
		}
		if c.JSON {
			return writeJSON(a.stdout, s)
		}
		var ranks []api.Rank
		if modeOf(s.Round) == events.ModeObserve {
			r, err := admin.Ranks(ctx)
			if err != nil {
				return err
			}
			ranks = r.Ranks
		}
		return statusTable(a.stdout, s, ranks)
	})
}

type slotsCmd struct {
	targetFlags
	Model string `default:"main" placeholder:"NAME" help:"Name of the model."`
}

func (c *slotsCmd) Run(a *app) error {
	return c.ask(a, func(ctx context.Context, admin *client.Admin) error {
		m, err := admin.Slots(ctx, c.Model)
		if err != nil {
			return err
		}
		if c.JSON {
			return writeJSON(a.stdout, m)
		}
		return slotsTable(a.stdout, m.Slots)
	})
}

type ranksCmd struct {
	targetFlags
}

func (c *ranksCmd) Run(a *app) error {
	return c.ask(a, func(ctx context.Context, admin *client.Admin) error {
		r, err := admin.Ranks(ctx)
		if err != nil {
			return err
		}
		if c.JSON {
			return writeJSON(a.stdout, r)
		}
		return ranksTable(a.stdout, r.Ranks)
	})
}
