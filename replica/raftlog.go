package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// raftLogger hands raft's log lines to a slog.Logger. Raft reports its state
// changes at info and keeps that level.
type raftLogger struct {
	slog *slog.Logger
	name string
	args []any // of With, to answer ImpliedArgs
}

// newRaftLogger returns the logger to give to raft and to its transport.
func newRaftLogger(l *slog.Logger) hclog.Logger { return &raftLogger{slog: l} }

var raftLevels = map[hclog.Level]slog.Level{
	hclog.Trace: slog.LevelDebug - 4,
	hclog.Debug: slog.LevelDebug,
	hclog.Info:  slog.LevelInfo,
	hclog.Warn:  slog.LevelWarn,
	hclog.Error: slog.LevelError,
}

// levelOf lowers what is normal in esperd: a nudge can overtake the entry it is
// about (nudger), and connections end with the listener.
func levelOf(level hclog.Level, msg string, args []any) slog.Level {
	l, ok := raftLevels[level]
	if !ok {
		l = slog.LevelInfo
	}
	switch msg {
	case "failed to get previous log":
		return slog.LevelDebug
	case "failed to appendEntries to", "failed to heartbeat to", "failed to decode incoming command":
		return slog.LevelDebug // a peer that is away: raft says so once, as "failed to contact", and /v1/ranks shows it
	}
	for _, a := range args {
		if err, ok := a.(error); ok && errors.Is(err, net.ErrClosed) {
			return slog.LevelDebug
		}
	}
	return l
}

func (r *raftLogger) Log(level hclog.Level, msg string, args ...any) {
	l := levelOf(level, msg, args)
	if !r.slog.Enabled(context.Background(), l) {
		return
	}
	values := make([]any, len(args))
	for i, a := range args {
		values[i] = plain(a)
	}
	r.slog.Log(context.Background(), l, msg, values...)
}

func (r *raftLogger) Trace(msg string, args ...any) { r.Log(hclog.Trace, msg, args...) }
func (r *raftLogger) Debug(msg string, args ...any) { r.Log(hclog.Debug, msg, args...) }
func (r *raftLogger) Info(msg string, args ...any)  { r.Log(hclog.Info, msg, args...) }
func (r *raftLogger) Warn(msg string, args ...any)  { r.Log(hclog.Warn, msg, args...) }
func (r *raftLogger) Error(msg string, args ...any) { r.Log(hclog.Error, msg, args...) }

func (r *raftLogger) enabled(l hclog.Level) bool {
	return r.slog.Enabled(context.Background(), raftLevels[l])
}
func (r *raftLogger) IsTrace() bool { return r.enabled(hclog.Trace) }
func (r *raftLogger) IsDebug() bool { return r.enabled(hclog.Debug) }
func (r *raftLogger) IsInfo() bool  { return r.enabled(hclog.Info) }
func (r *raftLogger) IsWarn() bool  { return r.enabled(hclog.Warn) }
func (r *raftLogger) IsError() bool { return r.enabled(hclog.Error) }

func (r *raftLogger) ImpliedArgs() []any { return r.args }

func (r *raftLogger) With(args ...any) hclog.Logger {
	return &raftLogger{slog: r.slog.With(args...), name: r.name, args: append(r.args[:len(r.args):len(r.args)], args...)}
}

func (r *raftLogger) Name() string { return r.name }

func (r *raftLogger) Named(name string) hclog.Logger {
	if r.name != "" {
		name = r.name + "." + name
	}
	return r.ResetNamed(name)
}

func (r *raftLogger) ResetNamed(name string) hclog.Logger {
	return &raftLogger{slog: r.slog, name: name, args: r.args}
}

// SetLevel does nothing: the handler decides.
func (r *raftLogger) SetLevel(hclog.Level) {}

func (r *raftLogger) GetLevel() hclog.Level {
	for _, l := range []hclog.Level{hclog.Trace, hclog.Debug, hclog.Info, hclog.Warn} {
		if r.enabled(l) {
			return l
		}
	}
	return hclog.Error
}

func (r *raftLogger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return slog.NewLogLogger(r.slog.Handler(), slog.LevelInfo)
}

func (r *raftLogger) StandardWriter(o *hclog.StandardLoggerOptions) io.Writer {
	return r.StandardLogger(o).Writer()
}

// plain makes of raft's values what any handler can write: raft logs pointers to
// itself, which a JSON handler would walk through.
func plain(a any) any {
	switch v := a.(type) {
	case hclog.Format: // a format and its arguments, in one value
		return fmt.Sprintf(fmt.Sprint(v[0]), v[1:]...)
	case raft.Server:
		return string(v.ID)
	case error:
		return v
	case fmt.Stringer:
		return v.String()
	default:
		return a
	}
}
