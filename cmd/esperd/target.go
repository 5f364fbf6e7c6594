package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/internal/regular"
)

// answerMax is how long an esperd may take to answer a look at it.
const answerMax = 15 * time.Second

// targetFlags say which esperd a command asks.
type targetFlags struct {
	Socket  *string `source:"ESPERD_SOCKET" group:"target" xor:"target" placeholder:"PATH" help:"Its unix socket."`
	DataDir *string `source:"ESPERD_DATA_DIR" group:"target" xor:"target" placeholder:"DIR" help:"Its data directory."`
	URL     *string `group:"target" xor:"target" name:"url" placeholder:"http://HOST:PORT" help:"Its admin door."`
	JSON    bool    `name:"json" help:"Print JSON."`
}

// target is an esperd to ask.
type target struct {
	address string // path of a socket, or URL
	from    string // who named it
}

// target follows the order flag, variable, default: the data directory of rank
// 0 of the run, if a variable names one.
func (f *targetFlags) target(s surroundings) (target, error) {
	r := &resolver{surroundings: s, from: map[string]string{}}
	if f.URL != nil {
		base := strings.TrimSuffix(*f.URL, "/")
		if !strings.HasPrefix(base, "http://") && !strings.HasPrefix(base, "https://") {
			base = "http://" + base
		}
		return target{base, "--url"}, nil
	}
	if f.DataDir == nil {
		if path := r.pick("socket", f.Socket); path != "" {
			return target{r.abs(forRank(path, 0)), r.from["socket"]}, nil
		}
	}
	dir := r.pick("data_dir", f.DataDir)
	if dir == "" {
		var c Config
		if err := r.run(RunFlags{}, &c); err != nil {
			return target{}, err
		}
		var err error
		if dir, err = r.defaultDataDir(c.Run, 0); err != nil {
			return target{}, err
		}
	}
	return r.inDataDir(r.abs(forRank(dir, 0)))
}

// inDataDir finds the doors that a data directory's esperd has. The socket may
// be elsewhere, if it was told so; the admin door is always noted.
func (r *resolver) inDataDir(dir string) (target, error) {
	socket, _, err := r.socketOf(dir)
	if err != nil {
		return target{}, err
	}
	if _, err := os.Stat(socket); err == nil {
		return target{socket, r.from["data_dir"]}, nil
	}
	if b, err := regular.ReadFile(filepath.Join(dir, adminAddrName)); err == nil {
		return target{strings.TrimSpace(string(b)), r.from["data_dir"] + ", " + adminAddrName}, nil
	}
	return target{socket, r.from["data_dir"]}, nil
}

// ask lets look read from the esperd that the flags name.
func (f *targetFlags) ask(a *app, look func(context.Context, *client.Admin) error) error {
	return f.askWithin(answerMax, a, func(ctx context.Context, admin *client.Admin, _ target) error { return look(ctx, admin) })
}

// askWithin is ask with another patience, for a look that has to know whom it
// asks.
func (f *targetFlags) askWithin(patience time.Duration, a *app, look func(context.Context, *client.Admin, target) error) error {
	ctx, stop := a.stopped()
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, patience, silentError(patience))
	defer cancel()
	return f.askFor(ctx, a, look)
}

// silentError is for how long an esperd has not answered.
type silentError time.Duration

func (e silentError) Error() string {
	return fmt.Sprintf("did not answer within %s", time.Duration(e))
}

// noEsperdError says that nobody answers.
type noEsperdError struct{ error }

func (e noEsperdError) Unwrap() error { return e.error }

// askFor is ask for as long as ctx lasts.
func (f *targetFlags) askFor(ctx context.Context, a *app, look func(context.Context, *client.Admin, target) error) error {
	t, err := f.target(a.surroundings)
	if err != nil {
		return usageError{err}
	}
	admin := client.NewAdmin(t.address)
	defer admin.Close()
	err = look(ctx, admin, t)
	if unreachable, ok := errors.AsType[*url.Error](err); ok && ctx.Err() == nil {
		return noEsperdError{fmt.Errorf("no esperd answers at %s (from %s): %w: start it, or name another with --socket, --data-dir or --url, or its run with ESPERD_RUN_ID", t.address, t.from, unreachable.Err)}
	}
	if s, ok := errors.AsType[interruptedError](context.Cause(ctx)); ok && err != nil {
		return fmt.Errorf("%w before the esperd at %s (from %s) had answered", s, t.address, t.from)
	}
	if silent, ok := errors.AsType[silentError](context.Cause(ctx)); ok {
		return fmt.Errorf("the esperd at %s (from %s) %w: is its process stopped?", t.address, t.from, silent)
	}
	return err
}
