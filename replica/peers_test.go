package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
)

type testMessage struct {
	Number uint64 `cbor:"1,keyasint,omitempty"`
	Text   string `cbor:"2,keyasint,omitempty"`
	Bytes  []byte `cbor:"3,keyasint,omitempty"`
}

// testHandlers is what the tests of both networks call.
func testHandlers() map[string]peerHandler {
	return map[string]peerHandler{
		"double": func(_ context.Context, req []byte) (any, error) {
			var m testMessage
			if err := events.Unmarshal(req, &m); err != nil {
				return nil, &PeerError{Code: events.CodeInvalidInput, Text: err.Error()}
			}
			return testMessage{Number: 2 * m.Number, Text: m.Text + m.Text, Bytes: m.Bytes}, nil
		},
		"peer-error": func(context.Context, []byte) (any, error) {
			return nil, fmt.Errorf("wrapped: %w", &PeerError{Code: events.CodeConfigMismatch, Text: "expected 3, got 4"})
		},
		"own-error": func(context.Context, []byte) (any, error) {
			return nil, errorf(events.CodeNotAuthority, "not here")
		},
		"any-error": func(context.Context, []byte) (any, error) { return nil, errors.New("disk full") },
		"panic":     func(context.Context, []byte) (any, error) { panic("a bug") },
		"too-much":  func(context.Context, []byte) (any, error) { return make([]byte, peerBodyBytesMax), nil },
		"no-cbor":   func(context.Context, []byte) (any, error) { return func() {}, nil },
		"wait":      func(ctx context.Context, _ []byte) (any, error) { <-ctx.Done(); return nil, ctx.Err() },
	}
}

// checkCalls is the contract of a PeerClient.
func checkCalls(t *testing.T, client PeerClient, addr string) {
	t.Helper()
	var m testMessage
	require.NoError(t, client.Call(t.Context(), addr, "double", testMessage{Number: 21, Text: "ab", Bytes: []byte{1}}, &m))
	require.Equal(t, testMessage{Number: 42, Text: "abab", Bytes: []byte{1}}, m)
	require.NoError(t, client.Call(t.Context(), addr, "double", testMessage{}, nil))

	for method, want := range map[string]PeerError{
		"peer-error": {events.CodeConfigMismatch, "expected 3, got 4"},
		"own-error":  {events.CodeNotAuthority, "not here"},
		"any-error":  {events.CodeUnavailable, "disk full"},
		"panic":      {events.CodeUnavailable, "internal error in peer method panic: a bug"},
		"none":       {events.CodeInvalidInput, `no peer method "none"`},
		"too-much":   {events.CodeUnavailable, "more than 67108864"},
		"no-cbor":    {events.CodeUnavailable, "peer method no-cbor"},
	} {
		err := client.Call(t.Context(), addr, method, nil, &m)
		got, ok := errors.AsType[*PeerError](err)
		require.True(t, ok, "%s: %v", method, err)
		require.Equal(t, want.Code, got.Code, method)
		require.Contains(t, got.Text, want.Text)
	}

	err := client.Call(t.Context(), addr, "double", make([]byte, peerBodyBytesMax), &m)
	require.ErrorContains(t, err, "expected at most 67108864")
	var wrong []string
	err = client.Call(t.Context(), addr, "double", testMessage{}, &wrong)
	require.ErrorIs(t, err, events.ErrMalformed)
	require.ErrorContains(t, err, addr)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, client.Call(ctx, addr, "wait", nil, &m), context.Canceled)
}

// startPeer serves testHandlers over a real listener, and returns a client.
func startPeer(t *testing.T) (server *peerServer, addr string, client *httpPeers) {
	t.Helper()
	security := testSecret(t, "one and the same")
	l, log := listen(t, security)
	server = servePeers(l.RPC(), testHandlers(), log.logger())
	other, _ := listen(t, security)
	client = newHTTPPeers(other.DialRPC)
	t.Cleanup(func() { client.Close(); _ = l.Close(); server.Close() })
	return server, l.Addr().String(), client
}

func TestPeersOverHTTP(t *testing.T) {
	checkLeaks(t)
	_, addr, client := startPeer(t)
	checkCalls(t, client, addr)
}

func TestPeersKeepTheirConnection(t *testing.T) {
	checkLeaks(t)
	l, log := listen(t, nil)
	server := servePeers(l.RPC(), testHandlers(), log.logger())
	var dials atomic.Int32
	client := newHTTPPeers(func(ctx context.Context, addr string) (net.Conn, error) {
		dials.Add(1)
		return l.DialRPC(ctx, addr)
	})
	for range 5 {
		require.NoError(t, client.Call(t.Context(), l.Addr().String(), "double", testMessage{}, nil))
	}
	require.EqualValues(t, 1, dials.Load())
	client.Close()
	server.Close()
}

