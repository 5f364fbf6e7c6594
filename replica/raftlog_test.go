package replica

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"
)

func TestRaftLogger(t *testing.T) {
	var b logBuffer
	l := newRaftLogger(slog.New(slog.NewJSONHandler(&b, &slog.HandlerOptions{Level: slog.LevelInfo})))
	require.False(t, l.IsDebug())
	require.True(t, l.IsInfo())
	require.Equal(t, hclog.Info, l.GetLevel())
	require.Equal(t, "a.b", l.Named("a").Named("b").Name())

	for _, c := range []struct {
		log  func(string, ...any)
		msg  string
		args []any
		want map[string]any // nil: not logged
	}{
		{l.Debug, "state", nil, nil},
		{l.Info, "entering leader state", []any{"leader", hclog.Fmt("Node at %s", "a:1")}, map[string]any{"level": "INFO", "leader": "Node at a:1"}},
		{l.Warn, "failed to get previous log", []any{"previous-index", 3}, nil},
		{l.Warn, "heartbeat timeout reached", []any{"peer", raft.Server{ID: "n1"}}, map[string]any{"level": "WARN", "peer": "n1"}},
		{l.Error, "failed", []any{"error", errors.New("no")}, map[string]any{"level": "ERROR", "error": "no"}},
		{l.Error, "failed to decode incoming command", []any{"error", fmt.Errorf("read: %w", net.ErrClosed)}, nil},
		{l.With("k", "v").Info, "with", nil, map[string]any{"level": "INFO", "k": "v"}},
	} {
		before := len(b.String())
		c.log(c.msg, c.args...)
		line := b.String()[before:]
		if c.want == nil {
			require.Empty(t, line)
			continue
		}
		got := map[string]any{}
		require.NoError(t, json.Unmarshal([]byte(line), &got))
		require.Equal(t, c.msg, got["msg"])
		for k, v := range c.want {
			require.Equal(t, v, got[k])
		}
	}
}
