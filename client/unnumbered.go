package client

import (
	"context"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// The calls below are not numbered: each may be made at any time between two
// others, on any rank.

// Told says, in the mode observe, what the trainer did by itself. It goes with
// the next call: of the call's slot, or at a step of all slots.
func (c *Client) Told(outcomes ...events.Outcome) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.told = append(c.told, outcomes...)
}

// Request asks for something at the model's next fence, on every rank. It
// returns the index of the request's entry when that is in the log.
func (c *Client) Request(ctx context.Context, r api.RequestRequest) (uint64, error) {
	r.Session, r.Model = c.o.Incarnation, c.o.Model
	var answer api.Requested
	err := c.unnumbered(ctx, requestsPath, r, &answer)
	return answer.Index, err
}

// Busy says that this rank makes no call for so long, so that the others wait
// for it without giving up; 0: it is not busy any more.
func (c *Client) Busy(ctx context.Context, reason string, d time.Duration) error {
	return c.unnumbered(ctx, "/v1/busy", api.BusyRequest{Session: c.o.Incarnation, Reason: reason, Seconds: d.Seconds()}, &api.OK{})
}

// Checkpoint takes a mark of the model where this client is: after its last
// answered call, in the mode follow at its last fence. The same is taken on every
// rank that is there. Its bytes are to be stored with the weights.
func (c *Client) Checkpoint(ctx context.Context) (*api.Mark, error) {
	site := site()
	c.mu.Lock()
	defer c.mu.Unlock()
	body, err := encode(api.CheckpointRequest{Session: c.o.Incarnation, Model: c.o.Model, Next: &c.next}, api.BodyBytesMax)
	if err != nil {
		return nil, err
	}
	var m api.Mark
	if err := c.persist(ctx, "/v1/checkpoint", site, body, &m); err != nil {
		return nil, err
	}
	return &m, nil
}

// End says goodbye for the trainer, with all of its models, and closes the
// connection. A process that ends without it is taken for dead, which ends the
// round for all ranks, as does failed: why the trainer fails, if it does.
func (c *Client) End(ctx context.Context, failed string) error {
	err := c.unnumbered(ctx, "/v1/close", api.CloseRequest{Session: c.o.Incarnation, Failed: failed}, &api.OK{})
	if err != nil {
		return err
	}
	return c.Close()
}

func (c *Client) unnumbered(ctx context.Context, path string, request, answer any) error {
	site := site()
	c.mu.Lock()
	defer c.mu.Unlock()
	body, err := encode(request, api.BodyBytesMax)
	if err != nil {
		return err
	}
	return c.persist(ctx, path, site, body, answer)
}
