package recovery

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/replica"
)

// A Survivor is one data directory, and what was found in it.
type Survivor struct {
	Dir      string
	Node     events.NodeID // empty: node.json does not tell
	Identity error         // why node.json does not
	Peers    []string      // HOST:PORT, where it last heard of the other nodes
	Kept     *replica.Kept // nil: it is no candidate
	Problem  error         // why not
}

// Inspect verifies one data directory on a copy beside it, which it removes. An
// error means that it could not look: an *InUseError, or what a crash has left.
func Inspect(dir string, log *slog.Logger) (*Survivor, error) {
	release, err := hold(dir)
	if err != nil {
		return nil, err
	}
	defer release()
	w, err := newWork(dir, log)
	if err != nil {
		return nil, err
	}
	s, err := w.inspect()
	return s, errors.Join(err, w.discard())
}

// work is the directory DIR.recovering, in which a copy is verified, and made
// into the new directory.
type work struct {
	dir, of string
	log     *slog.Logger
	step    func(string) error // tests: an error is a crash before the step

	history *events.History
	closers []func() error
}

const (
	workSuffix = ".recovering"
	oldRaft    = "raft.was" // the copy of raft's files
)

// newWork begins a work directory. What a crash left has been settled before.
func newWork(dir string, log *slog.Logger) (*work, error) {
	w := &work{dir: dir + workSuffix, of: dir, log: log, step: func(string) error { return nil }}
	if left, err := look(dir); err != nil || left.kind != nothing {
		return nil, errors.Join(err, left.refused())
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return nil, errors.Join(err, fmt.Errorf("%s is not a data directory: name those that are left (RUN/rankN; `esperd gc` lists the runs), or the run with ESPERD_RUN_ID", dir))
	}
	if err := checkSpace(dir); err != nil {
		return nil, err
	}
	if err := os.Mkdir(w.dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make a copy beside the directory: %w: copy %s to where you can write, and name the copy", err, dir)
	}
	return w, writeNote(w.dir, note{})
}

// inspect copies and verifies.
func (w *work) inspect() (*Survivor, error) {
	s := &Survivor{Dir: w.of, Peers: replica.PeersOf(w.of)}
	id, err := replica.ReadIdentity(w.of)
	s.Node, s.Identity = id.Node, err
	if err := w.step("copy"); err != nil {
		return nil, err
	}
	for from, to := range map[string]string{"history.db": "history.db", "raft": oldRaft + "/raft"} {
		err := copyTree(filepath.Join(w.of, from), filepath.Join(w.dir, to))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("copying %s: %w", filepath.Join(w.of, from), err)
		}
	}
	if w.history, err = events.OpenHistory(filepath.Join(w.dir, "history.db"), events.HistoryOptions{Logger: w.log}); err != nil {
		s.Problem = w.named(err)
		return s, nil
	}
	w.closers = append(w.closers, w.history.Close)
	old, closeOld, rerr := replica.OpenStopped(filepath.Join(w.dir, oldRaft), w.log)
	if rerr == nil {
		w.closers = append(w.closers, closeOld)
	}
	if s.Kept, err = replica.Verify(w.history, old, w.log); err != nil {
		s.Kept, err = w.cutOff(old, err)
	}
	s.Problem = w.named(err)
	if s.Kept != nil && rerr != nil {
		s.Kept.RaftProblem = w.named(rerr)
	}
	return s, nil
}

// cutOff makes the copy's history end before the first entry that does not follow
// from those before it, if that is all that is wrong.
func (w *work) cutOff(old *replica.Stores, wrong error) (*replica.Kept, error) {
	name := filepath.Join(w.dir, "history.db")
	shorter, err := events.OpenHistory(name+".shorter", events.HistoryOptions{Logger: w.log})
	if err != nil {
		return nil, errors.Join(wrong, err)
	}
	dropped, ok, err := replica.CutOff(w.history, shorter, wrong)
	err = errors.Join(err, shorter.Close())
	if !ok || err != nil {
		return nil, errors.Join(wrong, err, os.Remove(name+".shorter"))
	}
	if err := errors.Join(w.history.Close(), os.Rename(name+".shorter", name)); err != nil {
		return nil, err
	}
	if w.history, err = events.OpenHistory(name, events.HistoryOptions{Logger: w.log}); err != nil {
		return nil, err
	}
	w.closers = append(w.closers, w.history.Close)
	return replica.VerifyCutOff(w.history, old, dropped, w.log)
}

// named lets an error speak of the file that was copied.
func (w *work) named(err error) error {
	if damaged, ok := errors.AsType[*events.CorruptError](err); ok {
		at := ""
		if damaged.Index > 0 {
			at = fmt.Sprintf(" at entry %d", damaged.Index)
		}
		return fmt.Errorf("%s is damaged%s: %s", filepath.Join(w.of, "history.db"), at, damaged.What)
	}
	return err
}

func (w *work) close() error {
	var err error
	for i := len(w.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, w.closers[i]())
	}
	w.closers = nil
	return err
}

// discard removes the work directory, which is a copy.
func (w *work) discard() error {
	return errors.Join(w.close(), removeCopy(w.dir))
}
