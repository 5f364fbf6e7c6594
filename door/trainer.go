package door

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// Defaults of arguments that a body leaves out (api/calls.go names them).
const (
	defaultBlend     = "sigmoid"
	defaultTempo     = int64(5)
	defaultAlgorithm = events.AlgorithmAdd
	defaultSteepness = events.Num(12)
	defaultInitiator = "policy"
)

// The calls whose bodies may bring a mark.
const (
	sessionPath = "/v1/session"
	resumePath  = "/v1/resume"
)

type output[T any] struct{ Body *T }

type slotInput[B any] struct {
	Slot string `path:"slot" doc:"name of the slot"`
	Body B
}

// trainerDoor registers the calls of the trainer.
func (s *Server) trainerDoor(a huma.API) {
	huma.Register(a, postMark("connect", sessionPath, "Open a session, or return to it, and configure a model (its call 0)"),
		func(ctx context.Context, in *struct{ Body api.SessionRequest }) (*output[api.SessionAnswer], error) {
			return result[api.SessionAnswer](s.connect(ctx, &in.Body))
		})
	huma.Register(a, post("observe", "/v1/slots/{slot}/observe", "Record what this rank measured; it rides with the model's next numbered call"),
		func(_ context.Context, in *slotInput[api.ObserveRequest]) (*output[api.Observed], error) {
			return result[api.Observed](s.observe(in.Slot, &in.Body))
		})
	huma.Register(a, post("step_epoch", "/v1/epochs/{epoch}/step", "Close an epoch: tick every slot once and return the changes since the last fence"),
		func(ctx context.Context, in *struct {
			Epoch int64 `path:"epoch" doc:"above the last stepped one"`
			Body  api.StepRequest
		}) (*output[api.Fence], error) {
			return result[api.Fence](s.numbered(ctx, call{Call: &in.Body.Call, args: fsm.StepEpoch{Epoch: in.Epoch}}))
		})
	huma.Register(a, post("fence", "/v1/fence", "Close a stretch of calls without a tick and return the changes since the last fence"),
		func(ctx context.Context, in *struct{ Body api.FenceRequest }) (*output[api.Fence], error) {
			return result[api.Fence](s.numbered(ctx, call{Call: &in.Body.Call, args: fsm.Fence{N: in.Body.N}}))
		})
	huma.Register(a, post("reset", "/v1/reset", "Start the model's next generation: all slots DORMANT, epochs from 0; a fence"),
		func(ctx context.Context, in *struct{ Body api.ResetRequest }) (*output[api.Fence], error) {
			return result[api.Fence](s.numbered(ctx, call{Call: &in.Body.Call, args: fsm.Reset{}}))
		})
	huma.Register(a, postMark("resume", resumePath, "Take the model back to a mark, once every rank has brought the same one; a fence"),
		func(ctx context.Context, in *struct{ Body api.ResumeRequest }) (*output[api.Fence], error) {
			args, why := resumeArgs(in.Body.Mark)
			return result[api.Fence](s.numbered(ctx, call{Call: &in.Body.Call, args: args, unreadable: why}))
		})
	s.unnumberedCalls(a)
	s.voteCalls(a)
	s.attestCall(a)
	s.arenaCalls(a)
	slotCall[api.GerminateRequest, api.Done](s, a, events.OpGerminate, "Put a new seed into an empty slot", germinate)
	slotCall[api.AdvanceRequest, api.Decision](s, a, events.OpAdvance, "Ask the gate of the next stage, and enter it if it passes", advance)
	slotCall[api.VerdictRequest, api.Decision](s, a, events.OpVerdict, "Bring the trainer's own gate result; rank 0's decides", verdict)
	slotCall[api.PruneRequest, api.Done](s, a, events.OpPrune, "Remove a seed now", prune)
	slotCall[api.SchedulePruneRequest, api.Done](s, a, events.OpSchedulePrune, "Ramp a seed's alpha to 0, then remove it", schedulePrune)
	slotCall[api.AlphaTargetRequest, api.Done](s, a, events.OpAlphaTarget, "Ramp a seed's alpha to another value", alphaTarget)
}

