package door

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"net/http"
	"reflect"

	"github.com/danielgtaylor/huma/v2"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// recordsOperations registers what audits read: the log's bytes, and what
// stretches of it come to.
func (s *Server) recordsOperations(a huma.API) {
	get(a, "chain", "/v1/chain", "What a stretch of the log comes to, for comparing nodes", func(_ context.Context, in *struct {
		From uint64 `query:"from" required:"true" minimum:"1" doc:"first index"`
		To   uint64 `query:"to" required:"true" minimum:"1" doc:"last index; the answer may stop before it"`
	}) (*api.Chain, error) {
		return s.chain(in.From, in.To)
	})
	huma.Register(a, huma.Operation{OperationID: "records", Method: http.MethodGet, Path: "/v1/records",
		Summary: "The log as it is kept, one record a line (NDJSON)", Tags: []string{"admin"},
		Responses: map[string]*huma.Response{"200": {Description: "records in log order, until the limit, the head or some megabytes are reached",
			Content: map[string]*huma.MediaType{"application/x-ndjson": {Schema: a.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[api.Record](), true, "")}}}},
	}, func(_ context.Context, in *struct {
		From  uint64 `query:"from" required:"true" minimum:"1" doc:"first index"`
		Limit uint64 `query:"limit" default:"1000" minimum:"1" maximum:"10000" doc:"records at most"`
	}) (*huma.StreamResponse, error) {
		records, err := s.records(in.From, in.Limit)
		if err != nil {
			return nil, err
		}
		return &huma.StreamResponse{Body: func(ctx huma.Context) {
			ctx.SetHeader("Content-Type", "application/x-ndjson")
			out := json.NewEncoder(ctx.BodyWriter())
			for i := range records {
				if out.Encode(records[i]) != nil {
					return // the client has gone
				}
			}
		}}, nil
	})
}

// here checks that an index is in the history on this node, and returns the
// first and the last one that are.
func (s *Server) here(index uint64) (first, head uint64, p *api.Problem) {
	st := s.replica.Status()
	first, head = max(st.CompleteFrom, 1), st.Index
	if index < first || index > head {
		return 0, 0, problemf(events.CodeUnavailable, "the history on this node has the entries %d to %d, expected to be asked about those, got %d; ask another rank's node", first, head, index)
	}
	return first, head, nil
}

func (s *Server) chain(from, to uint64) (*api.Chain, error) {
	first, head, p := s.here(from)
	if p != nil {
		return nil, p
	}
	out := &api.Chain{From: from, To: min(to, head, from+api.ChainMax-1), Head: head, CompleteFrom: first}
	if out.To < from {
		return nil, problemf(events.CodeInvalidInput, "to is %d, expected %d (from) or more", to, from)
	}
	var err error
	if out.Before, err = s.replica.ChainAt(from - 1); err != nil {
		return nil, problemOf(err)
	}
	sum := sha256.New()
	err = s.replica.Records(from, out.To, func(r events.Record) error {
		sum.Write(r.Chain[:])
		sum.Write(r.Lifecycle[:])
		sum.Write(r.Bookkeeping[:])
		out.Chain, out.Lifecycle, out.Bookkeeping = r.Chain, r.Lifecycle, r.Bookkeeping
		return nil
	})
	if err != nil {
		return nil, problemOf(err)
	}
	out.Sum = events.Digest(sum.Sum(nil))
	return out, nil
}

// errPage ends a page of records.
var errPage = errors.New("the page is full")

func (s *Server) records(from, limit uint64) ([]api.Record, error) {
	_, head, p := s.here(from)
	if p != nil {
		return nil, p
	}
	var out []api.Record
	bytes := 0
	err := s.replica.Records(from, min(head, from+limit-1), func(r events.Record) error {
		if bytes += len(r.Entry); bytes > pageBytesMax && len(out) > 0 {
			return errPage
		}
		out = append(out, api.RecordOf(&r))
		return nil
	})
	if err != nil && !errors.Is(err, errPage) {
		return nil, problemOf(err)
	}
	return out, nil
}
