package replica

import (
	"os"
	"path/filepath"
	"syscall"

	"github.com/esperd/esperd/internal/regular"
)

// AdoptDataDir moves the data directory at from, which no process uses and whose
// node is part of a log, to a path at which there is nothing yet, and reports
// whether it did. The node stays what it is: only its rank changes. On a network
// file system it leaves everything alone: the directory may be another host's.
func AdoptDataDir(from, to string) bool {
	if shared(filepath.Dir(to)) || shared(from) {
		return false
	}
	b, err := regular.ReadFile(filepath.Join(from, nodeFileName))
	if err != nil {
		return false
	}
	f, err := parseNodeFile(b)
	if err != nil || f.Lineage == "" {
		return false
	}
	lock, err := lockDir(from)
	if err != nil {
		return false
	}
	defer lock.Close()
	if _, err := os.Lstat(to); !os.IsNotExist(err) {
		return false
	}
	// Another process may have moved it, and given back the lock, since.
	return os.Rename(from, to) == nil && syncDir(filepath.Dir(to)) == nil
}

func shared(path string) bool {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return true
	}
	_, network := classifyFS(uint32(st.Type)) // its Go type varies by platform
	return network
}
