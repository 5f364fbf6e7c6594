package door

import (
	"context"
	"sync"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// sessions keeps the trainers of this node's rank. Whoever connects may be a
// stray process, so the one that is served stays until a round lists another.
type sessions struct {
	rank   uint64
	listed func() string // incarnation in the round that is open; called with mu held

	mu       sync.Mutex
	current  *session                // the one that is served; nil: none came yet
	next     *session                // the newest that waits for a round of its own
	replaced map[string]*api.Problem // by incarnation
	order    []string                // of replaced, oldest first
}

// enter returns the session of a trainer that asks for a round. Of two that wait
// the newer one goes on, and the older one's waiting ends. One that was replaced
// does not come back.
func (l *sessions) enter(ctx context.Context, incarnation string) (*session, *api.Problem) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.replaced[incarnation]; p != nil {
		return nil, p
	}
	listed := l.listed()
	if l.next.is(listed) { // its round has been opened this moment
		l.take(l.next)
	}
	switch {
	case l.current.is(incarnation):
		return l.current, nil
	case l.next.is(incarnation):
		return l.next, nil
	}
	ses := newSession(ctx, incarnation)
	if incarnation == listed { // it is back, after esperd was started anew
		l.take(ses)
		return ses, nil
	}
	if l.next != nil {
		l.replace(l.next, "another trainer of rank %d connected at %s, while this one waited for its round, and takes its place: end this process, or connect anew from it on all ranks", ses)
	}
	l.next = ses
	return ses, nil
}

// admit returns the session of a trainer whose round is open. It is served from
// now on, and the calls of the one before end.
func (l *sessions) admit(ctx context.Context, incarnation string) (*session, *api.Problem) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.replaced[incarnation]; p != nil {
		return nil, p
	}
	if l.listed() != incarnation {
		return nil, problemf(events.CodeNotAuthority, "another round was opened this moment, with another trainer of rank %d: end this process, or connect anew from it on all ranks", l.rank)
	}
	switch {
	case l.current.is(incarnation):
	case l.next.is(incarnation):
		l.take(l.next)
	default: // it is back, after esperd was started anew
		l.take(newSession(ctx, incarnation))
	}
	return l.current, nil
}

func (l *sessions) take(ses *session) {
	if l.current != nil {
		l.replace(l.current, "another trainer of rank %d connected at %s, and the round that is open is its own: its calls count from now on; end this process, or connect anew from it on all ranks", ses)
	}
	if l.next == ses {
		l.next = nil
	}
	l.current = ses
}

func (l *sessions) replace(old *session, format string, by *session) {
	p := problemf(events.CodeNotAuthority, format, l.rank, by.since.Format(time.RFC3339))
	l.remember(old.incarnation, p)
	old.end(&replacedError{p})
	old.release()
}

func (l *sessions) remember(incarnation string, p *api.Problem) {
	if l.replaced == nil {
		l.replaced = map[string]*api.Problem{}
	}
	if len(l.order) == replacedMax {
		delete(l.replaced, l.order[0])
		l.order = l.order[1:]
	}
	l.replaced[incarnation] = p
	l.order = append(l.order, incarnation)
}

// find returns the session that a call names.
func (l *sessions) find(incarnation string) (*session, *api.Problem) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.current.is(incarnation):
		return l.current, nil
	case l.next.is(incarnation):
		return l.next, nil
	}
	if p := l.replaced[incarnation]; p != nil {
		return nil, p
	}
	return nil, problemf(events.CodeUnavailable, "session %.64q is not open here: esperd was started anew, or the trainer never connected; POST /v1/session with the same incarnation and the number of the last answered call", incarnation)
}

// served returns the session that is served; nil without one.
func (l *sessions) served() *session {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.current
}

// track returns where a session stands in a model.
func (s *Server) track(id, model string) (*session, *track, *api.Problem) {
	ses, p := s.sessions.find(id)
	if p != nil {
		return nil, nil, p
	}
	t, p := ses.opened(model)
	return ses, t, p
}

// stands returns the track of a call without a number that has a meaning only in
// the round that is open, and none in the mode observe: it says why.
func (s *Server) stands(session, model, op, why string) (*track, *api.Problem) {
	_, t, p := s.track(session, model)
	if p != nil {
		return nil, p
	}
	if p := standing(s.replica.State(), t.round); p != nil {
		return nil, p
	}
	if t.tells.Load() != nil {
		return nil, problemf(events.CodeNotAuthority, "%s: in the mode observe %s: leave the call out", op, why)
	}
	return t, nil
}
