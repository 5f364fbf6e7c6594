package door

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

const (
	bodyDrainMax    = 64 << 20 // of a body that is too long
	bodyReadMax     = 30 * time.Second
	headerReadMax   = 10 * time.Second
	headerBytesMax  = 64 << 10
	adminIdleMax    = 2 * time.Minute
	adminWriteMax   = time.Minute // of an answer; followers have their own
	trainerRequests = 4096        // at once: a trainer may wait in a call of each of its models
	adminRequests   = 128
)

// newMux registers everything that either door serves, in one OpenAPI document.
func (s *Server) newMux() *http.ServeMux {
	mux := http.NewServeMux()
	schemas := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	api.DescribeTypes(schemas)
	a := humago.New(mux, huma.Config{
		OpenAPI: &huma.OpenAPI{OpenAPI: "3.1.0",
			Info:       &huma.Info{Title: "esperd", Version: s.version, Description: "GETs are served on both doors, POSTs on the trainer's unix socket only, but for /v1/requests, which the admin door takes with a token (Authorization: Bearer). Errors are RFC 9457 problem documents."},
			Components: &huma.Components{Schemas: schemas}},
		Formats:       huma.DefaultFormats,
		DefaultFormat: "application/json",
	})
	s.trainerDoor(a)
	s.adminDoor(a)

	plain := func(path, summary, contentType string) {
		a.OpenAPI().AddOperation(&huma.Operation{Method: http.MethodGet, Path: path, Summary: summary, OperationID: path[1:], Tags: []string{"admin"},
			Responses: map[string]*huma.Response{"200": {Description: "OK", Content: map[string]*huma.MediaType{contentType: {}}}}})
	}
	plain("/metrics", "Metrics in Prometheus' text format", "text/plain")
	plain("/openapi.json", "This document", "application/openapi+json")
	a.OpenAPI().AddOperation(&huma.Operation{Method: http.MethodPost, Path: arenaPath, OperationID: "arena", Tags: []string{"trainer"},
		Summary:   "Take the arena, or have tensors fingerprinted: the connection changes to a protocol that carries file descriptors (Upgrade: esperd-arena)",
		Responses: map[string]*huma.Response{"101": {Description: "Switching Protocols"}}})
	mux.Handle("GET /metrics", s.metrics.handler())
	document := sync.OnceValues(func() ([]byte, error) { return json.Marshal(a.OpenAPI()) })
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		b, err := document()
		if err != nil {
			writeProblem(w, problemOf(err))
			return
		}
		w.Header().Set("Content-Type", "application/openapi+json")
		_, _ = w.Write(b) // the client has gone if this fails
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { notFound(mux, w, r) })
	return mux
}

// notFound answers requests that no other pattern takes: another method on a
// path that exists, or a path that does not.
func notFound(mux *http.ServeMux, w http.ResponseWriter, r *http.Request) {
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		other := r.Clone(r.Context())
		other.Method = method
		if _, pattern := mux.Handler(other); pattern != "/" && pattern != "" {
			p := problemf(events.CodeInvalidInput, "%s takes %s, got %.16q", r.URL.Path, method, r.Method)
			p.Status = http.StatusMethodNotAllowed
			w.Header().Set("Allow", method)
			writeProblem(w, p)
			return
		}
	}
	p := problemf(events.CodeInvalidInput, "there is nothing at %.256q; GET /openapi.json lists what there is", r.URL.Path)
	p.Status = http.StatusNotFound
	writeProblem(w, p)
}

func writeProblem(w http.ResponseWriter, p *api.Problem) {
	w.Header().Set("Content-Type", p.ContentType(""))
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // the client has gone if this fails
}

// trainerHandler serves the unix socket: everything, to processes of this user.
func (s *Server) trainerHandler(mux http.Handler) http.Handler {
	served := limit(trainerRequests, withBody(mux))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p, ok := r.Context().Value(strangerKey{}).(*api.Problem); ok {
			w.Header().Set("Connection", "close")
			writeProblem(w, p)
			return
		}
		if r.Method == http.MethodPost && r.URL.Path == arenaPath {
			s.serveArena(w, r)
			return
		}
		served.ServeHTTP(w, r)
	})
}

type (
	strangerKey struct{}
	pidKey      struct{} // of the process that connected, an int
)

// greet checks who connected. A stranger's requests are answered, with 403.
func (s *Server) greet(ctx context.Context, c net.Conn) context.Context {
	pid, err := checkPeer(c)
	if err == nil {
		return context.WithValue(ctx, pidKey{}, pid)
	}
	s.log.Warn("a connection to the trainer's door is refused", "error", err)
	p := problemf(events.CodeNotAuthority, "%v", err)
	p.Status = http.StatusForbidden
	return context.WithValue(ctx, strangerKey{}, p)
}

