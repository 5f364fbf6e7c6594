package door

import (
	"context"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/replica"
)

// historyLagMax is how many records may wait for the disk on a node that is
// ready: far more than a write takes with it.
const historyLagMax = 4096

type modelInput struct {
	Model string `query:"model" default:"main" doc:"name of the model"`
}

// adminDoor registers what both doors answer to GET. It reads this node's head,
// also without a quorum.
func (s *Server) adminDoor(a huma.API) {
	get(a, "state", "/v1/state", "What this node knows", func(context.Context, *struct{}) (*api.State, error) { return s.state(), nil })
	get(a, "slots", "/v1/slots", "One model with its slots, at this node's head",
		func(_ context.Context, in *modelInput) (*api.Model, error) { return s.model(in.Model) })
	get(a, "slot", "/v1/slots/{slot}", "One slot, at this node's head", func(_ context.Context, in *struct {
		Slot  string `path:"slot"`
		Model string `query:"model" default:"main" doc:"name of the model"`
	}) (*api.Slot, error) {
		return s.slot(in.Model, in.Slot)
	})
	get(a, "ranks", "/v1/ranks", "Every rank, as its own node tells it", func(ctx context.Context, in *struct {
		Model string `query:"model" doc:"whose last calls are told; absent: of the model that the rank called last"`
	}) (*api.Ranks, error) {
		r := s.ranks(ctx, in.Model)
		return &r, nil
	})
	get(a, "arrivals", "/v1/arrivals", "Who waits for which call, and who is missing", func(ctx context.Context, _ *struct{}) (*api.Arrivals, error) {
		r := s.arrivals(ctx)
		return &r, nil
	})
	get(a, "divergences", "/v1/divergences", "Where ranks differ", func(ctx context.Context, _ *struct{}) (*api.Divergences, error) {
		return s.divergences(ctx), nil
	})
	get(a, "healthz", "/healthz", "The process lives", func(context.Context, *struct{}) (*api.Health, error) { return s.healthy(), nil })
	get(a, "readyz", "/readyz", "The node can serve calls", func(context.Context, *struct{}) (*api.Health, error) {
		if p := s.unready(); p != nil {
			return nil, p
		}
		return s.healthy(), nil
	})
	s.eventsOperation(a)
	s.recordsOperations(a)
}

func get[I, O any](a huma.API, id, path, summary string, read func(context.Context, *I) (*O, error)) {
	huma.Register(a, huma.Operation{OperationID: id, Method: http.MethodGet, Path: path, Summary: summary, Tags: []string{"admin"}},
		func(ctx context.Context, in *I) (*output[O], error) {
			body, err := read(ctx, in)
			if err != nil {
				return nil, err
			}
			return &output[O]{Body: body}, nil
		})
}

func (s *Server) state() *api.State {
	st, head := s.replica.Status(), s.replica.State()
	out := &api.State{Run: st.Run, Lineage: st.Lineage, Node: s.node, Rank: s.rank, World: s.world, Version: s.version,
		Phase: string(st.Phase), Role: st.Role, Voter: st.Voter, Leader: st.Leader, Quorum: st.Leader != "",
		Index: st.Index, Chain: st.Chain, Bookkeeping: head.Bookkeeping(), CompleteFrom: st.CompleteFrom,
		Ancestors: head.Ancestors, Durability: st.Durability, LogStore: st.LogStore, Problem: st.Problem, Rival: st.Rival, Evidence: st.Evidence,
		Models: make([]api.Model, len(head.Models)), Requests: make([]api.PendingRequest, len(head.Requests))}
	if d := st.Divergence; d != nil {
		out.Divergence = s.divergenceOf(d)
	}
	for i, r := range head.Requests {
		out.Requests[i] = api.PendingRequest{Index: r.Index, Requested: r.Asked}
	}
	if s.archive != nil {
		archive := s.archive.State()
		out.Archive = &archive
	}
	if r := head.Round; r.Number > 0 {
		out.Round = &api.Round{Number: r.Number, Fingerprint: r.Fingerprint, Members: r.Members, Fault: s.ownFault(head)}
	}
	for i, m := range head.Models {
		out.Models[i] = modelOf(head, m)
	}
	return out
}

