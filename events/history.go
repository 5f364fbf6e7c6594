package events

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
)

// What waits in memory before it is written, whichever comes first.
const (
	defaultFlushInterval = 200 * time.Millisecond
	flushRecords         = 1024
	flushBytes           = 4 << 20 // of entries
	retryInterval        = time.Second
	imagesKept           = 3
	maxModelBytes        = 4096 // bbolt's limit for keys is 32 KiB
)

// Errors of History, beside *CorruptError, *ConflictError and *VersionError.
var (
	ErrNotFound   = errors.New("not in this node's history") // beyond the head, or in a gap
	ErrClosed     = errors.New("the history is closed")
	ErrLocked     = errors.New("locked by another process") // from OpenHistory
	ErrOutOfOrder = errors.New("out of order")              // an index that does not come next
)

// CorruptError says that a file does not hold what was written to it or, without
// a File, that entries from a peer do not fit what is known here.
type CorruptError struct {
	File  string
	Index uint64 // 0: not one entry's fault
	What  string
}

func (e *CorruptError) Error() string {
	if e.File == "" {
		return fmt.Sprintf("entry %d from a peer does not fit this node's history: %s", e.Index, e.What)
	}
	at := ""
	if e.Index > 0 {
		at = fmt.Sprintf(" at entry %d", e.Index)
	}
	return fmt.Sprintf("history %s is damaged%s: %s; stop this esperd, move the file aside and start again: the node fetches its history from its peers",
		e.File, at, e.What)
}

// ConflictError says that an entry contradicts the history: both cannot be in
// one log. Have is the link that history has or needs at Index.
type ConflictError struct {
	Index     uint64
	Have, Got Digest
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("entry %d with chain %s contradicts this node's history, where its chain is %s: the logs have parted at or before it",
		e.Index, e.Got.Short(), e.Have.Short())
}

// A Record is one entry with what is known about its place.
type Record struct {
	Index       uint64
	Chain       Digest // the link that this entry adds
	Lifecycle   Digest // of the entry's model, after it; zero where there is none
	Bookkeeping Digest // after it
	RaftIndex   uint64
	Entry       []byte // as Encode wrote it; not to be modified
}

// A CallID says which numbered call of rank 0 an entry answers.
type CallID struct {
	Round uint64
	Model string
	Call  uint64
}

// HistoryOptions configures OpenHistory; the zero value is for production.
type HistoryOptions struct {
	Logger        *slog.Logger  // nil: slog.Default()
	FlushInterval time.Duration // 0: 200 ms
	NoSync        bool          // no fsync: for simulated clusters only
	BeforeWrite   func() error  // tests: its error fails the transaction about to commit
}

// History keeps every entry of the log, in one bbolt file.
//
// Append only takes note: one goroutine writes what was appended, in synced
// transactions, at the latest FlushInterval after it. So the file lags, is
// consistent whenever the process dies, and the Raft log replays the rest;
// whoever lets Raft truncate its log has to Flush before. Reads see what was
// appended, written or not. When writing fails, everything stays in memory and
// is tried again every second.
//
// All methods are safe for concurrent use.
type History struct {
	path     string
	db       *bbolt.DB
	log      *slog.Logger
	interval time.Duration
	hook     func() error
	wedged   atomic.Pointer[CorruptError] // bbolt panicked while holding its locks

	wake chan struct{} // of one: the writer has something to consider
	stop chan struct{}
	done chan struct{} // the writer has returned

	restructure sync.Mutex // one Rebase or Backfill at a time; taken before mu

	mu        sync.RWMutex
	closed    bool // tail and images are gone
	head      uint64
	chain     Digest // at head
	raftIndex uint64 // at head
	written   uint64 // the last index in the file; tail begins after it
	wchain    Digest // at written
	tail      []pending
	tailBytes int64 // of entries in tail
	calls     map[CallID]uint64
	images    []pendingImage // in the order they were put
	imageSeq  uint64         // of the last image put
	since     time.Time      // when the oldest unwritten record or image came
	gaps      []gap          // ascending
	waiters   []waiter
	err       error     // of the last write, nil once one succeeds
	retry     time.Time // not before, while err is set
}

// pending is an appended record that is not in the file yet.
type pending struct {
	Record
	call *CallID
}

type pendingImage struct {
	index uint64
	image []byte
	seq   uint64
}

// A waiter is a Flush: it wants what had been appended when it was called.
type waiter struct {
	head, imageSeq uint64
	done           chan error // of one
}

// Lag is how far the file is behind.
type Lag struct {
	Records int
	Bytes   int64     // of entries
	Since   time.Time // when the oldest of them was appended; zero: none
}