// adminHandler serves the TCP address: reading, and requests of who has the
// token.
func (s *Server) adminHandler(mux http.Handler, listen net.Addr) http.Handler {
	served, posts := limit(adminRequests, mux), limit(adminRequests, withBody(mux))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !hostAllowed(r.Host, listen) {
			p := problemf(events.CodeNotAuthority, "the request is for host %.128q, expected localhost or %s: a web page of another site may be behind it", r.Host, listen)
			p.Status = http.StatusForbidden
			writeProblem(w, p)
			return
		}
		switch {
		case r.Method == http.MethodGet || r.Method == http.MethodHead:
			served.ServeHTTP(w, r)
		case r.Method == http.MethodPost && r.URL.Path == requestsPath:
			if p := s.mayRequest(r); p != nil {
				writeProblem(w, p)
				return
			}
			posts.ServeHTTP(w, r)
		default:
			p := problemf(events.CodeInvalidInput, "the admin door takes GET, and POST of %s, got %.16q: trainers call on the unix socket", requestsPath, r.Method)
			p.Status = http.StatusMethodNotAllowed
			w.Header().Set("Allow", "GET, HEAD")
			writeProblem(w, p)
		}
	})
}

// hostAllowed keeps web pages out that had their own name resolved to loopback
// (DNS rebinding). A door that listens beyond loopback is known by any name.
func hostAllowed(host string, listen net.Addr) bool {
	tcp, ok := listen.(*net.TCPAddr)
	if !ok || !tcp.IP.IsLoopback() {
		return true
	}
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	return slices.Contains([]string{"localhost", "127.0.0.1", "::1", tcp.IP.String()}, host)
}

// limit bounds how many requests are served at once.
func limit(n int64, next http.Handler) http.Handler {
	var under atomic.Int64
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer under.Add(-1)
		if under.Add(1) > n {
			w.Header().Set("Retry-After", "1")
			writeProblem(w, problemf(events.CodeUnavailable, "this door serves %d requests already, expected fewer at once: try again", n))
			return
		}
		next.ServeHTTP(w, r)
	})
}

var bodies = sync.Pool{New: func() any { return new(bytes.Buffer) }}

func putBody(b *bytes.Buffer) {
	if b.Cap() <= 1<<20 {
		b.Reset()
		bodies.Put(b)
	}
}

// whole keeps an answer until its length is known: a client then reads it without
// looking for the ends of chunks.
type whole struct {
	http.ResponseWriter
	status int
	body   *bytes.Buffer
}

func (w *whole) WriteHeader(status int)      { w.status = status }
func (w *whole) Write(b []byte) (int, error) { return w.body.Write(b) }
func (w *whole) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *whole) send() {
	w.Header().Set("Content-Length", strconv.Itoa(w.body.Len()))
	w.ResponseWriter.WriteHeader(w.status)
	_, _ = w.ResponseWriter.Write(w.body.Bytes()) // the client has gone if this fails
}

// withBody reads the body before the call begins, in bounded time and space.
// The connection's deadline is gone afterwards: a call may wait for long, and a
// deadline that passes would look like a client that has gone.
func withBody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body == nil || r.Body == http.NoBody {
			next.ServeHTTP(w, r)
			return
		}
		flow := http.NewResponseController(w)
		_ = flow.SetReadDeadline(time.Now().Add(bodyReadMax)) // a recorder in a test has none
		buf := bodies.Get().(*bytes.Buffer)
		defer putBody(buf)
		limit := api.BodyBytesMax
		if r.URL.Path == resumePath || r.URL.Path == sessionPath {
			limit = api.MarkBodyBytesMax
		}
		if p := readBody(buf, r.Body, limit); p != nil {
			w.Header().Set("Connection", "close")
			writeProblem(w, p)
			return
		}
		_ = flow.SetReadDeadline(time.Time{})
		r.Body = io.NopCloser(bytes.NewReader(buf.Bytes()))
		out := &whole{ResponseWriter: w, status: http.StatusOK, body: bodies.Get().(*bytes.Buffer)}
		defer putBody(out.body)
		next.ServeHTTP(out, r)
		out.send()
	})
}

func readBody(buf *bytes.Buffer, body io.Reader, limit int) *api.Problem {
	_, err := buf.ReadFrom(io.LimitReader(body, int64(limit)+1))
	switch {
	case err != nil:
		p := problemf(events.CodeInvalidInput, "the body did not arrive: %v", err)
		p.Status = http.StatusBadRequest
		return p
	case buf.Len() > limit:
		// A client that is still writing when the connection is closed takes the
		// answer for a lost connection.
		_, _ = io.Copy(io.Discard, io.LimitReader(body, bodyDrainMax))
		p := problemf(events.CodeInvalidInput, "the body has more than %d bytes, expected fewer: observe each slot once a call, and shorten the arguments", limit)
		p.Status = http.StatusRequestEntityTooLarge
		return p
	}
	return nil
}
