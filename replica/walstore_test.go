package replica

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/hashicorp/raft"
	walfs "github.com/hashicorp/raft-wal/fs"
	waltypes "github.com/hashicorp/raft-wal/types"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// smallSegment makes the wal begin a new file every few entries.
const smallSegment = 2000

func openSmall(t require.TestingT, kind, dir string) (raft.LogStore, raft.StableStore, io.Closer) {
	if kind == logStoreBolt {
		logs, stable, closer, err := openLogStore(kind, dir, true)
		require.NoError(t, err)
		return logs, stable, closer
	}
	s, err := openWALStore(filepath.Join(dir, logStoreFiles[kind]), true, smallSegment)
	require.NoError(t, err)
	require.NoError(t, recovered(func() error { return readLog(s) }))
	return s, s, s
}

// modelLog is a log without gaps, as raft wants it kept.
type modelLog struct {
	first   uint64
	entries []*raft.Log
	number  byte // of the next entry made
}

// rotated waits for the next segment, which the wal makes behind its caller's back.
func rotated(t require.TestingT, logs raft.LogStore) {
	if s, ok := logs.(*walStore); ok {
		require.NoError(t, s.log.DeleteRange(math.MaxUint64, math.MaxUint64))
	}
}

func (m *modelLog) last() uint64 { return m.first + uint64(len(m.entries)) - 1 }

func (m *modelLog) bounds() (first, last uint64) {
	if len(m.entries) == 0 {
		return 0, 0
	}
	return m.first, m.last()
}

// make returns n entries from index on, each unlike all before.
func (m *modelLog) make(rt *rapid.T, index uint64) []*raft.Log {
	var out []*raft.Log
	for i := range uint64(rapid.IntRange(1, 6).Draw(rt, "entries")) {
		m.number++
		out = append(out, &raft.Log{Index: index + i, Term: uint64(m.number), Data: append([]byte{m.number}, make([]byte, rapid.SampledFrom([]int{0, 7, 300, 1500}).Draw(rt, "size"))...)})
	}
	return out
}

func (m *modelLog) append(ls []*raft.Log) {
	if len(m.entries) == 0 {
		m.first = ls[0].Index
	}
	m.entries = append(m.entries[:len(m.entries):len(m.entries)], ls...)
}

func (m *modelLog) remove(from, to uint64) {
	first, last := m.bounds()
	from, to = max(from, first), min(to, last)
	switch {
	case first == 0 || from > to:
	case from == first:
		m.first, m.entries = to+1, m.entries[to-first+1:]
	default:
		m.entries = m.entries[:from-first]
	}
}

// requireSame compares a store with the model, entry for entry and beyond.
func (m *modelLog) requireSame(t require.TestingT, s raft.LogStore) {
	first, err := s.FirstIndex()
	require.NoError(t, err)
	last, err := s.LastIndex()
	require.NoError(t, err)
	wantFirst, wantLast := m.bounds()
	require.Equal(t, []uint64{wantFirst, wantLast}, []uint64{first, last})
	for i := uint64(max(int(wantFirst)-20, 0)); i <= wantLast+3; i++ {
		var l raft.Log
		err := s.GetLog(i, &l)
		if i < wantFirst || i > wantLast || wantFirst == 0 {
			require.Equal(t, raft.ErrLogNotFound, err, "entry %d", i) // raft compares it so
			continue
		}
		require.NoError(t, err, "entry %d", i)
		want := m.entries[i-wantFirst]
		require.Equal(t, []any{want.Index, want.Term, want.Data}, []any{l.Index, l.Term, l.Data})
	}
}

// raftsView is a store with all that raft has around it.
type raftsView struct {
	kind, dir string
	store     raft.LogStore
	stable    raft.StableStore
	closer    io.Closer
	anchor    *anchor
	snapshots raft.SnapshotStore
	kept      *raft.InmemSnapshotStore
}

func (v *raftsView) open(t require.TestingT, ctxOf *testing.T) {
	v.store, v.stable, v.closer = openSmall(t, v.kind, v.dir)
	var err error
	v.anchor, v.snapshots, err = newAnchor(&Stores{Log: v.store, Snapshots: v.kept}, discard, ctxOf.Context().Done())
	require.NoError(t, err)
}

