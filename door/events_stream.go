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

const (
	followWriteMax = 30 * time.Second // how long a follower may leave a line unread
	pageBytesMax   = 8 << 20          // of the entries of a page, unless one alone is longer
)

type eventsInput struct {
	From   uint64 `query:"from" doc:"first index; absent: where the history here begins"`
	Limit  uint64 `query:"limit" default:"100" minimum:"1" maximum:"10000" doc:"entries in the answer at most, without follow; long ones make it shorter, see next"`
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

// page reads entries until there are enough of them: by number, for who reads
// the answer, and by bytes, for this node's memory.
func (s *Server) page(from, limit uint64) (*api.Events, error) {
	head := s.replica.State().Index
	out := &api.Events{Entries: []api.Entry{}, Head: head}
	bytes := 0
	for i := from; i <= head; i++ {
		if i-from == limit {
			out.Next = i
			break
		}
		e, size, err := s.placed(i)
		if err != nil {
			return nil, err
		}
		if bytes += size; bytes > pageBytesMax && i > from {
			out.Next = i
			break
		}
		out.Entries = append(out.Entries, e)
	}
	return out, nil
}

// placed returns an entry with its place, and how many bytes it has in the log.
// Replicas refuse an entry that was decided on another one than that before it,
// and no correct leader writes one that is refused for anything else.
func (s *Server) placed(index uint64) (api.Entry, int, error) {
	e, rec, err := s.replica.Entry(index)
	if err != nil {
		return api.Entry{}, 0, err
	}
	out := api.Entry{Index: index, Chain: rec.Chain, Entry: *e}
	if e.Predecessor != index-1 {
		out.Refused = fmt.Sprintf("decided on entry %d, but follows entry %d", e.Predecessor, index-1)
	}
	if out.Events == nil {
		out.Events = []events.Event{}
	}
	return out, len(rec.Entry), nil
}

// follow writes entries, one in memory at a time, until the client goes or the
// server closes. A client that does not read loses its connection, not this node
// its memory.
func (s *Server) follow(ctx huma.Context, next uint64) {
	r, w := humago.Unwrap(ctx)
	flow := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	out := json.NewEncoder(w)
	for {
		changed := s.replica.Changed()
		for head := s.replica.State().Index; next <= head; next++ {
			_ = flow.SetWriteDeadline(time.Now().Add(followWriteMax)) // a recorder in a test has none
			e, _, err := s.placed(next)
			if err == nil {
				err = out.Encode(e)
			}
			if err != nil {
				s.log.Debug("a follower of the log ends", "index", next, "error", err)
				return
			}
		}
		_ = flow.SetWriteDeadline(time.Now().Add(followWriteMax))
		if flow.Flush() != nil {
			return
		}
		if s.replica.Divergence().Known() {
			return // nothing is applied here any more: whoever follows looks at the state
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
