package events

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"

	"go.etcd.io/bbolt"
)

// One read transaction of Range: short, because bbolt cannot reuse pages that
// an open one may see, nor grow its map under it.
const (
	rangeRecords = 256
	rangeBytes   = 1 << 20
)

// Read returns the entry at index, after checking it against the chain there
// and before. The error wraps ErrNotFound, or is a *CorruptError.
func (h *History) Read(index uint64) (Record, error) {
	var out Record
	found := false
	err := h.Range(index, index, func(r Record) error {
		out, found = r, true
		return nil
	})
	if err == nil && !found {
		err = fmt.Errorf("entry %d: %w", index, ErrNotFound)
	}
	return out, err
}

// Range calls fn for the entries from..to in order, each checked against the
// chain; to is cut at the head as it is when Range is called. An error of fn
// ends it and is returned as it is. The error wraps ErrNotFound at the first
// entry that is missing, and is a *CorruptError at the first that is damaged.
// A record's Entry may be kept; it is not to be modified.
func (h *History) Range(from, to uint64, fn func(Record) error) error {
	if from == 0 {
		return fmt.Errorf("entry 0: %w: the first is 1", ErrNotFound)
	}
	h.mu.RLock()
	to, closed := min(to, h.head), h.closed
	h.mu.RUnlock()
	if closed {
		return ErrClosed
	}
	s := scan{h: h, next: from}
	for s.next <= to {
		if err := s.fill(to); err != nil {
			return err
		}
		for i := range s.records {
			r := &s.records[i]
			if want := Chain(s.prev, r.Index, r.Entry); want != r.Chain {
				return h.corrupt(r.Index, "its bytes do not give its chain "+r.Chain.Short())
			}
			s.prev = r.Chain
			if err := fn(*r); err != nil {
				return err
			}
		}
		s.next += uint64(len(s.records))
	}
	return nil
}

// A scan is where a Range is.
type scan struct {
	h       *History
	next    uint64
	prev    Digest // the chain before next, once one batch was read
	started bool
	records []Record
	values  [][]byte
}

// fill reads the next few records, at least one.
func (s *scan) fill(to uint64) error {
	s.records = s.records[:0]
	if s.fillTail(to) {
		return nil
	}
	return s.h.view(func(tx *bbolt.Tx) error { return s.fillFile(tx, to) })
}

// fillTail takes records that are not in the file.
func (s *scan) fillTail(to uint64) bool {
	s.h.mu.RLock()
	defer s.h.mu.RUnlock()
	first := s.h.written + 1
	if s.next < first || len(s.h.tail) == 0 {
		return false
	}
	at := s.next - first
	end := min(to+1-first, uint64(len(s.h.tail)), at+rangeRecords)
	if !s.started {
		s.started, s.prev = true, s.h.wchain
		if at > 0 {
			s.prev = s.h.tail[at-1].Chain
		}
	}
	for i := at; i < end; i++ {
		s.records = append(s.records, s.h.tail[i].Record)
	}
	return true
}

// fillFile reads records from the file and copies them into one allocation.
func (s *scan) fillFile(tx *bbolt.Tx, to uint64) error {
	if !s.started {
		prev, err := s.h.chainAt(tx, s.next-1)
		if err != nil {
			return err
		}
		s.started, s.prev = true, prev
	}
	s.values = s.values[:0]
	size := 0
	var want [8]byte
	c := tx.Bucket(bucketRecords).Cursor()
	binary.BigEndian.PutUint64(want[:], s.next)
	for k, v := c.Seek(want[:]); k != nil && string(k) == string(want[:]); k, v = c.Next() {
		if len(v) > MaxEntryBytes+recordOverhead {
			return s.h.corrupt(s.next, fmt.Sprintf("a record of %d bytes", len(v)))
		}
		s.values = append(s.values, v)
		size += len(v)
		index := s.next + uint64(len(s.values)) - 1
		if index == to || len(s.values) == rangeRecords || size >= rangeBytes {
			break
		}
		binary.BigEndian.PutUint64(want[:], index+1)
	}
	if len(s.values) == 0 {
		return s.h.missing(tx, s.next)
	}
	slab := make([]byte, 0, size)
	for i, v := range s.values {
		slab = append(slab, v...)
		r, err := parseRecord(s.next+uint64(i), slab[len(slab)-len(v):])
		if err != nil {
			return s.h.corrupt(s.next+uint64(i), err.Error())
		}
		s.records = append(s.records, r)
	}
	return nil
}

