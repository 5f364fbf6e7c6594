package door

import (
	"cmp"
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/replica"
)

// orderingWarn is the ordering of a session that records what does not fit.
const orderingWarn = "warn"

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

	closed atomic.Bool // the trainer said goodbye; it does not come back
	noting sync.Once

	mu     sync.Mutex
	round  uint64 // 0: none is open yet
	tracks map[string]*track
	proc   *process  // the trainer's; nil: unknown
	busy   string    // what the trainer says to be doing
	until  time.Time // and until when
}

func newSession(ctx context.Context, incarnation string) *session {
	ses := &session{incarnation: incarnation, since: time.Now(), tracks: map[string]*track{}}
	ses.ctx, ses.end = context.WithCancelCause(ctx)
	return ses
}

// adopt notes the session's process, once.
func (ses *session) adopt(p *process) bool {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	if ses.proc != nil {
		return false
	}
	ses.proc = p
	return true
}

// returns notes the round of a trainer that esperd knows of before it comes back.
func (ses *session) returns(round uint64) {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	if ses.round == 0 {
		ses.round = round
	}
}

// in returns the round that the session is of, 0 before the first.
func (ses *session) in() uint64 {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	return ses.round
}

func (ses *session) process() *process {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	return ses.proc
}

func (ses *session) setBusy(reason string, d time.Duration) {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	ses.busy, ses.until = reason, time.Now().Add(d)
}

// busyNow returns what the trainer says to be doing; nil: nothing, or it has
// ended.
func (ses *session) busyNow(rank uint64) *api.Busy {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	left := time.Until(ses.until)
	if left <= 0 || ses.closed.Load() {
		return nil
	}
	return &api.Busy{Rank: rank, Reason: ses.busy, Seconds: left.Seconds()}
}

// flush waits until what the trainer told in the mode observe is recorded, as
// long as ctx lasts.
func (ses *session) flush(ctx context.Context) {
	ses.mu.Lock()
	var tellers []*teller
	for _, t := range ses.tracks {
		if w := t.tells.Load(); w != nil {
			tellers = append(tellers, w)
		}
	}
	ses.mu.Unlock()
	for _, w := range tellers {
		w.flush(ctx)
	}
}

// is reports whether a session is an incarnation's; nil is nobody's.
func (ses *session) is(incarnation string) bool {
	return ses != nil && ses.incarnation == incarnation
}

// track returns where the session stands in one model, in a round. Another
// round than before starts every model anew.
func (ses *session) track(round uint64, model string) (*track, *api.Problem) {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	if ses.round != round {
		for _, t := range ses.tracks {
			t.memory.close()
		}
		ses.round, ses.tracks = round, map[string]*track{}
	}
	t := ses.tracks[model]
	if t == nil {
		if len(ses.tracks) == modelsMax {
			return nil, problemf(events.CodeInvalidInput, "this trainer has %d models open, expected at most %d: reset a model instead of naming a new one", len(ses.tracks), modelsMax)
		}
		t = newTrack(ses.ctx, round, model)
		ses.tracks[model] = t
	}
	return t, nil
}

