package replica

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	walfs "github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	waltypes "github.com/hashicorp/raft-wal/types"
)

// walSegment is how large a file of the WAL gets. It is allocated when it is
// made, which takes a third off every append.
const walSegment = 8 << 20

// walStore is raft-wal v0.4.2 in the form in which it is safe under raft:
//
//   - It does not call itself monotonic. Raft empties a store that does whenever
//     a snapshot comes from the leader, entries after the snapshot included.
//   - After a write that failed it is opened anew before the next. A truncation
//     that got as far as the list of segments, but not to the next segment, goes
//     on in memory with a segment that the list no longer has: what is then
//     acknowledged would be gone after a restart.
//   - What it truncated is not found. It would still read it from the last segment.
//   - Its last segment is mended before it is opened (waltail.go).
type walStore struct {
	dir     string
	noFsync bool
	segment int // size of one
	vfs     waltypes.VFS
	meta    waltypes.MetaStore

	mu  sync.RWMutex // readers have it, and whoever truncates or replaces log, alone
	log *wal.WAL

	writing sync.Mutex // one writer at a time; the fields below are its
	last    uint64     // index that was acknowledged last; 0: the log is empty
	broken  bool       // a write failed
}

func openWALStore(dir string, noFsync bool, segmentSize int) (logStore, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot create the log %s: %w", dir, err)
	}
	meta := filepath.Join(dir, metadb.FileName)
	if _, err := os.Stat(meta); err == nil {
		if err := verifyBolt(meta); err != nil { // also finds a held lock, for which the WAL would wait for ever
			return nil, err
		}
	} else if files, _ := filepath.Glob(filepath.Join(dir, "*.wal")); len(files) > 0 {
		return nil, damaged(meta, fmt.Errorf("it is missing although %s is there", files[0]))
	}
	s := &walStore{dir: dir, noFsync: noFsync, segment: segmentSize, vfs: walfs.New(), meta: &metadb.BoltMetaDB{}}
	if noFsync {
		s.vfs, s.meta = noSyncVFS{s.vfs}, &noSyncMeta{}
	}
	if err := s.start(); err != nil {
		return nil, errors.Join(damaged(dir, err), s.meta.Close())
	}
	return s, nil
}

// start opens the WAL for the first time: whatever is whole in it may have been
// acknowledged.
func (s *walStore) start() (err error) {
	if s.log, err = s.open(math.MaxUint64); err == nil {
		s.last, err = s.log.LastIndex()
	}
	return err
}

// open opens the WAL without the entries after keep.
func (s *walStore) open(keep uint64) (log *wal.WAL, err error) {
	err = recovered(func() (err error) {
		torn, err := mendTail(s.dir, s.meta, keep)
		if err != nil {
			return err
		}
		if !s.noFsync { // the WAL does it for a file that it made, not for one that it finds
			if err := syncDir(s.dir); err != nil {
				return err
			}
		}
		log, err = wal.Open(s.dir, wal.WithMetaStore(keptOpen{s.meta}), wal.WithLogger(hclog.NewNullLogger()),
			wal.WithSegmentSize(s.segment), wal.WithSegmentFiler(segment.NewFiler(s.dir, walVFS{s.vfs, torn})))
		return err
	})
	return log, err
}

// reopen comes before each write. It does nothing unless the one before failed;
// then the disk decides what there is, less what was not acknowledged.
func (s *walStore) reopen() error {
	if !s.broken {
		return nil
	}
	log, err := s.open(s.last)
	if err != nil {
		return fmt.Errorf("opening the log anew after a write that failed: %w", err)
	}
	s.mu.Lock()
	old := s.log
	s.log = log
	s.mu.Unlock()
	s.broken = false
	if s.last, err = log.LastIndex(); err != nil {
		return err
	}
	return old.Close()
}

// StoreLog implements raft.LogStore, as the methods after it do.
func (s *walStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs takes only what follows the last entry, or anything if there is none.
func (s *walStore) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	if err := s.reopen(); err != nil {
		return err
	}
	next := logs[0].Index
	if s.last > 0 {
		next = s.last + 1
	}
	for i, l := range logs {
		if want := next + uint64(i); l.Index != want {
			return fmt.Errorf("entry %d cannot be appended to a log whose next one is %d", l.Index, want)
		}
	}
	if err := s.log.StoreLogs(logs); err != nil {
		s.broken = true
		return err
	}
	s.last = logs[len(logs)-1].Index
	return nil
}

// DeleteRange deletes from either end.
func (s *walStore) DeleteRange(from, to uint64) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if err := s.reopen(); err != nil {
		return err
	}
	err := s.truncate(from, to)
	if err != nil && s.broken { // it may have happened all the same, and raft has to know
		if again := s.reopen(); again != nil {
			return errors.Join(err, again)
		}
		err = s.truncate(from, to)
	}
	return err
}

func (s *walStore) truncate(from, to uint64) error {
	first, err := s.log.FirstIndex()
	if err != nil {
		return err
	}
	to = min(to, s.last)
	switch {
	case s.last == 0 || from > to || to < first:
		return nil // nothing of it is there
	case from > first && to < s.last:
		return fmt.Errorf("entries %d to %d cannot be deleted from the middle of a log of %d to %d: this store deletes from its ends", from, to, first, s.last)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.log.DeleteRange(from, to); err != nil {
		s.broken = true
		return err
	}
	s.last, err = s.log.LastIndex()
	return err
}

func (s *walStore) GetLog(index uint64, out *raft.Log) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	first, err := s.log.FirstIndex()
	if err != nil {
		return err
	}
	if first == 0 || index < first {
		return raft.ErrLogNotFound
	}
	return s.log.GetLog(index, out)
}

func (s *walStore) FirstIndex() (uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.log.FirstIndex()
}

func (s *walStore) LastIndex() (uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.log.LastIndex()
}

// Set implements raft.StableStore, as the methods after it do. The votes are in
// the list of segments' file, of which a failed write of bbolt leaves nothing.
func (s *walStore) Set(key, value []byte) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.log.Set(key, value)
}

func (s *walStore) Get(key []byte) ([]byte, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.log.Get(key)
}

func (s *walStore) SetUint64(key []byte, value uint64) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.log.SetUint64(key, value)
}

func (s *walStore) GetUint64(key []byte) (uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.log.GetUint64(key)
}

func (s *walStore) Close() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.log.Close(), s.meta.Close())
}

// keptOpen is a meta store that its WAL does not close: the next one has it too.
type keptOpen struct{ waltypes.MetaStore }

func (keptOpen) Close() error { return nil }

// walVFS makes a segment without its space where the disk has not got it all,
// and opens the last one without what was torn.
type walVFS struct {
	waltypes.VFS
	torn tornTail
}

func (v walVFS) Create(dir, name string, size uint64) (waltypes.WritableFile, error) {
	f, err := v.VFS.Create(dir, name, size)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return f, err
	}
	if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return v.VFS.Create(dir, name, 0)
}

func (v walVFS) OpenWriter(dir, name string) (waltypes.WritableFile, error) {
	f, err := v.VFS.OpenWriter(dir, name)
	if err != nil || name != v.torn.name {
		return f, err
	}
	return &tornFile{WritableFile: f, path: filepath.Join(dir, name), end: v.torn.end}, nil
}
