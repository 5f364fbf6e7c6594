package replica

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/esperd/esperd/events"
)

// Peer RPC is HTTP/1.1 POST /peer/NAME over the peers' listener, with CBOR
// bodies (events.Marshal). An answer with another status than 200 carries a
// PeerError.
const (
	peerPathPrefix   = "/peer/"
	peerContentType  = "application/cbor"
	peerBodyBytesMax = 64 << 20
)

// peerDecMode is events' but for unknown fields, which it ignores: nodes of
// different versions talk to each other while a world is upgraded.
var peerDecMode = func() cbor.DecMode {
	m, err := cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
		MaxNestedLevels:  16,
		MaxArrayElements: 1 << 17,
		MaxMapPairs:      1 << 12,
	}.DecMode()
	if err != nil {
		panic(err) // a constant of this file is wrong
	}
	return m
}()

func unmarshalPeer(b []byte, v any) error {
	if err := peerDecMode.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %w", events.ErrMalformed, err)
	}
	return nil
}

// A PeerClient asks other nodes. Call encodes req, decodes the answer into resp
// (nil: drop it), and returns a *PeerError for what the peer itself refused;
// after any other error it is unknown whether the peer has acted.
type PeerClient interface {
	Call(ctx context.Context, addr, method string, req, resp any) error
}

// A peerHandler answers one method: the request's bytes, to a value to encode.
// Its context ends when the caller gives up or the server closes.
type peerHandler func(ctx context.Context, req []byte) (any, error)

// PeerError is an error that a peer answered with.
type PeerError struct {
	Code events.Code `cbor:"1,keyasint"`
	Text string      `cbor:"2,keyasint"`
}

func (e *PeerError) Error() string { return e.Text }

// asPeerError gives any error of a handler the form that crosses the wire.
func asPeerError(err error) *PeerError {
	if e, ok := errors.AsType[*PeerError](err); ok {
		return e
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return &PeerError{Code: e.Code, Text: err.Error()}
	}
	return &PeerError{Code: events.CodeUnavailable, Text: err.Error()}
}

// answer runs one method and encodes what came of it, on every kind of network.
func answer(ctx context.Context, handlers map[string]peerHandler, method string, req []byte, log *slog.Logger) (body []byte, failed *PeerError) {
	handler, ok := handlers[method]
	if !ok {
		return nil, &PeerError{Code: events.CodeInvalidInput,
			Text: fmt.Sprintf("this node knows no peer method %q: run the same version of esperd on every node", method)}
	}
	defer func() {
		if r := recover(); r != nil {
			log.Error("a peer's request panicked", "method", method, "panic", r, "stack", string(debug.Stack()))
			body, failed = nil, &PeerError{Code: events.CodeUnavailable, Text: fmt.Sprintf("internal error in peer method %s: %v", method, r)}
		}
	}()
	v, err := handler(ctx, req)
	if err != nil {
		return nil, asPeerError(err)
	}
	b, err := events.Marshal(v)
	if err == nil && len(b) > peerBodyBytesMax {
		err = fmt.Errorf("an answer of %d bytes, more than %d", len(b), peerBodyBytesMax)
	}
	if err != nil {
		return nil, &PeerError{Code: events.CodeUnavailable, Text: fmt.Sprintf("peer method %s: %v", method, err)}
	}
	return b, nil
}

// encodeRequest and decodeAnswer are the two ends of a call.
func encodeRequest(method string, req any) ([]byte, error) {
	b, err := events.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("peer method %s: %w", method, err)
	}
	if len(b) > peerBodyBytesMax {
		return nil, fmt.Errorf("peer method %s: a request of %d bytes, expected at most %d", method, len(b), peerBodyBytesMax)
	}
	return b, nil
}

func decodeAnswer(addr, method string, b []byte, resp any) error {
	if resp == nil {
		return nil
	}
	if err := unmarshalPeer(b, resp); err != nil {
		return fmt.Errorf("peer %s answered %s with something else (%w): run the same version of esperd on every node", addr, method, err)
	}
	return nil
}

// decodePeerError reads the body of a refusal; what is none becomes one.
func decodePeerError(addr, method string, status int, b []byte) *PeerError {
	e := new(PeerError)
	if err := unmarshalPeer(b, e); err != nil || e.Code == "" {
		return &PeerError{Code: events.CodeUnavailable, Text: fmt.Sprintf("peer %s answered %s with HTTP status %d and %.200q", addr, method, status, b)}
	}
	return e
}

// httpPeers is the PeerClient of real networks.
type httpPeers struct {
	client    *http.Client
	transport *http.Transport
}

// newHTTPPeers calls peers through dial, which is Listener.DialRPC; connections
// are kept, a few for each address.
func newHTTPPeers(dial func(ctx context.Context, addr string) (net.Conn, error)) *httpPeers {
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, poolHost string) (net.Conn, error) {
			addr, err := hex.DecodeString(strings.TrimSuffix(poolHost, poolPort))
			if err != nil {
				return nil, err
			}
			return dial(ctx, string(addr))
		},
		DisableCompression:  true,
		MaxIdleConnsPerHost: 4,
		IdleConnTimeout:     90 * time.Second,
	}
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &httpPeers{client: &http.Client{Transport: t, CheckRedirect: stay}, transport: t}
}

