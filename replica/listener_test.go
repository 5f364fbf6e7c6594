package replica

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// logBuffer is a log that tests may read while others write.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// await returns when some line has been logged.
func (l *logBuffer) await(t *testing.T, text string) {
	t.Helper()
	require.Eventually(t, func() bool { return strings.Contains(l.String(), text) }, time.Minute, time.Millisecond)
}

func (l *logBuffer) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func listen(t *testing.T, s *PeerSecurity) (*Listener, *logBuffer) {
	t.Helper()
	var b logBuffer
	l, err := Listen(ListenOptions{Listen: "127.0.0.1:0", Security: s, Log: b.logger()})
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l, &b
}

func checkLeaks(t *testing.T) {
	t.Helper()
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, ignore) })
}

// echo answers every connection with name and what it was sent.
func echo(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.WriteString(c, name)
			_, _ = io.Copy(c, c)
		}()
	}
}

func TestListenerBringsConnectionsToTheirOwner(t *testing.T) {
	for name, security := range map[string]func() *PeerSecurity{
		"plaintext": func() *PeerSecurity { return nil },
		"secret":    func() *PeerSecurity { return testSecret(t, "one and the same") },
	} {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t)
			server, _ := listen(t, security())
			client, _ := listen(t, security())
			go echo(server.Raft(), "raft ")
			go echo(server.RPC(), "rpc! ")
			for range 3 {
				c, err := client.Raft().Dial(raft.ServerAddress(server.Addr().String()), time.Minute)
				require.NoError(t, err)
				requireEcho(t, c, "raft ")
				c, err = client.DialRPC(t.Context(), server.Addr().String())
				require.NoError(t, err)
				requireEcho(t, c, "rpc! ")
			}
			require.NoError(t, server.Close())
			require.NoError(t, server.Close(), "closing twice")
			_, err := client.DialRPC(t.Context(), server.Addr().String())
			require.ErrorIs(t, err, syscall.ECONNREFUSED)
			_, err = server.DialRPC(t.Context(), client.Addr().String())
			require.Error(t, err)
		})
	}
}

func requireEcho(t *testing.T, c net.Conn, name string) {
	t.Helper()
	_, err := io.WriteString(c, "hello")
	require.NoError(t, err)
	b := make([]byte, len(name)+len("hello"))
	_, err = io.ReadFull(c, b)
	require.NoError(t, err)
	require.Equal(t, name+"hello", string(b))
}

// Whoever does not hold the secret is told so, and so is the other side.
func TestListenerRefusesOtherSecrets(t *testing.T) {
	cert, key, ca := writePEM(t, t.TempDir(), time.Now().AddDate(1, 0, 0))
	given, err := FileSecurity(cert, key, ca)
	require.NoError(t, err)
	secret := testSecret(t, "one and the same")
	const noSecret, noTLS = "does not hold this job's secret", "this node has no secret"
	for name, c := range map[string]struct {
		server, client       *PeerSecurity
		serverSays, dialSays string
	}{
		"another secret":       {secret, testSecret(t, "another secret !!"), noSecret, noSecret},
		"a given certificate":  {secret, given, noSecret, "does not hold a certificate that fits the CA"},
		"client without":       {secret, nil, noSecret + " (it speaks no TLS)", "wants TLS, " + noTLS},
		"server without":       {nil, secret, "speaks TLS, " + noTLS, noSecret + " (it speaks no TLS)"},
		"server of given":      {given, secret, "does not hold a certificate that fits the CA", noSecret},
		"client of given only": {nil, given, "speaks TLS, " + noTLS, "(it speaks no TLS)"},
	} {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t)
			server, log := listen(t, c.server)
			client, _ := listen(t, c.client)
			_, err := client.Raft().Dial(raft.ServerAddress(server.Addr().String()), time.Minute)
			require.ErrorContains(t, err, c.dialSays)
			require.ErrorContains(t, err, server.Addr().String())
			_, ok := errors.AsType[*SecurityError](err)
			require.True(t, ok, "%T", err)
			log.await(t, "level=WARN")
			require.Contains(t, log.String(), c.serverSays)
		})
	}
}

// A client that shows no certificate, as a browser.
func TestListenerRefusesClientsWithoutCertificate(t *testing.T) {
	server, log := listen(t, testSecret(t, "one and the same"))
	anonymous := testSecret(t, "one and the same")
	anonymous.config.Certificates = nil
	client, _ := listen(t, anonymous)
	_, err := client.DialRPC(t.Context(), server.Addr().String())
	require.ErrorContains(t, err, "does not hold this job's secret")
	log.await(t, "does not hold this job's secret")
}