func (v *raftsView) snapshot(t require.TestingT, index, term uint64) {
	sink, err := v.snapshots.Create(1, index, term, raft.Configuration{}, 1, nil)
	require.NoError(t, err)
	require.NoError(t, sink.Close())
}

// TestLogStoresBehaveAlike plays what raft v1.7.3 does to a log, and more, on
// both stores, with restarts in between; some of the restarts are of a process
// that was killed.
func TestLogStoresBehaveAlike(t *testing.T) {
	for _, kind := range []string{logStoreBolt, logStoreWAL} {
		t.Run(kind, func(t *testing.T) {
			root := t.TempDir()
			dirs := 0
			newDir := func() string {
				dirs++
				dir := filepath.Join(root, fmt.Sprint(dirs))
				if err := os.Mkdir(dir, 0o700); err != nil {
					panic(err)
				}
				return dir
			}
			rapid.Check(t, func(rt *rapid.T) {
				v := &raftsView{kind: kind, dir: newDir(), kept: raft.NewInmemSnapshotStore()}
				v.open(rt, t)
				defer func() { require.NoError(rt, v.closer.Close()) }()
				p := &logPlay{t: t, v: v, newDir: newDir}
				rt.Repeat(p.actions())
			})
		})
	}
}

// logPlay is one game: a store as raft sees it, and what has to be in it.
type logPlay struct {
	t        *testing.T
	v        *raftsView
	m        modelLog
	term     uint64
	snapshot uint64
	newDir   func() string
}

func (p *logPlay) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"":                            p.check,
		"append":                      p.append,
		"take a snapshot and compact": p.compact,
		"install a snapshot":          p.install,
		"clear a suffix":              p.clear,
		"refuse":                      p.refuse,
		"vote": func(rt *rapid.T) {
			p.term++
			require.NoError(rt, p.v.stable.SetUint64([]byte("CurrentTerm"), p.term))
		},
		"restart": func(rt *rapid.T) {
			require.NoError(rt, p.v.closer.Close())
			p.v.open(rt, p.t)
		},
		"be killed": func(rt *rapid.T) {
			dir := p.newDir()
			rotated(rt, p.v.store)
			require.NoError(rt, os.CopyFS(dir, os.DirFS(p.v.dir)))
			require.NoError(rt, p.v.closer.Close())
			p.v.dir = dir
			p.v.open(rt, p.t)
		},
	}
}

func (p *logPlay) check(rt *rapid.T) {
	p.m.requireSame(rt, p.v.store)
	got, err := p.v.stable.GetUint64([]byte("CurrentTerm"))
	require.True(rt, err == nil || err.Error() == "not found")
	require.Equal(rt, p.term, got)
}

func (p *logPlay) append(rt *rapid.T) {
	_, last := p.m.bounds()
	index := last + 1
	if last < p.snapshot { // raft's next one is after the snapshot, whatever the log holds
		p.m.entries = nil
		index = p.snapshot + 1
	}
	ls := p.m.make(rt, index)
	require.NoError(rt, p.v.anchor.StoreLogs(ls))
	p.m.append(ls)
}

func (p *logPlay) compact(rt *rapid.T) {
	_, last := p.m.bounds()
	if last <= p.snapshot {
		rt.Skip("nothing new")
	}
	p.snapshot = rapid.Uint64Range(p.snapshot+1, last).Draw(rt, "index")
	p.v.snapshot(rt, p.snapshot, 1)
	to := p.snapshot - min(p.snapshot, rapid.Uint64Range(0, 4).Draw(rt, "trailing"))
	first, err := p.v.anchor.FirstIndex()
	require.NoError(rt, err)
	if first <= to { // as compactLogsWithTrailing does
		require.NoError(rt, p.v.anchor.DeleteRange(first, to))
		p.m.remove(first, to)
	}
}

func (p *logPlay) install(rt *rapid.T) {
	_, last := p.m.bounds()
	p.snapshot += rapid.Uint64Range(1, 10).Draw(rt, "ahead")
	p.v.snapshot(rt, p.snapshot, 1000)
	if rapid.Bool().Draw(rt, "crash first") {
		return // the log stays as it is, behind the snapshot or around it
	}
	require.NoError(rt, p.v.anchor.dropCovered())
	p.m.remove(0, min(p.snapshot, last))
}

