package main

import (
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/esperd/esperd/audit"
)

type auditCmd struct {
	Places  []string      `arg:"" optional:"" name:"place" help:"Data directories (also of an esperd that runs, stands still or is dead), exported logs, admin URLs."`
	JSON    bool          `name:"json" help:"Print the report as JSON; with --follow an object a line."`
	Full    bool          `help:"Download and replay everything from URLs too, also what they agree on."`
	Since   sinceFlag     `placeholder:"INDEX" help:"Only count what the log itself records about entries before; with --follow also \"end\": about those that are there when it begins."`
	Timeout time.Duration `default:"15s" help:"How long an esperd may take for one answer."`

	Follow   bool          `short:"f" help:"Go on with what the places get, tell what changes, and end with the report at a signal or when ranks differ."`
	Every    time.Duration `default:"1s" help:"With --follow: how often each place is looked at."`
	Behind   time.Duration `default:"10s" help:"With --follow: how long a rank may take to have what another one has, before that is told."`
	EndAfter time.Duration `placeholder:"DURATION" help:"With --follow: end when no esperd has been there for so long, once there is a log; absent: only at a signal, or when ranks differ."`
}

// sinceFlag is an index, or the end of the log.
type sinceFlag struct {
	index uint64
	end   bool
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *sinceFlag) UnmarshalText(b []byte) (err error) {
	if s.end = string(b) == "end"; s.end {
		return nil
	}
	if s.index, err = strconv.ParseUint(string(b), 10, 64); err != nil {
		return fmt.Errorf("expected an index, or end, got %q", b)
	}
	return nil
}

// Help says more than the flags do.
func (*auditCmd) Help() string {
	return "Each log is verified by itself (bytes, chain, and the state by replaying every entry), then the logs are compared. " +
		"The status is 0 if they are consistent, 1 if ranks diverged, 2 if nothing differs but not everything could be checked. It changes nothing."
}

// auditGC lets garbage grow to more than the default before it is collected: an
// audit keeps next to nothing and throws away a few kilobytes an entry.
const (
	auditGC     = 400
	auditMemory = 150 << 20 // from where on it is collected at any rate
)

func (c *auditCmd) Run(a *app) error {
	if len(c.Places) == 0 {
		return usageError{errors.New("audit: expected a PLACE for each rank, as in `esperd audit DIR/rank0 http://node3:7501`; " + placeIs)}
	}
	switch {
	case c.Since.end && !c.Follow:
		return usageError{errors.New("--since=end: expected an index without --follow")}
	case c.Every <= 0 || c.Behind <= 0 || c.EndAfter < 0 || c.Timeout <= 0:
		return usageError{errors.New("--every, --behind, --end-after, --timeout: expected a duration above 0, as in 5s")}
	}
	ctx, cancel := a.stopped()
	defer cancel()
	fewerCollections()
	places := make([]string, len(c.Places))
	for i, p := range c.Places {
		places[i] = a.placeName(p)
	}
	cfg := audit.Config{Places: places, Options: audit.Options{Timeout: c.Timeout}, Full: c.Full, Since: c.Since.index, Version: thisVersion().Esperd}
	if c.Follow {
		return c.follow(ctx, a, cfg)
	}
	bar := newAuditProgress(a.stderr)
	cfg.Progress = bar.did
	r := audit.Run(ctx, cfg)
	bar.end()
	var err error
	if c.JSON {
		err = writeJSON(a.stdout, r)
	} else {
		err = auditText(a.stdout, r)
	}
	return endOfAudit(r, err)
}

func endOfAudit(r *audit.Report, err error) error {
	if err == nil && r.Status != exitOK {
		err = exitError(r.Status)
	}
	return err
}

func fewerCollections() {
	debug.SetGCPercent(auditGC)
	debug.SetMemoryLimit(auditMemory)
}

// auditProgress is a line on a terminal that is drawn over, and nothing
// elsewhere.
type auditProgress struct {
	w     io.Writer
	on    bool
	drawn bool
	last  time.Time
}

const progressEvery = 100 * time.Millisecond

func newAuditProgress(w io.Writer) *auditProgress { return &auditProgress{w: w, on: isTerminal(w)} }

func (p *auditProgress) did(place string, done, of uint64) {
	if now := time.Now(); !p.on || now.Sub(p.last) < progressEvery && done != of {
		return
	} else {
		p.last = now
	}
	const width = 30
	filled := width
	if of > 0 {
		filled = int(min(done, of) * width / of)
	}
	fmt.Fprintf(p.w, "\r\x1b[K[%-*s] %d of %d entries of %s", width, bar[:filled], done, of, place)
	p.drawn = true
}

const bar = "=============================="

// end removes the line.
func (p *auditProgress) end() {
	if p.drawn {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
