package replica

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/esperd/esperd/internal/regular"
)

// relaxedMark is the file beside a log that is not synced: it holds the boot id
// of the kernel whose page cache has the rest. Only a stop that synced the log
// removes it, so whoever finds it knows whether that cache is still there.
const relaxedMark = "relaxed"

// bootID names this boot of the machine; empty where the kernel does not (it is
// not Linux), and then no mark is trusted.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// admit comes before the store under dir is opened. It refuses one that a crash
// of the machine may have torn: what is missing in it cannot be seen in it. Else
// it leaves a mark if and only if the store will be relaxed.
func admit(dir string, relaxed bool, boot string) error {
	name := filepath.Join(dir, relaxedMark)
	b, err := regular.ReadFile(name)
	was := strings.TrimSpace(string(b))
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("cannot read %s: %w: give this user read and write access", name, err)
	case err == nil && (was == "" || was != boot):
		return crashed(dir, was, boot)
	case relaxed:
		return mark(dir, boot) // again, because who wrote it may have died before it was on disk
	case err == nil:
		return settle(dir) // the process was killed; durable from now on
	}
	return nil
}

func crashed(dir, was, boot string) error {
	what := fmt.Sprintf("its machine went down before that was on disk, or this is another machine (boot %.40q then, %.40q now)", was, boot)
	if was == "" || boot == "" {
		what = "nothing tells whether all that it wrote is on disk (this system has no boot id, or syncing failed)"
	}
	return fmt.Errorf("%s: this node ran with --durability relaxed and did not stop cleanly, and %s: decisions may be missing and votes forgotten, "+
		"so that it might vote twice; move the whole data directory %s aside as evidence and start with an empty one, "+
		"which is a new node and fetches the history from the others; where all ranks were relaxed and are refused like this one, start the run anew",
		filepath.Join(dir, relaxedMark), what, filepath.Dir(dir))
}

func mark(dir, boot string) error {
	name := filepath.Join(dir, relaxedMark)
	err := writeFileAtomic(name, []byte(boot+"\n"), true)
	if err == nil {
		err = syncDir(filepath.Dir(dir)) // dir may be as new as the mark
	}
	if err != nil {
		return fmt.Errorf("cannot write %s, which has to be there before a log that is not synced: %w", name, err)
	}
	return nil
}

// settle makes durable what a store wrote under dir without syncing, and removes
// the mark. The store is closed, or not yet open.
func settle(dir string) error {
	name := filepath.Join(dir, relaxedMark)
	if err := syncStore(dir); err != nil {
		// The kernel tells of a lost write once, and the next sync would succeed.
		// Unsynced, for this mark only matters until the machine goes down.
		distrust := writeFileAtomic(name, []byte("\n"), false)
		return errors.Join(fmt.Errorf("cannot sync the raft log in %s: %w", dir, err), distrust)
	}
	if err := os.Remove(name); err != nil {
		return fmt.Errorf("cannot remove %s: %w", name, err)
	}
	return syncDir(dir)
}

// syncStore syncs every file and name of either store: fsync is about a file's
// pages, whoever wrote them. (syncDir opens files just as well.)
func syncStore(dir string) error {
	for _, d := range []string{filepath.Join(dir, "wal"), dir} {
		files, err := os.ReadDir(d)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it is of the other kind
		}
		if err != nil {
			return err
		}
		for _, f := range files {
			if err := syncDir(filepath.Join(d, f.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if err := syncDir(d); err != nil {
			return err
		}
	}
	return nil
}

// settling closes a relaxed store and settles it. A store that does not close
// keeps its mark.
func settling(s io.Closer, dir string) io.Closer {
	return closer(func() error {
		if err := s.Close(); err != nil {
			return err
		}
		return settle(dir)
	})
}
