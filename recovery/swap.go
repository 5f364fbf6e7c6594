package recovery

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/esperd/esperd/internal/regular"
	"github.com/esperd/esperd/replica"
)

// noteName marks a directory that this package makes, from its first moment
// until the old one is at its place. Of DIR and DIR.recovering one at most has
// it, so after a crash it tells which is which.
const noteName = "recovering.json"

type note struct {
	Complete bool   `json:"complete"` // everything is in it, and synced
	Lineage  string `json:"lineage,omitempty"`
}

func writeNote(dir string, n note) error {
	b, err := json.Marshal(n)
	if err != nil {
		return err
	}
	name := filepath.Join(dir, noteName)
	if err := os.WriteFile(name+".tmp", append(b, '\n'), 0o600); err != nil {
		return err
	}
	if err := errors.Join(syncPath(name+".tmp"), os.Rename(name+".tmp", name)); err != nil {
		return err
	}
	return syncPath(dir)
}

func readNote(dir string) (n note, ok bool, err error) {
	b, err := regular.ReadFile(filepath.Join(dir, noteName))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) { // what is no directory, whoever opens it says better
		return n, false, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &n)
	}
	return n, err == nil, err
}

// leftover is what an earlier recovery has left when it was interrupted.
type leftover struct {
	dir  string
	kind leftKind
}

type leftKind int

const (
	nothing    leftKind = iota
	unfinished          // DIR.recovering is a copy, DIR as it was
	between             // DIR.recovering is complete and DIR is gone: two renames, a crash between them
	unmoved             // DIR is the new one, DIR.recovering the old one
	unmarked            // DIR is the new one, and the old one is kept; only the note is left
	unknown             // none of these
)

// look says what is beside a directory. It changes nothing.
func look(dir string) (leftover, error) {
	inside, err := os.ReadDir(dir + workSuffix)
	there := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return leftover{}, err
	}
	unnoted := there && !slices.ContainsFunc(inside, func(e os.DirEntry) bool { return e.Name() != noteName+".tmp" })
	_, err = os.Lstat(dir)
	gone := errors.Is(err, fs.ErrNotExist)
	_, ours, err := readNote(dir)
	if err != nil {
		return leftover{}, err
	}
	made, work, err := readNote(dir + workSuffix)
	if err != nil {
		return leftover{}, err
	}
	l := leftover{dir: dir}
	switch {
	case !there && ours:
		l.kind = unmarked
	case !there:
	case work && gone && made.Complete:
		l.kind = between
	case (work || unnoted) && !ours && !gone:
		l.kind = unfinished
	case ours && !work:
		l.kind = unmoved
	default:
		l.kind = unknown
	}
	return l, nil
}

// found says, for people, what is there.
func (l leftover) found() string {
	work := l.dir + workSuffix
	switch l.kind {
	case unfinished:
		return fmt.Sprintf("an earlier recovery was interrupted: %s is its copy, which is made anew; %s is as it was", work, l.dir)
	case between:
		return fmt.Sprintf("an earlier recovery was interrupted: %s is complete and takes the place of %s", work, l.dir)
	case unmoved:
		return fmt.Sprintf("an earlier recovery was interrupted: %s is recovered, and %s is the directory of before, which is kept as evidence", l.dir, work)
	case unmarked:
		return fmt.Sprintf("an earlier recovery was interrupted at its very end: %s is recovered", l.dir)
	case unknown:
		return fmt.Sprintf("%s and %s are there, and nothing tells which is which", l.dir, work)
	}
	return ""
}

func (l leftover) refused() error {
	switch l.kind {
	case nothing:
		return nil
	case unknown:
		return fmt.Errorf("%s: move the second one aside", l.found())
	}
	return fmt.Errorf("%s; give --yes to complete that", l.found())
}

// Leftover says what an interrupted recovery has left of a directory; empty:
// nothing. It changes nothing.
func Leftover(dir string) (string, error) {
	l, err := look(dir)
	return l.found(), err
}

// Pending is an error where a recovery was interrupted when the old directory was
// gone and the new one not in its place yet: a node that started there now would
// be a new one, and the recovered directory taken for a copy.
func Pending(dir string) error {
	l, err := look(dir)
	if err != nil || l.kind != between {
		return err
	}
	return fmt.Errorf("esperd recover comes first: %w", l.refused())
}

// Settle completes an interrupted recovery, or removes its copy. done: the
// directory is a recovered one, and there is nothing else to do.
func Settle(dir string) (done bool, err error) {
	release, err := hold(dir)
	if err != nil {
		return false, err
	}
	defer release()
	l, err := look(dir)
	if err != nil {
		return false, err
	}
	switch l.kind {
	case nothing:
		return false, nil
	case unfinished:
		return false, removeCopy(dir + workSuffix)
	case between:
		if err := os.Rename(dir+workSuffix, dir); err != nil {
			return false, err
		}
		return true, unmark(dir)
	case unmoved:
		if _, err := keep(dir); err != nil {
			return false, err
		}
		return true, unmark(dir)
	case unmarked:
		return true, unmark(dir)
	}
	return false, l.refused()
}

// removeCopy removes a work directory, its note last: without, nobody could tell
// after a crash that the rest is a copy.
func removeCopy(work string) error {
	inside, err := os.ReadDir(work)
	if err != nil {
		return err
	}
	for _, e := range inside {
		if e.Name() == noteName {
			continue
		}
		if err := os.RemoveAll(filepath.Join(work, e.Name())); err != nil {
			return err
		}
	}
	return os.RemoveAll(work)
}

// keep moves the old directory from where the swap has put it to its name as
// evidence.
func keep(dir string) (string, error) {
	to, err := replica.EvidencePath(dir)
	if err != nil {
		return "", err
	}
	if err := os.Rename(dir+workSuffix, to); err != nil {
		return "", err
	}
	return to, syncPath(filepath.Dir(dir))
}

func unmark(dir string) error {
	if err := os.Remove(filepath.Join(dir, noteName)); err != nil {
		return err
	}
	return errors.Join(syncPath(dir), syncPath(filepath.Dir(dir)))
}

// swap puts the complete work directory in the place of the old one and returns
// where the old one is. In one step where the system can; else a crash between
// its two steps leaves DIR.recovering, which Settle puts in its place.
func (w *work) swap() (evidence string, err error) {
	if err := w.step("exchange"); err != nil {
		return "", err
	}
	switch err := exchange(w.dir, w.of); {
	case errors.Is(err, errors.ErrUnsupported):
		if evidence, err = replica.EvidencePath(w.of); err != nil {
			return "", err
		}
		if err := os.Rename(w.of, evidence); err != nil {
			return "", cannotSwap(w.of, err)
		}
		if err := w.step("second rename"); err != nil {
			return "", err
		}
		if err := os.Rename(w.dir, w.of); err != nil {
			return "", err
		}
	case err != nil:
		return "", cannotSwap(w.of, err)
	default:
		if err := errors.Join(syncPath(filepath.Dir(w.of)), w.step("keep")); err != nil {
			return "", err
		}
		if evidence, err = keep(w.of); err != nil {
			return "", err
		}
	}
	if err := errors.Join(syncPath(filepath.Dir(w.of)), w.step("unmark")); err != nil {
		return "", err
	}
	return evidence, unmark(w.of)
}

func cannotSwap(dir string, err error) error {
	return fmt.Errorf("cannot put the recovered directory in the place of %s: %w: nothing was changed; if it is a mount point, copy it to a directory inside, and name that", dir, err)
}
