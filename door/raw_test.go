package door_test

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/replica"
)

// http returns a plain HTTP client of a rank's socket.
func (j *job) http(rank int) *http.Client {
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", j.socket(rank))
	}}
	j.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t}
}

// post sends a body as it is.
func (j *job) post(rank int, path, body string) (int, string) {
	j.t.Helper()
	resp, err := j.http(rank).Post("http://esperd"+path, "application/json", strings.NewReader(body))
	require.NoError(j.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(j.t, err)
	return resp.StatusCode, string(b)
}

// diverge makes the node say that its replica has.
func (j *job) diverge(rank int) {
	j.log.Node(rank).Set(func(s *replica.Status) { s.Phase, s.Problem = replica.PhaseDiverged, "its bits differ" })
}

func jsonOf(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	require.NoError(t, err)
	return string(b)
}

func decodeAs[T any](t testing.TB, body string) T {
	t.Helper()
	var v T
	require.NoError(t, json.Unmarshal([]byte(body), &v))
	return v
}
