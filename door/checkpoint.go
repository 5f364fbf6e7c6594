package door

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// checkpoint answers with the mark of a model where the trainer is. It is the same
// on every rank that has been answered the same calls: rank 0 in the mode follow,
// which is ahead of the others between two fences, is given the last fence's.
func (s *Server) checkpoint(ctx context.Context, in *api.CheckpointRequest) (any, error) {
	ses, t, p := s.track(in.Session, in.Model)
	if p != nil {
		return nil, p
	}
	ctx, done := s.callContext(ctx, ses.ctx, nil)
	defer done()
	if p := t.lock(ctx); p != nil {
		return nil, p
	}
	defer t.unlock()
	if t.mode == events.ModeObserve {
		return nil, problemf(events.CodeNotAuthority, "checkpoint: in the mode observe the log is written behind the trainers' back, so that ranks have no place in it that is the same on all: expected the mode keyed or follow; a trainer that is only observed goes on from its weights, and its next step tells where its slots are")
	}
	if p := s.diverged(); p != nil {
		return nil, p
	}
	at, p := t.standsAt(in.Next)
	if p != nil {
		return nil, p
	}
	m, index := at.cursor.Model(t.model), at.cursor.Index
	if t.mode == events.ModeFollow {
		m, index = at.fenced, at.fencedAt
	}
	_, rec, err := s.replica.Entry(index)
	if err != nil {
		return nil, problemOf(err)
	}
	b, sum, err := events.EncodeMark(at.cursor.Mark(m, index, rec.Chain))
	if err != nil {
		return nil, problemf(events.CodeInvalidInput, "checkpoint: %v", err)
	}
	if s.archive != nil {
		s.archive.Checkpointed()
	}
	return &api.Mark{Mark: b, Run: at.cursor.Run, Lineage: at.cursor.Lineage, Model: t.model, Index: index,
		Generation: m.Generation, Epoch: m.Epoch, Lifecycle: m.Digest(), Sum: sum, Bytes: len(b)}, nil
}

// standsAt returns where a client is whose next call has this number: one that
// missed its last answer is a call behind. nil: where the track is.
func (t *track) standsAt(next *uint64) (*place, *api.Problem) {
	switch {
	case next == nil || *next == t.next:
		return &t.place, nil
	case *next+1 == t.next && t.last != nil:
		return &t.before, nil
	}
	return nil, problemf(events.CodeInvalidInput, "model %s: expected call to be %d, the number of this session's next call (or the one before), got %d", t.model, t.next, *next)
}

// rewinds reports whether an entry took its model back to a mark.
func rewinds(e *events.Entry) bool {
	return slices.ContainsFunc(e.Events, func(ev events.Event) bool { return ev.Rewound != nil })
}

// holds reports whether this node's own history has the entry of a mark, with the
// model as the mark has it. History that is on its way here is waited for.
func (s *Server) holds(ctx context.Context, m *events.Mark, round uint64) (bool, *api.Problem) {
	if m.Index == 0 || m.Index > s.replica.State().Index {
		return false, nil
	}
	told := false
	for {
		complete := s.replica.Status().CompleteFrom // before the entry is looked for, which may come in between
		e, rec, err := s.replica.Entry(m.Index)
		switch {
		case err == nil:
			return s.isThere(ctx, m, e, rec)
		case !errors.Is(err, events.ErrNotFound) || complete <= m.Index:
			return false, problemOf(err)
		case !told:
			told = true
			s.log.Info("a resume waits for the history that this node fetches from the others", "model", m.Model, "index", m.Index, "complete_from", complete)
		}
		if p := standing(s.replica.State(), round); p != nil {
			return false, p
		}
		select {
		case <-time.After(gatherMax):
		case <-ctx.Done():
			return false, ended(ctx, func() *api.Problem {
				return problemf(events.CodeDecisionTimeout, "resume: this node has not fetched entry %d of the history, at which the mark was taken, within %s: see GET /readyz, and repeat the call under the same number", m.Index, s.waitMax)
			})
		}
	}
}

// isThere compares a mark with the entry at its index.
func (s *Server) isThere(ctx context.Context, m *events.Mark, e *events.Entry, rec events.Record) (bool, *api.Problem) {
	if rec.Chain != m.Chain {
		return false, nil
	}
	if e.Key != nil && e.Key.Model == m.Model {
		return rec.Lifecycle == m.Lifecycle, nil
	}
	at, p := s.stateAt(ctx, m.Index) // of another model's call, or of none: no client makes such a mark
	if p != nil {
		return false, p
	}
	return at.Model(m.Model) != nil && at.Lifecycle(m.Model) == m.Lifecycle, nil
}

// resumeArgs reads the mark of a resume. why says what is wrong with it: a call
// with such a mark is compared with the other ranks', and becomes no entry.
func resumeArgs(mark []byte) (args fsm.Resume, why string) {
	m, sum, err := events.DecodeMark(mark)
	if err != nil {
		return fsm.Resume{Sum: events.SumOf(mark)}, err.Error()
	}
	if len(mark) > entryRecordMax { // whose record may be longer than an entry, which is known before anybody waits
		if record, err := events.Marshal(&m.Record); err != nil || len(record) > entryRecordMax {
			return fsm.Resume{Sum: sum}, fmt.Sprintf("a mark with a record of %d bytes, expected at most %d: use fewer slots", len(record), entryRecordMax)
		}
	}
	return fsm.Resume{Mark: m, Sum: sum}, ""
}

// entryRecordMax is how long a mark's record may be, so that an entry has room
// for it and for what was observed.
const entryRecordMax = events.MaxEntryBytes - api.BodyBytesMax/2