func TestListenerSurvivesGarbage(t *testing.T) {
	for name, security := range map[string]*PeerSecurity{"plaintext": nil, "secret": testSecret(t, "one and the same")} {
		for _, garbage := range []string{"", "R", "Resp2", "GET / HTTP/1.1\r\n\r\n", strings.Repeat("\x00", 100), "\x16\x03\x01\xff\xff" + strings.Repeat("x", 1000)} {
			t.Run(name, func(t *testing.T) {
				checkLeaks(t)
				server, _ := listen(t, security)
				go echo(server.RPC(), "rpc! ")
				c, err := net.Dial("tcp", server.Addr().String())
				require.NoError(t, err)
				_, err = io.WriteString(c, garbage)
				require.NoError(t, err)
				_ = c.(*net.TCPConn).CloseWrite() // unless the server was faster
				answer, _ := io.ReadAll(c)        // ends: the server closes
				require.NotContains(t, string(answer), "rpc")
				require.NoError(t, c.Close())

				client, _ := listen(t, security)
				good, err := client.DialRPC(t.Context(), server.Addr().String())
				require.NoError(t, err)
				requireEcho(t, good, "rpc! ")
			})
		}
	}
}

// A connection that says nothing is closed by Close, not only by its deadline.
func TestListenerCloseEndsSilentConnections(t *testing.T) {
	checkLeaks(t)
	server, _ := listen(t, testSecret(t, "one and the same"))
	c, err := net.Dial("tcp", server.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	require.Eventually(t, func() bool { // until the server has accepted it
		server.mu.Lock()
		defer server.mu.Unlock()
		return len(server.conns) == 1
	}, time.Minute, time.Millisecond)
	require.NoError(t, server.Close())
	_, _ = io.ReadAll(c) // ends
}

// The peer of a dial that hangs may be a process that is stopped.
func TestDialEndsWithItsContext(t *testing.T) {
	checkLeaks(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, nobody answers
	require.NoError(t, err)
	defer silent.Close()
	client, _ := listen(t, testSecret(t, "one and the same"))
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		_, err := client.DialRPC(ctx, silent.Addr().String())
		result <- err
	}()
	c, err := silent.Accept()
	require.NoError(t, err)
	defer c.Close()
	cancel()
	err = <-result
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, silent.Addr().String())
}

func TestListenPortInUse(t *testing.T) {
	l, _ := listen(t, nil)
	_, err := Listen(ListenOptions{Listen: l.Addr().String()})
	require.ErrorContains(t, err, l.Addr().String()+" is in use")
	require.ErrorContains(t, err, "--listen (ESPERD_LISTEN)")
	_, err = Listen(ListenOptions{Listen: "nonsense"})
	require.ErrorContains(t, err, "HOST:PORT")
}

func TestAdvertisedAddr(t *testing.T) {
	tcp := func(ip string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: 7070} }
	for _, c := range []struct{ bound, host, want string }{
		{"10.0.0.1", "", "10.0.0.1:7070"},
		{"fd00::1", "", "[fd00::1]:7070"},
		{"0.0.0.0", "node7", "node7:7070"},
		{"::", "fd00::7", "[fd00::7]:7070"},
		{"10.0.0.1", "192.0.2.1", "192.0.2.1:7070"},
		{"0.0.0.0", "", ""},
		{"::", "", ""},
	} {
		got, err := advertisedAddr(tcp(c.bound), c.host)
		require.Equal(t, c.want, string(got))
		if c.want == "" {
			require.ErrorContains(t, err, "--listen")
		}
	}
}

// flakyListener fails its first accepts as a process without file descriptors.
type flakyListener struct {
	net.Listener
	failures int
}

func (f *flakyListener) Accept() (net.Conn, error) {
	if f.failures > 0 {
		f.failures--
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return f.Listener.Accept()
}

func TestListenerRetriesFailedAccepts(t *testing.T) {
	checkLeaks(t)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var log logBuffer
	server := newListener(&flakyListener{Listener: tcp, failures: 3}, peerAddr(tcp.Addr().String()), ListenOptions{Log: log.logger()})
	defer server.Close()
	go echo(server.RPC(), "rpc! ")
	client, _ := listen(t, nil)
	c, err := client.DialRPC(t.Context(), server.Addr().String())
	require.NoError(t, err)
	requireEcho(t, c, "rpc! ")
	require.Equal(t, 3, strings.Count(log.String(), "cannot accept"))
}

// Raft's own transport over the listener, both ends real.
func TestRaftTransportOverListener(t *testing.T) {
	checkLeaks(t)
	security := testSecret(t, "one and the same")
	var trans [2]*raft.NetworkTransport
	for i := range trans {
		l, log := listen(t, security)
		trans[i] = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream: l.Raft(), MaxPool: 2, Timeout: time.Minute, Logger: newRaftLogger(log.logger())})
		t.Cleanup(func() { _ = trans[i].Close(); _ = l.Close() })
	}
	go func() {
		rpc := <-trans[1].Consumer()
		rpc.Respond(&raft.AppendEntriesResponse{Term: 3, Success: true}, nil)
	}()
	var resp raft.AppendEntriesResponse
	req := raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 1}
	require.NoError(t, trans[0].AppendEntries("b", trans[1].LocalAddr(), &req, &resp))
	require.True(t, resp.Success)
	require.EqualValues(t, 3, resp.Term)
}