// chainAt returns the chain at an index whose entry may be missing.
func (h *History) chainAt(tx *bbolt.Tx, index uint64) (Digest, error) {
	if index == 0 {
		return Digest{}, nil
	}
	key := indexKey(index)
	if v := tx.Bucket(bucketRecords).Get(key); v != nil {
		r, err := parseRecord(index, v)
		if err != nil {
			return Digest{}, h.corrupt(index, err.Error())
		}
		return r.Chain, nil
	}
	if v := tx.Bucket(bucketGaps).Get(key); v != nil {
		g, err := parseGap(key, v)
		if err != nil {
			return Digest{}, h.corrupt(index, err.Error())
		}
		return g.chain, nil
	}
	return Digest{}, h.missing(tx, index+1) // whoever asks for entry index+1 cannot have it
}

// ChainAt returns the link of the entry at index, also where that is the last
// one of a gap. The error wraps ErrNotFound, or is a *CorruptError.
func (h *History) ChainAt(index uint64) (Digest, error) {
	h.mu.RLock()
	if at := index - h.written - 1; index > h.written && at < uint64(len(h.tail)) {
		defer h.mu.RUnlock()
		return h.tail[at].Chain, nil
	}
	h.mu.RUnlock()
	var out Digest
	err := h.view(func(tx *bbolt.Tx) (err error) {
		out, err = h.chainAt(tx, index)
		return err
	})
	return out, err
}

// missing says why there is no record at index: it is in a gap, or lost.
func (h *History) missing(tx *bbolt.Tx, index uint64) error {
	k, v := tx.Bucket(bucketGaps).Cursor().Seek(indexKey(index))
	if k != nil {
		g, err := parseGap(k, v)
		if err != nil {
			return h.corrupt(index, err.Error())
		}
		if g.from <= index {
			return fmt.Errorf("entry %d: %w: entries %d to %d came before this node and are not here yet", index, ErrNotFound, g.from, g.to)
		}
	}
	return h.corrupt(index, "the record is gone")
}

func (h *History) corrupt(index uint64, what string) error {
	return &CorruptError{File: h.path, Index: index, What: what}
}

// Find returns the entry that answers a numbered call.
func (h *History) Find(id CallID) (index uint64, ok bool, err error) {
	h.mu.RLock()
	index, ok = h.calls[id]
	h.mu.RUnlock()
	if ok {
		return index, true, nil
	}
	err = h.view(func(tx *bbolt.Tx) error {
		key := callKey(id)
		v := tx.Bucket(bucketCalls).Get(key)
		if v == nil {
			return nil
		}
		if len(v) != 12 || binary.BigEndian.Uint32(v[8:]) != checksum(key, v[:8]) {
			return h.corrupt(0, fmt.Sprintf("the index of calls, at %+v", id))
		}
		index, ok = binary.BigEndian.Uint64(v), true
		return nil
	})
	return index, ok, err
}

// LatestImage returns the kept image with the highest index that is not above
// atMost. One that is damaged is a *CorruptError with its index, so that the
// caller can ask for the one before.
func (h *History) LatestImage(atMost uint64) (index uint64, image []byte, ok bool, err error) {
	// Memory first: what leaves it in between is in the file then.
	h.mu.RLock()
	for _, p := range h.images {
		if p.index <= atMost && (!ok || p.index >= index) {
			index, image, ok = p.index, p.image, true
		}
	}
	h.mu.RUnlock()
	err = h.view(func(tx *bbolt.Tx) error {
		k, v := seekAtMost(tx.Bucket(bucketImages).Cursor(), atMost)
		if k == nil || ok && binary.BigEndian.Uint64(k) <= index {
			return nil
		}
		index, ok = binary.BigEndian.Uint64(k), true
		if len(v) < sha256.Size || imageSum(index, v[sha256.Size:]) != Digest(v[:sha256.Size]) {
			return h.corrupt(index, "the state image is not what was written")
		}
		image = slices.Clone(v[sha256.Size:])
		return nil
	})
	if err != nil {
		return 0, nil, false, err
	}
	return index, image, ok, nil
}

// seekAtMost returns the entry with the highest key not above index.
func seekAtMost(c *bbolt.Cursor, index uint64) (k, v []byte) {
	key := indexKey(index)
	k, v = c.Seek(key)
	switch {
	case k == nil:
		return c.Last()
	case string(k) == string(key):
		return k, v
	default:
		return c.Prev()
	}
}
