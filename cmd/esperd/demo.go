package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// demoMax bounds a demo, however large its recording: nothing may hang for ever.
const demoMax = 15 * time.Minute

type demoCmd struct {
	Recording  string  `placeholder:"DIR" help:"Replay rank0.jsonl, rank1.jsonl, ... of this directory instead of the recording that comes with esperd."`
	Durability *string `source:"ESPERD_DURABILITY" placeholder:"durable|relaxed" help:"As of esperd run, for every rank."`
	Keep       bool    `help:"Leave the ranks running, to look at them."`
	JSON       bool    `name:"json" help:"Print one JSON object."`
}

// Help says more than the flags do.
func (*demoCmd) Help() string {
	return "Starts one esperd a rank on loopback, tells each what its rank's trainer did in the recorded run, and compares every answer with what was recorded. The status is 0 only if all of it is as recorded and all ranks hold the same log and state."
}

func (c *demoCmd) Run(a *app) error {
	settings := &resolver{surroundings: a.surroundings, from: map[string]string{}}
	durability, err := settings.durability(c.Durability)
	if err != nil {
		return usageError{err}
	}
	rec, name, err := c.load(a)
	if err != nil {
		return err
	}
	ctx, cancel := a.stopped()
	defer cancel()
	ctx, expire := context.WithTimeoutCause(ctx, demoMax, fmt.Errorf("the demo took more than %s", demoMax))
	defer expire()
	started := time.Now()
	cluster, err := startCluster(rec.World, durability, a.env)
	if err != nil {
		return err
	}
	r, err := c.replay(ctx, a, rec, name, cluster)
	if err != nil {
		cluster.stop()
		return errors.Join(err, cluster.remove())
	}
	r.took, r.Durability = time.Since(started), durability
	if c.Keep {
		r.Kept = cluster.kept()
	} else {
		cluster.stop()
		if err := cluster.remove(); err != nil {
			return fmt.Errorf("cannot remove the ranks' data: %w", err)
		}
	}
	if err := c.print(a, r, cluster); err != nil {
		return err
	}
	if !r.ok() {
		return errors.New("the replayed run is not the recorded one: see the differences")
	}
	return nil
}

func (c *demoCmd) load(a *app) (*Recording, string, error) {
	if c.Recording != "" {
		dir := c.Recording
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(a.dir, dir)
		}
		rec, err := loadRecording(os.DirFS(dir), c.Recording)
		return rec, c.Recording, err
	}
	sub, err := fs.Sub(embeddedRecordings, defaultRecording)
	if err != nil {
		return nil, "", err
	}
	rec, err := loadRecording(sub, defaultRecording)
	return rec, filepath.Base(defaultRecording), err
}

// replay feeds the ranks and compares.
func (c *demoCmd) replay(ctx context.Context, a *app, rec *Recording, name string, cluster *cluster) (*demoReport, error) {
	ctx, stop := cluster.watch(ctx)
	defer stop()
	p := newProgress(a.stderr, rec)
	answers, err := feedAll(ctx, rec, cluster, p)
	p.end()
	if err != nil {
		return nil, err
	}
	ev, err := gather(ctx, cluster, answers, len(rec.answeredDisagreements(answers)))
	if err != nil {
		return nil, err
	}
	return report(rec, name, ev), nil
}

func (c *demoCmd) print(a *app, r *demoReport, cluster *cluster) error {
	if c.JSON {
		return writeJSON(a.stdout, r)
	}
	if err := r.write(a.stdout); err != nil {
		return err
	}
	if c.Keep {
		writeKept(a.stdout, ownName(), cluster.dir, r.Kept)
	}
	return nil
}

func (c *cluster) kept() []keptRank {
	out := make([]keptRank, 0, len(c.ranks))
	for _, p := range c.ranks {
		out = append(out, keptRank{p.rank, p.cmd.Process.Pid, p.socket, p.logFile})
	}
	return out
}

// ownName is how a person calls this program again.
func ownName() string {
	exe, err := os.Executable()
	if err != nil {
		return "esperd"
	}
	if found, err := exec.LookPath("esperd"); err == nil {
		if found, err = filepath.EvalSymlinks(found); err == nil && found == exe {
			return "esperd"
		}
	}
	return exe
}
