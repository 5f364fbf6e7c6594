package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

const (
	socketName    = "esperd.sock"
	socketFitting = 100 // bytes: below every system's limit
)

// socketBytesMax is the longest path that this system takes.
var socketBytesMax = len(syscall.RawSockaddrUnix{}.Path) - 1

func (r *resolver) socket(flag *string, c *Config) error {
	if path := r.pick("socket", flag); path != "" {
		c.Socket = r.abs(forRank(path, c.Rank))
		if len(c.Socket) > socketBytesMax {
			return fmt.Errorf("%s is a path of %d bytes (%s), expected at most %d for a unix socket: choose a shorter one", r.from["socket"], len(c.Socket), c.Socket, socketBytesMax)
		}
		return nil
	}
	var err error
	c.Socket, r.from["socket"], err = r.socketOf(c.DataDir)
	c.SocketDir = filepath.Dir(c.Socket) != c.DataDir
	return err
}

// socketOf is the socket's default: in the data directory, or, where that path
// is too long for a socket, under a short one that the data directory's hash
// names, so that esperd status finds it too.
func (r *resolver) socketOf(dataDir string) (path, from string, err error) {
	path = filepath.Join(dataDir, socketName)
	if len(path) <= socketFitting {
		return path, "default, in the data directory", nil
	}
	sum := sha256.Sum256([]byte(dataDir))
	name := filepath.Join("esperd-"+hex.EncodeToString(sum[:8]), socketName)
	for _, base := range []struct{ dir, from string }{
		{r.env["XDG_RUNTIME_DIR"], "XDG_RUNTIME_DIR"},
		{r.env["TMPDIR"], "TMPDIR"},
		{"/tmp", "/tmp"},
	} {
		short := filepath.Join(base.dir, name)
		if filepath.IsAbs(short) && len(short) <= socketFitting && r.isDir(base.dir) {
			return short, fmt.Sprintf("default, under %s: %d bytes in the data directory would be too long", base.from, len(path)), nil
		}
	}
	return "", "", fmt.Errorf("the socket's path %s has %d bytes, expected at most %d, and there is no shorter place in XDG_RUNTIME_DIR, TMPDIR or /tmp: give one with --socket (ESPERD_SOCKET)", path, len(path), socketFitting)
}

// ownSocketDir makes the directory of a socket outside the data directory, for
// this user alone: the others who may write to /tmp must not get at it.
func ownSocketDir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("cannot make the directory of the socket: %w: give a path with --socket (ESPERD_SOCKET)", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("cannot look at the directory of the socket: %w", err)
	}
	owner := -1
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		owner = int(st.Uid)
	}
	if !info.IsDir() || info.Mode().Perm() != 0o700 || owner != os.Getuid() {
		return fmt.Errorf("%s is %s of user %d, expected a directory of user %d that nobody else may enter (0700): remove it, or give another path with --socket (ESPERD_SOCKET)", dir, info.Mode(), owner, os.Getuid())
	}
	return nil
}
