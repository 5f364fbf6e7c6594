package door

import (
	"context"

	"github.com/danielgtaylor/huma/v2"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// voteCalls registers how a trainer that owns its modules says whether it has
// room for a seed. The votes of a trainer whose seeds lie in esperd's arena are
// its executor's (memory.go).
func (s *Server) voteCalls(a huma.API) {
	huma.Register(a, post("ready", "/v1/slots/{slot}/ready", "Say that this rank has room for the slot's seed; once all ranks have, a fence lets it train (residency)"),
		func(_ context.Context, in *slotInput[api.ReadyRequest]) (*output[api.OK], error) {
			return result[api.OK](s.vote(in.Slot, &in.Body, nil))
		})
	huma.Register(a, post("failed", "/v1/slots/{slot}/failed", "Say that this rank has no room for the slot's seed: the next fence prunes it on all ranks"),
		func(_ context.Context, in *slotInput[api.FailedRequest]) (*output[api.OK], error) {
			return result[api.OK](s.vote(in.Slot, &in.Body.ReadyRequest, &in.Body.Reason))
		})
}

// vote has the log told whether this rank has room for the seed that its trainer
// sees; a reason says that it has not. Voting twice is voting once.
func (s *Server) vote(slot string, in *api.ReadyRequest, reason *string) (any, error) {
	op := "ready"
	if reason != nil {
		op = "failed"
	}
	t, p := s.stands(in.Session, in.Model, op, "the trainers decide by themselves, and nobody waits for votes")
	if p != nil {
		return nil, p
	}
	seen := t.visible.Load()
	if t.config.Load() == nil || seen.Slot(slot) == nil {
		return nil, problemf(events.CodeUnknownSlot, "%s: model %s has no slot %.64q; GET /v1/slots lists them", op, in.Model, slot)
	}
	seed := in.Seed
	if seed == 0 {
		if seed = seen.Slot(slot).Germinations; seed == 0 {
			return nil, problemf(events.CodeIllegalTransition, "%s: no seed has germinated in slot %s yet, as this trainer sees it: vote after the fence that shows one", op, slot)
		}
	}
	v := events.Voted{Round: t.round, Rank: s.rank, Model: t.model, Generation: seen.Generation, Slot: slot, Seed: seed}
	if reason != nil {
		v.Failed, v.Reason = true, *reason
	}
	if why := fsm.BadVote(&v); why != "" {
		return nil, problemf(events.CodeInvalidInput, "%s: slot %s: %s", op, slot, why)
	}
	s.tellVote(v)
	return &api.OK{OK: true}, nil
}

// tellVote sends a vote on its way to the log.
func (s *Server) tellVote(v events.Voted) {
	s.replica.Report(events.Event{Voted: &v})
	if v.Failed {
		s.log.Warn("this rank has no room for a seed: the next fence prunes it on all ranks", "model", v.Model, "slot", v.Slot, "seed", v.Seed, "reason", v.Reason)
	}
}
