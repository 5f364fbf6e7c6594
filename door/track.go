package door

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/internal/riders"
)

const replayMax = 4096 // entries that a cursor is moved over one by one

// track is where one session stands in one model: its cursor. Everything but
// observed and config is used only by who holds the turn.
type track struct {
	round uint64
	model string
	turn  chan struct{} // holds one token: calls of a model are answered one after the other

	cursor *fsm.State // after the last answered call; nil: call 0 is not answered yet
	fenced *fsm.Model // at the last fence, or as configured
	last   *answered  // what was answered last, for a client that asks again; nil: unknown here
	shadow *shadow    // nil on rank 0

	config   atomic.Pointer[fsm.Config] // set once call 0 is answered
	observed riders.Riders
}

func newTrack(round uint64, model string) *track {
	return &track{round: round, model: model, turn: make(chan struct{}, 1)}
}

func (t *track) lock(ctx context.Context) *api.Problem {
	select {
	case t.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ended(ctx, func() *api.Problem {
			return problemf(events.CodeDecisionTimeout, "another call of model %s in this session did not end in time: make one call after the other", t.model)
		})
	}
}

func (t *track) unlock() { <-t.turn }

// open puts the cursor somewhere, with the model as it was at the last fence.
func (s *Server) open(t *track, at *fsm.State, fenced *fsm.Model) {
	t.cursor, t.fenced, t.last = at, fenced, nil
	if s.rank != 0 {
		t.shadow = newShadow(at, t.model, s.log)
	}
	t.config.Store(at.Model(t.model).Config)
}

// stateAfter returns the state after the entry at index, which is at or after
// the cursor. The head is taken where it is there: it is the same state.
func (s *Server) stateAfter(ctx context.Context, cursor *fsm.State, index uint64) (*fsm.State, *api.Problem) {
	if head := s.replica.State(); head.Index == index {
		s.recent.add(head)
		return head, nil
	}
	cursor = s.recent.nearest(cursor, index)
	if index-cursor.Index > replayMax {
		return s.stateAt(ctx, index)
	}
	for cursor.Index < index {
		e, _, err := s.replica.Entry(cursor.Index + 1)
		if err != nil {
			return s.stateAt(ctx, index) // the replica may know it from an image
		}
		if cursor, _, err = fsm.Apply(cursor, e); err != nil {
			return nil, problemOf(err)
		}
	}
	s.recent.add(cursor)
	return cursor, nil
}

// recent holds the last states that cursors were moved to. A trainer of many
// models calls them in turn, so that the state which one model's cursor needs is
// a step from where another's has just been.
type recent struct {
	mu     sync.Mutex
	states [64]*fsm.State
	next   int
}

func (r *recent) add(s *fsm.State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.states[r.next%len(r.states)] = s
	r.next++
}

// nearest returns the latest known state from cursor up to index.
func (r *recent) nearest(cursor *fsm.State, index uint64) *fsm.State {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.states {
		if s != nil && s.Index > cursor.Index && s.Index <= index {
			cursor = s
		}
	}
	return cursor
}

func (s *Server) stateAt(ctx context.Context, index uint64) (*fsm.State, *api.Problem) {
	if head := s.replica.State(); head.Index == index {
		return head, nil
	}
	at, err := s.replica.StateAt(ctx, index)
	if err != nil {
		return nil, problemOf(err)
	}
	return at, nil
}

// restore gives a client that was connected to an earlier esperd process its
// cursor back: the state after call k, and the model at the fence before it.
func (s *Server) restore(ctx context.Context, t *track, k uint64, site string) *api.Problem {
	index, e, p := s.findEntry(ctx, t, k, site)
	if p != nil {
		return p
	}
	at, p := s.stateAt(ctx, index)
	if p != nil {
		return p
	}
	if at.Model(t.model) == nil {
		return refusal(e, index)
	}
	for k > 0 && !fences(e) {
		k--
		if index, e, p = s.findEntry(ctx, t, k, site); p != nil {
			return p
		}
	}
	before, p := s.stateAt(ctx, index)
	if p != nil {
		return p
	}
	s.open(t, at, before.Model(t.model))
	s.log.Info("a trainer has its cursor back", "model", t.model, "round", t.round, "index", at.Index)
	return nil
}

// findEntry returns the entry of an earlier call, waiting for it if this node
// is behind.
func (s *Server) findEntry(ctx context.Context, t *track, k uint64, site string) (uint64, *events.Entry, *api.Problem) {
	index, p := s.await(ctx, t, events.Key{Round: t.round, Model: t.model, Call: k}, site)
	if p != nil {
		return 0, nil, p
	}
	e, p := s.entry(index)
	return index, e, p
}

func (s *Server) entry(index uint64) (*events.Entry, *api.Problem) {
	e, _, err := s.replica.Entry(index)
	if err != nil {
		return nil, problemOf(err)
	}
	if e.Key == nil {
		return nil, problemf(events.CodeUnavailable, "entry %d is no call: expected one; stop, and keep this data directory", index)
	}
	return e, nil
}

// fences reports whether an entry closed a stretch of calls.
func fences(e *events.Entry) bool {
	return slices.ContainsFunc(e.Events, func(ev events.Event) bool { return ev.EpochStepped != nil || ev.Fenced != nil })
}