// release gives the memory of all models back.
func (ses *session) release() {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	for _, t := range ses.tracks {
		t.memory.close()
	}
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

// connect opens a session for one model, or returns to it.
func (s *Server) connect(ctx context.Context, req *api.SessionRequest) (*api.SessionAnswer, error) {
	if p := s.checkIdentity(req); p != nil {
		return nil, p
	}
	pid, _ := ctx.Value(pidKey{}).(int)
	if p := s.second(pid, req.Incarnation); p != nil {
		return nil, p
	}
	if p := s.comesBack(req.Incarnation); p != nil {
		return nil, p
	}
	ses, round, p := s.join(ctx, req)
	if p != nil {
		return nil, p
	}
	ctx, done := s.callContext(ctx, ses.ctx, s.forRank0())
	defer done()
	if p := s.checkIdentity(req); p != nil { // the run may be known only now
		return nil, p
	}
	if mode := s.replica.State().Round.Mode(); mode != cmp.Or(req.Mode, events.ModeKeyed) {
		return nil, problemf(events.CodeConfigMismatch, "mode: the trainer connects with mode=%q, but round %d is in the mode %q: expected the round's; connect anew on all ranks for another one", req.Mode, round, mode)
	}
	if !req.Detached {
		s.watch(ses, pid)
		s.note(ses)
	}
	t, p := ses.track(round, req.Model)
	if p != nil {
		return nil, p
	}
	if p := t.lock(ctx); p != nil {
		return nil, p
	}
	defer t.unlock()
	at, p := s.resume(ctx, t, req)
	if p != nil {
		return nil, p
	}
	return s.sessionAnswer(t, *at, req.Incarnation), nil
}

// resume brings a track to the client's last answered call and returns the
// place there: call 0 for a client that has none.
func (s *Server) resume(ctx context.Context, t *track, req *api.SessionRequest) (*place, *api.Problem) {
	warns := req.Ordering == orderingWarn
	if t.cursor != nil && warns != t.warns {
		return nil, problemf(events.CodeConfigMismatch, "ordering: the trainer comes back with ordering=%q, and connected with another one: expected the same for the whole round; connect anew on all ranks for another one", req.Ordering)
	}
	t.warns = warns
	if p := s.wantsArena(t, req); p != nil {
		return nil, p
	}
	switch {
	case t.cursor == nil && req.Answered == nil:
		if p := s.configure(ctx, t, req); p != nil {
			return nil, p
		}
		return &t.place, nil
	case t.cursor == nil:
		if p := s.restore(ctx, t, req); p != nil {
			return nil, p
		}
		return &t.place, nil
	}
	if w := t.tells.Load(); w != nil && req.Answered != nil {
		w.missed()
	}
	last := t.next - 1
	var answered uint64
	if req.Answered != nil {
		answered = *req.Answered
	}
	switch {
	case answered == last:
		return &t.place, nil
	case answered+1 == last && req.Answered != nil && t.last != nil: // that answer was lost; it will be asked for again
		return &t.before, nil
	}
	return nil, problemf(events.CodeInvalidInput, "model %s: this incarnation was answered up to call %d, expected answered to be that or the call before, got %d; a new trainer process chooses a new incarnation",
		t.model, last, answered)
}

func (s *Server) sessionAnswer(t *track, p place, incarnation string) *api.SessionAnswer {
	at, m := p.cursor, p.cursor.Model(t.model)
	visible := m
	if t.mode == events.ModeFollow { // what rank 0 decides is seen at fences, by rank 0, too
		visible = p.fenced
	}
	return &api.SessionAnswer{Session: incarnation, Run: at.Run, Lineage: at.Lineage, Node: s.node, Round: t.round, Model: t.model,
		Generation: m.Generation, NextCall: p.next, NextFence: p.fences, Epoch: m.Epoch, Index: at.Index,
		Slots: api.SlotsOf(visible), Word: s.words.of(t.model)}
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
	}
	return nil
}

// join returns the session and its round. A trainer that connects waits for all
// the others; one that comes back belongs to the round it was in, and must not
// be taken for one that asks for the next.
func (s *Server) join(ctx context.Context, req *api.SessionRequest) (*session, uint64, *api.Problem) {
	ctx, done := s.callContext(ctx, s.ctx, s.forRound)
	defer done()
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
	case req.Round == 0 || incarnationOf(head, req.Rank) != req.Incarnation:
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
	pid, _ := ctx.Value(pidKey{}).(int)
	if !req.Detached {
		s.watch(ses, pid) // already: it may die while it waits, and be put into a round
	}
	ctx, end := endingWith(ctx, ses.ctx)
	defer end()
	if s.rank == 0 {
		defer later(ctx, s.warnAfter, s.abandoned(ctx, ses, pid))()
	}
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
