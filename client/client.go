package client

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/internal/riders"
)

const (
	orderingWarn = "warn"

	// DefaultConnectMax is how long Connect waits for esperd to open its door.
	DefaultConnectMax = 30 * time.Second

	backoffMin       = 10 * time.Millisecond
	backoffMax       = 2 * time.Second
	unavailableTries = 20 // answers "not now" in a row that are tried again, about 26 s in all: a restarted rank may have history to fetch
)

// Options say who the trainer is and what its model is.
type Options struct {
	Rank        uint64
	World       uint64 // 0: 1
	Run         string // "": any
	Fingerprint string // the same on all ranks; see api.SessionRequest
	Incarnation string // "": random

	Mode     events.TrainerMode // "": keyed; the same on all ranks
	Ordering string             // "strict" or "warn"; "": strict

	Model       string // "": api.DefaultModel
	Slots       []api.SlotRequest
	Gates       *events.GateConfig
	AutoForward []events.Gate

	// Resume is a mark that Connect takes the model back to, as its first call. A
	// model that the log does not know is configured as the mark's, unless Slots
	// are given. Models that are opened later are not concerned.
	Resume []byte

	ConnectMax time.Duration // 0: DefaultConnectMax
}

// Client is a trainer of one model. Its calls are made one after the other,
// whoever calls.
type Client struct {
	o Options

	mu       sync.Mutex // held during a call
	conn     conn
	open     bool // the session is known to the esperd behind conn
	session  api.SessionAnswer
	next     uint64 // number of the next call
	fence    uint64
	answered bool // call 0 was
	slots    []api.Slot
	table    *api.Fence // the last one's answer, whose slots are not sent again; nil: none

	fencedAt uint64   // index of the entry of the last fence, or of the session
	matched  []uint64 // and of the calls since then; see remembers

	observed riders.Riders    // since the last answered call
	told     []events.Outcome // for the next one
}

// Connect opens a session and returns when the trainers of all ranks are there
// and the model is configured.
func Connect(ctx context.Context, socket string, o Options) (*Client, error) {
	if o.World == 0 {
		o.World = 1
	}
	if o.Model == "" {
		o.Model = api.DefaultModel
	}
	if o.ConnectMax == 0 {
		o.ConnectMax = DefaultConnectMax
	}
	if o.Incarnation == "" {
		var b [16]byte
		_, _ = rand.Read(b[:]) // it never fails
		o.Incarnation = hex.EncodeToString(b[:])
	}
	c := &Client{o: o, conn: conn{socket: socket}}
	err := c.connect(ctx, site())
	if err == nil && o.Resume != nil {
		_, err = c.Resume(ctx, o.Resume)
	}
	if err != nil {
		c.conn.close()
		return nil, err
	}
	return c, nil
}

