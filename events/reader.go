package events

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"sync"

	"github.com/esperd/esperd/internal/regular"
)

// A Reader reads a history's file and nothing else: it takes no lock, writes
// nothing and follows every pointer with checks, so it reads the file of an
// esperd that runs, stands still or is dead, and one that is damaged.
//
// What makes that sound is how bbolt writes. A transaction writes to pages that
// the one before it does not use, and its header last; pages that it gives up
// are used again by the next one at the earliest. So what was read from a
// header's pages is whole if that header is still the newest afterwards. Else it
// is read again.
//
// A Reader is for one goroutine.
type Reader struct {
	path     string
	f        *os.File
	txid     uint64  // the transaction that these two are of
	pages    pager   // what was read ahead
	leaves   pageSet // leaves of one page that were met
	pageSize int64
	levels   [maxDepth + 1][]byte // a page of each level of a tree, used again
	extent   Extent
}

// readTries is how often one stretch is read anew because the file has been
// written to meanwhile. A writer commits a few times a second, a stretch takes a
// few milliseconds.
const readTries = 200

// ErrBusy says that a file is written to faster than it can be read.
var ErrBusy = errors.New("it is being written to faster than it can be read: read a copy, or ask its esperd")

// Extent is what a file says to hold.
type Extent struct {
	Head    uint64 // last index; 0: empty
	Chain   Digest // at Head
	Missing []Gap  // entries that came before this node and are not here, ascending

	// TornHeader: one of the file's two headers cannot be read, as after a crash
	// while it was written, and then the transaction of that header is lost.
	TornHeader bool
}

// A Gap is a stretch of missing entries, both ends included.
type Gap struct {
	From, To uint64
	Chain    Digest // at To
}

