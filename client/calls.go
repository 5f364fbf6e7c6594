package client

import (
	"context"
	"fmt"
	"net/url"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// The calls below fill in what every call carries; the rest of a request is the
// caller's. An error is a *Problem, or ctx's.

// Germinate puts a new seed into an empty slot.
func (c *Client) Germinate(ctx context.Context, slot string, r api.GerminateRequest) (*api.Done, error) {
	return c.done(ctx, slot, events.OpGerminate, func(k api.Call) any { r.Call = k; return r })
}

// Advance asks the gate of the next stage, or of target. FOSSILIZED has to be
// named.
func (c *Client) Advance(ctx context.Context, slot string, target ...events.Stage) (*api.Decision, error) {
	var r api.AdvanceRequest
	if len(target) > 0 {
		r.Target = &target[0]
	}
	return c.decision(ctx, slot, events.OpAdvance, func(k api.Call) any { r.Call = k; return r })
}

// Verdict brings the trainer's own gate result. Rank 0's decides.
func (c *Client) Verdict(ctx context.Context, slot string, v events.Verdict) (*api.Decision, error) {
	return c.decision(ctx, slot, events.OpVerdict, func(k api.Call) any {
		return api.VerdictRequest{Call: k, Gate: v.Gate, Passed: v.Passed, Score: events.Num(v.Score),
			ChecksPassed: v.ChecksPassed, ChecksFailed: v.ChecksFailed, Message: v.Message}
	})
}

// Prune removes a seed now.
func (c *Client) Prune(ctx context.Context, slot string, r api.PruneRequest) (*api.Done, error) {
	return c.done(ctx, slot, events.OpPrune, func(k api.Call) any { r.Call = k; return r })
}

// SchedulePrune ramps a seed's alpha to 0, then removes it.
func (c *Client) SchedulePrune(ctx context.Context, slot string, r api.SchedulePruneRequest) (*api.Done, error) {
	return c.done(ctx, slot, events.OpSchedulePrune, func(k api.Call) any { r.Call = k; return r })
}

// AlphaTarget ramps a seed's alpha to another value.
func (c *Client) AlphaTarget(ctx context.Context, slot string, r api.AlphaTargetRequest) (*api.Done, error) {
	return c.done(ctx, slot, events.OpAlphaTarget, func(k api.Call) any { r.Call = k; return r })
}

// StepEpoch closes an epoch and returns what changed since the last fence.
func (c *Client) StepEpoch(ctx context.Context, epoch int64) (*api.Fence, error) {
	return c.fenced(ctx, "/v1/epochs/"+strconv.FormatInt(epoch, 10)+"/step", func(k api.Call) any { return api.StepRequest{Call: k} })
}

// Fence closes a stretch of calls without a tick and returns what changed since
// the last fence.
func (c *Client) Fence(ctx context.Context, n int64) (*api.Fence, error) {
	return c.fenced(ctx, "/v1/fence", func(k api.Call) any { return api.FenceRequest{Call: k, N: n} })
}

// Reset starts the model's next generation: all slots are empty, and epochs
// count from 0. It is a fence.
func (c *Client) Reset(ctx context.Context) (*api.Fence, error) {
	return c.fenced(ctx, "/v1/reset", func(k api.Call) any { return api.ResetRequest{Call: k} })
}

// Resume takes the model back to a mark, once the trainers of all ranks have
// brought the same one. It is a fence: what changed is told from what this rank
// saw last. Marks that differ, or are none, are ErrMarkMismatch, and change
// nothing; its Marks say which ranks brought which.
func (c *Client) Resume(ctx context.Context, mark []byte) (*api.Fence, error) {
	return c.fenced(ctx, resumePath, func(k api.Call) any { return api.ResumeRequest{Call: k, Mark: mark} })
}

func (c *Client) done(ctx context.Context, slot string, op events.Op, fill func(api.Call) any) (*api.Done, error) {
	var d api.Done
	err := c.call(ctx, slotPath(slot, op), fill, &d, func() uint64 {
		c.noteSlot(slot, func(s *api.Slot) { s.Germinations, s.Stage, s.Alpha = d.Seed, d.Stage, d.Alpha })
		return d.Index
	})
	if err != nil {
		return nil, err
	}
	return &d, nil
}

func (c *Client) decision(ctx context.Context, slot string, op events.Op, fill func(api.Call) any) (*api.Decision, error) {
	var d api.Decision
	err := c.call(ctx, slotPath(slot, op), fill, &d, func() uint64 {
		c.noteSlot(slot, func(s *api.Slot) { s.Stage = d.Stage })
		return d.Index
	})
	if err != nil {
		return nil, err
	}
	return &d, nil
}

func (c *Client) fenced(ctx context.Context, path string, fill func(api.Call) any) (*api.Fence, error) {
	var f api.Fence
	var gap error
	err := c.call(ctx, path, fill, &f, func() uint64 {
		c.fence++
		gap = c.complete(&f)
		c.slots = slices.Clone(f.Slots) // the caller keeps f
		return f.Index
	})
	switch {
	case err != nil:
		return nil, err
	case gap != nil:
		return nil, gap
	}
	return &f, nil
}

// since is what a call says of the slots that the client has.
func (c *Client) since(path string) uint64 {
	if c.table == nil || strings.HasPrefix(path, slotPrefix) {
		return 0
	}
	return c.table.Index
}

// complete puts the slots into a fence's answer that have not changed since the
// last one; their controllers and metrics are the same ones. It is called with mu
// held.
func (c *Client) complete(f *api.Fence) error {
	table := c.table
	c.table = nil
	if f.Since != 0 {
		if table == nil || f.Since != table.Index {
			return fmt.Errorf("entry %d came with what has changed since entry %d, whose slots this client has not kept: %w", f.Index, f.Since, errUnreadable)
		}
		all, changed := slices.Clone(table.Slots), f.Slots
		for i := range all {
			if len(changed) > 0 && changed[0].Name == all[i].Name {
				all[i], changed = changed[0], changed[1:]
			}
		}
		if len(changed) > 0 {
			return fmt.Errorf("entry %d came with the slot %.64q, which is not in order or not one of the model's: %w", f.Index, changed[0].Name, errUnreadable)
		}
		f.Slots, f.Since = all, 0
	}
	if f.Index > 0 {
		c.table = &api.Fence{Index: f.Index, Slots: slices.Clone(f.Slots)} // the caller keeps f
	}
	return nil
}

const resumePath = "/v1/resume"

const slotPrefix = "/v1/slots/" // of every call that is no fence

func slotPath(slot string, op events.Op) string {
	return slotPrefix + url.PathEscape(slot) + "/" + string(op)
}

// noteSlot is called with mu held. In the mode follow, what rank 0 decides is
// seen at fences, by rank 0 too.
func (c *Client) noteSlot(slot string, change func(*api.Slot)) {
	if c.o.Mode == events.ModeFollow {
		return
	}
	for i := range c.slots {
		if c.slots[i].Name == slot {
			change(&c.slots[i])
		}
	}
}

const ownPackage = "github.com/esperd/esperd/client."

// site names the line of the trainer that called, as train.go:88.
func site() string {
	var pcs [16]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	for {
		f, more := frames.Next()
		if !strings.HasPrefix(f.Function, ownPackage) {
			return filepath.Base(f.File) + ":" + strconv.Itoa(f.Line)
		}
		if !more {
			return ""
		}
	}
}
