package door

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// followWriteMax is how long a follower may leave its lines unread.
const followWriteMax = 30 * time.Second

type eventsInput struct {
	From   uint64 `query:"from" doc:"first index; absent: where the history here begins"`
	Limit  uint64 `query:"limit" default:"100" minimum:"1" maximum:"10000" doc:"entries in the answer, without follow"`
	Follow bool   `query:"follow" doc:"one entry a line (NDJSON), as they come, until the client goes"`
}

func (s *Server) eventsOperation(a huma.API) {
	schema := func(v reflect.Type) *huma.MediaType {
		return &huma.MediaType{Schema: a.OpenAPI().Components.Schemas.Schema(v, true, "")}
	}
	huma.Register(a, huma.Operation{OperationID: "events", Method: http.MethodGet, Path: "/v1/events", Summary: "The log", Tags: []string{"admin"},
		Responses: map[string]*huma.Response{"200": {Description: "entries in log order", Content: map[string]*huma.MediaType{
			"application/json": schema(reflect.TypeFor[api.Events]()), "application/x-ndjson": schema(reflect.TypeFor[api.Entry]())}}},
	}, func(_ context.Context, in *eventsInput) (*huma.StreamResponse, error) {
		first := max(s.replica.Status().CompleteFrom, 1)
		switch {
		case in.From == 0:
			in.From = first
		case in.From < first:
			return nil, problemf(events.CodeUnavailable, "the history on this node begins at entry %d, expected to be asked from there on, got %d; ask another rank's node", first, in.From)
		}
		if in.Follow {
			return &huma.StreamResponse{Body: func(ctx huma.Context) { s.follow(ctx, in.From) }}, nil
		}
		page, err := s.page(in.From, in.Limit)
		if err != nil {
			return nil, problemOf(err)
		}
		return &huma.StreamResponse{Body: func(ctx huma.Context) {
			ctx.SetHeader("Content-Type", "application/json")
			_ = json.NewEncoder(ctx.BodyWriter()).Encode(page) // the client has gone if this fails
		}}, nil
	})
}

func (s *Server) page(from, limit uint64) (*api.Events, error) {
	head := s.replica.State().Index
	out := &api.Events{Entries: []api.Entry{}, Head: head}
	for i := from; i <= head && i-from < limit; i++ {
		e, err := s.placed(i)
		if err != nil {
			return nil, err
		}
		out.Entries = append(out.Entries, e)
		if i < head {
			out.Next = i + 1
		} else {
			out.Next = 0
		}
	}
	return out, nil
}

// placed returns an entry with its place. Replicas refuse an entry that was
// decided on another one than that before it, and no correct leader writes one
// that is refused for anything else.
func (s *Server) placed(index uint64) (api.Entry, error) {
	e, rec, err := s.replica.Entry(index)
	if err != nil {
		return api.Entry{}, err
	}
	out := api.Entry{Index: index, Chain: rec.Chain, Entry: *e}
	if e.Predecessor != index-1 {
		out.Refused = fmt.Sprintf("decided on entry %d, but follows entry %d", e.Predecessor, index-1)
	}
	if out.Events == nil {
		out.Events = []events.Event{}
	}
	return out, nil
}

// follow writes entries until the client goes or the server closes. A client
// that does not read loses its connection, not this node its memory.
func (s *Server) follow(ctx huma.Context, next uint64) {
	r, w := humago.Unwrap(ctx)
	flow := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	out := json.NewEncoder(w)
	for {
		changed := s.replica.Changed()
		_ = flow.SetWriteDeadline(time.Now().Add(followWriteMax)) // a recorder in a test has none
		for head := s.replica.State().Index; next <= head; next++ {
			e, err := s.placed(next)
			if err == nil {
				err = out.Encode(e)
			}
			if err != nil {
				s.log.Debug("a follower of the log ends", "index", next, "error", err)
				return
			}
		}
		if flow.Flush() != nil {
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		case <-s.ctx.Done():
			return
		}
	}
}
