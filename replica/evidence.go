package replica

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/internal/regular"
)

// DirIdentity is what node.json says of a directory that is not open.
type DirIdentity struct {
	Node         events.NodeID
	Run, Lineage string
}

// ReadIdentity reads a directory's node.json and changes nothing.
func ReadIdentity(dir string) (DirIdentity, error) {
	b, err := regular.ReadFile(filepath.Join(dir, nodeFileName))
	if err != nil {
		return DirIdentity{}, err
	}
	f, err := parseNodeFile(b)
	if err != nil {
		return DirIdentity{}, fmt.Errorf("%s: %w", filepath.Join(dir, nodeFileName), err)
	}
	return DirIdentity{Node: f.Node, Run: f.Run, Lineage: f.Lineage}, nil
}

// WriteIdentity makes the node.json of a directory that has none.
func WriteIdentity(dir string, id DirIdentity) error {
	return saveNodeFile(dir, nodeFile{Format: nodeFormat, Node: id.Node, Created: time.Now().UTC(), Boots: 1, Run: id.Run, Lineage: id.Lineage}, true)
}

// NewID draws a node's id, or a lineage.
func NewID() (string, error) { return drawID(rand.Reader) }

// evidenceMax bounds the search for a free name.
const evidenceMax = 10000

// EvidencePath is the first free name DIR.evidence-N beside a directory.
func EvidencePath(dir string) (string, error) {
	for n := 1; n < evidenceMax; n++ {
		name := fmt.Sprintf("%s.evidence-%d", dir, n)
		if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
			return name, nil
		} else if err != nil {
			return "", err
		}
	}
	return "", fmt.Errorf("there are %d directories %s.evidence-N: look at them, and remove what nobody needs", evidenceMax, dir)
}

// Evidence are the histories that were kept aside from a data directory.
func Evidence(dir string) []string {
	out := []string{}
	if at, err := filepath.EvalSymlinks(dir); err == nil {
		dir = at
	}
	for _, pattern := range []string{dir + ".evidence-*", filepath.Join(dir, "evidence-*")} {
		found, err := filepath.Glob(pattern) // in a path with [ or *, it is only not told
		if err == nil {
			out = append(out, found...)
		}
	}
	return out
}

// SetAside moves a closed data directory aside as it is, and returns where it
// is: DIR.evidence-N beside it, or, where the directory cannot be renamed since
// it is a mount point, DIR/evidence-N. An empty directory takes its place.
func SetAside(dir string) (string, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", fmt.Errorf("cannot set a data directory aside: %w", err)
	}
	to, err := EvidencePath(dir)
	if err != nil {
		return "", err
	}
	err = os.Rename(dir, to)
	if errors.Is(err, syscall.EBUSY) || errors.Is(err, syscall.EXDEV) || errors.Is(err, fs.ErrPermission) {
		return setAsideInside(dir)
	}
	if err != nil {
		return "", fmt.Errorf("cannot set %s aside: %w", dir, err)
	}
	return to, errors.Join(os.Mkdir(dir, 0o700), syncDir(filepath.Dir(dir)))
}

// setAsideInside moves what makes a directory a node's. node.json is the last:
// without raft's log and with it, a start is refused and nothing is lost.
func setAsideInside(dir string) (string, error) {
	var to string
	var err error
	for n := 1; n < evidenceMax; n++ {
		to = filepath.Join(dir, fmt.Sprintf("evidence-%d", n))
		if err = os.Mkdir(to, 0o700); !errors.Is(err, fs.ErrExist) {
			break
		}
	}
	if err != nil {
		return "", fmt.Errorf("cannot set the contents of %s aside: %w", dir, err)
	}
	for _, name := range []string{"raft", "history.db", divergenceFileName, verifiedFileName, peersFileName, nodeFileName} {
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(to, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("cannot set the contents of %s aside: %w", dir, err)
		}
	}
	return to, errors.Join(syncDir(to), syncDir(dir))
}
