package door

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// socketBytesMax is the longest path that this system takes for a socket.
var socketBytesMax = len(syscall.RawSockaddrUnix{}.Path) - 1

const socketDialMax = time.Second

// socketListener is the trainer's door: a socket that only this user may use,
// and the lock that says whose it is.
type socketListener struct {
	*net.UnixListener
	lock *os.File
}

// listenSocket makes the socket at path. A socket file that a dead process left
// behind is replaced; one that somebody serves is not.
func listenSocket(path string) (*socketListener, error) {
	if len(path) > socketBytesMax {
		return nil, fmt.Errorf("the socket's path %s has %d bytes, expected at most %d, this system's limit: choose a shorter one with --socket (ESPERD_SOCKET)", path, len(path), socketBytesMax)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the directory of the socket: %w: give another path with --socket (ESPERD_SOCKET)", err)
	}
	lock, err := lockSocket(path)
	if err != nil {
		return nil, err
	}
	l, err := bindSocket(path)
	if err != nil {
		return nil, errors.Join(err, unlockSocket(lock))
	}
	return &socketListener{UnixListener: l, lock: lock}, nil
}

// bindSocket is called with the lock held: no other esperd comes between the
// look at the old file and its removal.
func bindSocket(path string) (*net.UnixListener, error) {
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("cannot look at the socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s is no socket (%s), expected one or nothing: remove it, or give another path with --socket (ESPERD_SOCKET)", path, info.Mode())
	default:
		if c, err := net.DialTimeout("unix", path, socketDialMax); err == nil {
			return nil, errors.Join(servedError(path), c.Close())
		} else if !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("%s is a socket of which cannot be said whether somebody serves it (%w): remove it, or give another path with --socket (ESPERD_SOCKET)", path, err)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("cannot remove the socket that a dead process left behind: %w", err)
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("cannot open the trainer's door: %w: give another path with --socket (ESPERD_SOCKET)", err)
	}
	// Between the two lines the mode is the umask's; who connects then is
	// checked by its credentials like everybody else.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot close the trainer's door to other users: %w", err), l.Close())
	}
	return l, nil
}

func servedError(path string) error {
	return fmt.Errorf("another esperd serves this socket, %s: stop it, or give this one another path with --socket (ESPERD_SOCKET)", path)
}

// lockSocket takes the lock beside the socket. The file may be removed while it
// is waited for, so it has to be still the one at the path afterwards.
func lockSocket(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, fmt.Errorf("cannot lock the socket: %w: give another path with --socket (ESPERD_SOCKET)", err)
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			return nil, errors.Join(servedError(path), f.Close())
		}
		mine, err := f.Stat()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("cannot lock the socket: %w", err), f.Close())
		}
		if there, err := os.Stat(f.Name()); err == nil && os.SameFile(mine, there) {
			return f, nil
		}
		_ = f.Close() // somebody removed it in between: it guards nothing
	}
}

func unlockSocket(lock *os.File) error { return errors.Join(os.Remove(lock.Name()), lock.Close()) }

// Close removes the socket and lets go of it.
func (l *socketListener) Close() error {
	return errors.Join(l.UnixListener.Close(), unlockSocket(l.lock))
}
