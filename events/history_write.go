package events

import (
	"slices"
	"time"

	"go.etcd.io/bbolt"
)

// maxBatchBytes bounds the entries of one transaction, which bbolt holds in
// memory until it commits.
const maxBatchBytes = 16 << 20

// Flush returns once everything appended before is in the file, and synced. Its
// error is that of the first attempt to write since; nothing is lost then, and
// the writer goes on trying.
func (h *History) Flush() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return ErrClosed
	}
	if !h.unwritten() {
		h.mu.Unlock()
		return nil
	}
	w := waiter{h.head, h.imageSeq, make(chan error, 1)}
	h.waiters = append(h.waiters, w)
	h.kick()
	h.mu.Unlock()
	return <-w.done
}

// kick makes the writer look again at what there is to do.
func (h *History) kick() {
	select {
	case h.wake <- struct{}{}:
	default: // it has yet to look since the last kick
	}
}

// noteFirst starts the clock for what is about to be added. h.mu is held.
func (h *History) noteFirst() {
	if !h.unwritten() {
		h.since = time.Now()
		h.kick()
	}
}

func (h *History) unwritten() bool { return len(h.tail) > 0 || len(h.images) > 0 }

func (h *History) full() bool { return len(h.tail) >= flushRecords || h.tailBytes >= flushBytes }

// writer is the goroutine that writes; there is no other path for entries into
// the file, except Backfill's.
func (h *History) writer() {
	defer close(h.done)
	defer h.answerAll(ErrClosed)
	timer := time.NewTimer(h.interval)
	defer timer.Stop()
	for {
		wait, idle := h.due()
		if !idle && wait <= 0 {
			h.writeOnce()
			continue
		}
		var expired <-chan time.Time
		if !idle {
			timer.Reset(wait)
			expired = timer.C
		}
		select {
		case <-h.stop:
			return
		case <-h.wake:
		case <-expired:
		}
	}
}

// due returns how long writing can wait; idle: there is nothing to write.
func (h *History) due() (wait time.Duration, idle bool) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	switch {
	case h.closed || !h.unwritten():
		return 0, true
	case len(h.waiters) > 0:
		return 0, false
	case h.err != nil:
		return time.Until(h.retry), false
	case h.full():
		return 0, false
	default:
		return time.Until(h.since.Add(h.interval)), false
	}
}

// writeOnce writes the oldest part of what waits, in one transaction.
func (h *History) writeOnce() {
	taken := time.Now()
	records, images, all := h.batch()
	err := h.update(func(tx *bbolt.Tx) error {
		if err := putRecords(tx, records); err != nil {
			return err
		}
		return putImages(tx, images)
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return // abandoned meanwhile
	}
	if err != nil {
		h.failed(err)
		return
	}
	h.trim(records, images)
	switch {
	case !h.unwritten():
		h.since = time.Time{}
	case all: // the rest came while the others were written
		h.since = taken
	}
	if h.err != nil {
		h.log.Info("the history is being written again", "waiting", len(h.tail))
		h.err = nil
	}
	h.waiters = slices.DeleteFunc(h.waiters, func(w waiter) bool {
		satisfied := h.written >= w.head && (len(h.images) == 0 || h.images[0].seq > w.imageSeq)
		if satisfied {
			w.done <- nil
		}
		return satisfied
	})
}

// batch returns what the next transaction is to hold, and whether that is all.
// The slices stay as they are: the tail only grows while they are written.
func (h *History) batch() (records []pending, images []pendingImage, all bool) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	n, size := 0, 0
	for n < len(h.tail) && (n == 0 || size+len(h.tail[n].Entry) <= maxBatchBytes) {
		size += len(h.tail[n].Entry)
		n++
	}
	end := h.written + uint64(n)
	images = slices.DeleteFunc(slices.Clone(h.images), func(p pendingImage) bool { return p.index > end })
	return h.tail[:n:n], images, n == len(h.tail)
}

// trim forgets what is in the file now. h.mu is held.
func (h *History) trim(records []pending, images []pendingImage) {
	for _, r := range records {
		h.tailBytes -= int64(len(r.Entry))
		if r.call != nil && h.calls[*r.call] == r.Index {
			delete(h.calls, *r.call)
		}
	}
	if n := len(records); n > 0 {
		h.written, h.wchain = records[n-1].Index, records[n-1].Chain
		h.tail = append([]pending(nil), h.tail[n:]...) // lets go of the entries
	}
	h.images = slices.DeleteFunc(h.images, func(p pendingImage) bool {
		return slices.ContainsFunc(images, func(w pendingImage) bool { return w.seq == p.seq })
	})
}

// failed keeps everything, for the next attempt. h.mu is held.
func (h *History) failed(err error) {
	if h.err == nil { // once, not every second
		h.log.Error("the history cannot be written: it stays in memory and is tried again every second",
			"err", err, "records", len(h.tail), "bytes", h.tailBytes)
	}
	h.err = err
	h.retry = time.Now().Add(retryInterval)
	h.answer(err)
}

func (h *History) answer(err error) {
	for _, w := range h.waiters {
		w.done <- err
	}
	h.waiters = nil
}

func (h *History) answerAll(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answer(err)
}
