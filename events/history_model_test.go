package events

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// model is History as one would write it without a disk: which entries are
// here, and what of it a crash leaves.
type model struct {
	now, durable struct {
		head   uint64
		have   map[uint64]bool
		images map[uint64]bool
		gaps   []uint64 // tops, ascending
	}
}

func newModel() *model {
	m := new(model)
	m.now.have, m.now.images = map[uint64]bool{}, map[uint64]bool{}
	m.flush()
	return m
}

func (m *model) flush() {
	m.durable.head, m.durable.have, m.durable.images = m.now.head, maps.Clone(m.now.have), maps.Clone(m.now.images)
	m.durable.gaps = slices.Clone(m.now.gaps)
}

func (m *model) crash() {
	m.now.head, m.now.have, m.now.images = m.durable.head, maps.Clone(m.durable.have), maps.Clone(m.durable.images)
	m.now.gaps = slices.Clone(m.durable.gaps)
}

// bottom returns the first index missing under top.
func (m *model) bottom(top uint64) uint64 {
	for i := top; ; i-- {
		if i == 0 || m.now.have[i] || i != top && slices.Contains(m.now.gaps, i) {
			return i + 1
		}
	}
}

func (m *model) putImage(index uint64) {
	m.now.images[index] = true
	for len(m.now.images) > imagesKept {
		low := index
		for i := range m.now.images {
			low = min(low, i)
		}
		delete(m.now.images, low)
	}
}

const modelLog = 400 // entries

func TestHistoryAgainstModel(t *testing.T) {
	dir := t.TempDir()
	log := logOf(modelLog)
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		x := &machine{m: newModel(), log: log, path: fmt.Sprintf("%s/%d.db", dir, run)}
		x.open(t)
		defer func() { _ = x.h.Abandon() }()
		t.Repeat(rapid.StateMachineActions(x))
	})
}

// A machine does to a History and to its model the same, in any order.
type machine struct {
	h    *History
	m    *model
	log  []Record
	path string
	fail atomic.Bool // the next writes
}

func (x *machine) open(t *rapid.T) {
	h, err := OpenHistory(x.path, HistoryOptions{NoSync: true, Logger: slog.New(slog.DiscardHandler), FlushInterval: time.Hour,
		BeforeWrite: func() error {
			if x.fail.Load() {
				return errors.New("full")
			}
			return nil
		}})
	require.NoError(t, err)
	x.h = h
}

func (x *machine) Append(t *rapid.T) {
	m := x.m
	for range rapid.IntRange(1, 30).Draw(t, "n") {
		if m.now.head == modelLog {
			t.Skip("full log")
		}
		r := x.log[m.now.head]
		require.NoError(t, x.h.Append(r, callOf(r.Index)))
		m.now.head++
		m.now.have[m.now.head] = true
	}
}

func (x *machine) AppendAgain(t *rapid.T) {
	if x.m.now.head == 0 {
		t.Skip()
	}
	i := rapid.Uint64Range(1, x.m.now.head).Draw(t, "i")
	if err := x.h.Append(x.log[i-1], callOf(i)); x.m.now.have[i] {
		require.NoError(t, err)
	} else {
		require.ErrorIs(t, err, ErrOutOfOrder)
	}
}

func (x *machine) Image(t *rapid.T) {
	require.NoError(t, x.h.PutImage(x.m.now.head, entryBytes(x.m.now.head)))
	x.m.putImage(x.m.now.head)
}

func (x *machine) Flush(t *rapid.T) {
	require.NoError(t, x.h.Flush())
	x.m.flush()
}

func (x *machine) FailedFlush(t *rapid.T) {
	x.fail.Store(true)
	err := x.h.Flush()
	x.fail.Store(false)
	if err == nil {
		require.Equal(t, x.m.now.head, x.m.durable.head, "nothing was to be written")
		return
	}
	x.Flush(t) // else the retry, a second later, would be a race
}

func (x *machine) Crash(t *rapid.T) {
	require.NoError(t, x.h.Abandon())
	x.m.crash()
	x.open(t)
}

func (x *machine) Close(t *rapid.T) {
	require.NoError(t, x.h.Close())
	x.m.flush()
	x.open(t)
}

func (x *machine) Rebase(t *rapid.T) {
	m := x.m
	if m.now.head == modelLog {
		t.Skip()
	}
	i := rapid.Uint64Range(m.now.head+1, min(modelLog, m.now.head+40)).Draw(t, "i")
	require.NoError(t, x.h.Rebase(i, x.log[i-1].Chain, i, entryBytes(i)))
	m.now.head = i
	m.now.gaps = append(m.now.gaps, i)
	m.putImage(i)
	m.flush()
}

func (x *machine) Backfill(t *rapid.T) {
	m := x.m
	from, to, ok := x.h.Missing()
	require.Equal(t, len(m.now.gaps) > 0, ok)
	if !ok {
		t.Skip()
	}
	top := m.now.gaps[len(m.now.gaps)-1]
	require.Equal(t, top, to)
	require.Equal(t, m.bottom(top), from)
	first := rapid.Uint64Range(from, to).Draw(t, "first")
	part := x.log[first-1 : to]
	var corrupt *CorruptError
	require.ErrorAs(t, x.h.Backfill(Digest{1}, part, callsOf(part)), &corrupt)
	require.NoError(t, x.h.Backfill(chainBefore(x.log, int(first)), part, callsOf(part)))
	m.backfilled(first, from, to)
}

// Check runs after every action.
func (x *machine) Check(t *rapid.T) { requireModel(t, x.h, x.m, x.log) }

// backfilled notes first..top as here, durably; the tail stays what it is.
func (m *model) backfilled(first, from, top uint64) {
	for _, s := range []*map[uint64]bool{&m.now.have, &m.durable.have} {
		for i := first; i <= top; i++ {
			(*s)[i] = true
		}
	}
	for _, g := range []*[]uint64{&m.now.gaps, &m.durable.gaps} {
		*g = (*g)[:len(*g)-1]
		if first > from {
			*g = append(*g, first-1)
		}
	}
}

func requireModel(t *rapid.T, h *History, m *model, log []Record) {
	head, chain, _ := h.Head()
	require.Equal(t, m.now.head, head)
	require.Equal(t, chainBefore(log, int(head)+1), chain)
	complete := uint64(1)
	if len(m.now.gaps) > 0 {
		complete = m.now.gaps[len(m.now.gaps)-1] + 1
	}
	require.Equal(t, complete, h.CompleteFrom())
	i := rapid.Uint64Range(1, uint64(len(log))).Draw(t, "probe")
	r, err := h.Read(i)
	if m.now.have[i] {
		require.NoError(t, err)
		require.Equal(t, log[i-1], r)
	} else {
		require.ErrorIs(t, err, ErrNotFound)
	}
	if call := callOf(i); call != nil {
		index, ok, err := h.Find(*call)
		require.NoError(t, err)
		require.Equal(t, m.now.have[i], ok)
		if ok {
			require.Equal(t, i, index)
		}
	}
	if complete <= head {
		got, err := readAll(h, complete, head)
		require.NoError(t, err)
		require.Equal(t, log[complete-1:head], got)
	}
	latest, some := uint64(0), false
	for i := range m.now.images {
		latest, some = max(latest, i), true
	}
	index, image, ok, err := h.LatestImage(1 << 60)
	require.NoError(t, err)
	require.Equal(t, some, ok)
	if ok {
		require.Equal(t, latest, index)
		require.Equal(t, entryBytes(index), image)
	}
}
