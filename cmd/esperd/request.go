package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/events"
)

// requestedMax is how long a request may take to be in the log: longer than the
// door waits for that.
const requestedMax = 40 * time.Second

type requestCmd struct {
	Prune requestPruneCmd `cmd:"" help:"Ask for the end of the seed in a slot."`
}

type requestPruneCmd struct {
	targetFlags
	Slot      string  `arg:"" help:"Name of the slot."`
	Model     string  `default:"main" placeholder:"NAME" help:"Name of the model."`
	Seed      uint64  `placeholder:"N" help:"Germination count of the seed that is meant, the number after #; absent: the one that is in the slot now."`
	Reason    string  `placeholder:"TEXT" help:"Why, for the log."`
	Initiator string  `placeholder:"WHO" help:"Who asks, for the log; absent: operator."`
	TokenFile *string `source:"ESPERD_TOKEN_FILE" group:"target" placeholder:"FILE" help:"Token of that esperd, which its admin door wants."`
}

// Help says more than the flags do.
func (*requestPruneCmd) Help() string {
	return "The request is an entry of the log at once; the seed is pruned at the model's next fence or step, between the same two of them on every rank. Asking twice is asking once."
}

func (c *requestPruneCmd) Run(a *app) error {
	return c.askWithin(requestedMax, a, func(ctx context.Context, admin *client.Admin, t target) error {
		token, err := c.token(a, t)
		if err != nil {
			return err
		}
		done, err := admin.Request(ctx, token, api.RequestRequest{Model: c.Model, Action: events.ActionPrune, Slot: c.Slot, Seed: c.Seed,
			Reason: c.Reason, Initiator: c.Initiator})
		if err != nil {
			return err
		}
		if c.JSON {
			return writeJSON(a.stdout, done)
		}
		_, err = fmt.Fprintf(a.stdout, "prune of %s (model %s) is in the log, entry %d; it is executed at the model's next fence\n",
			oneLine(seedText(c.Slot, c.seed(ctx, admin, done.Index))), oneLine(c.Model), done.Index)
		return err
	})
}

// token is the one for the admin door; on its socket esperd knows its user.
func (c *requestPruneCmd) token(a *app, t target) (string, error) {
	if strings.HasPrefix(t.address, "/") {
		return "", nil
	}
	r := &resolver{surroundings: a.surroundings, from: map[string]string{}}
	return readToken(r.pick("token_file", c.TokenFile))
}

// seed is which one is pruned, for people: the log knows.
func (c *requestPruneCmd) seed(ctx context.Context, admin *client.Admin, index uint64) uint64 {
	page, err := admin.Events(ctx, index, 1)
	if err != nil || len(page.Entries) == 0 {
		return c.Seed
	}
	for _, ev := range page.Entries[0].Events {
		if ev.Requested != nil {
			return ev.Requested.Seed
		}
	}
	return c.Seed
}