// OpenHistory opens the file at path, mode 0600, and makes it if there is none.
// The error wraps ErrLocked if another process has it, is a *CorruptError if it
// is not what was written, a *VersionError if a newer esperd wrote it. A
// damaged file is never touched.
func OpenHistory(path string, o HistoryOptions) (*History, error) {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.FlushInterval <= 0 {
		o.FlushInterval = defaultFlushInterval
	}
	h := &History{
		path: path, log: o.Logger.With("file", path), interval: o.FlushInterval, hook: o.BeforeWrite,
		wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
		calls: make(map[CallID]uint64),
	}
	if err := h.openFile(o.NoSync); err != nil {
		return nil, err
	}
	if err := h.load(); err != nil {
		return nil, errors.Join(err, h.closeFile())
	}
	go h.writer()
	return h, nil
}

// Append takes note of the entry that follows the head; it does no I/O. call
// says which call it answers, nil if none; of several entries with one CallID
// the last is found.
//
// An entry that history has is skipped, so a log can be replayed over it. One
// that contradicts it is a *ConflictError: the caller must stop. An index that
// neither history has nor comes next wraps ErrOutOfOrder.
func (h *History) Append(r Record, call *CallID) error {
	if len(r.Entry) > MaxEntryBytes {
		return fmt.Errorf("%w: entry of %d bytes, more than %d", ErrMalformed, len(r.Entry), MaxEntryBytes)
	}
	if call != nil && len(call.Model) > maxModelBytes {
		return fmt.Errorf("%w: a model's name of %d bytes, more than %d", ErrMalformed, len(call.Model), maxModelBytes)
	}
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return ErrClosed
	}
	if r.Index <= h.head {
		h.mu.Unlock()
		return h.appendAgain(r)
	}
	defer h.mu.Unlock()
	if r.Index != h.head+1 {
		return fmt.Errorf("%w: entry %d after entry %d", ErrOutOfOrder, r.Index, h.head)
	}
	if want := Chain(h.chain, r.Index, r.Entry); want != r.Chain {
		return &ConflictError{Index: r.Index, Have: want, Got: r.Chain}
	}
	h.noteFirst()
	h.tail = append(h.tail, pending{r, call})
	h.tailBytes += int64(len(r.Entry))
	h.head, h.chain, h.raftIndex = r.Index, r.Chain, r.RaftIndex
	if call != nil {
		h.calls[*call] = r.Index
	}
	if h.full() {
		h.kick()
	}
	return nil
}

// appendAgain checks an entry whose index history has passed.
func (h *History) appendAgain(r Record) error {
	have, err := h.Read(r.Index)
	if errors.Is(err, ErrNotFound) {
		return fmt.Errorf("%w: entry %d is missing here and has to be backfilled", ErrOutOfOrder, r.Index)
	}
	if err != nil {
		return err
	}
	if have.Chain != r.Chain || !bytes.Equal(have.Entry, r.Entry) {
		return &ConflictError{Index: r.Index, Have: have.Chain, Got: r.Chain}
	}
	return nil
}

// Head returns the last entry's index, the chain there, and its Raft index; all
// zero without one.
func (h *History) Head() (index uint64, chain Digest, raftIndex uint64) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.head, h.chain, h.raftIndex
}

// PutImage takes note of an encoded state as of the entry at index, which must
// be in history; it is written no earlier than that entry. The three with the
// highest indices are kept. The image must not be modified afterwards.
func (h *History) PutImage(index uint64, image []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closed:
		return ErrClosed
	case index > h.head:
		return fmt.Errorf("%w: an image at %d after entry %d", ErrOutOfOrder, index, h.head)
	}
	h.noteFirst()
	h.imageSeq++
	h.images = append(h.images, pendingImage{index, image, h.imageSeq})
	if len(h.images) > imagesKept {
		oldest := slices.MinFunc(h.images, func(a, b pendingImage) int { return cmp.Compare(a.index, b.index) })
		h.images = slices.DeleteFunc(h.images, func(p pendingImage) bool { return p.seq == oldest.seq })
	}
	return nil
}

// Err returns why the last write failed; nil if it did not.
func (h *History) Err() error {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.err
}

// Lag returns what is not in the file yet.
func (h *History) Lag() Lag {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return Lag{Records: len(h.tail), Bytes: h.tailBytes, Since: h.since}
}

// Close writes what is left and closes the file. It closes also if writing
// fails; then the Raft log has what is missing.
func (h *History) Close() error {
	for {
		err := h.Flush()
		if errors.Is(err, ErrClosed) {
			return nil
		}
		if closed, closeErr := h.shut(err == nil); closed {
			return errors.Join(err, closeErr)
		} // else something was appended meanwhile
	}
}

// Abandon closes as a crash would: what is not written is lost.
func (h *History) Abandon() error {
	_, err := h.shut(false)
	return err
}

// shut closes; with clean, only if everything is written.
func (h *History) shut(clean bool) (closed bool, err error) {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return true, nil
	}
	if clean && h.unwritten() {
		h.mu.Unlock()
		return false, nil
	}
	h.closed = true
	h.tail, h.images = nil, nil
	h.mu.Unlock()
	close(h.stop)
	<-h.done
	h.restructure.Lock() // a Backfill may be in its transaction
	defer h.restructure.Unlock()
	return true, h.closeFile()
}
