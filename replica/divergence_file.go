package replica

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// divergenceFileName is the file beside node.json that says what a replica found
// out about a state of its own that was not the log's. It stays after a restart:
// it is evidence, and says which of the states that were kept are wrong.
const divergenceFileName = "diverged.json"

const (
	divergenceFormat   = 1
	divergenceBytesMax = 1 << 16
)

type divergenceFile struct {
	Format int `json:"format"`
	// Doubted is the first entry of which this node had a wrong state: images of
	// states from there on are evidence. 0: none is known to be wrong.
	Doubted uint64 `json:"doubted,omitempty"`
	Divergence
}

// ReadDivergence reads what the replica of a data directory found out about
// itself; nil: nothing is kept there.
func ReadDivergence(dir string) (*Divergence, error) {
	f, err := readDivergenceFile(dir)
	if f == nil {
		return nil, err
	}
	return &f.Divergence, err
}

func readDivergenceFile(dir string) (*divergenceFile, error) {
	name := filepath.Join(dir, divergenceFileName)
	info, err := os.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular() || info.Size() > divergenceBytesMax:
		return nil, fmt.Errorf("%s: expected a file of at most %d bytes, got %d bytes, %s", name, divergenceBytesMax, info.Size(), info.Mode())
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var f divergenceFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("%s: expected a JSON object: %w", name, err)
	}
	if f.Format != divergenceFormat {
		return nil, fmt.Errorf("%s: expected format %d, got %d", name, divergenceFormat, f.Format)
	}
	return &f, nil
}

func writeDivergence(dir *DataDir, d *Divergence) error {
	f := divergenceFile{Format: divergenceFormat, Divergence: *d}
	if d.Fault == BlameSelf {
		f.Doubted = d.First
	}
	if was, err := readDivergenceFile(dir.Path("")); err == nil && was != nil && was.Doubted > 0 && (f.Doubted == 0 || was.Doubted < f.Doubted) {
		f.Doubted = was.Doubted
	}
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	return writeFileAtomic(dir.Path(divergenceFileName), append(b, '\n'), !dir.opts.NoFsync)
}

// doubtedFrom is from which entry on the states that a directory kept are wrong;
// 0: from none. A file that cannot be read leaves the decision to people.
func doubtedFrom(dir string) (uint64, error) {
	f, err := readDivergenceFile(dir)
	if err != nil {
		return 0, fmt.Errorf("%w; it says which of this node's states are wrong: move the data directory aside as evidence and start with an empty one", err)
	}
	if f == nil {
		return 0, nil
	}
	return f.Doubted, nil
}