// Closing a server ends the waits of those who asked it.
func TestPeerServerCloseEndsRequests(t *testing.T) {
	checkLeaks(t)
	inside := make(chan struct{})
	l, log := listen(t, nil)
	server := servePeers(l.RPC(), map[string]peerHandler{"wait": func(ctx context.Context, _ []byte) (any, error) {
		close(inside)
		<-ctx.Done()
		return nil, ctx.Err()
	}}, log.logger())
	client := newHTTPPeers(l.DialRPC)
	result := make(chan error, 1)
	go func() { result <- client.Call(context.Background(), l.Addr().String(), "wait", nil, nil) }()
	<-inside
	server.Close()
	require.Error(t, <-result)
	require.Error(t, client.Call(t.Context(), l.Addr().String(), "wait", nil, nil))
	client.Close()
}

// A caller that gives up ends its handler.
func TestPeerHandlerEndsWithItsCaller(t *testing.T) {
	checkLeaks(t)
	inside, ended := make(chan struct{}), make(chan struct{})
	l, log := listen(t, testSecret(t, "one and the same"))
	server := servePeers(l.RPC(), map[string]peerHandler{"wait": func(ctx context.Context, _ []byte) (any, error) {
		close(inside)
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	}}, log.logger())
	defer server.Close()
	client := newHTTPPeers(l.DialRPC)
	defer client.Close()
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- client.Call(ctx, l.Addr().String(), "wait", nil, nil) }()
	<-inside
	cancel()
	<-ended
	require.ErrorIs(t, <-result, context.Canceled)
}

// The address answers, but it is no esperd, or another version of one.
func TestPeerAnswersGarbage(t *testing.T) {
	for _, c := range []struct {
		status int
		body   string
		want   string
	}{
		{200, "\xff", "answered double with something else"},
		{200, strings.Repeat("x", peerBodyBytesMax+1), "more than the 67108864"},
		{500, "<html>", `HTTP status 500 and "<html>"`},
		{302, "", "HTTP status 302"},
		{404, "\xa0", "HTTP status 404"},
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(c.status)
			_, _ = io.WriteString(w, c.body)
		}))
		client := newHTTPPeers(func(ctx context.Context, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		})
		var m testMessage
		err := client.Call(t.Context(), s.Listener.Addr().String(), "double", testMessage{}, &m)
		require.ErrorContains(t, err, c.want)
		client.Close()
		s.Close()
	}
}

func TestPeerServerRefusesOtherRequests(t *testing.T) {
	var log logBuffer
	s := &peerServer{handlers: testHandlers(), log: log.logger()}
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/peer/double", "", 404, "expected POST /peer/METHOD, got GET"},
		{"POST", "/double", "", 404, "expected POST /peer/METHOD"},
		{"POST", "/peer/", "", 422, `no peer method ""`},
		{"POST", "/peer/double", "\xff\xff", 422, "malformed"},
		{"POST", "/peer/double", strings.Repeat("x", peerBodyBytesMax+1), 413, "expected at most 67108864"},
	} {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(c.method, c.path, strings.NewReader(c.body)))
		require.Equal(t, c.status, w.Code)
		require.Contains(t, decodePeerError("a", "m", w.Code, w.Body.Bytes()).Text, c.want)
	}
}

func FuzzPeerMessages(f *testing.F) {
	good, err := events.Marshal(testMessage{Number: 1, Text: "a", Bytes: []byte{2}})
	require.NoError(f, err)
	refusal, err := events.Marshal(PeerError{Code: events.CodeUnavailable, Text: "no"})
	require.NoError(f, err)
	f.Add("double", good)
	f.Add("double", refusal)
	f.Add("none", []byte{0x9f})
	f.Add("../double", []byte{0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	var log logBuffer
	handlers := map[string]peerHandler{"double": testHandlers()["double"]}
	f.Fuzz(func(t *testing.T, method string, body []byte) {
		answered, failed := answer(t.Context(), handlers, method, body, log.logger())
		if failed == nil {
			var m testMessage
			require.NoError(t, decodeAnswer("a", method, answered, &m))
		} else {
			require.NotEmpty(t, failed.Code)
			require.NotContains(t, failed.Text, "internal error") // a panic
		}
		e := decodePeerError("a", method, 422, body)
		require.NotEmpty(t, e.Code)
		_ = decodeAnswer("a", method, body, new(testMessage))
		_ = decodeAnswer("a", method, body, new(events.Entry))
	})
}
