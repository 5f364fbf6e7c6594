package events

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// The file is a bbolt database with five buckets. Numbers are big-endian, so
// that keys are in index order; an index is 8 bytes.
//
//	format   "version" -> 8 bytes, historyVersion
//	records  index -> chain 32, lifecycle 32, bookkeeping 32, raft index 8, entry, CRC-32C 4
//	calls    round 8, call 8, model -> index 8, CRC-32C 4
//	images   index -> SHA-256 of index and image 32, image
//	gaps     last missing index -> first missing index 8, chain at the last 32, raft index 8, CRC-32C 4
//
// CRCs cover key and value: they guard what the chain does not.
var (
	bucketFormat  = []byte("format")
	bucketRecords = []byte("records")
	bucketCalls   = []byte("calls")
	bucketImages  = []byte("images")
	bucketGaps    = []byte("gaps")
	keyVersion    = []byte("version")

	buckets = [][]byte{bucketFormat, bucketRecords, bucketCalls, bucketImages, bucketGaps}
)

const (
	historyVersion uint64 = 1

	recordOverhead = 3*32 + 8 + 4
	lockTimeout    = time.Second
	// bbolt leaves half of a split page free for what is inserted later; these
	// keys only ever ascend.
	fillPercent = 0.95
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(key, value []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value)
}

func indexKey(index uint64) []byte { return binary.BigEndian.AppendUint64(nil, index) }

func callKey(id CallID) []byte {
	k := binary.BigEndian.AppendUint64(make([]byte, 0, 16+len(id.Model)), id.Round)
	return append(binary.BigEndian.AppendUint64(k, id.Call), id.Model...)
}

func imageSum(index uint64, image []byte) Digest {
	h := sha256.New()
	h.Write(indexKey(index))
	h.Write(image)
	return Digest(h.Sum(nil))
}

// A gap is a stretch of entries that came before this node did.
type gap struct {
	from, to  uint64
	chain     Digest // at to
	raftIndex uint64 // at to
}

func appendRecord(b, key []byte, r *Record) []byte {
	start := len(b)
	b = append(append(append(b, r.Chain[:]...), r.Lifecycle[:]...), r.Bookkeeping[:]...)
	b = append(binary.BigEndian.AppendUint64(b, r.RaftIndex), r.Entry...)
	return binary.BigEndian.AppendUint32(b, checksum(key, b[start:]))
}

// parseRecord reads a record; its Entry is part of b.
func parseRecord(index uint64, b []byte) (Record, error) {
	end := len(b) - 4
	if end < recordOverhead-4 {
		return Record{}, fmt.Errorf("a record of %d bytes", len(b))
	}
	var key [8]byte
	binary.BigEndian.PutUint64(key[:], index)
	if binary.BigEndian.Uint32(b[end:]) != checksum(key[:], b[:end]) {
		return Record{}, errors.New("the record is not what was written (CRC-32C)")
	}
	return Record{
		Index: index, Chain: Digest(b[:32]), Lifecycle: Digest(b[32:64]), Bookkeeping: Digest(b[64:96]),
		RaftIndex: binary.BigEndian.Uint64(b[96:]), Entry: b[104:end:end],
	}, nil
}

func (g gap) value() []byte {
	b := append(indexKey(g.from), g.chain[:]...)
	b = binary.BigEndian.AppendUint64(b, g.raftIndex)
	return binary.BigEndian.AppendUint32(b, checksum(indexKey(g.to), b))
}

func parseGap(k, v []byte) (gap, error) {
	if len(k) != 8 || len(v) != 52 || binary.BigEndian.Uint32(v[48:]) != checksum(k, v[:48]) {
		return gap{}, errors.New("the note of which entries are missing is not what was written")
	}
	return gap{binary.BigEndian.Uint64(v), binary.BigEndian.Uint64(k), Digest(v[8:40]), binary.BigEndian.Uint64(v[40:])}, nil
}

func putRecords(tx *bbolt.Tx, records []pending) error {
	bucket, calls := tx.Bucket(bucketRecords), tx.Bucket(bucketCalls)
	bucket.FillPercent, calls.FillPercent = fillPercent, fillPercent
	for i := range records {
		r := &records[i]
		key := indexKey(r.Index)
		value := appendRecord(make([]byte, 0, recordOverhead+len(r.Entry)), key, &r.Record)
		if err := bucket.Put(key, value); err != nil {
			return err
		}
		if r.call == nil {
			continue
		}
		ck := callKey(*r.call)
		if err := calls.Put(ck, binary.BigEndian.AppendUint32(indexKey(r.Index), checksum(ck, key))); err != nil {
			return err
		}
	}
	return nil
}

