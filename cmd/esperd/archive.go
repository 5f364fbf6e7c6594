package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/audit"
	"github.com/esperd/esperd/replica"
)

const (
	archiveJoins = 500 * time.Millisecond // between two looks whether this node is part of a log
	archiveAgain = 15 * time.Second       // after a failure
)

// archiver keeps a copy of this node's log elsewhere, beside the calls: what it
// does, or fails to do, no trainer notices. It also writes at its start, so that a
// directory that cannot be written to is known before the first checkpoint.
type archiver struct {
	node    *replica.Node
	log     *slog.Logger
	archive audit.Archive
	wake    chan struct{} // a checkpoint was taken
	last    chan context.Context
	over    chan struct{} // closed when nothing is written any more

	mu    sync.Mutex
	state api.Archive
}

func startArchiver(dir string, node *replica.Node, log *slog.Logger) *archiver {
	a := &archiver{node: node, log: log, archive: audit.Archive{Dir: dir}, wake: make(chan struct{}, 1), last: make(chan context.Context, 1), over: make(chan struct{})}
	go a.run()
	return a
}

// Checkpointed has the log written to the archive, soon.
func (a *archiver) Checkpointed() {
	select {
	case a.wake <- struct{}{}:
	default: // it is going to be
	}
}

// State is how far the archive is.
func (a *archiver) State() api.Archive {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state
}

// close writes the log once more, for as long as ctx lasts. A file system that
// does not answer is left behind.
func (a *archiver) close(ctx context.Context) {
	a.last <- ctx
	select {
	case <-a.over:
	case <-ctx.Done():
		a.log.Warn("stopping without the last entries in the archive", "dir", a.archive.Dir)
	}
}

func (a *archiver) run() {
	defer close(a.over)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	again := time.After(0)
	for {
		select {
		case <-a.wake:
		case <-again:
		case ctx := <-a.last:
			a.update(ctx)
			return
		}
		switch done, err := a.update(ctx); {
		case err != nil:
			again = time.After(archiveAgain)
		case !done:
			again = time.After(archiveJoins)
		default:
			again = nil
		}
	}
}

// update is false while this node has no whole log to archive.
func (a *archiver) update(ctx context.Context) (bool, error) {
	s := a.node.Status()
	if s.Phase != replica.PhaseMember || s.Run == "" || s.Lineage == "" || s.Index == 0 || s.CompleteFrom > 1 || ctx.Err() != nil {
		return false, nil
	}
	of := &audit.About{Node: s.Node, Rank: &s.Rank, Run: s.Run, Lineage: s.Lineage, Version: thisVersion().Esperd, From: 1, Head: s.Index}
	index, err := a.archive.Update(ctx, a.node, of)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		if a.state.Problem != err.Error() {
			a.log.Error("the log is not archived: " + err.Error())
		}
		a.state.Failures++
		a.state.Problem = err.Error()
		return false, err
	}
	if a.state.Problem != "" {
		a.log.Info("the log is archived again", "index", index)
	}
	a.state.Problem, a.state.Index = "", index
	a.state.File, err = a.archive.Path(s.Run, s.Lineage)
	return true, err
}
