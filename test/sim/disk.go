package sim

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// disk is what one host keeps of raft across crashes: log, stable store and
// snapshots, in memory. It can be slow, and it can stop the host at any write.
type disk struct {
	mu        sync.Mutex
	logs      map[uint64]*raft.Log
	low, high uint64
	stable    map[string][]byte
	snapshots []*memSnapshot
	writes    int           // of the host so far, over all crashes and disks
	crashAt   int           // the host crashes at the write of this number; 0: it does not
	after     bool          // once that write is durable, instead of before it
	again     int           // how many writes later it crashes once more; 0: it does not
	onCrash   func()        // called once, with mu held
	onWrite   func(written) // called before each, with mu held; nil: nobody looks
	delay     time.Duration
}

// written is what a write was for.
type written string

const (
	logAppended   written = "entries appended"
	logCut        written = "conflicting entries cut off"
	logTrimmed    written = "entries trimmed that a snapshot covers"
	stableSet     written = "term or vote"
	snapshotBegun written = "part of a snapshot"
	snapshotKept  written = "snapshot complete"
	historyPut    written = "history"
)

func newDisk() *disk { return &disk{logs: map[uint64]*raft.Log{}, stable: map[string][]byte{}} }

// clone is what survives a crash at this moment.
func (d *disk) clone() *disk {
	c := &disk{logs: maps.Clone(d.logs), low: d.low, high: d.high, stable: maps.Clone(d.stable), writes: d.writes, onWrite: d.onWrite}
	if d.again > 0 {
		c.crashAt = d.writes + d.again
	}
	for _, s := range d.snapshots {
		if s.done {
			c.snapshots = append(c.snapshots, s)
		}
	}
	return c
}

// write runs one write, as slowly as the disk is.
func (d *disk) write(what written, fn func()) {
	d.mu.Lock()
	delay := d.delay
	d.mu.Unlock()
	if delay > 0 {
		time.Sleep(delay)
	}
	d.atOnce(what, fn)
}

// atOnce runs one write, with the crash that may be due before or after it. The
// history writes with a mutex held, which may not be slept under: simulated time
// stands still while somebody waits for a mutex. It comes here before its file
// is written, so that a crash after it is one before the write that follows.
func (d *disk) atOnce(what written, fn func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.onWrite != nil {
		d.onWrite(what)
	}
	d.writes++
	due := d.crashAt > 0 && d.writes >= d.crashAt
	if due && d.after && what == historyPut {
		d.crashAt, d.after, due = d.writes+1, false, false
	}
	if due {
		d.crashAt = 0
	}
	if due && !d.after {
		d.onCrash()
	}
	fn()
	if due && d.after {
		d.onCrash()
	}
}

func (d *disk) ends() (low, high uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.low, d.high
}

// FirstIndex implements raft.LogStore, as the methods after it do.
func (d *disk) FirstIndex() (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.low, nil
}

func (d *disk) LastIndex() (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.high, nil
}

func (d *disk) GetLog(index uint64, out *raft.Log) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	l, ok := d.logs[index]
	if !ok {
		return raft.ErrLogNotFound
	}
	*out = *l
	return nil
}

func (d *disk) StoreLog(l *raft.Log) error { return d.StoreLogs([]*raft.Log{l}) }

// StoreLogs takes only what follows the last entry, as raft-wal does.
func (d *disk) StoreLogs(ls []*raft.Log) error {
	if _, high := d.ends(); high > 0 && len(ls) > 0 && ls[0].Index != high+1 {
		return fmt.Errorf("entry %d does not follow entry %d", ls[0].Index, high)
	}
	d.write(logAppended, func() {
		for _, l := range ls {
			kept := *l
			kept.Data = bytes.Clone(l.Data)
			d.logs[l.Index] = &kept
			if d.low == 0 || l.Index < d.low {
				d.low = l.Index
			}
			d.high = max(d.high, l.Index)
		}
	})
	return nil
}

func (d *disk) DeleteRange(from, to uint64) error {
	d.mu.Lock()
	what := logTrimmed
	if from > d.low && to >= d.high {
		what = logCut
	}
	d.mu.Unlock()
	d.write(what, func() {
		for i := from; i <= to; i++ {
			delete(d.logs, i)
		}
		switch {
		case len(d.logs) == 0:
			d.low, d.high = 0, 0
		case from <= d.low:
			d.low = to + 1
		default:
			d.high = from - 1
		}
	})
	return nil
}

// Set implements raft.StableStore, as the methods after it do.
func (d *disk) Set(key, value []byte) error {
	d.write(stableSet, func() { d.stable[string(key)] = bytes.Clone(value) })
	return nil
}

func (d *disk) Get(key []byte) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v, ok := d.stable[string(key)]
	if !ok {
		return nil, fmt.Errorf("not found")
	}
	return v, nil
}

func (d *disk) SetUint64(key []byte, v uint64) error {
	return d.Set(key, fmt.Appendf(nil, "%d", v))
}

func (d *disk) GetUint64(key []byte) (uint64, error) {
	b, err := d.Get(key)
	if err != nil {
		return 0, err
	}
	var v uint64
	_, err = fmt.Sscanf(string(b), "%d", &v)
	return v, err
}

// memSnapshot is a raft snapshot being written, then kept.
type memSnapshot struct {
	meta raft.SnapshotMeta
	bytes.Buffer
	disk *disk
	done bool
}

// Create implements raft.SnapshotStore, as the methods after it do.
func (d *disk) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration, configurationIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	return &memSnapshot{disk: d, meta: raft.SnapshotMeta{Version: version, ID: fmt.Sprintf("%d-%d", term, index), Index: index, Term: term,
		Configuration: configuration, ConfigurationIndex: configurationIndex}}, nil
}

func (d *disk) List() ([]*raft.SnapshotMeta, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []*raft.SnapshotMeta
	for i := len(d.snapshots) - 1; i >= 0 && len(out) < 2; i-- {
		meta := d.snapshots[i].meta
		out = append(out, &meta)
	}
	return out, nil
}

func (d *disk) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.snapshots {
		if s.meta.ID == id {
			meta := s.meta
			return &meta, io.NopCloser(bytes.NewReader(s.Bytes())), nil
		}
	}
	return nil, nil, fmt.Errorf("no snapshot %s", id)
}

func (s *memSnapshot) ID() string { return s.meta.ID }

// Write implements raft.SnapshotSink. What is not closed is not kept.
func (s *memSnapshot) Write(b []byte) (n int, err error) {
	s.disk.write(snapshotBegun, func() { n, err = s.Buffer.Write(b) })
	return n, err
}

func (s *memSnapshot) Cancel() error { return nil }

func (s *memSnapshot) Close() error {
	s.disk.write(snapshotKept, func() {
		s.meta.Size, s.done = int64(s.Len()), true
		s.disk.snapshots = append(s.disk.snapshots, s)
	})
	return nil
}
