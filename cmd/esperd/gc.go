package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

type gcCmd struct {
	Runs      []string `arg:"" optional:"" name:"run" help:"Runs to remove."`
	OlderThan string   `placeholder:"AGE" help:"Remove runs that nothing was written to for so long, such as 30d or 12h; with runs, those of them."`
	Yes       bool     `help:"Do it: else it is only shown what would be removed."`
	JSON      bool     `name:"json" help:"Print JSON."`
}

// Help says more than the flags do.
func (*gcCmd) Help() string {
	return "Lists the runs under the state directory, $XDG_STATE_HOME/esperd or ~/.local/state/esperd. Removing one takes its log, its history and what was set aside as evidence from this machine. " +
		"A run that an esperd uses is never removed, nor is a file that no esperd made. Data directories elsewhere (--data-dir) are not looked at."
}

// gcReport is what --json prints.
type gcReport struct {
	StateDir string      `json:"state_dir"`
	Runs     []*stateRun `json:"runs"`
}

func (c *gcCmd) Run(a *app) error {
	age, err := c.age()
	if err != nil {
		return usageError{err}
	}
	if c.Yes && len(c.Runs) == 0 && age == 0 {
		return usageError{errors.New("--yes alone says not what to remove, expected runs or --older-than: `esperd gc` lists them")}
	}
	r := &resolver{surroundings: a.surroundings, from: map[string]string{}}
	dir, err := r.defaultDataDir("", 0)
	if err != nil {
		return usageError{err}
	}
	report := gcReport{StateDir: filepath.Dir(filepath.Dir(dir)), Runs: []*stateRun{}}
	root, err := os.OpenRoot(report.StateDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot look into the state directory: %w", err)
	}
	var trash []string
	s := &stateDir{path: report.StateDir, root: root}
	if err == nil {
		defer root.Close()
		if report.Runs, trash, err = s.runs(); err != nil {
			return err
		}
	}
	if err := c.choose(report, age, time.Now()); err != nil {
		return err
	}
	failed := c.removeChosen(s, report.Runs, trash)
	if c.JSON {
		err = writeJSON(a.stdout, report)
	} else {
		err = c.show(a, report)
	}
	return errors.Join(err, failed)
}

// age is 0 where nothing was said.
func (c *gcCmd) age() (time.Duration, error) {
	if c.OlderThan == "" {
		return 0, nil
	}
	text := strings.TrimSpace(c.OlderThan)
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil && n > 0 {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	} else if d, err := time.ParseDuration(text); err == nil && d > 0 {
		return d, nil
	}
	return 0, fmt.Errorf("--older-than is %.80q, expected days or a time, such as 30d or 12h", c.OlderThan)
}

// choose marks what is to be removed. A run that is not there is an error, and
// then nothing is.
func (c *gcCmd) choose(report gcReport, age time.Duration, now time.Time) error {
	for _, name := range c.Runs {
		if !slices.ContainsFunc(report.Runs, func(r *stateRun) bool { return r.Run == name }) {
			return fmt.Errorf("there is no run %q under %s: `esperd gc` lists those that are", name, report.StateDir)
		}
	}
	for _, r := range report.Runs {
		named := len(c.Runs) == 0 || slices.Contains(c.Runs, r.Run)
		old := age == 0 || r.InUse == "" && !r.LastUse.IsZero() && now.Sub(r.LastUse) > age
		r.Chosen = named && old && (len(c.Runs) > 0 || age > 0)
	}
	return nil
}

// removeChosen also takes away what an earlier removal left when it was ended.
func (c *gcCmd) removeChosen(s *stateDir, runs []*stateRun, trash []string) error {
	if !c.Yes {
		return nil
	}
	var errs []error
	for _, name := range trash {
		if err := s.root.RemoveAll(name); err != nil {
			errs = append(errs, fmt.Errorf("what is left of an earlier removal: %w", err))
		}
	}
	for _, r := range runs {
		if !r.Chosen {
			continue
		}
		if err := s.remove(r); err != nil {
			r.Failure = err.Error()
			errs = append(errs, fmt.Errorf("run %s was not removed: %w", r.Run, err))
			continue
		}
		r.Removed = true
	}
	return errors.Join(errs...)
}

func (c *gcCmd) show(a *app, report gcReport) error {
	if len(report.Runs) == 0 {
		_, err := fmt.Fprintf(a.stdout, "no runs under %s\n", oneLine(report.StateDir))
		return err
	}
	err := table(a.stdout, func(row func(...any)) {
		row("RUN", "RANKS", "SET ASIDE", "SIZE", "LAST USE", "ENTRIES", "EPOCH", "")
		for _, r := range report.Runs {
			entries, epoch, used := "-", "-", "-"
			if r.Entries > 0 {
				entries = strconv.FormatUint(r.Entries, 10)
			}
			if r.Epoch != nil {
				epoch = strconv.FormatInt(*r.Epoch, 10)
			}
			if !r.LastUse.IsZero() {
				used = r.LastUse.Local().Format("2006-01-02 15:04")
			}
			row(r.Run, len(r.Ranks), len(r.Aside), sizeText(r.Bytes), used, entries, epoch, r.text())
		}
	})
	if err != nil {
		return err
	}
	var n int
	var size int64
	for _, r := range report.Runs {
		if r.Chosen && !r.Removed && r.InUse == "" && r.Problem == "" {
			n, size = n+1, size+r.Bytes
		}
	}
	switch {
	case c.Yes:
	case n > 0:
		_, err = fmt.Fprintf(a.stdout, "%s would be removed, with %s: say so with --yes\n", plural(n, "run"), sizeText(size))
	case len(c.Runs) > 0 || c.OlderThan != "":
		_, err = fmt.Fprintln(a.stdout, "nothing would be removed")
	}
	return err
}

// text is what becomes of a run.
func (r *stateRun) text() string {
	var words []string
	switch {
	case r.Removed:
		words = append(words, "removed")
	case r.Failure != "" && r.InUse == "" && r.Problem == "":
		words = append(words, "not removed: "+r.Failure)
	case r.InUse != "":
		words = append(words, "in use by "+r.InUse)
	case r.Problem != "":
		words = append(words, "cannot be removed here: "+r.Problem)
	case r.Chosen:
		words = append(words, "would be removed")
	}
	if len(r.Other) > 0 {
		words = append(words, fmt.Sprintf("also holds %s, which no esperd made", strings.Join(r.Other, ", ")))
	}
	return strings.Join(words, "; ")
}

// sizeText is for people.
func sizeText(bytes int64) string {
	const units = "KMGTPE"
	if bytes < 1024 {
		return fmt.Sprintf("%d B", bytes)
	}
	v, unit := float64(bytes)/1024, 0
	for v >= 1024 && unit < len(units)-1 {
		v, unit = v/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", v, units[unit])
}
