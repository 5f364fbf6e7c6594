package audit

import (
	"context"
	"fmt"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// Step is an entry as replaying meets it. The record and the entry are good until
// the callback returns.
type Step struct {
	Record  *events.Record
	Entry   *events.Entry
	Refused string     // why every replica refused it
	Before  *fsm.State // immutable, as After
	After   *fsm.State
}

// Replay applies the entries of a place one after the other, up to an index, and
// calls fn with each. It begins at entry 1, or with the state that the place
// kept where its history begins. Digests in records are not compared; those in
// entries are, by package fsm.
func Replay(ctx context.Context, p Place, to uint64, fn func(*Step) error) error {
	a := p.About()
	state, prev := fsm.New(), events.Digest{}
	if a.From > 1 {
		if state = newImageCheck(p).stateAt(a.From - 1); state == nil {
			return fmt.Errorf("%s begins with entry %d, and the state before it is not known there: replay a place that has the log from entry 1 on", a.Place, a.From)
		}
		prev = a.FirstChain
	}
	return replay(ctx, p, state, prev, to, fn)
}

func replay(ctx context.Context, p Place, state *fsm.State, prev events.Digest, to uint64, fn func(*Step) error) error {
	if to > p.About().Head {
		return fmt.Errorf("%s ends with entry %d, expected one up to there, got %d", p.About().Place, p.About().Head, to)
	}
	return stream(ctx, p, state.Index+1, to, prev, true, func(e *streamed) error {
		if e.Err != nil {
			return fmt.Errorf("entry %d: %w", e.Record.Index, e.Err)
		}
		next, out, err := fsm.Apply(state, &e.Entry)
		if err != nil {
			return err
		}
		step := Step{Record: &e.Record, Entry: &e.Entry, Refused: out.Refused, Before: state, After: next}
		state = next
		return fn(&step)
	})
}

// StateAt returns the state after the entry at index.
func StateAt(ctx context.Context, p Place, index uint64) (*fsm.State, error) {
	return stateAt(ctx, p, index)
}

// stateAt begins with the newest kept image that is not above index.
func stateAt(ctx context.Context, p Place, index uint64) (*fsm.State, error) {
	state, prev := fsm.New(), events.Digest{}
	if d, ok := p.(*dirPlace); ok {
		for _, img := range d.images {
			if img.Err != nil || img.Index > index {
				continue
			}
			l, err := d.Link(ctx, img.Index)
			if err != nil {
				continue
			}
			if s, err := fsm.FromImage(img.Bytes); err == nil && s.Index == img.Index && fits(s, l) {
				state, prev = s, l.Chain
			}
		}
	}
	if state.Index == 0 && p.About().From > 1 {
		if index < p.About().From {
			return nil, fmt.Errorf("%s begins with entry %d: %w", p.About().Place, p.About().From, events.ErrNotFound)
		}
		return nil, fmt.Errorf("%s begins with entry %d, and the state before it is not known there", p.About().Place, p.About().From)
	}
	out := state
	err := replay(ctx, p, state, prev, index, func(s *Step) error {
		out = s.After
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// fits reports whether the record of an image's entry says that the state is
// this one, where it says anything.
func fits(s *fsm.State, l Link) bool {
	return l.Bookkeeping.IsZero() || l.Bookkeeping == s.Bookkeeping()
}

// EpochEnd returns the index of the entry that stepped an epoch of a model, the
// last one if several generations did.
func EpochEnd(ctx context.Context, p Place, model string, epoch int64) (uint64, error) {
	found, last := uint64(0), int64(-1)
	err := Replay(ctx, p, p.About().Head, func(s *Step) error {
		if s.Refused != "" || s.Entry.Key == nil || s.Entry.Key.Model != model {
			return nil
		}
		for i := range s.Entry.Events {
			if stepped := s.Entry.Events[i].EpochStepped; stepped != nil {
				if last = stepped.Epoch; last == epoch {
					found = s.Record.Index
				}
			}
		}
		return nil
	})
	if err == nil && found == 0 {
		err = fmt.Errorf("no entry of %s steps epoch %d of model %s; the last one that is stepped is %d", p.About().Place, epoch, model, last)
	}
	return found, err
}
