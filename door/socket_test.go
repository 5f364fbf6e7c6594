package door

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/door/doortest"
)

// socketDir returns a directory with a path short enough for a socket.
func socketDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "door")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

func TestSocketPathsThatAreTooLongAreNamed(t *testing.T) {
	path := filepath.Join("/tmp", strings.Repeat("x", 103))
	_, err := listenSocket(path)
	require.ErrorContains(t, err, path+" has 108 bytes, expected at most 107")
	require.ErrorContains(t, err, "--socket (ESPERD_SOCKET)")
	l, err := listenSocket(path[:107])
	require.NoError(t, err)
	require.NoError(t, l.Close())
	require.NoFileExists(t, path[:107])
	require.NoFileExists(t, path[:107]+".lock")
}

func TestASocketIsTheUsersAlone(t *testing.T) {
	path := filepath.Join(socketDir(t), "made", "s")
	l, err := listenSocket(path)
	require.NoError(t, err)
	defer l.Close()
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	info, err = os.Stat(filepath.Dir(path))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
}

func TestASocketOfADeadProcessIsReplaced(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	dead.SetUnlinkOnClose(false)
	require.NoError(t, dead.Close())
	require.NoError(t, os.WriteFile(path+".lock", nil, 0o600), "a killed process leaves its lock file, too")
	l, err := listenSocket(path)
	require.NoError(t, err)
	require.NoError(t, l.Close())
}

func TestASocketThatIsServedIsNotTaken(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	l, err := listenSocket(path)
	require.NoError(t, err)
	_, err = listenSocket(path)
	require.ErrorContains(t, err, "another esperd serves this socket, "+path)
	require.NoError(t, l.Close())

	foreign, err := net.Listen("unix", path) // by something that knows no lock
	require.NoError(t, err)
	defer foreign.Close()
	_, err = listenSocket(path)
	require.ErrorContains(t, err, "another esperd serves this socket")
}

func TestAFileThatIsNoSocketIsLeftAlone(t *testing.T) {
	path := filepath.Join(socketDir(t), "notes.txt")
	require.NoError(t, os.WriteFile(path, []byte("mine"), 0o644))
	_, err := listenSocket(path)
	require.ErrorContains(t, err, "is no socket")
	require.FileExists(t, path)
	require.NoFileExists(t, path+".lock")
}

func TestDoorsThatCannotOpenSayWhich(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	o := Options{Replica: doortest.New("run-1", 1).Node(0), Socket: filepath.Join(socketDir(t), "s"), Admin: taken.Addr().String()}
	_, err = Open(o)
	require.ErrorContains(t, err, "cannot open the admin door")
	require.ErrorContains(t, err, "--admin-listen")
	require.NoFileExists(t, o.Socket)
}

func TestStrangersAreAnswered403(t *testing.T) {
	b := newBench(t, 1)
	defer b.close()
	p := problemOf(errors.New("x"))
	p.Status = http.StatusForbidden
	w := httptest.NewRecorder()
	b.muxes[0].ServeHTTP(w, httptest.NewRequestWithContext(context.WithValue(t.Context(), strangerKey{}, p), http.MethodGet, "/healthz", nil))
	require.Equal(t, http.StatusForbidden, w.Code)
	require.Equal(t, "close", w.Header().Get("Connection"))
}

func TestHostsThatAWebPageMayUse(t *testing.T) {
	loopback := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 7000}
	for host, want := range map[string]bool{
		"localhost:7000": true, "127.0.0.1:7000": true, "[::1]:7000": true, "LOCALHOST": true, "[::1]": true,
		"evil.example:7000": false, "127.0.0.1.evil.example": false, "": false, "localhost.evil.example:1": false,
	} {
		require.Equal(t, want, hostAllowed(host, loopback), host)
	}
	require.True(t, hostAllowed("node7:7000", &net.TCPAddr{IP: net.IPv4zero, Port: 7000}))
	require.True(t, hostAllowed("127.0.0.2:1", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2), Port: 1}))
}

func TestTooManyRequestsAtOnce(t *testing.T) {
	inside, leave := make(chan bool), make(chan bool)
	h := limit(1, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { inside <- true; <-leave }))
	go h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
	<-inside
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	require.Equal(t, http.StatusServiceUnavailable, w.Code)
	require.Contains(t, w.Body.String(), "unavailable")
	leave <- true
}
