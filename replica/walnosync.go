package replica

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft-wal/metadb"
	waltypes "github.com/hashicorp/raft-wal/types"
	"go.etcd.io/bbolt"
)

// noSyncVFS keeps the segments of a WAL without syncing them: raft-wal v0.4.2
// has no option for it.
type noSyncVFS struct{ waltypes.VFS }

func (v noSyncVFS) Create(dir, name string, size uint64) (waltypes.WritableFile, error) {
	f, err := v.VFS.Create(dir, name, size)
	return noSyncFile{f}, err
}

func (v noSyncVFS) OpenWriter(dir, name string) (waltypes.WritableFile, error) {
	f, err := v.VFS.OpenWriter(dir, name)
	return noSyncFile{f}, err
}

func (noSyncVFS) Delete(dir, name string) error { return os.Remove(filepath.Join(dir, name)) }

type noSyncFile struct{ waltypes.WritableFile }

func (noSyncFile) Sync() error { return nil }

// noSyncMeta is metadb.BoltMetaDB without syncing: the list of segments, and
// the votes. The file is the same, so that a directory can be opened by either.
type noSyncMeta struct{ db *bbolt.DB }

// Load implements waltypes.MetaStore, as the methods after it do.
func (m *noSyncMeta) Load(dir string) (state waltypes.PersistentState, err error) {
	if m.db == nil {
		var synced metadb.BoltMetaDB // makes the file where there is none
		if _, err := synced.Load(dir); err != nil {
			return state, errors.Join(err, synced.Close())
		}
		if err := synced.Close(); err != nil {
			return state, err
		}
		m.db, err = bbolt.Open(filepath.Join(dir, metadb.FileName), 0o600,
			&bbolt.Options{Timeout: logStoreLockTimeout, NoSync: true, NoGrowSync: true})
		if err != nil {
			return state, err
		}
	}
	err = m.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(metadb.MetaBucket)).Get([]byte(metadb.MetaKey))
		if b == nil {
			return nil // it is new
		}
		return json.Unmarshal(b, &state)
	})
	return state, err
}

func (m *noSyncMeta) CommitState(state waltypes.PersistentState) error {
	b, err := json.Marshal(state)
	if err != nil {
		return err
	}
	return m.put(metadb.MetaBucket, []byte(metadb.MetaKey), b)
}

func (m *noSyncMeta) SetStable(key, value []byte) error {
	return m.put(metadb.StableBucket, key, value)
}

func (m *noSyncMeta) put(bucket string, key, value []byte) error {
	return m.db.Update(func(tx *bbolt.Tx) error {
		if value == nil {
			return tx.Bucket([]byte(bucket)).Delete(key)
		}
		return tx.Bucket([]byte(bucket)).Put(key, value)
	})
}

func (m *noSyncMeta) GetStable(key []byte) (value []byte, err error) {
	err = m.db.View(func(tx *bbolt.Tx) error {
		value = bytes.Clone(tx.Bucket([]byte(metadb.StableBucket)).Get(key))
		return nil
	})
	return value, err
}

func (m *noSyncMeta) Close() error {
	if m.db == nil {
		return nil // Load failed
	}
	return m.db.Close()
}