// OpenReader opens the file of a history. The error is the system's, a
// *CorruptError, or a *VersionError.
func OpenReader(path string) (*Reader, error) {
	f, err := regular.Open(path)
	if err != nil {
		return nil, err
	}
	r := &Reader{path: path, f: f, pages: pager{f: f}}
	info, err := f.Stat()
	switch {
	case err != nil:
	case info.Size() == 0:
		err = r.corrupt(0, "it is empty, and no history ever is")
	default:
		err = r.Refresh()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return r, nil
}

// Close closes the file.
func (r *Reader) Close() error { return r.f.Close() }

// Extent returns what the file held when it was opened or last refreshed.
func (r *Reader) Extent() Extent { return r.extent }

func (r *Reader) corrupt(index uint64, what string) error {
	return &CorruptError{File: r.path, Index: index, What: what}
}

// Refresh looks what the file holds now.
func (r *Reader) Refresh() error {
	return r.stable(func(s *snap) error {
		for _, name := range buckets {
			if _, ok := s.buckets[string(name)]; !ok {
				return r.corrupt(0, fmt.Sprintf("it has no %q", name))
			}
		}
		x := Extent{TornHeader: s.torn}
		version := uint64(0)
		err := s.walk(bucketFormat, nil, func(k, v []byte) (bool, error) {
			if string(k) != string(keyVersion) || len(v) != 8 || version != 0 {
				return false, errors.New("the format version is not what was written")
			}
			version = binary.BigEndian.Uint64(v)
			return true, nil
		})
		switch {
		case err != nil:
			return r.corrupt(0, err.Error())
		case version > historyVersion:
			return fmt.Errorf("history %s: %w", r.path, &VersionError{Got: version, Known: historyVersion})
		case version != historyVersion:
			return r.corrupt(0, "it has no format version")
		}
		err = s.walk(bucketGaps, nil, func(k, v []byte) (bool, error) {
			g, err := parseGap(k, v)
			if err != nil {
				return false, err
			}
			x.Missing = append(x.Missing, Gap{g.from, g.to, g.chain})
			x.Head, x.Chain = g.to, g.chain
			return true, nil
		})
		if err != nil {
			return r.corrupt(0, err.Error())
		}
		if err := s.last(&x); err != nil {
			return r.corrupt(0, err.Error())
		}
		r.extent = x
		return nil
	})
}

// last takes the last record for the head, unless a gap ends above it. A record
// that is not what was written is found when it is read.
func (s *snap) last(x *Extent) error {
	key, value, err := s.lastOf(bucketRecords)
	if err != nil || key == nil {
		return err
	}
	if len(key) != 8 {
		return fmt.Errorf("a key of %d bytes", len(key))
	}
	if index := binary.BigEndian.Uint64(key); index >= x.Head {
		x.Head = index
		if len(value) >= 32 {
			x.Chain = Digest(value[:32])
		}
	}
	return nil
}

// A Batch is a few records in a row. Release lets their memory be used again.
type Batch struct {
	Records []Record
	slab    []byte
}

const (
	batchRecords = 256
	batchBytes   = 128 << 10
)

var batches = sync.Pool{New: func() any { return new(Batch) }}

// Release ends the use of the batch and of its records' entries.
func (b *Batch) Release() {
	if cap(b.slab) > 2*batchBytes {
		return // an unusually long entry
	}
	b.Records, b.slab = b.Records[:0], b.slab[:0]
	batches.Put(b)
}

// Records calls fn with the records from..to, in order and without a hole, each
// with its checksum verified but not its chain. fn releases the batches. An
// error of fn ends it and is returned as it is; else it is a *CorruptError with
// the index of the first record that cannot be read, or wraps ErrNotFound where
// a gap is, or ErrBusy.
func (r *Reader) Records(from, to uint64, fn func(*Batch) error) error {
	for next := max(from, 1); next <= to; {
		b := batches.Get().(*Batch)
		damage := r.fill(b, next, to)
		if len(b.Records) > 0 { // what could be read comes first
			next += uint64(len(b.Records))
			if err := fn(b); err != nil {
				return err
			}
		}
		if damage != nil {
			return damage
		}
	}
	return nil
}

// fill reads records from next on, and returns why it ended if that is damage.
func (r *Reader) fill(b *Batch, next, to uint64) error {
	return r.stable(func(s *snap) error {
		b.Records, b.slab = b.Records[:0], b.slab[:0]
		index := next
		var bad error
		err := s.walk(bucketRecords, indexKey(next), func(k, v []byte) (bool, error) {
			if len(k) != 8 || binary.BigEndian.Uint64(k) != index {
				bad = r.gone(index)
				return false, nil
			}
			if len(v) > MaxEntryBytes+recordOverhead {
				bad = r.corrupt(index, fmt.Sprintf("a record of %d bytes", len(v)))
				return false, nil
			}
			// Growing would move what Records point to, so a batch ends instead.
			if len(b.slab) > 0 && len(b.slab)+len(v) > cap(b.slab) {
				return false, nil
			}
			if cap(b.slab) == 0 || len(v) > cap(b.slab) {
				b.slab = make([]byte, 0, max(batchBytes, len(v)))
			}
			at := len(b.slab)
			b.slab = append(b.slab, v...)
			rec, err := parseRecord(index, b.slab[at:])
			if err != nil {
				bad = r.corrupt(index, err.Error())
				return false, nil
			}
			b.Records = append(b.Records, rec)
			index++
			return index <= to && len(b.Records) < batchRecords, nil
		})
		if err != nil {
			return r.corrupt(index, err.Error())
		}
		if bad == nil && len(b.Records) == 0 {
			bad = r.gone(index)
		}
		return bad
	})
}

func (r *Reader) gone(index uint64) error {
	for _, g := range r.extent.Missing {
		if g.From <= index && index <= g.To {
			return fmt.Errorf("entry %d: %w: entries %d to %d came before this node and are not here", index, ErrNotFound, g.From, g.To)
		}
	}
	return r.corrupt(index, "the record is gone")
}

// Read returns the record at index, with its checksum verified but not its
// chain. Errors as of Records.
func (r *Reader) Read(index uint64) (Record, error) {
	var out Record
	err := r.Records(index, index, func(b *Batch) error {
		out = b.Records[0] // not released: the caller keeps it
		return nil
	})
	return out, err
}

// Calls calls fn with the index of numbered calls, in the order of round, number
// and model, as the file had them at one moment. An error of fn ends it.
func (r *Reader) Calls(fn func(id CallID, index uint64) error) error {
	type call struct {
		id    CallID
		index uint64
	}
	next, calls, model := []byte{}, make([]call, 0, 16*batchRecords), ""
	for more := true; more; {
		err := r.stable(func(s *snap) error {
			calls, more = calls[:0], false
			err := s.walk(bucketCalls, next, func(k, v []byte) (bool, error) {
				if len(calls) == cap(calls) {
					next, more = bytes.Clone(k), true
					return false, nil
				}
				if len(k) < 16 || len(v) != 12 || binary.BigEndian.Uint32(v[8:]) != checksum(k, v[:8]) {
					return false, fmt.Errorf("the index of calls is not what was written, at key %x", k)
				}
				if string(k[16:]) != model {
					model = string(k[16:])
				}
				id := CallID{Round: binary.BigEndian.Uint64(k), Call: binary.BigEndian.Uint64(k[8:]), Model: model}
				calls = append(calls, call{id, binary.BigEndian.Uint64(v)})
				return true, nil
			})
			if err != nil {
				return r.corrupt(0, "the index of calls: "+err.Error())
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, c := range calls {
			if err := fn(c.id, c.index); err != nil {
				return err
			}
		}
	}
	return nil
}

// Find returns the index that the file has for a numbered call.
func (r *Reader) Find(id CallID) (index uint64, ok bool, err error) {
	want := callKey(id)
	err = r.stable(func(s *snap) error {
		index, ok = 0, false
		return s.walk(bucketCalls, want, func(k, v []byte) (bool, error) {
			if bytes.Equal(k, want) && len(v) == 12 {
				index, ok = binary.BigEndian.Uint64(v), true
			}
			return false, nil
		})
	})
	return index, ok, err
}

// An Image is a kept state image; Err says that it is not what was written.
type Image struct {
	Index uint64
	Bytes []byte
	Err   error
}

// Images returns the kept state images, ascending.
func (r *Reader) Images() ([]Image, error) {
	var out []Image
	err := r.stable(func(s *snap) error {
		out = out[:0]
		err := s.walk(bucketImages, nil, func(k, v []byte) (bool, error) {
			if len(k) != 8 || len(out) > 4*imagesKept {
				return false, errors.New("the state images are not what was written")
			}
			img := Image{Index: binary.BigEndian.Uint64(k)}
			if len(v) < sha256.Size || imageSum(img.Index, v[sha256.Size:]) != Digest(v[:sha256.Size]) {
				img.Err = r.corrupt(img.Index, "the state image is not what was written")
			} else {
				img.Bytes = bytes.Clone(v[sha256.Size:])
			}
			out = append(out, img)
			return true, nil
		})
		if err != nil {
			return r.corrupt(0, err.Error())
		}
		return nil
	})
	return out, err
}

// Check checks the structure of the whole file but for the content of records,
// which Records reads: every page is used once or free. It is a *CorruptError,
// or ErrBusy if the file is written to faster than this can look.
func (r *Reader) Check() error {
	return r.stable(func(s *snap) error {
		info, err := r.f.Stat()
		if err != nil {
			return err
		}
		c := checker{f: &r.pages, size: info.Size(), pageSize: r.pageSize, whole: true, leaves: r.leaves}
		if _, err := c.check(); err != nil {
			return r.corrupt(0, err.Error())
		}
		return nil
	})
}

// stable runs fn on the newest transaction, again as long as another one ends
// meanwhile.
func (r *Reader) stable(fn func(*snap) error) error {
	for range readTries {
		m, err := r.newest()
		if err != nil || m.txid != r.txid {
			r.pages.forget()
			r.leaves = r.leaves[:0]
			r.txid = m.txid
		}
		if err == nil {
			s := &snap{r: r, meta: m}
			if err = s.open(); err == nil {
				err = fn(s)
			} else {
				err = r.corrupt(0, err.Error())
			}
		}
		after, again := r.newest()
		if again != nil && err != nil || again == nil && after.txid == m.txid {
			return err
		}
	}
	return fmt.Errorf("history %s: %w", r.path, ErrBusy)
}

// meta is the content of a valid header.
type meta struct {
	txid, root, freelist, high uint64
	torn                       bool // the other header is not valid
}

// newest reads both headers.
func (r *Reader) newest() (meta, error) {
	if r.pageSize == 0 && !r.findPageSize() {
		return meta{}, r.corrupt(0, "neither of its two headers is valid")
	}
	var out meta
	found := 0
	for i := range int64(2) {
		if m, size, ok := r.header(i * r.pageSize); ok && size == r.pageSize {
			if found++; found == 1 || m.txid > out.txid {
				out = m
			}
		}
	}
	if found == 0 {
		return meta{}, r.corrupt(0, "neither of its two headers is valid")
	}
	out.torn = found < 2
	return out, nil
}

func (r *Reader) header(at int64) (m meta, pageSize int64, ok bool) {
	var b [pageHeader + metaBytes]byte
	if _, err := r.f.ReadAt(b[:], at); err != nil {
		return m, 0, false
	}
	f := b[pageHeader:]
	sum := fnv.New64a()
	sum.Write(f[:56])
	if native.Uint32(f) != boltMagic || native.Uint32(f[4:]) != boltVersion || native.Uint64(f[56:]) != sum.Sum64() {
		return m, 0, false
	}
	m = meta{txid: native.Uint64(f[48:]), root: native.Uint64(f[16:]), freelist: native.Uint64(f[32:]), high: native.Uint64(f[40:])}
	return m, int64(native.Uint32(f[8:])), true
}

// findPageSize asks the first header, or the second one where it would be.
func (r *Reader) findPageSize() bool {
	if _, size, ok := r.header(0); ok && size >= 512 {
		r.pageSize = size
		return true
	}
	for size := int64(512); size <= 1<<16; size *= 2 {
		if _, stated, ok := r.header(size); ok && stated == size {
			r.pageSize = size
			return true
		}
	}
	return false
}
