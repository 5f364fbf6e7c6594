package door

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

const (
	requestMax    = 30 * time.Second // how long a request waits for the log
	flushAtClose  = time.Second
	initiatorSelf = "operator"
	requestsPath  = "/v1/requests"
)

// unnumberedCalls registers what a trainer, or an operator, may ask for at any
// time.
func (s *Server) unnumberedCalls(a huma.API) {
	huma.Register(a, post("request", requestsPath, "Ask for something at the model's next fence, between the same two steps on every rank; on the admin door with a token"),
		func(ctx context.Context, in *struct{ Body api.RequestRequest }) (*output[api.Requested], error) {
			return result[api.Requested](s.request(ctx, &in.Body))
		})
	huma.Register(a, post("checkpoint", "/v1/checkpoint", "Take a mark of the model where this trainer is, to be stored with the weights"),
		func(ctx context.Context, in *struct{ Body api.CheckpointRequest }) (*output[api.Mark], error) {
			return result[api.Mark](s.checkpoint(ctx, &in.Body))
		})
	huma.Register(a, post("busy", "/v1/busy", "Say that this rank makes no call for a while, so that the others do not give up"),
		func(_ context.Context, in *struct{ Body api.BusyRequest }) (*output[api.OK], error) {
			return result[api.OK](s.busy(&in.Body))
		})
	huma.Register(a, post("close", "/v1/close", "End the trainer's session; one that ends without it is taken for dead"),
		func(ctx context.Context, in *struct{ Body api.CloseRequest }) (*output[api.OK], error) {
			return result[api.OK](s.goodbye(ctx, &in.Body))
		})
}

// request puts a request into the log. A trainer means the seed that it sees.
func (s *Server) request(ctx context.Context, in *api.RequestRequest) (any, error) {
	r := events.Requested{Model: in.Model, Slot: in.Slot, Seed: in.Seed, Action: in.Action, Reason: in.Reason, Initiator: in.Initiator}
	if in.Session == "" {
		r.Initiator = cmp.Or(r.Initiator, initiatorSelf)
	} else {
		_, t, p := s.track(in.Session, in.Model)
		if p != nil {
			return nil, p
		}
		r.Initiator = cmp.Or(r.Initiator, fmt.Sprintf("rank %d", s.rank))
		if p := standing(s.replica.State(), t.round); p != nil {
			return nil, p
		}
		if seen := t.visible.Load(); seen != nil && r.Seed == 0 && t.tells.Load() == nil {
			r.Generation = seen.Generation
			if slot := seen.Slot(in.Slot); slot != nil {
				if r.Seed = slot.Germinations; r.Seed == 0 { // which would be the one that is there now
					return nil, problemf(events.CodeIllegalTransition, "request to %s %s: no seed has germinated in slot %s yet, as this trainer sees it; nothing to do", in.Action, in.Slot, in.Slot)
				}
			}
		}
	}
	ctx, done := context.WithTimeout(ctx, requestMax)
	defer done()
	index, err := s.replica.Request(ctx, r)
	if err != nil {
		return nil, problemOf(err)
	}
	return &api.Requested{Index: index}, nil
}

func (s *Server) busy(in *api.BusyRequest) (any, error) {
	ses, p := s.sessions.find(in.Session)
	if p != nil {
		return nil, p
	}
	ses.setBusy(in.Reason, time.Duration(in.Seconds*float64(time.Second)))
	s.log.Info("the trainer is busy", "reason", in.Reason, "seconds", in.Seconds)
	return &api.OK{OK: true}, nil
}

// goodbye ends a session. A trainer that fails ends the round for all.
func (s *Server) goodbye(ctx context.Context, in *api.CloseRequest) (any, error) {
	ses, p := s.sessions.find(in.Session)
	if p != nil {
		return nil, p
	}
	ctx, done := context.WithTimeout(ctx, flushAtClose)
	defer done()
	ses.flush(ctx)
	round := ses.in()
	if round == 0 || ses.closed.Swap(true) { // it is in no round yet, or has said so
		return &api.OK{OK: true}, nil
	}
	ses.release()
	_ = os.Remove(s.noted) // there may be none
	if in.Failed != "" {
		s.gone(ctx, ses.incarnation, "it failed: "+in.Failed)
	} else {
		s.tellEnd(ctx, round)
	}
	return &api.OK{OK: true}, nil
}

// tellEnd has the log told of an orderly end, while there are trainers that could
// wait for this one.
func (s *Server) tellEnd(ctx context.Context, round uint64) {
	reports, _ := s.gather(ctx, "")
	if !slices.ContainsFunc(reports, func(r nodeReport) bool { return r.Rank.Rank != s.rank && r.Session }) {
		return
	}
	if err := s.replica.Ended(ctx, events.TrainerEnded{Round: round, Rank: s.rank}); err != nil {
		s.log.Debug("the end of the trainer is not in the log", "error", err)
	}
}

// mayRequest says why a POST to the admin door is refused: it has not the token.
func (s *Server) mayRequest(r *http.Request) *api.Problem {
	refused := func(status int, format string, args ...any) *api.Problem {
		p := problemf(events.CodeNotAuthority, format, args...)
		p.Status = status
		return p
	}
	if s.token == "" {
		return refused(http.StatusForbidden, "this esperd has no token, so its admin door only reads: start it with --token-file (ESPERD_TOKEN_FILE), or ask on the trainer's socket")
	}
	given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	got, want := sha256.Sum256([]byte(given)), sha256.Sum256([]byte(s.token)) // of one length
	if !ok || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
		return refused(http.StatusUnauthorized, "expected this esperd's token as Authorization: Bearer TOKEN, got another one or none: it is in the file of --token-file (ESPERD_TOKEN_FILE)")
	}
	return nil
}
