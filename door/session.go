package door

import (
	"cmp"
	"context"
	"sync"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/replica"
)

const (
	modelsMax   = 4096 // of one session
	replacedMax = 64   // trainers that are remembered as replaced
)

// session is one trainer process, from when it connects until another one of
// its rank takes its place here.
type session struct {
	incarnation string
	since       time.Time
	ctx         context.Context // ends, with its cause, when another trainer takes over or the server closes
	end         context.CancelCauseFunc

	mu     sync.Mutex
	round  uint64 // 0: none is open yet
	tracks map[string]*track
}

func newSession(ctx context.Context, incarnation string) *session {
	ses := &session{incarnation: incarnation, since: time.Now(), tracks: map[string]*track{}}
	ses.ctx, ses.end = context.WithCancelCause(ctx)
	return ses
}

// is reports whether a session is an incarnation's; nil is nobody's.
func (ses *session) is(incarnation string) bool {
	return ses != nil && ses.incarnation == incarnation
}

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

// living returns the incarnation that is served, empty without one.
func (l *sessions) living() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current == nil {
		return ""
	}
	return l.current.incarnation
}

// track returns where the session stands in one model, in a round. Another
// round than before starts every model anew.
func (ses *session) track(round uint64, model string) (*track, *api.Problem) {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	if ses.round != round {
		ses.round, ses.tracks = round, map[string]*track{}
	}
	t := ses.tracks[model]
	if t == nil {
		if len(ses.tracks) == modelsMax {
			return nil, problemf(events.CodeInvalidInput, "this trainer has %d models open, expected at most %d: reset a model instead of naming a new one", len(ses.tracks), modelsMax)
		}
		t = newTrack(round, model)
		ses.tracks[model] = t
	}
	return t, nil
}

// opened returns the track of a model that the session has configured.
func (ses *session) opened(model string) (*track, *api.Problem) {
	ses.mu.Lock()
	t := ses.tracks[model]
	ses.mu.Unlock()
	if t == nil || t.config.Load() == nil {
		return nil, problemf(events.CodeUnavailable, "model %.64q is not open in this session: POST /v1/session for it first", model)
	}
	return t, nil
}

// callContext ends when the client goes away, another trainer takes over, the
// server closes, or the longest wait is over; its cause says which.
func (s *Server) callContext(ctx, session context.Context) (context.Context, context.CancelFunc) {
	ctx, timeout := context.WithTimeoutCause(ctx, s.waitMax, errWaitedOut)
	ctx, done := endingWith(ctx, session)
	return ctx, func() {
		done()
		timeout()
	}
}

