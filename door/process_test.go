package door_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
)

// asTrainer in the environment makes this test's program a trainer: a process
// that posts, on the socket which is its value, what it reads, a line at a time,
// and writes what it was answered.
const asTrainer = "ESPERD_DOOR_TEST_TRAINER"

type posted struct {
	Path, Body string
	Status     int
}

func beTrainer(socket string) error {
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var p posted
		if err := in.Decode(&p); err != nil {
			return err
		}
		resp, err := c.Post("http://esperd"+p.Path, "application/json", strings.NewReader(p.Body))
		if err != nil {
			return err
		}
		var b bytes.Buffer
		_, err = b.ReadFrom(resp.Body)
		if err := resp.Body.Close(); err != nil {
			return err
		}
		if err == nil {
			err = out.Encode(posted{p.Path, b.String(), resp.StatusCode})
		}
		if err != nil {
			return err
		}
	}
}

// process is a trainer in a process of its own.
type process struct {
	*trainer
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// process starts a trainer of a rank, which has not connected yet.
func (j *job) process(rank int, change ...func(*api.SessionRequest)) *process {
	j.t.Helper()
	exe, err := os.Executable()
	require.NoError(j.t, err)
	p := &process{trainer: j.trainer(rank, change...), cmd: exec.Command(exe)}
	p.cmd.Env = append(os.Environ(), asTrainer+"="+j.socket(rank))
	p.in, err = p.cmd.StdinPipe()
	require.NoError(j.t, err)
	out, err := p.cmd.StdoutPipe()
	require.NoError(j.t, err)
	p.out = bufio.NewReader(out)
	require.NoError(j.t, p.cmd.Start())
	j.t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it may have ended
		_ = p.cmd.Wait()
	})
	p.trainer.http = &http.Client{Transport: p}
	return p
}

// RoundTrip has the process send a request (http.RoundTripper).
func (p *process) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	if err := json.NewEncoder(p.in).Encode(posted{Path: r.URL.Path, Body: string(body)}); err != nil {
		return nil, err
	}
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	var got posted
	if err := json.Unmarshal(line, &got); err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: got.Status, Body: io.NopCloser(strings.NewReader(got.Body)), Header: http.Header{}, Request: r}, nil
}

// dies is kill -9. Nobody collects the process until the test ends, as a
// launcher may not.
func (p *process) dies() { require.NoError(p.j.t, p.cmd.Process.Kill()) }

// ends is the end of a process in order.
func (p *process) ends() {
	require.NoError(p.j.t, p.in.Close())
	require.NoError(p.j.t, p.cmd.Wait())
}