func modelOf(head *fsm.State, m *fsm.Model) api.Model {
	return api.Model{Name: m.Name, Generation: m.Generation, Epoch: m.Epoch, Calls: head.Cursor(m.Name).Calls,
		Lifecycle: m.Digest(), Slots: api.SlotsOf(m)}
}

func (s *Server) model(name string) (*api.Model, error) {
	head := s.replica.State()
	m := head.Model(name)
	if m == nil {
		return nil, noModel(head, name)
	}
	out := modelOf(head, m)
	return &out, nil
}

func (s *Server) slot(model, name string) (*api.Slot, error) {
	head := s.replica.State()
	m := head.Model(model)
	if m == nil {
		return nil, noModel(head, model)
	}
	i, ok := m.Config.Slot(name)
	if !ok {
		return nil, problemf(events.CodeUnknownSlot, "model %s has no slot %.64q; GET /v1/slots lists its %d slots", model, name, m.Slots.Len())
	}
	out := api.SlotOf(m, i)
	return &out, nil
}

func noModel(head *fsm.State, name string) *api.Problem {
	const shown = 8
	var names []string
	for _, m := range head.Models[:min(shown, len(head.Models))] {
		names = append(names, m.Name)
	}
	if len(head.Models) == 0 {
		return problemf(events.CodeUnknownSlot, "no trainer has connected yet: the log has no model; look again when one has")
	}
	return problemf(events.CodeUnknownSlot, "the log has no model %.64q; it has %d models: [%s]", name, len(head.Models), strings.Join(names, " "))
}

func (s *Server) divergences(ctx context.Context) *api.Divergences {
	reports, _ := s.gather(ctx, "")
	head := s.replica.State()
	out := &api.Divergences{State: []api.StateDivergence{}, Verdicts: []api.VerdictCount{}, Fault: s.ownFault(head)}
	for _, r := range reports {
		if r.Divergence != nil {
			out.State = append(out.State, *r.Divergence)
		}
	}
	for _, m := range head.Round.Members {
		if n := head.Round.Tally(m.Rank).Disagreements; n > 0 {
			out.Verdicts = append(out.Verdicts, api.VerdictCount{Rank: m.Rank, Count: n})
		}
		if n := head.Round.Tally(m.Rank).Attesting; n > 0 {
			out.Devices = append(out.Devices, api.VerdictCount{Rank: m.Rank, Count: n})
		}
	}
	out.Attested = s.minorities.of(s.replica, head)
	return out
}

func (s *Server) healthy() *api.Health { return &api.Health{Status: "ok", Version: s.version} }

// unready says why calls would not be answered now.
func (s *Server) unready() *api.Problem {
	switch st := s.replica.Status(); {
	case st.Phase == replica.PhaseDiverged:
		return problemf(events.CodeUnavailable, "not ready: this node has diverged and answers no calls: %s; see GET /v1/divergences", st.Problem)
	case st.Phase != replica.PhaseMember:
		return problemf(events.CodeUnavailable, "not ready: this node is %s, expected member; %s", st.Phase, orNothing(st.Problem))
	case st.Problem != "":
		return problemf(events.CodeUnavailable, "not ready: %s", st.Problem)
	case st.Leader == "":
		return problemf(events.CodeUnavailable, "not ready: no leader is known here; see GET /v1/ranks for who is reachable")
	case st.HistoryLag > historyLagMax:
		return problemf(events.CodeUnavailable, "not ready: %d entries wait to be written to the history, expected at most %d; look at the disk", st.HistoryLag, historyLagMax)
	}
	return nil
}

func orNothing(problem string) string {
	if problem == "" {
		return "it has met no problem so far"
	}
	return problem
}
