package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
)

// TestBadTrainer lets processes misbehave on rank 1's socket while the trainers
// of all ranks work: no rank is harmed, and esperd stays.
func TestBadTrainer(t *testing.T) {
	t.Parallel()
	w := startWorld(t, 3)
	j := w.newJob(func(*client.Options) {})
	socket := w.nodes[1].socket
	epoch := int64(0)
	step := func() { j.step(epoch); epoch++ }
	step()
	for _, bad := range []struct {
		name string
		does func(*testing.T, string)
	}{
		{"garbage", garbage},
		{"half a request", halfARequest},
		{"10,000 requests at once", manyRequests},
		{"another user", anotherUser},
	} {
		t.Run(bad.name, func(t *testing.T) {
			bad.does(t, socket)
			step()
		})
	}
	t.Run("dies holding a call", func(t *testing.T) {
		ctx, cancel := context.WithCancel(j.ctx)
		gone := make(chan error, 1)
		go func() {
			_, err := j.trainers[1].StepEpoch(ctx, epoch)
			gone <- err
		}()
		eventually(t, "rank 1's wait", func() error { return waits(w.nodes[0], 1) })
		cancel()
		require.ErrorIs(t, <-gone, context.Canceled)
		step() // the same call once more, under its number
	})
	for _, n := range w.nodes {
		require.NoError(t, n.ready())
	}
	w.verify()
}

func waits(n *node, rank uint64) error {
	return n.ask(func(ctx context.Context, a *client.Admin) error {
		var got api.Arrivals
		if err := a.Get(ctx, "/v1/arrivals", &got); err != nil {
			return err
		}
		for _, w := range got.Waiting {
			if w.Rank == rank {
				return nil
			}
		}
		return fmt.Errorf("nobody of rank %d among %+v", rank, got.Waiting)
	})
}

func dial(t *testing.T, socket string) *net.UnixConn {
	t.Helper()
	c, err := net.Dial("unix", socket)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c.(*net.UnixConn)
}

// garbage is answered, if at all, with 400, and the connection is closed.
func garbage(t *testing.T, socket string) {
	noise := make([]byte, 1<<20)
	_, err := rand.Read(noise)
	require.NoError(t, err)
	for _, b := range [][]byte{noise, bytes.Repeat([]byte{'A'}, 1<<20), []byte("POST /v1/session HTTP/9.9\r\n\r\n"), {0}} {
		c := dial(t, socket)
		_, _ = c.Write(b) // esperd may close before all of it is written
		_ = c.CloseWrite()
		answer, _ := io.ReadAll(c)
		if len(answer) > 0 {
			require.Regexp(t, `^HTTP/1\.1 (4\d\d|505) `, string(answer))
		}
	}
}

// halfARequest stays open on some connections, and is cut on others.
func halfARequest(t *testing.T, socket string) {
	for _, half := range []string{"POST /v1/fence", "POST /v1/fence HTTP/1.1\r\nHost: esperd\r\n", "POST /v1/fence HTTP/1.1\r\nHost: esperd\r\nContent-Length: 100\r\n\r\n{\"session\":"} {
		for _, cut := range []bool{false, true} {
			c := dial(t, socket)
			_, err := c.Write([]byte(half))
			require.NoError(t, err)
			if cut {
				require.NoError(t, c.Close())
			}
		}
	}
}

// manyRequests are all written before the first answer is read. Each gets one.
func manyRequests(t *testing.T, socket string) {
	const connections, each = 100, 100
	body := fmt.Sprintf(`{"session":%q,"call":1,"fence":0,"n":1}`, strings.Repeat("ef", 16))
	request := fmt.Sprintf("POST /v1/fence HTTP/1.1\r\nHost: esperd\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	var answered sync.WaitGroup
	failed := make(chan error, connections)
	for range connections {
		c := dial(t, socket)
		go func() { _, _ = c.Write([]byte(strings.Repeat(request, each))) }()
		answered.Go(func() {
			in := bufio.NewReader(c)
			for range each {
				resp, err := http.ReadResponse(in, nil)
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
				}
				if err == nil && resp.StatusCode != http.StatusServiceUnavailable { // no such session
					err = fmt.Errorf("status %d", resp.StatusCode)
				}
				if err != nil {
					failed <- err
					return
				}
			}
		})
	}
	answered.Wait()
	close(failed)
	require.NoError(t, <-failed)
}

// anotherUser cannot open the socket; where it can, it is told so, with 403.
func anotherUser(t *testing.T, socket string) {
	if os.Getuid() != 0 {
		t.Skip("only root may be another user")
	}
	nobody := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	get := func() string {
		cmd := exec.Command("/usr/bin/env", "python3", "-c", `import socket,sys
s=socket.socket(socket.AF_UNIX)
try: s.connect(sys.argv[1])
except PermissionError: sys.exit("denied")
s.sendall(b"GET /v1/state HTTP/1.1\r\nHost: esperd\r\nConnection: close\r\n\r\n")
print(s.makefile().read())`, socket)
		cmd.Dir, cmd.SysProcAttr = "/", nobody
		out, _ := cmd.CombinedOutput() // its status says what the output says
		return string(out)
	}
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("there is no python3 to be another user's process")
	}
	require.Contains(t, get(), "denied")
	openTo(t, socket)
	answer := get()
	require.Contains(t, answer, "HTTP/1.1 403 ")
	require.Contains(t, answer, "run trainer and esperd as one user")
	require.NotContains(t, answer, "lifecycle")
}

// openTo lets everybody reach the socket.
func openTo(t *testing.T, socket string) {
	t.Helper()
	require.NoError(t, os.Chmod(socket, 0o666))
	for dir := socket[:strings.LastIndex(socket, "/")]; len(dir) > len("/tmp"); dir = dir[:strings.LastIndex(dir, "/")] {
		require.NoError(t, os.Chmod(dir, 0o755))
	}
}