// endingWith returns ctx, which also ends when other does, with its cause.
func endingWith(ctx, other context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(other, func() { cancel(context.Cause(other)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// connect opens a session for one model, or returns to it.
func (s *Server) connect(ctx context.Context, req *api.SessionRequest) (*api.SessionAnswer, error) {
	if p := s.checkIdentity(req); p != nil {
		return nil, p
	}
	ctx, done := s.callContext(ctx, s.ctx)
	defer done()
	ses, round, p := s.join(ctx, req)
	if p != nil {
		return nil, p
	}
	if p := s.checkIdentity(req); p != nil { // the run may be known only now
		return nil, p
	}
	t, p := ses.track(round, req.Model)
	if p != nil {
		return nil, p
	}
	ctx, done = endingWith(ctx, ses.ctx)
	defer done()
	if p := t.lock(ctx); p != nil {
		return nil, p
	}
	defer t.unlock()
	at, p := s.resume(ctx, t, req)
	if p != nil {
		return nil, p
	}
	return s.sessionAnswer(t, at, req.Incarnation), nil
}

// resume brings a track to the client's last answered call and returns the
// state there: call 0 for a client that has none.
func (s *Server) resume(ctx context.Context, t *track, req *api.SessionRequest) (*fsm.State, *api.Problem) {
	switch {
	case t.cursor == nil && req.Answered == nil:
		if p := s.configure(ctx, t, req); p != nil {
			return nil, p
		}
		return t.cursor, nil
	case t.cursor == nil:
		if p := s.restore(ctx, t, *req.Answered, req.Site); p != nil {
			return nil, p
		}
		return t.cursor, nil
	}
	last := t.cursor.Cursor(t.model).Calls - 1
	var answered uint64
	if req.Answered != nil {
		answered = *req.Answered
	}
	switch {
	case answered == last:
		return t.cursor, nil
	case answered+1 == last && req.Answered != nil && t.last != nil: // that answer was lost; it will be asked for again
		index, _, p := s.findEntry(ctx, t, answered, req.Site)
		if p != nil {
			return nil, p
		}
		return s.stateAt(ctx, index)
	}
	return nil, problemf(events.CodeInvalidInput, "model %s: this incarnation was answered up to call %d, expected answered to be that or the call before, got %d; a new trainer process chooses a new incarnation",
		t.model, last, answered)
}

func (s *Server) sessionAnswer(t *track, at *fsm.State, incarnation string) *api.SessionAnswer {
	next, m := at.Cursor(t.model), at.Model(t.model)
	return &api.SessionAnswer{Session: incarnation, Run: at.Run, Lineage: at.Lineage, Node: s.node, Round: t.round, Model: t.model,
		Generation: m.Generation, NextCall: next.Calls, NextFence: next.Fence, Epoch: m.Epoch, Index: at.Index, Slots: api.SlotsOf(m)}
}

// checkIdentity compares who the trainer thinks it is with who this node is.
func (s *Server) checkIdentity(req *api.SessionRequest) *api.Problem {
	mismatch := func(format string, args ...any) *api.Problem {
		return problemf(events.CodeConfigMismatch, format, args...)
	}
	state := s.replica.State()
	run := state.Run
	if run == "" {
		run = s.replica.Status().Run
	}
	switch {
	case req.Protocol != api.ProtocolVersion:
		return problemf(events.CodeInvalidInput, "the trainer speaks protocol %d, expected %d: install the same version of esperd and its client", req.Protocol, api.ProtocolVersion)
	case req.WorldSize != s.world:
		return mismatch("the trainer's world size is %d, this esperd's is %d: give both the same (WORLD_SIZE, ESPERD_WORLD_SIZE)", req.WorldSize, s.world)
	case req.Rank >= req.WorldSize:
		return mismatch("the trainer's rank is %d in a world of %d, expected 0 to %d", req.Rank, req.WorldSize, req.WorldSize-1)
	case req.Rank != s.rank:
		return mismatch("the trainer is rank %d, the esperd behind this socket is rank %d's: give each rank a socket of its own (ESPERD_SOCKET)", req.Rank, s.rank)
	case req.Run != "" && run != "" && req.Run != run:
		return mismatch("the trainer is in run %q, this esperd's log is run %q: point both at one run (ESPERD_RUN_ID), or use another data directory for the other run", req.Run, run)
	case state.Round.Number > 0 && uint64(len(state.Round.Members)) != req.WorldSize:
		return mismatch("the trainer's world size is %d, but the log has been trained with %d ranks: start a new run for another world size", req.WorldSize, len(state.Round.Members))
	}
	return nil
}

// join returns the session and its round. A trainer that connects waits for all
// the others; one that comes back belongs to the round it was in, and must not
// be taken for one that asks for the next.
func (s *Server) join(ctx context.Context, req *api.SessionRequest) (*session, uint64, *api.Problem) {
	open := s.rejoin
	if req.Answered == nil {
		open = s.register
	}
	round, p := open(ctx, req)
	if p != nil {
		return nil, 0, p
	}
	ses, p := s.sessions.admit(s.ctx, req.Incarnation)
	return ses, round, p
}

// rejoin waits until this node knows the round that a trainer comes back to.
func (s *Server) rejoin(ctx context.Context, req *api.SessionRequest) (uint64, *api.Problem) {
	for {
		changed := s.replica.Changed()
		if head := s.replica.State(); knows(head, req) {
			return req.Round, checkReturn(head, req)
		}
		select { // this node is behind: esperd was started a moment ago
		case <-changed:
		case <-ctx.Done():
			return 0, ended(ctx, func() *api.Problem {
				return problemf(events.CodeUnavailable, "this node does not know round %d yet, the one that the trainer's session is of: see GET /readyz", req.Round)
			})
		}
	}
}

// knows reports whether the node has heard of the round that a client comes
// back to.
func knows(head *fsm.State, req *api.SessionRequest) bool {
	return head.Lineage != "" && head.Round.Number >= req.Round
}

// checkReturn compares the session that a client comes back to with the round
// that is open: the answers it had are of that one's log.
func checkReturn(head *fsm.State, req *api.SessionRequest) *api.Problem {
	switch {
	case req.Lineage != head.Lineage:
		return problemf(events.CodeConfigMismatch, "the trainer's session is of the log of lineage %.64q, expected %q: the log was founded anew; start the trainers again", req.Lineage, head.Lineage)
	case req.Round != head.Round.Number:
		return problemf(events.CodeNotAuthority, "the trainer's session is of round %d, expected %d, which is open: connect anew on all ranks", req.Round, head.Round.Number)
	case req.Round == 0 || head.Round.Members[req.Rank].Incarnation != req.Incarnation:
		return problemf(events.CodeNotAuthority, "round %d has another trainer of rank %d than this incarnation: connect anew on all ranks", req.Round, req.Rank)
	}
	return nil
}

// incarnationOf returns who the open round lists as a rank's trainer, empty
// without a round.
func incarnationOf(head *fsm.State, rank uint64) string {
	if rank >= uint64(len(head.Round.Members)) {
		return ""
	}
	return head.Round.Members[rank].Incarnation
}

// register waits until the trainers of all ranks are there.
func (s *Server) register(ctx context.Context, req *api.SessionRequest) (uint64, *api.Problem) {
	ses, p := s.sessions.enter(s.ctx, req.Incarnation)
	if p != nil {
		return 0, p
	}
	ctx, end := endingWith(ctx, ses.ctx)
	defer end()
	done := s.waiting(ctx, waitRound, nil, req.Site)
	defer done()
	round, err := s.replica.Register(ctx, replica.Registration{Rank: req.Rank, World: req.WorldSize,
		Incarnation: req.Incarnation, Fingerprint: cmp.Or(req.Fingerprint, s.fingerprint), Mode: req.Mode})
	switch {
	case err == nil:
		return round, nil
	case ctx.Err() != nil:
		return 0, ended(ctx, func() *api.Problem {
			return problemf(events.CodeDecisionTimeout, "the trainers of ranks %v did not connect within %s (%v); see esperd ranks, and start all ranks again",
				s.roundMissing(), s.waitMax, err)
		})
	default:
		return 0, problemOf(err)
	}
}