// connect waits for esperd's door, for a while: trainer and esperd are often
// started together.
func (c *Client) connect(ctx context.Context, site string) error {
	deadline := time.Now().Add(c.o.ConnectMax)
	for pause := backoffMin; ; pause = min(2*pause, backoffMax) {
		err := c.openSession(ctx, site)
		var p *Problem
		switch {
		case err == nil, errors.As(err, &p), errors.Is(err, errUnreadable), ctx.Err() != nil:
			return err
		case time.Now().After(deadline):
			return fmt.Errorf("esperd does not answer at %s (%w): start it for this rank, or point ESPERD_SOCKET at its socket", c.conn.socket, err)
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// Model opens another model of the same trainer, configured alike.
func (c *Client) Model(ctx context.Context, name string) (*Client, error) {
	o := c.o
	o.Model, o.Resume = name, nil
	return Connect(ctx, c.conn.socket, o)
}

// Close ends the connection. The session stays: it is also that of the trainer's
// other models, and for whoever reconnects. A trainer that ends says End first.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn.close()
	c.open = false
	return nil
}

// Session returns what esperd said when the session was opened last.
func (c *Client) Session() api.SessionAnswer {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session
}

// Slots returns the slots as the last answers had them, in slot order.
func (c *Client) Slots() []api.Slot {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.slots)
}

// Observe records what was measured. It is sent with the next call; until then,
// a later reading of the same field replaces the earlier one.
func (c *Client) Observe(slot string, r api.Readings) {
	c.observed.Add(api.Observation{Slot: slot, Readings: r})
}

// openSession is called with mu held, or before the client is shared.
func (c *Client) openSession(ctx context.Context, site string) error {
	req := api.SessionRequest{Protocol: api.ProtocolVersion, Rank: c.o.Rank, WorldSize: c.o.World, Run: c.o.Run,
		Incarnation: c.o.Incarnation, Fingerprint: c.o.Fingerprint, Mode: c.o.Mode, Ordering: c.o.Ordering, Model: c.o.Model,
		Slots: c.o.Slots, Gates: c.o.Gates, AutoForward: c.o.AutoForward, Site: site}
	limit := api.BodyBytesMax
	if !c.answered && c.o.Resume != nil {
		req.Resume, limit = c.o.Resume, api.MarkBodyBytesMax
	}
	if c.answered {
		last := c.next - 1
		req.Answered, req.Round, req.Lineage = &last, c.session.Round, c.session.Lineage
		if c.remembers() {
			req.FenceIndex, req.Fences, req.Matched = c.fencedAt, c.fence, c.matched
		}
	}
	body, err := encode(req, limit)
	if err != nil {
		return err
	}
	status, answer, err := c.conn.post(ctx, "/v1/session", body)
	if err != nil {
		return err
	}
	var session api.SessionAnswer // a new one: callers keep the old one's slots
	if err := decode(status, answer, &session); err != nil {
		return err
	}
	if !c.answered {
		c.fencedAt = session.Index
	}
	c.session, c.open, c.answered = session, true, true
	c.next, c.fence, c.slots = c.session.NextCall, c.session.NextFence, slices.Clone(c.session.Slots)
	return nil
}

// remembers reports whether the numbers of this client's calls do not tell which
// entries answered them, so that one that reconnects has to say it.
func (c *Client) remembers() bool {
	return c.o.Ordering == orderingWarn || c.o.Mode != "" && c.o.Mode != events.ModeKeyed
}

// call makes one numbered call. fill returns its body, given what every call
// carries; note is called when out is the answer, and returns its index.
func (c *Client) call(ctx context.Context, path string, fill func(api.Call) any, out any, note func() uint64) error {
	site := site()
	c.mu.Lock()
	defer c.mu.Unlock()
	limit := api.BodyBytesMax
	if path == resumePath {
		limit = api.MarkBodyBytesMax
	}
	body, err := encode(fill(api.Call{Session: c.o.Incarnation, Model: c.o.Model, Call: c.next, Fence: c.fence, Site: site,
		Observations: c.observed.Board(), Outcomes: c.told, Since: c.since(path)}), limit)
	if err == nil {
		err = c.persist(ctx, path, site, body, out)
	}
	var p *Problem
	switch {
	case err == nil:
		c.landed(note(), strings.HasPrefix(path, slotPrefix))
	case errors.As(err, &p) && p.Index > 0: // refused, in the log
		c.landed(p.Index, strings.HasPrefix(path, slotPrefix))
	case errors.As(err, &p) && p.Status < 500: // certainly not in the log
		c.observed.Stay()
		c.told = nil
	}
	return err
}

// landed takes note of an answered call, and of the entry that answered it; 0:
// the trainer's own word did.
func (c *Client) landed(index uint64, ofSlot bool) {
	c.next++
	c.observed.Land()
	c.told = nil
	switch {
	case index == 0:
	case !ofSlot:
		c.fencedAt, c.matched = index, nil
	case c.o.Ordering == orderingWarn:
		c.matched = append(c.matched, index)
	}
}

// persist makes a call until it is answered. A lost connection is opened again
// for as long as ctx lasts, and the session with it.
func (c *Client) persist(ctx context.Context, path, site string, body []byte, out any) error {
	unavailable := 0
	for pause := backoffMin; ; pause = min(2*pause, backoffMax) {
		err := c.try(ctx, path, site, body, out)
		var p *Problem
		switch {
		case err == nil, ctx.Err() != nil:
			return err
		case errors.As(err, &p):
			if unavailable++; !errors.Is(err, ErrUnavailable) || p.Index > 0 || unavailable == unavailableTries {
				return err
			}
		case errors.Is(err, errUnreadable):
			return err
		}
		c.open = false
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

func (c *Client) try(ctx context.Context, path, site string, body []byte, out any) error {
	if !c.open {
		if err := c.openSession(ctx, site); err != nil {
			return err
		}
	}
	status, answer, err := c.conn.post(ctx, path, body)
	if err != nil {
		return err
	}
	return decode(status, answer, out)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