func (p *logPlay) clear(rt *rapid.T) {
	first, last := p.m.bounds()
	if last <= max(p.snapshot, first) {
		rt.Skip("nothing that may conflict")
	}
	from := rapid.Uint64Range(max(p.snapshot+1, first), last).Draw(rt, "from")
	require.NoError(rt, p.v.anchor.DeleteRange(from, last))
	p.m.remove(from, last)
}

// refuse asks for what has no effect.
func (p *logPlay) refuse(rt *rapid.T) {
	first, last := p.m.bounds()
	require.ErrorContains(rt, p.v.anchor.StoreLogs(p.m.make(rt, max(last, p.snapshot)+2)), "does not follow the log")
	require.NoError(rt, p.v.store.DeleteRange(last+1, last+5))
	require.NoError(rt, p.v.store.DeleteRange(0, first-min(first, 1)))
	if p.v.kind == logStoreBolt { // which can all else
		return
	}
	if last > 0 {
		require.ErrorContains(rt, p.v.store.StoreLogs(p.m.make(rt, last)), "cannot be appended to a log whose next one is")
	}
	if last > first+1 {
		require.ErrorContains(rt, p.v.store.DeleteRange(first+1, last-1), "cannot be deleted from the middle of a log of")
	}
}

// faults fails writes to the wal's files: all from a moment on, as if the
// process were killed, or some, as a full disk does.
type faults struct {
	waltypes.VFS
	waltypes.MetaStore
	mu    sync.Mutex
	left  int  // writes that work before those that fail
	fail  int  // how many fail
	half  bool // the first that fails takes effect in part
	fired bool
}

var errFault = fmt.Errorf("a fault of the test: %w", syscall.ENOSPC)

// next tells what becomes of a write: it works, or it fails after the effect of half of it, or without any.
func (f *faults) next() (half bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left > 0 {
		f.left--
		return false, nil
	}
	if f.fail == 0 {
		return false, nil
	}
	f.fail--
	half, f.fired = f.half && !f.fired, true
	return half, errFault
}

func (f *faults) set(left, fail int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left, f.fail = left, fail
}

func (f *faults) Create(dir, name string, size uint64) (waltypes.WritableFile, error) {
	half, err := f.next()
	if err != nil && !half {
		return nil, err
	}
	file, createErr := f.VFS.Create(dir, name, size)
	if err = errors.Join(err, createErr); err != nil {
		return nil, err
	}
	return &faultyFile{file, f}, nil
}

func (f *faults) OpenWriter(dir, name string) (waltypes.WritableFile, error) {
	file, err := f.VFS.OpenWriter(dir, name)
	if err != nil {
		return nil, err
	}
	return &faultyFile{file, f}, nil
}

func (f *faults) CommitState(s waltypes.PersistentState) error {
	if half, err := f.next(); err != nil && !half {
		return err
	} else {
		return errors.Join(f.MetaStore.CommitState(s), err)
	}
}

// Close is MetaStore's.
func (f *faults) Close() error { return f.MetaStore.Close() }

type faultyFile struct {
	waltypes.WritableFile
	f *faults
}

func (w *faultyFile) WriteAt(b []byte, at int64) (int, error) {
	half, err := w.f.next()
	if err != nil && !half {
		return 0, err
	}
	if err != nil {
		b = b[:len(b)/2]
	}
	n, writeErr := w.WritableFile.WriteAt(b, at)
	return n, errors.Join(err, writeErr)
}

func (w *faultyFile) Sync() error {
	_, err := w.f.next() // what was written is there, or is not: here it is
	return errors.Join(err, w.WritableFile.Sync())
}

