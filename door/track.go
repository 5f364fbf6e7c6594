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

// track is where one session stands in one model: its cursor. What is not atomic
// or locked by itself is used only by who holds the turn.
type track struct {
	ctx   context.Context // the session's
	round uint64
	model string
	turn  chan struct{} // holds one token: calls of a model are answered one after the other

	mode  events.TrainerMode // the round's
	warns bool               // ordering: what does not fit is recorded, and the round goes on

	place
	before  place     // where it stood before the last call
	last    *answered // what was answered last, for a client that asks again; nil: unknown here
	stretch *stretch  // with warns: the calls since the last fence
	shadow  *shadow   // nil on rank 0, and where the trainers decide by themselves

	memory   memory                     // what the executor of the model's memory does
	offer    atomic.Pointer[offer]      // the mark that the trainer has brought to a resume; nil: none
	config   atomic.Pointer[fsm.Config] // set once call 0 is answered
	visible  atomic.Pointer[fsm.Model]  // at the cursor
	tells    atomic.Pointer[teller]     // in the mode observe
	observed riders.Riders
}

// place is where a track stands.
type place struct {
	next   uint64     // number of the trainer's next call; 0: call 0 is not answered yet
	fences uint64     // among those that were answered
	cursor *fsm.State // after the last answered call
	fenced *fsm.Model // at the last fence, or as configured

	fencedAt uint64 // index of that fence's entry, or of the configuration's
	attested uint64 // how often ranks had been found to hold something else by then, in the round
}

// land moves the track over an answered call.
func (t *track) land(m *matched, a *answered) {
	t.before = t.place
	t.next++
	if m.index > t.cursor.Index {
		t.cursor = m.after
	}
	if _, ok := a.body.(*api.Fence); ok {
		t.fenced, t.fencedAt, t.attested = m.after.Model(t.model), m.index, found(&m.after.Round)
		t.fences++
	}
	t.visible.Store(t.cursor.Model(t.model))
	t.last = a
	if t.stretch != nil {
		t.stretch.land(t.model, m)
	}
	if t.shadow != nil && rewinds(m.entry) { // what was measured belongs to the branch that is left
		t.shadow = newShadow(m.after, t.model, t.shadow.log)
	}
}

func newTrack(ctx context.Context, round uint64, model string) *track {
	return &track{ctx: ctx, round: round, model: model, turn: make(chan struct{}, 1)}
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

// open puts the track somewhere.
func (s *Server) open(t *track, at place) {
	t.place, t.last, t.stretch, t.shadow = at, nil, nil, nil
	t.mode = at.cursor.Round.Mode()
	switch {
	case t.mode == events.ModeObserve:
		t.tells.Store(s.newTeller(t))
	case s.rank != 0:
		t.shadow = newShadow(at.cursor, t.model, s.log)
	}
	if s.rank != 0 && t.mode == events.ModeKeyed && t.warns {
		t.stretch = newStretch(at.cursor, t.model)
	}
	t.visible.Store(at.cursor.Model(t.model))
	t.config.Store(at.cursor.Model(t.model).Config)
	s.words.watch(t.model)
	if t.mode != events.ModeObserve {
		s.openMemory(t)
	}
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
// place back: the state after its last answered call, and the model at the fence
// before it.
func (s *Server) restore(ctx context.Context, t *track, req *api.SessionRequest) *api.Problem {
	mode := s.replica.State().Round.Mode()
	if mode == events.ModeObserve {
		return s.restoreTold(ctx, t, req)
	}
	var (
		index uint64
		e     *events.Entry
		p     *api.Problem
	)
	if s.rank == 0 || mode == events.ModeKeyed && !t.warns {
		index, e, p = s.findEntry(ctx, t, *req.Answered, req.Site)
	} else {
		index, e, p = s.fenceOf(ctx, t, req)
	}
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
	for k := e.Key.Call; k > 0 && !fences(e); {
		k--
		if index, e, p = s.findEntry(ctx, t, k, req.Site); p != nil {
			return p
		}
	}
	before, p := s.stateAt(ctx, index)
	if p != nil {
		return p
	}
	stands := place{next: *req.Answered + 1, fences: at.Cursor(t.model).Fence, cursor: at, fenced: before.Model(t.model), fencedAt: index, attested: found(&before.Round)}
	var taken *stretch
	if s.rank != 0 && mode == events.ModeKeyed && t.warns { // opened only with all of it: what is missing would be answered twice
		t.stretch = newStretch(at, t.model)
		if stands.cursor, p = s.retake(ctx, t, req.Matched); p != nil {
			return p
		}
		taken = t.stretch
	}
	s.open(t, stands)
	if taken != nil {
		t.stretch = taken
	}
	s.log.Info("a trainer has its cursor back", "model", t.model, "round", t.round, "index", at.Index)
	return nil
}

// fenceOf returns the fence, or the configuration, that a client names whose
// calls have not the numbers of rank 0's. It waits for it if this node is
// behind.
func (s *Server) fenceOf(ctx context.Context, t *track, req *api.SessionRequest) (uint64, *events.Entry, *api.Problem) {
	if p := s.applied(ctx, max(req.FenceIndex, slices.Max(append(req.Matched, 0)))); p != nil {
		return 0, nil, p
	}
	e, p := s.named(t, req.FenceIndex)
	if p != nil {
		return 0, nil, p
	}
	if e == nil || !(e.Key.Op.Fence() || e.Key.Op == events.OpConfigure) {
		return 0, nil, problemf(events.CodeInvalidInput, "fence_index: expected the entry of a fence of model %s in round %d, got entry %d: send the index of the last fence's answer, or else of the session", t.model, t.round, req.FenceIndex)
	}
	return req.FenceIndex, e, nil
}

// named returns the entry of a call of the track that a client names; nil if
// there is none at that index.
func (s *Server) named(t *track, index uint64) (*events.Entry, *api.Problem) {
	if index == 0 {
		return nil, nil
	}
	e, _, err := s.replica.Entry(index)
	switch {
	case err != nil:
		return nil, problemOf(err)
	case e.Key == nil || e.Key.Round != t.round || e.Key.Model != t.model:
		return nil, nil
	}
	return e, nil
}

// applied waits until this node has applied an entry.
func (s *Server) applied(ctx context.Context, index uint64) *api.Problem {
	for {
		changed := s.replica.Changed()
		if s.replica.State().Index >= index {
			return nil
		}
		if p := s.health(); p != nil {
			return p
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ended(ctx, func() *api.Problem {
				return problemf(events.CodeUnavailable, "this node has not applied entry %d yet, which the trainer's session names: see GET /readyz", index)
			})
		}
	}
}

// findEntry returns the entry of an earlier call, waiting for it if this node
// is behind.
func (s *Server) findEntry(ctx context.Context, t *track, k uint64, site string) (uint64, *events.Entry, *api.Problem) {
	index, p := s.await(ctx, t.round, events.Key{Round: t.round, Model: t.model, Call: k}, site)
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
	return slices.ContainsFunc(e.Events, func(ev events.Event) bool { return fsm.Closes(&ev) })
}
