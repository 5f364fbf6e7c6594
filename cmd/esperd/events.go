package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
)

// eventsPage is how many entries are asked for at once.
const eventsPage = 1000

type eventsCmd struct {
	Place string `arg:"" optional:"" help:"Data directory, exported log or admin URL to read, also of an esperd that has ended; absent: ask an esperd."`
	targetFlags
	From   uint64 `placeholder:"INDEX" help:"First entry; absent: where the node's history begins."`
	Limit  uint64 `placeholder:"N" help:"Stop after N entries; absent: at the end of the log."`
	Follow bool   `short:"f" xor:"how" help:"Go on with new entries as they come."`
	Export string `xor:"how" placeholder:"FILE.jsonl" help:"Write the log of PLACE with its chain to a file, which audit, replay and events read; - is stdout."`
}

// Help says more than the flags do.
func (*eventsCmd) Help() string {
	return "With --json each line is one entry as a JSON object. The status is 2 if PLACE is an export that was cut: the last whole entry need not be the last one."
}

// errEnough ends a walk over the log.
var errEnough = errors.New("enough")

func (c *eventsCmd) Run(a *app) error {
	ctx, cancel := a.stopped()
	defer cancel()
	if c.Export != "" || c.Place != "" {
		return c.readPlace(ctx, a)
	}
	err := c.askFor(ctx, a, func(ctx context.Context, admin *client.Admin, _ target) error {
		shown := uint64(0)
		show := func(e api.Entry) error {
			if shown == 0 && !c.JSON {
				entriesHeader(a.stdout)
			}
			if err := c.show(a, &e); err != nil {
				return err
			}
			if shown++; c.Limit > 0 && shown == c.Limit {
				return errEnough
			}
			return nil
		}
		if c.Follow {
			return admin.Follow(ctx, c.From, show)
		}
		return pages(ctx, admin, c.From, c.Limit, show)
	})
	if errors.Is(err, errEnough) || c.Follow && ctx.Err() != nil {
		return nil
	}
	if _, nobody := errors.AsType[noEsperdError](err); nobody && !c.Follow {
		return fmt.Errorf("%w; or read a log without one: esperd events PLACE, where %s", err, placeIs)
	}
	return err
}

func (c *eventsCmd) show(a *app, e *api.Entry) error {
	if c.JSON {
		return json.NewEncoder(a.stdout).Encode(e)
	}
	return entryLine(a.stdout, e)
}

// pages calls each with every entry from an index to the end of the log. A
// limit, 0 for none, only keeps the pages from being larger than needed.
func pages(ctx context.Context, admin *client.Admin, from, limit uint64, each func(api.Entry) error) error {
	size := uint64(eventsPage)
	if limit > 0 {
		size = min(size, limit)
	}
	for {
		p, err := admin.Events(ctx, from, size)
		if err != nil {
			return err
		}
		for _, e := range p.Entries {
			if err := each(e); err != nil {
				return err
			}
		}
		if from = p.Next; from == 0 {
			return nil
		}
	}
}