// poolPort ends the host part of a URL, which is only the name of a connection
// pool: an address in hexadecimal, since net/http would not take one with a node.
const poolPort = ":80"

// Call implements PeerClient.
func (p *httpPeers) Call(ctx context.Context, addr, method string, req, resp any) error {
	b, err := encodeRequest(method, req)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+hex.EncodeToString([]byte(addr))+poolPort+peerPathPrefix+method, bytes.NewReader(b))
	if err != nil {
		return fmt.Errorf("peer %s, method %s: %w", addr, method, err)
	}
	r.Header.Set("Content-Type", peerContentType)
	a, err := p.client.Do(r)
	if failed, ok := errors.AsType[*url.Error](err); ok {
		err = failed.Err // without the URL, whose host is the name of a pool
	}
	if err != nil {
		return fmt.Errorf("peer %s, method %s: %w", hostOf(addr), method, err)
	}
	defer a.Body.Close()
	body, err := io.ReadAll(io.LimitReader(a.Body, peerBodyBytesMax+1))
	if err != nil {
		return fmt.Errorf("peer %s, method %s: %w", addr, method, err)
	}
	if len(body) > peerBodyBytesMax {
		return fmt.Errorf("peer %s answered %s with more than the %d bytes that are allowed", addr, method, peerBodyBytesMax)
	}
	if a.StatusCode != http.StatusOK {
		return decodePeerError(addr, method, a.StatusCode, body)
	}
	return decodeAnswer(addr, method, body, resp)
}

// Close drops the connections that are not in use.
func (p *httpPeers) Close() { p.transport.CloseIdleConnections() }

// peerServer answers the peers of one node.
type peerServer struct {
	http     *http.Server
	handlers map[string]peerHandler
	log      *slog.Logger
	cancel   context.CancelFunc // of every request's context
	served   chan struct{}      // closed when Serve has returned
	requests gate
}

// servePeers answers what comes over l until Close.
func servePeers(l net.Listener, handlers map[string]peerHandler, log *slog.Logger) *peerServer {
	ctx, cancel := context.WithCancel(context.Background())
	s := &peerServer{handlers: handlers, log: log, cancel: cancel, served: make(chan struct{})}
	s.http = &http.Server{
		Handler:           s,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute, // longer than the client's, so that the client closes first
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	go func() {
		defer close(s.served)
		_ = s.http.Serve(l) // ends with the server or with the listener
	}()
	return s
}

// Close ends the requests' contexts and waits for their handlers.
func (s *peerServer) Close() {
	s.cancel()
	s.requests.close()
	_ = s.http.Close()
	<-s.served
}

// ServeHTTP answers one request.
func (s *peerServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.requests.enter() {
		s.refuse(w, http.StatusServiceUnavailable, &PeerError{Code: events.CodeUnavailable, Text: "this node is stopping"})
		return
	}
	defer s.requests.leave()
	method, ok := strings.CutPrefix(r.URL.Path, peerPathPrefix)
	if !ok || r.Method != http.MethodPost {
		s.refuse(w, http.StatusNotFound, &PeerError{Code: events.CodeInvalidInput,
			Text: fmt.Sprintf("expected POST %sMETHOD, got %s %.100q", peerPathPrefix, r.Method, r.URL.Path)})
		return
	}
	req, err := io.ReadAll(http.MaxBytesReader(w, r.Body, peerBodyBytesMax))
	if err != nil {
		s.refuse(w, http.StatusRequestEntityTooLarge, &PeerError{Code: events.CodeInvalidInput,
			Text: fmt.Sprintf("cannot read the request (%v), expected at most %d bytes", err, peerBodyBytesMax)})
		return
	}
	body, failed := answer(r.Context(), s.handlers, method, req, s.log)
	if failed != nil {
		s.refuse(w, http.StatusUnprocessableEntity, failed)
		return
	}
	w.Header().Set("Content-Type", peerContentType)
	_, _ = w.Write(body) // a caller that went away needs no answer
}

func (s *peerServer) refuse(w http.ResponseWriter, status int, e *PeerError) {
	b, err := events.Marshal(e)
	if err != nil {
		s.log.Error("cannot encode a peer's answer", "error", err) // two strings: cannot happen
	}
	w.Header().Set("Content-Type", peerContentType)
	w.WriteHeader(status)
	_, _ = w.Write(b)
}

// A gate counts the requests that are being answered, until it closes.
type gate struct {
	mu     sync.Mutex
	closed bool
	inside sync.WaitGroup // Add only under mu while not closed
}

func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.inside.Add(1)
	}
	return !g.closed
}

func (g *gate) leave() { g.inside.Done() }

// close lets nobody in any more and waits for those inside.
func (g *gate) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.inside.Wait()
}
