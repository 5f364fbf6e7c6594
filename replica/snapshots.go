package replica

import (
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/hashicorp/raft"
)

// fileSnapshots is raft's store of snapshots in files, which of v1.7.3 syncs a
// snapshot's files and its directory's name, but not the files' names: after a
// power cut that directory may be empty, and the entries that the snapshot covers
// are gone from the log.
type fileSnapshots struct {
	*raft.FileSnapshotStore
	dir string // the one that has "snapshots" in it
}

// Create implements raft.SnapshotStore.
func (s fileSnapshots) Create(version raft.SnapshotVersion, index, term uint64, c raft.Configuration, ci uint64, t raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.FileSnapshotStore.Create(version, index, term, c, ci, t)
	if err != nil {
		return nil, err
	}
	return &syncedSink{sink, filepath.Join(s.dir, "snapshots", sink.ID())}, nil
}

type syncedSink struct {
	raft.SnapshotSink
	dir string // its own, once it is complete
}

// Close implements io.Closer. Raft closes a sink that it has cancelled, too.
func (s *syncedSink) Close() error {
	if err := s.SnapshotSink.Close(); err != nil {
		return err
	}
	if err := syncDir(s.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
