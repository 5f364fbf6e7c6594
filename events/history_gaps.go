package events

import (
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/bbolt"
)

// A node that joins late, or falls behind what the leader's Raft log holds,
// starts from a snapshot: it knows the chain at an index, but not the entries
// before. Rebase notes the gap; Backfill closes it downwards from its top,
// where the chain is known. Gaps do not touch: between two of them, or at least
// at the top of each, the chain is known.

// Rebase makes index the head, with the chain, the Raft index and the image of
// the state there, and notes that the entries between the old head and it are
// missing. It is durable when it returns without an error; with one, nothing has
// changed.
//
// For an index that history has passed it only compares the chain: a difference
// is a *ConflictError.
func (h *History) Rebase(index uint64, chain Digest, raftIndex uint64, image []byte) error {
	h.restructure.Lock()
	defer h.restructure.Unlock()
	for {
		if err := h.Flush(); err != nil {
			return err
		}
		h.mu.Lock()
		if !h.closed && h.unwritten() {
			h.mu.Unlock()
			continue // appended meanwhile
		}
		err := h.rebase(index, chain, raftIndex, image)
		h.mu.Unlock()
		return err
	}
}

// rebase is Rebase with h.mu held, so that nothing is appended, and with
// everything in the file.
func (h *History) rebase(index uint64, chain Digest, raftIndex uint64, image []byte) error {
	if h.closed {
		return ErrClosed
	}
	if index <= h.head {
		var have Digest
		err := h.view(func(tx *bbolt.Tx) (err error) {
			have, err = h.chainAt(tx, index)
			return err
		})
		if err == nil && have != chain {
			err = &ConflictError{Index: index, Have: have, Got: chain}
		}
		return err
	}
	g := gap{from: h.head + 1, to: index, chain: chain, raftIndex: raftIndex}
	err := h.update(func(tx *bbolt.Tx) error {
		if err := tx.Bucket(bucketGaps).Put(indexKey(g.to), g.value()); err != nil {
			return err
		}
		return putImages(tx, []pendingImage{{index: index, image: image}})
	})
	if err != nil {
		return err
	}
	h.gaps = append(h.gaps, g)
	h.head, h.chain, h.raftIndex = index, chain, raftIndex
	h.written, h.wchain = index, chain
	return nil
}

// CompleteFrom returns the smallest index from which on everything up to the
// head is here: 1 if nothing is missing, head+1 if nothing is here.
func (h *History) CompleteFrom() uint64 {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if len(h.gaps) == 0 {
		return 1
	}
	return h.gaps[len(h.gaps)-1].to + 1
}

// Missing returns the highest gap, both ends included; ok is false if there is
// none. It is what to ask a peer for.
func (h *History) Missing() (from, to uint64, ok bool) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if len(h.gaps) == 0 {
		return 0, 0, false
	}
	g := h.gaps[len(h.gaps)-1]
	return g.from, g.to, true
}

// Backfill fills the highest gap, or its upper part. The records ascend without
// a hole and end at the gap's top; prev is the chain before the first; calls
// has one element a record, nil where it answers no call.
//
// Nothing is taken on trust: the chain is computed from prev over the bytes and
// has to arrive at the one known at the top. Else it is a *CorruptError, whose
// Index is the first record that does not fit, and nothing is changed. Durable
// when it returns without an error.
func (h *History) Backfill(prev Digest, records []Record, calls []*CallID) error {
	h.restructure.Lock()
	defer h.restructure.Unlock()
	h.mu.RLock()
	closed, gaps := h.closed, slices.Clone(h.gaps)
	h.mu.RUnlock()
	if closed {
		return ErrClosed
	}
	if len(gaps) == 0 {
		return errors.New("nothing is missing here")
	}
	top := gaps[len(gaps)-1]
	if err := h.checkFill(top, prev, records, calls); err != nil {
		return err
	}
	gaps = gaps[:len(gaps)-1]
	rest := gap{from: top.from, to: records[0].Index - 1, chain: prev}
	if rest.from <= rest.to {
		gaps = append(gaps, rest)
	}
	fill := make([]pending, len(records))
	for i, r := range records {
		fill[i] = pending{r, calls[i]}
	}
	err := h.update(func(tx *bbolt.Tx) error {
		if err := h.checkBottom(tx, rest, prev); err != nil {
			return err
		}
		if err := tx.Bucket(bucketGaps).Delete(indexKey(top.to)); err != nil {
			return err
		}
		if rest.from <= rest.to {
			if err := tx.Bucket(bucketGaps).Put(indexKey(rest.to), rest.value()); err != nil {
				return err
			}
		}
		return putRecords(tx, fill)
	})
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.gaps = gaps // Rebase, which appends to it, waits for restructure
	h.mu.Unlock()
	return nil
}

// checkFill checks that records lead from prev to what is known at the top of
// the gap.
func (h *History) checkFill(top gap, prev Digest, records []Record, calls []*CallID) error {
	if len(records) == 0 || len(calls) != len(records) {
		return fmt.Errorf("backfill of %d records with %d calls", len(records), len(calls))
	}
	first, last := records[0].Index, records[len(records)-1].Index
	if first < top.from || last != top.to {
		return fmt.Errorf("%w: backfill of entries %d to %d, where %d to %d are missing", ErrOutOfOrder, first, last, top.from, top.to)
	}
	chain := prev
	for i := range records {
		r := &records[i]
		if r.Index != first+uint64(i) {
			return fmt.Errorf("%w: backfill has entry %d after entry %d", ErrOutOfOrder, r.Index, first+uint64(i)-1)
		}
		chain = Chain(chain, r.Index, r.Entry)
		if r.Chain != chain || len(r.Entry) > MaxEntryBytes {
			return h.misfit(r.Index, "its bytes do not give its chain "+r.Chain.Short())
		}
	}
	if chain != top.chain {
		return h.misfit(last, fmt.Sprintf("its chain is %s, here it is known to be %s", chain.Short(), top.chain.Short()))
	}
	return nil
}

// checkBottom checks, where a backfill reaches down to what is here already,
// that it continues that.
func (h *History) checkBottom(tx *bbolt.Tx, rest gap, prev Digest) error {
	if rest.from <= rest.to {
		return nil
	}
	have, err := h.chainAt(tx, rest.to)
	if err == nil && have != prev {
		err = h.misfit(rest.to, fmt.Sprintf("its chain is %s, here it is %s", prev.Short(), have.Short()))
	}
	return err
}

// misfit is about what a peer sent, not about the file.
func (h *History) misfit(index uint64, what string) error {
	return &CorruptError{Index: index, What: what}
}