// post describes one call. The body is read and limited before huma sees it
// (http.go), so huma's own deadline is off: it would outlast the reading and
// end calls that wait.
func post(id, path, summary string) huma.Operation {
	return huma.Operation{OperationID: id, Method: http.MethodPost, Path: path, Summary: summary, Tags: []string{"trainer"},
		MaxBodyBytes: api.BodyBytesMax + 1, BodyReadTimeout: -1}
}

// postMark describes a call whose body may bring a mark.
func postMark(id, path, summary string) huma.Operation {
	o := post(id, path, summary)
	o.MaxBodyBytes = api.MarkBodyBytesMax + 1
	return o
}

func slotCall[B, A any](s *Server, a huma.API, op events.Op, summary string, read func(*B) (*api.Call, fsm.Args)) {
	huma.Register(a, post(string(op), "/v1/slots/{slot}/"+string(op), summary),
		func(ctx context.Context, in *slotInput[B]) (*output[A], error) {
			c, args := read(&in.Body)
			return result[A](s.numbered(ctx, call{Call: c, slot: in.Slot, args: args}))
		})
}

func result[T any](body any, err error) (*output[T], error) {
	if err != nil {
		return nil, err
	}
	typed, ok := body.(*T)
	if !ok {
		return nil, problemf(events.CodeUnavailable, "the entry of this call has no answer of its kind (%T); this is a bug in esperd", body)
	}
	return &output[T]{Body: typed}, nil
}

func or[T any](given *T, preset T) T {
	if given == nil {
		return preset
	}
	return *given
}

func germinate(in *api.GerminateRequest) (*api.Call, fsm.Args) {
	return &in.Call, fsm.Germinate{Blueprint: in.Blueprint, SeedID: in.SeedID, Blend: or(in.Blend, defaultBlend), Tempo: or(in.Tempo, defaultTempo),
		Algorithm: or(in.Algorithm, defaultAlgorithm), Target: in.Target}
}

func advance(in *api.AdvanceRequest) (*api.Call, fsm.Args) {
	return &in.Call, fsm.Advance{Target: in.Target, Strict: true}
}

func verdict(in *api.VerdictRequest) (*api.Call, fsm.Args) {
	return &in.Call, fsm.Verdict{Verdict: events.Verdict{Gate: in.Gate, Passed: in.Passed, Score: float64(in.Score),
		ChecksPassed: in.ChecksPassed, ChecksFailed: in.ChecksFailed, Message: in.Message}}
}

func prune(in *api.PruneRequest) (*api.Call, fsm.Args) {
	return &in.Call, fsm.Prune{Reason: in.Reason, Initiator: or(in.Initiator, defaultInitiator)}
}

func schedulePrune(in *api.SchedulePruneRequest) (*api.Call, fsm.Args) {
	return &in.Call, fsm.SchedulePrune{Ticks: in.Ticks, Curve: in.Curve, Steepness: or(in.Steepness, defaultSteepness),
		Reason: in.Reason, Initiator: or(in.Initiator, defaultInitiator)}
}

func alphaTarget(in *api.AlphaTargetRequest) (*api.Call, fsm.Args) {
	return &in.Call, fsm.AlphaTarget{Target: in.Target, Ticks: in.Ticks, Curve: in.Curve,
		Steepness: or(in.Steepness, defaultSteepness), Algorithm: in.Algorithm}
}

// observe takes note. It never fails because of a value, and waits for nothing.
func (s *Server) observe(slot string, in *api.ObserveRequest) (*api.Observed, error) {
	_, t, p := s.track(in.Session, in.Model)
	if p != nil {
		return nil, p
	}
	if _, ok := t.config.Load().Slot(slot); !ok {
		return nil, problemf(events.CodeUnknownSlot, "observe: model %s has no slot %.64q; GET /v1/slots lists them", in.Model, slot)
	}
	return &api.Observed{Pending: t.observed.Add(api.Observation{Slot: slot, Readings: in.Readings})}, nil
}
