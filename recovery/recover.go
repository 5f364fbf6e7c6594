package recovery

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/replica"
)

// Done is what a recovery has come to.
type Done struct {
	Dir      string          `json:"dir"`
	Evidence string          `json:"evidence"` // the directory of before, as it was
	Node     events.NodeID   `json:"node"`
	Lineage  string          `json:"lineage"`
	Index    uint64          `json:"index"` // of the entry that continues the log
	From     events.Ancestor `json:"from"`
}

// Recover continues the log of a survivor that was inspected and chosen: it
// verifies a new copy, makes it a new node's directory with a new lineage, and
// puts that in the old one's place. Whatever fails or crashes, the survivor's
// own directory is whole: at its place, or under Done.Evidence.
func Recover(s *Survivor, log *slog.Logger) (*Done, error) {
	return recoverDir(s, log, func(string) error { return nil })
}

func recoverDir(s *Survivor, log *slog.Logger, step func(string) error) (done *Done, err error) {
	release, err := hold(s.Dir)
	if err != nil {
		return nil, err
	}
	defer release()
	w, err := newWork(s.Dir, log)
	if err != nil {
		return nil, err
	}
	w.step = step
	defer func() { err = errors.Join(err, w.close()) }()
	again, err := w.inspect()
	switch {
	case err != nil:
		return nil, err
	case again.Kept == nil:
		return nil, again.Problem
	case again.Kept.Chain != s.Kept.Chain:
		return nil, fmt.Errorf("%s has changed since it was looked at: it ends at entry %d now, expected %d; look again", s.Dir, again.Kept.State.Index, s.Kept.State.Index)
	}
	if done, err = w.build(again.Kept); err != nil {
		return nil, err
	}
	if done.Evidence, err = w.swap(); err != nil {
		return nil, err
	}
	return done, nil
}

// build turns the verified copy into the directory of a new node.
func (w *work) build(k *replica.Kept) (*Done, error) {
	if err := w.step("build"); err != nil {
		return nil, err
	}
	node, err := replica.NewID()
	if err != nil {
		return nil, err
	}
	lineage, err := replica.NewID()
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "" // for people only
	}
	stores, closeStores, err := replica.MakeStores(w.dir, w.log)
	if err != nil {
		return nil, err
	}
	d := &Done{Dir: w.of, Node: events.NodeID(node), Lineage: lineage, From: events.Ancestor{Lineage: k.State.Lineage, Index: k.State.Index, Chain: k.Chain}}
	who := replica.Successor{Node: d.Node, Address: "127.0.0.1:0", Host: host, Lineage: lineage}
	err = replica.Continue(w.history, k, stores, who, w.log)
	d.Index, _, _ = w.history.Head()
	if err := errors.Join(err, closeStores(), w.close()); err != nil {
		return nil, err
	}
	if err := w.step("identity"); err != nil {
		return nil, err
	}
	if err := replica.WriteIdentity(w.dir, replica.DirIdentity{Node: d.Node, Run: k.State.Run, Lineage: lineage}); err != nil {
		return nil, err
	}
	if err := errors.Join(os.RemoveAll(filepath.Join(w.dir, oldRaft)), own(w.dir, w.of), syncTree(w.dir), w.step("complete")); err != nil {
		return nil, err
	}
	return d, writeNote(w.dir, note{Complete: true, Lineage: lineage})
}
