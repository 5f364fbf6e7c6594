package replica

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"

	"github.com/esperd/esperd/events"
)

// A Glance is what a data directory shows of its history without its esperd.
type Glance struct {
	Entries uint64 // the last one's index; 0: none
	Epoch   int64  // the highest of any model; -1: none was stepped
}

// GlanceAt reads the history of a data directory that no esperd uses; one that
// does is an error, as is a history that is damaged. Nothing is written.
func GlanceAt(dir string) (Glance, error) {
	none := Glance{Epoch: -1}
	name := filepath.Join(dir, "history.db")
	info, err := os.Lstat(name)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return none, nil
	case err != nil:
		return none, err
	case !info.Mode().IsRegular():
		return none, fmt.Errorf("%s is %s, expected a file", name, info.Mode())
	}
	history, err := events.OpenHistory(name, events.HistoryOptions{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return none, err
	}
	g := none
	g.Entries, _, _ = history.Head()
	doubted, _ := doubtedFrom(dir) // a file that is unreadable hides no entry
	if g.Entries > 0 {
		state, replayed := replayTo(history, g.Entries, doubted)
		err = replayed
		if state != nil {
			for _, m := range state.Models {
				g.Epoch = max(g.Epoch, m.Epoch)
			}
		}
	}
	return g, errors.Join(err, history.Abandon())
}

// HoldDataDir takes the lock of a data directory without changing anything in
// it, so that no esperd starts there until release is called. held says which
// process has it, if one does; a directory without a lock is nobody's.
//
// lock is the open lock file, nil if there is none; it is closed by release.
func HoldDataDir(lock *os.File) (release func(), held string, err error) {
	if lock == nil {
		return func() {}, "", nil
	}
	release = func() { _ = lock.Close() }
	err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	switch {
	case errors.Is(err, syscall.EWOULDBLOCK):
		held = lockHolder(lock)
		release()
		return func() {}, held, nil
	case err != nil:
		release()
		return func() {}, "", fmt.Errorf("cannot tell whether %s is in use: %w", lock.Name(), err)
	}
	return release, "", nil
}
