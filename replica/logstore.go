package replica

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
)

// The kinds of log stores. Both keep raft's log and its votes.
const (
	logStoreAuto = "auto"   // what the directory has, the wal if it has none; the default
	logStoreBolt = "boltdb" // two fsyncs a commit
	logStoreWAL  = "wal"    // one fsync a commit
)

// logStoreFiles are what tells which store a directory has.
var logStoreFiles = map[string]string{logStoreBolt: "raft.db", logStoreWAL: "wal"}

// What a decision waits for.
const (
	durabilityDurable = "durable" // the disks of a majority of the voters; the default
	durabilityRelaxed = "relaxed" // their page caches, which outlive a process and not a machine
)

const logStoreLockTimeout = time.Second

func checkDurability(durability string) error {
	if durability != durabilityDurable && durability != durabilityRelaxed {
		return fmt.Errorf("unknown durability %q: expected one of %q", durability, []string{durabilityDurable, durabilityRelaxed})
	}
	return nil
}

// openLogStore opens raft's log and stable store under dir, which must exist.
// A damaged file is an error here and not a panic later: the log also holds
// this node's votes, so nothing is repaired or started afresh by itself. One that
// is not synced is marked until it is closed (relaxed.go).
func openLogStore(kind string, dir string, noFsync bool) (raft.LogStore, raft.StableStore, io.Closer, error) {
	kind, err := chooseLogStore(kind, dir)
	if err == nil {
		err = otherStore(kind, dir)
	}
	if err != nil {
		return nil, nil, nil, err
	}
	if err := admit(dir, noFsync, bootID()); err != nil {
		return nil, nil, nil, err
	}
	if !noFsync {
		// A process that was killed may have left writes that are in the page
		// cache alone: both stores take them for synced.
		if err := syncStore(dir); err != nil {
			return nil, nil, nil, fmt.Errorf("cannot sync the raft log in %s: %w", dir, err)
		}
	}
	var s logStore
	name := filepath.Join(dir, logStoreFiles[kind])
	if kind == logStoreBolt {
		s, err = openBoltStore(name, noFsync)
	} else {
		s, err = openWALStore(name, noFsync, walSegment)
	}
	if err != nil {
		return nil, nil, nil, err
	}
	if err := recovered(func() error { return readLog(s) }); err != nil {
		return nil, nil, nil, errors.Join(damaged(name, err), s.Close())
	}
	if noFsync {
		return s, s, settling(s, dir), nil
	}
	return s, s, s, nil
}

// chooseLogStore returns the kind of store to open under dir, for a kind that
// somebody asked for or logStoreAuto.
func chooseLogStore(kind, dir string) (string, error) {
	switch kind {
	case logStoreBolt, logStoreWAL:
		return kind, nil
	case logStoreAuto, "":
	default:
		return "", fmt.Errorf("unknown log store %q: expected one of %q", kind, []string{logStoreAuto, logStoreBolt, logStoreWAL})
	}
	if _, err := os.Stat(filepath.Join(dir, logStoreFiles[logStoreBolt])); err == nil {
		return logStoreBolt, nil // beside a wal, it is refused (otherStore)
	}
	return logStoreWAL, nil
}

// otherStore refuses a directory whose log is in the other store: beside it, an
// empty one would look like a log that was lost.
func otherStore(kind, dir string) error {
	there := func(kind string) bool {
		_, err := os.Stat(filepath.Join(dir, logStoreFiles[kind]))
		return err == nil
	}
	if there(logStoreBolt) && there(logStoreWAL) {
		return fmt.Errorf("%s holds a log in boltdb (raft.db) and one in the wal (wal), expected one: move what does not belong to this node out of it", dir)
	}
	for other := range logStoreFiles {
		if there(other) && other != kind {
			return fmt.Errorf("the log in %s was written with --log-store %s, expected %s: start with --log-store %[2]s or without, or use another --data-dir", dir, other, kind)
		}
	}
	return nil
}

type logStore interface {
	raft.LogStore
	raft.StableStore
	io.Closer
}