// TestWALUnderFaults: whatever fails, and when, what was acknowledged is there
// afterwards: at once where the disk works again, and after a restart. Nothing
// is there that has taken the place of what was refused.
func TestWALUnderFaults(t *testing.T) {
	root := t.TempDir()
	dirs := 0
	rapid.Check(t, func(rt *rapid.T) {
		dirs++
		dir := filepath.Join(root, fmt.Sprint(dirs))
		require.NoError(rt, os.MkdirAll(filepath.Join(dir, "wal"), 0o700))
		f := &faults{VFS: noSyncVFS{walfs.New()}, MetaStore: &noSyncMeta{}, left: 1 << 30,
			half: rapid.Bool().Draw(rt, "half")}
		s := &walStore{dir: filepath.Join(dir, "wal"), noFsync: true, segment: smallSegment, vfs: f, meta: f}
		require.NoError(rt, s.start())
		f.set(rapid.IntRange(0, 60).Draw(rt, "works"), rapid.SampledFrom([]int{1, 2, 3, 5, 1 << 30}).Draw(rt, "fails"))

		p := &faultyPlay{store: s, maybe: []modelLog{{}}}
		for range rapid.IntRange(1, 40).Draw(rt, "operations") {
			p.step(rt)
		}
		rotated(rt, s)
		after := filepath.Join(root, fmt.Sprint(dirs, " killed"))
		require.NoError(rt, os.CopyFS(after, os.DirFS(dir)))
		torn := s.broken // then what was refused last may be there: nobody was told that it is not
		require.NoError(rt, s.Close())

		again, _, closer := openSmall(rt, logStoreWAL, after)
		require.True(rt, slices.ContainsFunc(p.maybe, func(m modelLog) bool { return m.isIn(rt, again, torn) }), "after a restart")
		last, err := again.LastIndex()
		require.NoError(rt, err)
		require.NoError(rt, again.StoreLog(&raft.Log{Index: last + 1, Term: 1}), "it takes the next one")
		require.NoError(rt, closer.Close())
		require.NoError(rt, os.RemoveAll(dir))
		require.NoError(rt, os.RemoveAll(after))
	})
}

// faultyPlay does to a store what raft may do, and knows what may be in it: a
// deletion that fails may be seen to have happened when the store is written next.
type faultyPlay struct {
	store  *walStore
	maybe  []modelLog
	number byte
}

func (p *faultyPlay) step(rt *rapid.T) {
	first, err := p.store.FirstIndex()
	require.NoError(rt, err)
	last, err := p.store.LastIndex()
	require.NoError(rt, err)
	if what := rapid.IntRange(0, 9).Draw(rt, "what"); what < 7 || last == 0 {
		index := last + 1
		if last == 0 {
			index = rapid.Uint64Range(1, 20).Draw(rt, "index")
		}
		made := modelLog{number: p.number}
		ls := made.make(rt, index)
		p.number = made.number
		if p.store.StoreLogs(ls) == nil {
			p.maybe = slices.DeleteFunc(p.maybe, func(m modelLog) bool { return len(m.entries) > 0 && m.last()+1 != index })
			for i := range p.maybe {
				p.maybe[i].append(ls)
			}
		}
	} else {
		from, to := first, rapid.Uint64Range(first, last).Draw(rt, "index")
		if what == 9 {
			from, to = to, last
		}
		removed := slices.Clone(p.maybe)
		for i := range removed {
			removed[i].remove(from, to)
		}
		if p.store.DeleteRange(from, to) == nil {
			p.maybe = removed
		} else {
			p.maybe = append(p.maybe, removed...)
		}
	}
	is := func(m modelLog) bool { return m.isIn(rt, p.store, false) }
	require.True(rt, slices.ContainsFunc(p.maybe, is))
	if !p.store.broken {
		p.maybe = slices.DeleteFunc(p.maybe, func(m modelLog) bool { return !is(m) })[:1]
	}
}

// isIn tells whether a store holds this, and nothing else, or more at its end.
func (m modelLog) isIn(rt *rapid.T, s raft.LogStore, more bool) bool {
	first, err := s.FirstIndex()
	require.NoError(rt, err)
	last, err := s.LastIndex()
	require.NoError(rt, err)
	wantFirst, wantLast := m.bounds()
	if more && (wantFirst == 0 || first == wantFirst && last > wantLast) {
		last = wantLast
	} else if first != wantFirst || last != wantLast {
		return false
	}
	for i := wantFirst; i > 0 && i <= wantLast; i++ {
		var l raft.Log
		if err := s.GetLog(i, &l); err != nil || l.Term != m.entries[i-wantFirst].Term {
			return false
		}
	}
	return true
}
