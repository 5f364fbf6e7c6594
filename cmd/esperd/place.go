package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/audit"
	"github.com/esperd/esperd/events"
)

// placeIs says what audit, replay and events read.
const placeIs = "a PLACE is a data directory (of an esperd that runs, stands still or is dead, or a copy), an exported log (of `esperd events PLACE --export FILE.jsonl`), or an admin URL (http://HOST:PORT, as in admin.addr of a data directory)"

// openPlace opens what an argument names, relative to the working directory.
func openPlace(ctx context.Context, a *app, name string, o audit.Options) (audit.Place, error) {
	return audit.Open(ctx, a.placeName(name), o)
}

// placeName makes an argument absolute, but for URLs.
func (a *app) placeName(name string) string {
	if strings.Contains(name, "://") || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(a.dir, name)
}

// readPlace shows or exports the entries of a place.
func (c *eventsCmd) readPlace(ctx context.Context, a *app) error {
	if c.Follow {
		return usageError{errors.New("--follow asks an esperd that runs: name it with --socket, --data-dir or --url instead of PLACE")}
	}
	name := c.Place
	if name == "" {
		t, err := c.target(a.surroundings)
		if err != nil {
			return usageError{err}
		}
		if name = t.address; c.URL == nil {
			return usageError{fmt.Errorf("--export reads a PLACE, expected a data directory or an admin URL, as in `esperd events DIR --export %s`", c.Export)}
		}
	}
	p, err := openPlace(ctx, a, name, audit.Options{})
	if err != nil {
		return err
	}
	defer p.Close()
	from, to := max(c.From, p.About().From), p.About().Head
	enough := c.Limit > 0 && from+c.Limit-1 <= to
	if enough {
		to = from + c.Limit - 1
	}
	if c.Export != "" {
		err = c.export(ctx, a, p, from, to)
	} else {
		err = c.showPlace(ctx, a, p, from, to)
	}
	if err == nil && !enough {
		err = endOfPlace(a, p)
	}
	return err
}

// exitIncomplete says that what was read is not all that there was, as audit does.
const exitIncomplete = 2

// endOfPlace warns where the last entry that a place has need not be the log's:
// what was read up to there was shown.
func endOfPlace(a *app, p audit.Place) error {
	about := p.About()
	if about.Kind != "export" || about.Problem == "" {
		return nil
	}
	fmt.Fprintf(a.stderr, "esperd: warning: INCOMPLETE: %s: %s; entry %d is the last whole one, and there may have been more: export it again\n", about.Place, about.Problem, about.Head)
	return exitError(exitIncomplete)
}

func (c *eventsCmd) showPlace(ctx context.Context, a *app, p audit.Place, from, to uint64) error {
	if !c.JSON {
		entriesHeader(a.stdout)
	}
	return p.Records(ctx, from, to, func(b *events.Batch) error {
		defer b.Release()
		for i := range b.Records {
			r := &b.Records[i]
			entry, err := events.Decode(r.Entry)
			if err != nil {
				return fmt.Errorf("entry %d: %w", r.Index, err)
			}
			e := api.Entry{Index: r.Index, Chain: r.Chain, Entry: *entry}
			if e.Events == nil {
				e.Events = []events.Event{}
			}
			if entry.Predecessor != r.Index-1 {
				e.Refused = fmt.Sprintf("decided on entry %d, but follows entry %d", entry.Predecessor, r.Index-1)
			}
			if err := c.show(a, &e); err != nil {
				return err
			}
		}
		return nil
	})
}

// export writes a file that is there as a whole or not at all, unless it goes to
// stdout.
func (c *eventsCmd) export(ctx context.Context, a *app, p audit.Place, from, to uint64) error {
	if c.Export == "-" {
		return audit.Export(ctx, a.stdout, p, from, to, thisVersion().Esperd)
	}
	path := a.placeName(c.Export)
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*")
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	defer os.Remove(f.Name()) // after the renaming it is gone
	err = audit.Export(ctx, f, p, from, to, thisVersion().Esperd)
	damage, damaged := errors.AsType[*events.CorruptError](err)
	if damaged { // what is whole is worth keeping, and ends where it ends
		err = nil
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("cannot export to %s: %w", path, err)
	}
	if damaged {
		return fmt.Errorf("%s has the entries before the damage only: %w", path, damage)
	}
	fmt.Fprintf(a.stderr, "exported entries %d to %d\n", from, to)
	return nil
}
