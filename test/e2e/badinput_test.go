package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// TestBadInput gives esperd what it must not take. Each time it has to say what
// was expected, what it got and what to do, and to leave everything else alone.
func TestBadInput(t *testing.T) {
	plain(t)
	t.Parallel()
	for name, test := range map[string]func(*testing.T){
		"calls":             badCalls,
		"observations":      badObservations,
		"sessions":          badSessions,
		"settings":          badSettings,
		"places in use":     placesInUse,
		"exposure":          exposure,
		"another run":       anotherRun,
		"another world":     anotherWorld,
		"no run id":         noRunID,
		"claims":            badClaims,
		"secrets":           badSecrets,
		"node.json":         badNodeFile,
		"raft.db":           badRaftLog,
		"wal":               badWAL,
		"history.db":        badHistory,
		"raft, missing":     missingRaftLog,
		"full disk at boot": fullDiskAtBoot,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t)
		})
	}
}

// A caller is a trainer that writes its requests itself, so that they can be
// wrong.
type caller struct {
	t           *testing.T
	http        *http.Client
	session     string
	call, fence uint64
}

func newCaller(n *node) *caller {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", n.socket)
	}}
	n.w.t.Cleanup(transport.CloseIdleConnections)
	return &caller{t: n.w.t, http: &http.Client{Transport: transport, Timeout: patience}, session: strings.Repeat("ab", 16)}
}

// connect opens the session, with some fields changed.
func (c *caller) connect(changed map[string]any) (int, []byte) {
	c.t.Helper()
	body := map[string]any{"protocol": api.ProtocolVersion, "rank": 0, "world_size": 1, "incarnation": c.session,
		"slots": slotRequests(slotNames)}
	for k, v := range changed {
		body[k] = v
	}
	b, err := json.Marshal(body)
	require.NoError(c.t, err)
	return c.post("/v1/session", b)
}

// do makes the next numbered call. One that is in the log, refused or not, has
// used up its number.
func (c *caller) do(path string, args map[string]any) (int, []byte) {
	c.t.Helper()
	body := map[string]any{"session": c.session, "call": c.call + 1, "fence": c.fence}
	for k, v := range args {
		body[k] = v
	}
	b, err := json.Marshal(body)
	require.NoError(c.t, err)
	status, answer := c.post(path, b)
	var place struct {
		Index uint64 `json:"index"`
	}
	require.NoError(c.t, json.Unmarshal(answer, &place), "%s", answer)
	if place.Index > 0 {
		c.call++
	}
	if status == http.StatusOK && strings.HasSuffix(path, "/step") {
		c.fence++
	}
	return status, answer
}

func (c *caller) post(path string, body []byte) (int, []byte) {
	c.t.Helper()
	resp, err := c.http.Post("http://esperd"+path, "application/json", bytes.NewReader(body))
	require.NoError(c.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(c.t, err)
	return resp.StatusCode, b
}

// step closes the next epoch, which has to work.
func (c *caller) step(observations ...map[string]any) *api.Fence {
	c.t.Helper()
	args := map[string]any{}
	if len(observations) > 0 {
		args["observations"] = observations
	}
	status, answer := c.do("/v1/epochs/"+strconv.FormatUint(c.fence, 10)+"/step", args)
	require.Equal(c.t, http.StatusOK, status, "%s", answer)
	f := new(api.Fence)
	require.NoError(c.t, json.Unmarshal(answer, f))
	return f
}

// problem checks that an answer is a problem with a status, a code and words.
func problem(t *testing.T, status int, answer []byte, want int, code events.Code, words ...string) *api.Problem {
	t.Helper()
	p := new(api.Problem)
	require.NoError(t, json.Unmarshal(answer, p), "%s", answer)
	require.Equal(t, want, status, p.Detail)
	require.Equal(t, want, p.Status)
	require.Equal(t, code, p.Code())
	says(t, p.Detail, words...)
	return p
}