// readLog decodes every entry from the newest back, because raft panics on one that it cannot read.
// Snapshots keep the log short enough for that.
func readLog(s raft.LogStore) error {
	first, err := s.FirstIndex()
	if err != nil {
		return err
	}
	last, err := s.LastIndex()
	if err != nil {
		return err
	}
	for i := last; i >= first && i > 0; i-- {
		var l raft.Log
		err := s.GetLog(i, &l)
		if errors.Is(err, raft.ErrLogNotFound) {
			return nil // boltdb has a gap before an installed snapshot; raft never reads beyond
		}
		if err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		if l.Index != i {
			return fmt.Errorf("entry %d: expected its own index in it, got %d", i, l.Index)
		}
	}
	return nil
}

// damaged is the error for a store that cannot be read.
func damaged(name string, err error) error {
	return fmt.Errorf("%s is damaged: %w: stop this node, move its data directory aside and start it empty; "+
		"it comes back as a new node and fetches the history from its peers", name, err)
}

func boltOptions(readOnly bool) *bbolt.Options {
	return &bbolt.Options{
		Timeout:        logStoreLockTimeout, // the default waits for ever
		NoFreelistSync: true,                // rebuilt at open: no durability trade
		FreelistType:   bbolt.FreelistMapType,
		ReadOnly:       readOnly,
	}
}

func openBoltStore(name string, noFsync bool) (logStore, error) {
	if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
		if err := createBoltStore(name); err != nil {
			return nil, fmt.Errorf("cannot create %s: %w", name, err)
		}
	}
	if err := verifyBolt(name); err != nil {
		return nil, err
	}
	var s *raftboltdb.BoltStore
	err := recovered(func() (err error) {
		o := boltOptions(false)
		o.NoGrowSync = noFsync // NoSync alone still syncs whenever the file grows
		s, err = raftboltdb.New(raftboltdb.Options{Path: name, NoSync: noFsync, BoltOptions: o})
		return err
	})
	if err != nil {
		return nil, boltError(name, err)
	}
	return s, nil
}

// createBoltStore makes an empty store under another name first, so that a
// file of no or too few bytes under the real one is always damage.
func createBoltStore(name string) error {
	tmp := name + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s, err := raftboltdb.New(raftboltdb.Options{Path: tmp, BoltOptions: boltOptions(false)})
	if err != nil {
		return err
	}
	if err := s.Close(); err != nil {
		return err
	}
	if err := os.Rename(tmp, name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

// verifyBolt reads every page of a bbolt file. It has to come before a
// read-write open: there, bbolt v1.5.0 with NoFreelistSync walks the pages in a
// goroutine of its own (DB.freepages), whose panic nobody can recover.
func verifyBolt(name string) error {
	info, err := os.Stat(name)
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", name, err)
	}
	if info.Size() == 0 {
		return damaged(name, errors.New("the file is empty, expected at least two pages"))
	}
	err = recovered(func() error {
		db, err := bbolt.Open(name, 0o600, boltOptions(true))
		if err != nil {
			return err
		}
		defer db.Close()
		return db.View(func(tx *bbolt.Tx) error {
			if tx.Size() > info.Size() {
				return fmt.Errorf("expected %d bytes, got %d: the file was truncated", tx.Size(), info.Size())
			}
			return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error { return readBucket(b) })
		})
	})
	if err != nil {
		return boltError(name, err)
	}
	return nil
}

// readBucket touches every byte, because a page that is not there only shows
// when it is read.
func readBucket(b *bbolt.Bucket) error {
	var previous []byte
	var sum byte
	err := b.ForEach(func(k, v []byte) error {
		if v == nil { // bbolt would look into it at open, in the goroutine that cannot be recovered
			return fmt.Errorf("expected an entry, got a bucket at key %.32x", k)
		}
		if previous != nil && string(previous) >= string(k) {
			return fmt.Errorf("expected ascending keys, got %.32x after %.32x", k, previous)
		}
		previous = append(previous[:0], k...)
		for _, c := range v {
			sum ^= c
		}
		return nil
	})
	runtime.KeepAlive(sum) // or the compiler may drop the reads
	return err
}

// recovered turns a panic of fn, and a fault on a page beyond the end of a
// mapped file, into an error.
func recovered(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	return fn()
}

func boltError(name string, err error) error {
	if errors.Is(err, bbolterrors.ErrTimeout) {
		return fmt.Errorf("%s is locked by another process (or by this one, opened twice), expected the lock within %s: "+
			"stop the other esperd", name, logStoreLockTimeout)
	}
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("cannot open %s: %w: give this user read and write access", name, err)
	}
	return damaged(name, err)
}