func putImages(tx *bbolt.Tx, images []pendingImage) error {
	bucket := tx.Bucket(bucketImages)
	for _, p := range images {
		sum := imageSum(p.index, p.image)
		if err := bucket.Put(indexKey(p.index), append(sum[:], p.image...)); err != nil {
			return err
		}
	}
	var drop [][]byte
	n := 0
	c := bucket.Cursor()
	for k, _ := c.Last(); k != nil; k, _ = c.Prev() {
		if n++; n > imagesKept {
			drop = append(drop, k)
		}
	}
	for _, k := range drop {
		if err := bucket.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

// openFile opens the database, after making it or checking its structure.
func (h *History) openFile(noSync bool) (err error) {
	info, err := os.Stat(h.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := create(h.path, noSync); err != nil {
			return fmt.Errorf("make history: %w", err)
		}
	case err != nil:
		return fmt.Errorf("open history: %w", err)
	case !info.Mode().IsRegular():
		return fmt.Errorf("open history: %s is not a file", h.path)
	}
	if err := h.checkFile(); err != nil {
		return err
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = h.corrupt(0, fmt.Sprint(p))
		}
	}()
	o := boltOptions()
	o.NoSync, o.NoGrowSync = noSync, noSync
	h.db, err = bbolt.Open(h.path, 0o600, o)
	return h.openError(err)
}

// boltOptions are those of every opening. The freelist is synced, unlike in a
// Raft log: a file that only grows has next to no free pages, and without one
// bbolt reads the whole file at open, and panics at what it finds wrong.
func boltOptions() *bbolt.Options {
	return &bbolt.Options{Timeout: lockTimeout, FreelistType: bbolt.FreelistMapType}
}

// openError words what bbolt's Open returns.
func (h *History) openError(err error) error {
	var system syscall.Errno
	switch {
	case err == nil:
		return nil
	case errors.Is(err, bolterrors.ErrTimeout):
		return fmt.Errorf("history %s is %w: another esperd runs on this data directory; stop it, or give this one its own", h.path, ErrLocked)
	case errors.As(err, &system):
		return fmt.Errorf("open history %s: %w", h.path, err)
	default: // bbolt's own: it reads only the headers there
		return h.corrupt(0, "its header is not readable: "+err.Error())
	}
}

// create makes a file with empty buckets. It appears under its name complete or
// not at all, so that one of zero bytes is known to have lost its content.
func create(path string, noSync bool) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	if err := tmp.Close(); err != nil {
		return err
	}
	o := boltOptions()
	o.NoSync, o.NoGrowSync = noSync, noSync
	db, err := bbolt.Open(tmp.Name(), 0o600, o)
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return tx.Bucket(bucketFormat).Put(keyVersion, indexKey(historyVersion))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	// Unlike Rename, Link never replaces a file that another process has made.
	if err := os.Link(tmp.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		if err := os.Rename(tmp.Name(), path); err != nil { // no hard links here
			return err
		}
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes a new name in a directory durable, where directories can be
// synced at all.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	_ = d.Sync()
	return d.Close()
}

// load reads where the file's history stands.
func (h *History) load() error {
	return h.view(func(tx *bbolt.Tx) error {
		for _, name := range buckets {
			if tx.Bucket(name) == nil {
				return h.corrupt(0, fmt.Sprintf("it has no %q", name))
			}
		}
		version := tx.Bucket(bucketFormat).Get(keyVersion)
		if len(version) != 8 {
			return h.corrupt(0, "it has no format version")
		}
		if v := binary.BigEndian.Uint64(version); v != historyVersion {
			return fmt.Errorf("history %s: %w", h.path, &VersionError{Got: v, Known: historyVersion})
		}
		c := tx.Bucket(bucketGaps).Cursor()
		for k, v := c.First(); k != nil; k, v = c.Next() {
			g, err := parseGap(k, v)
			if err != nil {
				return h.corrupt(0, err.Error())
			}
			h.gaps = append(h.gaps, g)
			h.head, h.chain, h.raftIndex = g.to, g.chain, g.raftIndex
		}
		if err := h.loadHead(tx); err != nil {
			return err
		}
		h.written, h.wchain = h.head, h.chain
		return nil
	})
}

// loadHead takes the last record for the head, unless a gap ends above it.
func (h *History) loadHead(tx *bbolt.Tx) error {
	k, v := tx.Bucket(bucketRecords).Cursor().Last()
	if k == nil {
		return nil
	}
	if len(k) != 8 {
		return h.corrupt(0, fmt.Sprintf("a key of %d bytes", len(k)))
	}
	index := binary.BigEndian.Uint64(k)
	if index < h.head {
		return nil
	}
	r, err := parseRecord(index, v)
	if err != nil {
		return h.corrupt(index, err.Error())
	}
	prev, err := h.chainAt(tx, index-1)
	if err != nil {
		return err
	}
	if Chain(prev, index, r.Entry) != r.Chain {
		return h.corrupt(index, "its bytes do not give its chain "+r.Chain.Short())
	}
	h.head, h.chain, h.raftIndex = index, r.Chain, r.RaftIndex
	return nil
}

// view runs fn in a read transaction. What bbolt does on finding the file
// damaged, panicking or touching memory that is not there, becomes an error.
func (h *History) view(fn func(*bbolt.Tx) error) error { return h.transact(false, fn) }

// update runs fn in a transaction that it commits, durably.
func (h *History) update(fn func(*bbolt.Tx) error) error {
	return h.transact(true, func(tx *bbolt.Tx) error {
		if err := fn(tx); err != nil {
			return err
		}
		if h.hook != nil {
			if err := h.hook(); err != nil {
				return err
			}
		}
		return tx.Commit()
	})
}

func (h *History) transact(writable bool, fn func(*bbolt.Tx) error) (err error) {
	if e := h.wedged.Load(); e != nil {
		return e // bbolt would wait for its locks for ever
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	released := false
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		e := &CorruptError{File: h.path, What: fmt.Sprint(p)}
		if !released {
			h.wedged.Store(e)
		}
		err = e
	}()
	tx, err := h.db.Begin(writable)
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return ErrClosed
	}
	if err != nil {
		return err
	}
	defer func() {
		_ = tx.Rollback() // after Commit it only says so
		released = true
	}()
	return fn(tx)
}

// closeFile gives up the file and its lock.
func (h *History) closeFile() error {
	if e := h.wedged.Load(); e != nil {
		return e // Close would wait for the locks too; the process has to end
	}
	return h.db.Close()
}
