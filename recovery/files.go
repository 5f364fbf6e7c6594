package recovery

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/esperd/esperd/internal/regular"
)

// InUseError says that a process has a data directory open.
type InUseError struct {
	Dir string
	PID int // 0: not known
}

func (e *InUseError) Error() string {
	who := "another process"
	if e.PID > 0 {
		who = fmt.Sprintf("process %d", e.PID)
	}
	return fmt.Sprintf("%s is in use by %s: stop it first", e.Dir, who)
}

// hold keeps every esperd out of a data directory, as another esperd would, and
// writes nothing.
func hold(dir string) (release func(), err error) {
	var held []*os.File
	release = func() {
		for _, f := range held {
			f.Close()
		}
	}
	for _, name := range []string{"lock", "history.db"} {
		f, err := regular.Open(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // nobody runs here, or it is said later that it is gone
		}
		if err == nil {
			held = append(held, f)
			err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		}
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = &InUseError{Dir: dir, PID: holder(dir)}
		}
		if err != nil {
			release()
			return nil, err
		}
	}
	return release, nil
}

func holder(dir string) int {
	b, err := regular.ReadFile(filepath.Join(dir, "lock"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0
	}
	return pid
}

// copyFile copies one regular file, durably.
func copyFile(from, to string) error {
	in, err := regular.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in) // shares the blocks, where the file system can
	if err == nil {
		err = out.Sync()
	}
	return errors.Join(err, out.Close())
}

// copyTree copies directories and regular files.
func copyTree(from, to string) error {
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		switch target := filepath.Join(to, rel); {
		case d.IsDir():
			return os.MkdirAll(target, 0o700)
		case d.Type().IsRegular():
			return copyFile(path, target)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return syncTree(to)
}

// syncTree makes every file and name below dir durable.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() && !d.Type().IsRegular() {
			return err
		}
		return syncPath(path)
	})
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// sizeOf is what a copy of the node's files takes, in bytes.
func sizeOf(dir string) (total uint64, err error) {
	for _, name := range []string{"history.db", "raft"} {
		err := filepath.WalkDir(filepath.Join(dir, name), func(_ string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err == nil && info.Mode().IsRegular() {
				total += uint64(info.Size())
			}
			return err
		})
		if err != nil {
			return 0, err
		}
	}
	return total, nil
}

// spare is what is needed beside the copies: the new raft log.
const spare = 32 << 20

func checkSpace(dir string) error {
	need, err := sizeOf(dir)
	if err != nil {
		return err
	}
	need += spare
	var st syscall.Statfs_t
	if err := syscall.Statfs(filepath.Dir(dir), &st); err != nil {
		return nil // writing will tell
	}
	if free := uint64(st.Bavail) * uint64(st.Bsize); free < need {
		return fmt.Errorf("%s has %d MiB free, and a copy of %s takes %d MiB: make space there, or copy the directory to another disk and name the copy", filepath.Dir(dir), free>>20, dir, need>>20)
	}
	return nil
}

// own gives a tree to the owner of a directory, where this process may: root
// must not leave files that the job's user cannot open.
func own(tree, like string) error {
	info, err := os.Stat(like)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(st.Uid) == os.Geteuid() {
		return nil
	}
	return filepath.WalkDir(tree, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(st.Uid), int(st.Gid))
	})
}
