package main

import (
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"time"

	"github.com/esperd/esperd/audit"
)

type auditCmd struct {
	Places  []string      `arg:"" optional:"" name:"place" help:"Data directories (also of an esperd that runs, stands still or is dead), exported logs, admin URLs."`
	JSON    bool          `name:"json" help:"Print the report as JSON."`
	Full    bool          `help:"Download and replay everything from URLs too, also what they agree on."`
	Since   uint64        `placeholder:"INDEX" help:"Only count what the log itself records about entries before."`
	Timeout time.Duration `default:"15s" help:"How long an esperd may take for one answer."`
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
	ctx, cancel := a.stopped()
	defer cancel()
	fewerCollections()
	places := make([]string, len(c.Places))
	for i, p := range c.Places {
		places[i] = a.placeName(p)
	}
	bar := newAuditProgress(a.stderr)
	r := audit.Run(ctx, audit.Config{Places: places, Options: audit.Options{Timeout: c.Timeout}, Full: c.Full, Since: c.Since,
		Version: thisVersion().Esperd, Progress: bar.did})
	bar.end()
	var err error
	if c.JSON {
		err = writeJSON(a.stdout, r)
	} else {
		err = auditText(a.stdout, r)
	}
	if err != nil {
		return err
	}
	if r.Status != exitOK {
		return exitError(r.Status)
	}
	return nil
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
