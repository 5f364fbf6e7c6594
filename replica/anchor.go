package replica

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/hashicorp/raft"
)

// anchor makes raft v1.7.3 accept the entry at its newest snapshot as the one
// before the next. Raft looks it up in the log alone: where a snapshot came
// from the leader it is not there, or an older, conflicting one is, and then the
// follower refuses what follows for ever and is sent the same snapshot again and
// again (hashicorp/raft issues 205 and 697; found here by test/sim). So the log
// store answers for that one index with the snapshot's term.
//
// It also keeps the log without gaps, which neither store is asked to bear, and
// is not raft.MonotonicLogStore: from one that is, raft would remove, whenever a
// snapshot comes from the leader, also the entries after that snapshot, which
// this node has acknowledged.
type anchor struct {
	raft.LogStore
	log  *slog.Logger
	done <-chan struct{} // the node stops

	mu          sync.Mutex
	index, term uint64
	failed      error // of the last write to the log; nil: it worked
	cut         bool  // entries were removed for others that are not here yet
}

// StoreLog implements raft.LogStore.
func (a *anchor) StoreLog(l *raft.Log) error { return a.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore. After a cut it waits until it can write:
// raft v1.7.3 goes on with the last index from before the cut if this fails. It
// would stand for election with it, refuse the leader's entries for ever, and as
// a leader leave a gap.
func (a *anchor) StoreLogs(ls []*raft.Log) error {
	if err := a.closeGap(ls); err != nil {
		return a.note(err)
	}
	write := func() error { return a.note(a.LogStore.StoreLogs(ls)) }
	a.mu.Lock()
	cut := a.cut
	a.mu.Unlock()
	if !cut {
		return write()
	}
	err := patiently(a.log, a.done, afterCut, write)
	a.mu.Lock()
	a.cut = err != nil
	a.mu.Unlock()
	return err
}

const afterCut = "raft's log cannot be written, where the leader's differs from it"

// DeleteRange implements raft.LogStore. Entries that conflict with the leader's
// are cut off, and that it waits for too: where it failed, the wal may have them
// until it is opened anew, and raft would acknowledge them to the next leader.
func (a *anchor) DeleteRange(from, to uint64) error {
	last, err := a.LogStore.LastIndex()
	if err != nil {
		return err
	}
	remove := func() error { return a.LogStore.DeleteRange(from, to) }
	a.mu.Lock()
	cut := last > a.index && from <= last && to >= last
	a.cut = a.cut || cut
	a.mu.Unlock()
	if !cut {
		return remove() // what a snapshot covers
	}
	return patiently(a.log, a.done, afterCut, func() error { return a.note(remove()) })
}

// closeGap removes a log that ends short of the newest snapshot before what
// follows that snapshot is written. Raft leaves it where a snapshot came from
// the leader, or a crash came between. The snapshot is durable, and has all that
// is removed.
func (a *anchor) closeGap(ls []*raft.Log) error {
	last, err := a.LogStore.LastIndex()
	if err != nil || len(ls) == 0 || ls[0].Index <= last+1 {
		return err
	}
	a.mu.Lock()
	snapshot := a.index
	a.mu.Unlock()
	if last > snapshot || ls[0].Index > snapshot+1 {
		return fmt.Errorf("entry %d does not follow the log, which ends at %d, with its newest snapshot at %d", ls[0].Index, last, snapshot)
	}
	return a.dropCovered()
}

// note remembers whether the log can be written: raft only logs it.
func (a *anchor) note(err error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failed = err
	return err
}

func (a *anchor) trouble() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.failed != nil {
		return fmt.Errorf("raft's log cannot be written (%w): this node acknowledges nothing until it can", a.failed)
	}
	return nil
}

// logCacheEntries are kept in memory: raft reads every entry back from its store
// for each follower, and once more to apply it.
const logCacheEntries = 512

// newAnchor wraps both stores: the anchor and the returned snapshots are what
// raft is given.
func newAnchor(stores *Stores, log *slog.Logger, done <-chan struct{}) (*anchor, raft.SnapshotStore, error) {
	cached, err := raft.NewLogCache(logCacheEntries, stores.Log)
	if err != nil {
		return nil, nil, err
	}
	a := &anchor{LogStore: cached, log: log, done: done}
	list, err := stores.Snapshots.List()
	if err != nil {
		return nil, nil, fmt.Errorf("listing raft snapshots: %w", err)
	}
	if len(list) > 0 {
		a.index, a.term = list[0].Index, list[0].Term
	}
	return a, anchoredSnapshots{stores.Snapshots, a}, nil
}

// dropCovered removes the entries up to the newest snapshot from the log, after
// that snapshot came from the leader: what is left of them ends short of it, and
// a follower that asked for the rest would be given the stand-in for an entry.
func (a *anchor) dropCovered() error {
	first, err := a.FirstIndex()
	if err != nil {
		return err
	}
	last, err := a.LastIndex()
	if err != nil {
		return err
	}
	a.mu.Lock()
	to := min(a.index, last)
	a.mu.Unlock()
	if first == 0 || first > to {
		return nil
	}
	return a.DeleteRange(first, to)
}

// GetLog implements raft.LogStore.
func (a *anchor) GetLog(index uint64, out *raft.Log) error {
	err := a.LogStore.GetLog(index, out)
	a.mu.Lock()
	at, term := a.index, a.term
	a.mu.Unlock()
	if index != at || term == 0 || err == nil && out.Term == term || err != nil && !errors.Is(err, raft.ErrLogNotFound) {
		return err
	}
	*out = raft.Log{Index: at, Term: term, Type: raft.LogNoop}
	return nil
}

type anchoredSnapshots struct {
	raft.SnapshotStore
	anchor *anchor
}

// Create implements raft.SnapshotStore.
func (s anchoredSnapshots) Create(version raft.SnapshotVersion, index, term uint64, c raft.Configuration, ci uint64, t raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.SnapshotStore.Create(version, index, term, c, ci, t)
	if err != nil {
		return nil, err
	}
	return &anchoringSink{sink, s.anchor, index, term}, nil
}

// anchoringSink moves the anchor once the snapshot is complete.
type anchoringSink struct {
	raft.SnapshotSink
	anchor      *anchor
	index, term uint64
}

func (s *anchoringSink) Close() error {
	if err := s.SnapshotSink.Close(); err != nil {
		return err
	}
	s.anchor.mu.Lock()
	defer s.anchor.mu.Unlock()
	if s.index >= s.anchor.index {
		s.anchor.index, s.anchor.term = s.index, s.term
	}
	return nil
}
