package events

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// entryBytes stands for entry i: History does not look inside.
func entryBytes(i uint64) []byte {
	return bytes.Repeat([]byte(fmt.Sprintf("entry %d.", i)), 1+int(i%40))
}

// logOf returns the records 1..n of one log.
func logOf(n uint64) []Record {
	var chain Digest
	out := make([]Record, 0, n)
	for i := uint64(1); i <= n; i++ {
		e := entryBytes(i)
		chain = Chain(chain, i, e)
		out = append(out, Record{Index: i, Chain: chain, Lifecycle: Digest{1, byte(i)}, Bookkeeping: Digest{2, byte(i)}, RaftIndex: 10 + 2*i, Entry: e})
	}
	return out
}

// callOf: every third entry answers no call.
func callOf(i uint64) *CallID {
	if i%3 == 0 {
		return nil
	}
	return &CallID{Round: 1 + i/100, Model: []string{"main", "critic"}[i%2], Call: i}
}

func callsOf(records []Record) []*CallID {
	var out []*CallID
	for _, r := range records {
		out = append(out, callOf(r.Index))
	}
	return out
}

func tempHistory(t testing.TB) string { return filepath.Join(t.TempDir(), "history.db") }

func openHistory(t testing.TB, path string, o HistoryOptions) *History {
	t.Helper()
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	h, err := OpenHistory(path, o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = h.Abandon() })
	return h
}

func appendAll(t testing.TB, h *History, records []Record) {
	t.Helper()
	for _, r := range records {
		require.NoError(t, h.Append(r, callOf(r.Index)))
	}
}

func readAll(h *History, from, to uint64) ([]Record, error) {
	var out []Record
	err := h.Range(from, to, func(r Record) error {
		out = append(out, r)
		return nil
	})
	return out, err
}

func requireHas(t testing.TB, h *History, want []Record) {
	t.Helper()
	if len(want) == 0 {
		return
	}
	got, err := readAll(h, want[0].Index, want[len(want)-1].Index)
	require.NoError(t, err)
	require.Equal(t, want, got)
	for _, r := range want {
		call := callOf(r.Index)
		if call == nil {
			continue
		}
		index, ok, err := h.Find(*call)
		require.NoError(t, err)
		require.True(t, ok, "call of entry %d", r.Index)
		require.Equal(t, r.Index, index)
	}
}

func TestHistoryKeepsWhatWasAppended(t *testing.T) {
	path := tempHistory(t)
	log := logOf(3000)
	h := openHistory(t, path, HistoryOptions{})
	index, chain, raft := h.Head()
	require.Zero(t, index)
	require.Zero(t, chain)
	require.Zero(t, raft)
	require.EqualValues(t, 1, h.CompleteFrom())

	appendAll(t, h, log) // some in the file already, some in memory
	requireHas(t, h, log)
	require.NoError(t, h.Flush())
	require.Equal(t, Lag{}, h.Lag())
	requireHas(t, h, log)
	require.NoError(t, h.Close())
	require.NoError(t, h.Close())

	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	h = openHistory(t, path, HistoryOptions{})
	requireHas(t, h, log)
	index, chain, raft = h.Head()
	require.Equal(t, log[2999].Index, index)
	require.Equal(t, log[2999].Chain, chain)
	require.Equal(t, log[2999].RaftIndex, raft)
	one, err := h.Read(1234)
	require.NoError(t, err)
	require.Equal(t, log[1233], one)
	_, err = h.Read(0)
	require.ErrorIs(t, err, ErrNotFound)
	_, err = h.Read(3001)
	require.ErrorIs(t, err, ErrNotFound)
	_, ok, err := h.Find(CallID{Round: 9, Model: "main", Call: 1})
	require.NoError(t, err)
	require.False(t, ok)
	got, err := readAll(h, 2990, 1<<60)
	require.NoError(t, err)
	require.Equal(t, log[2989:], got)
	stop := errors.New("stop")
	require.Equal(t, stop, h.Range(1, 9, func(Record) error { return stop }))
}

func TestHistoryAppendRules(t *testing.T) {
	log := logOf(20)
	for _, flushed := range []bool{false, true} {
		h := openHistory(t, tempHistory(t), HistoryOptions{})
		appendAll(t, h, log[:10])
		if flushed {
			require.NoError(t, h.Flush())
		}
		require.NoError(t, h.Append(log[4], nil), "again, the same")
		require.NoError(t, h.Append(log[9], nil))

		var conflict *ConflictError
		other := log[4]
		other.Entry = []byte("other")
		require.ErrorAs(t, h.Append(other, nil), &conflict)
		require.Equal(t, log[4].Chain, conflict.Have)
		other.Chain = Chain(log[3].Chain, 5, other.Entry)
		require.ErrorAs(t, h.Append(other, nil), &conflict)
		require.Equal(t, ConflictError{Index: 5, Have: log[4].Chain, Got: other.Chain}, *conflict)

		require.ErrorIs(t, h.Append(log[11], nil), ErrOutOfOrder)
		wrong := log[10]
		wrong.Chain[0]++
		require.ErrorAs(t, h.Append(wrong, nil), &conflict)
		require.ErrorIs(t, h.Append(Record{Index: 11, Entry: make([]byte, MaxEntryBytes+1)}, nil), ErrMalformed)

		appendAll(t, h, log[10:])
		requireHas(t, h, log)
		require.NoError(t, h.Close())
		require.ErrorIs(t, h.Append(log[0], nil), ErrClosed)
		require.ErrorIs(t, h.Flush(), ErrClosed)
		require.ErrorIs(t, h.PutImage(1, nil), ErrClosed)
		require.ErrorIs(t, h.Rebase(30, Digest{}, 0, []byte("image")), ErrClosed)
		require.ErrorIs(t, h.Backfill(Digest{}, nil, nil), ErrClosed)
		_, err := h.Read(1)
		require.ErrorIs(t, err, ErrClosed)
		_, _, err = h.Find(CallID{})
		require.ErrorIs(t, err, ErrClosed)
		_, _, _, err = h.LatestImage(9)
		require.ErrorIs(t, err, ErrClosed)
	}
}

func TestHistoryWritesBehind(t *testing.T) {
	path := tempHistory(t)
	synctest.Test(t, func(t *testing.T) {
		var writes atomic.Int64
		h := openHistory(t, path, HistoryOptions{NoSync: true, BeforeWrite: func() error { writes.Add(1); return nil }})
		log := logOf(3000)
		begin := time.Now()
		appendAll(t, h, log[:5])
		time.Sleep(199 * time.Millisecond)
		synctest.Wait()
		require.Zero(t, writes.Load(), "not before the interval")
		require.Equal(t, 5, h.Lag().Records)
		require.Equal(t, begin, h.Lag().Since)
		time.Sleep(time.Millisecond)
		synctest.Wait()
		require.EqualValues(t, 1, writes.Load())
		require.Equal(t, Lag{}, h.Lag())

		appendAll(t, h, log[5:5+flushRecords])
		synctest.Wait()
		require.EqualValues(t, 2, writes.Load(), "full: at once")
		require.Zero(t, h.Lag().Records)

		appendAll(t, h, log[5+flushRecords:2000])
		require.NoError(t, h.Flush())
		require.EqualValues(t, 3, writes.Load())
		require.NoError(t, h.Flush())
		require.EqualValues(t, 3, writes.Load(), "nothing to write")
		time.Sleep(time.Hour)
		require.EqualValues(t, 3, writes.Load(), "idle")
		requireHas(t, h, log[:2000])
		require.NoError(t, h.Close())
	})
}

func TestHistoryAbandonLosesOnlyTheTail(t *testing.T) {
	path := tempHistory(t)
	log := logOf(30)
	h := openHistory(t, path, HistoryOptions{FlushInterval: time.Hour})
	appendAll(t, h, log[:20])
	require.NoError(t, h.Flush())
	appendAll(t, h, log[20:])
	require.NoError(t, h.PutImage(25, []byte("image")))
	require.NoError(t, h.Abandon())

	h = openHistory(t, path, HistoryOptions{})
	index, _, _ := h.Head()
	require.EqualValues(t, 20, index)
	_, _, ok, err := h.LatestImage(99)
	require.NoError(t, err)
	require.False(t, ok)
	appendAll(t, h, log) // the Raft log replays from the start
	requireHas(t, h, log)
}

func TestHistoryDiskFull(t *testing.T) {
	path := tempHistory(t)
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Pointer[error]
		full := errors.New("no space left on device")
		var logged bytes.Buffer
		h := openHistory(t, path, HistoryOptions{NoSync: true, Logger: slog.New(slog.NewTextHandler(&logged, nil)),
			BeforeWrite: func() error {
				if err := broken.Load(); err != nil {
					return *err
				}
				return nil
			}})
		log := logOf(50)
		appendAll(t, h, log[:10])
		require.NoError(t, h.Flush())

		broken.Store(&full)
		appendAll(t, h, log[10:20])
		require.NoError(t, h.PutImage(15, []byte("fifteen")))
		require.ErrorIs(t, h.Flush(), full)
		require.ErrorIs(t, h.Err(), full)
		appendAll(t, h, log[20:30])
		require.ErrorIs(t, h.Rebase(99, Digest{9}, 9, []byte("image")), full)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		require.ErrorIs(t, h.Err(), full)
		require.Equal(t, 20, h.Lag().Records)
		require.Equal(t, 1, bytes.Count(logged.Bytes(), []byte("\n")), "logged once: %s", logged.Bytes())
		requireHas(t, h, log[:30]) // all readable all the time

		broken.Store(nil)
		time.Sleep(retryInterval)
		synctest.Wait()
		require.NoError(t, h.Err())
		require.Equal(t, Lag{}, h.Lag())
		require.Equal(t, 2, bytes.Count(logged.Bytes(), []byte("\n")))
		requireHas(t, h, log[:30])
		index, image, ok, err := h.LatestImage(50)
		require.NoError(t, err)
		require.True(t, ok)
		require.EqualValues(t, 15, index)
		require.Equal(t, "fifteen", string(image))

		broken.Store(&full)
		appendAll(t, h, log[30:])
		require.ErrorIs(t, h.Close(), full)
	})
	h := openHistory(t, path, HistoryOptions{})
	index, _, _ := h.Head()
	require.EqualValues(t, 30, index)
}

func TestHistoryImages(t *testing.T) {
	path := tempHistory(t)
	h := openHistory(t, path, HistoryOptions{FlushInterval: time.Hour})
	log := logOf(100)
	appendAll(t, h, log)
	require.ErrorIs(t, h.PutImage(101, nil), ErrOutOfOrder)
	check := func(atMost, want uint64) {
		t.Helper()
		index, image, ok, err := h.LatestImage(atMost)
		require.NoError(t, err)
		require.Equal(t, want > 0, ok)
		require.Equal(t, want, index)
		if ok {
			require.Equal(t, fmt.Sprint("image ", want), string(image))
		}
	}
	check(100, 0)
	for _, i := range []uint64{10, 20, 30, 40, 50} {
		require.NoError(t, h.PutImage(i, []byte(fmt.Sprint("image ", i))))
	}
	for range 3 { // in memory, in the file, opened again
		check(29, 0)
		check(30, 30)
		check(49, 40)
		check(1<<60, 50)
		require.NoError(t, h.Flush())
	}
	require.NoError(t, h.Close())
	h = openHistory(t, path, HistoryOptions{FlushInterval: time.Hour})
	check(29, 0)
	check(49, 40)
	require.NoError(t, h.PutImage(60, []byte("image 60")))
	check(99, 60)
	require.NoError(t, h.Flush())
	check(39, 0)
	check(40, 40)
}

func TestHistoryGaps(t *testing.T) {
	path := tempHistory(t)
	log := logOf(100)
	h := openHistory(t, path, HistoryOptions{FlushInterval: time.Hour})
	appendAll(t, h, log[:10])
	require.NoError(t, h.Rebase(40, log[39].Chain, 77, []byte("image")))
	require.NoError(t, h.Rebase(40, log[39].Chain, 77, []byte("image")), "again")
	require.NoError(t, h.Rebase(5, log[4].Chain, 7, []byte("image")), "passed")
	var conflict *ConflictError
	require.ErrorAs(t, h.Rebase(5, Digest{5}, 7, []byte("image")), &conflict)
	require.ErrorIs(t, h.Rebase(20, Digest{5}, 7, []byte("image")), ErrNotFound)
	index, chain, raft := h.Head()
	require.EqualValues(t, 40, index)
	require.Equal(t, log[39].Chain, chain)
	require.EqualValues(t, 77, raft)
	require.EqualValues(t, 41, h.CompleteFrom())
	appendAll(t, h, log[40:60])
	require.NoError(t, h.Rebase(80, log[79].Chain, 99, []byte("image")))
	appendAll(t, h, log[80:])
	require.NoError(t, h.Close())
	h = openHistory(t, path, HistoryOptions{FlushInterval: time.Hour})

	from, to, ok := h.Missing()
	require.True(t, ok)
	require.EqualValues(t, []uint64{61, 80}, []uint64{from, to})
	requireHas(t, h, log[:10])
	requireHas(t, h, log[40:60])
	requireHas(t, h, log[80:])
	for _, i := range []uint64{11, 39, 40, 61, 80} {
		_, err := h.Read(i)
		require.ErrorIs(t, err, ErrNotFound, i)
		require.ErrorIs(t, h.Append(log[i-1], nil), ErrOutOfOrder)
	}
	got, err := readAll(h, 1, 100)
	require.ErrorIs(t, err, ErrNotFound)
	require.Equal(t, log[:10], got)

	fill := func(first, last uint64) error {
		part := log[first-1 : last]
		var prev Digest
		if first > 1 {
			prev = log[first-2].Chain
		}
		return h.Backfill(prev, part, callsOf(part))
	}
	require.ErrorIs(t, fill(61, 79), ErrOutOfOrder, "not at the top")
	require.ErrorIs(t, fill(60, 80), ErrOutOfOrder, "too far down")
	require.Error(t, h.Backfill(Digest{}, nil, nil))
	require.NoError(t, fill(75, 80))
	require.EqualValues(t, 75, h.CompleteFrom())
	var corrupt *CorruptError
	part := append([]Record(nil), log[60:74]...)
	require.ErrorAs(t, h.Backfill(Digest{1}, part, callsOf(part)), &corrupt)
	part[3].Entry = []byte("forged")
	require.ErrorAs(t, h.Backfill(log[59].Chain, part, callsOf(part)), &corrupt)
	require.EqualValues(t, 64, corrupt.Index)
	require.EqualValues(t, 75, h.CompleteFrom(), "nothing changed")
	require.NoError(t, fill(61, 74))
	require.EqualValues(t, 41, h.CompleteFrom())
	require.NoError(t, fill(11, 40))
	require.EqualValues(t, 1, h.CompleteFrom())
	_, _, ok = h.Missing()
	require.False(t, ok)
	require.Error(t, fill(1, 1), "nothing is missing")
	requireHas(t, h, log)
	require.NoError(t, h.Close())
	h = openHistory(t, path, HistoryOptions{})
	requireHas(t, h, log)
	require.EqualValues(t, 1, h.CompleteFrom())
}

// A backfill whose bottom is another log than what is here.
func TestHistoryBackfillMeetsAnotherLog(t *testing.T) {
	log := logOf(20)
	h := openHistory(t, tempHistory(t), HistoryOptions{})
	other := Record{Index: 1, Entry: []byte("another log")}
	other.Chain = Chain(Digest{}, 1, other.Entry)
	require.NoError(t, h.Append(other, nil))
	require.NoError(t, h.Rebase(20, log[19].Chain, 1, []byte("image")))
	var corrupt *CorruptError
	require.ErrorAs(t, h.Backfill(log[0].Chain, log[1:], callsOf(log[1:])), &corrupt)
	require.EqualValues(t, 1, corrupt.Index)
	require.EqualValues(t, 21, h.CompleteFrom())
}

func TestHistoryLocked(t *testing.T) {
	path := tempHistory(t)
	openHistory(t, path, HistoryOptions{})
	_, err := OpenHistory(path, HistoryOptions{})
	require.ErrorIs(t, err, ErrLocked)
	require.ErrorContains(t, err, path)
	require.ErrorContains(t, err, "another esperd")
}

func TestHistoryUnusablePaths(t *testing.T) {
	dir := t.TempDir()
	_, err := OpenHistory(dir, HistoryOptions{})
	require.ErrorContains(t, err, "not a file")
	_, err = OpenHistory(filepath.Join(dir, "no", "history.db"), HistoryOptions{})
	require.ErrorIs(t, err, os.ErrNotExist)
}

// Readers, a writer and structure changes at once; for the race detector.
func TestHistoryConcurrent(t *testing.T) {
	log := logOf(4000)
	h := openHistory(t, tempHistory(t), HistoryOptions{NoSync: true, FlushInterval: time.Millisecond})
	require.NoError(t, h.Rebase(1000, log[999].Chain, 1, []byte("image")))
	done := make(chan error, 5)
	go func() {
		for _, r := range log[1000:] {
			if err := h.Append(r, callOf(r.Index)); err != nil {
				done <- err
				return
			}
			if r.Index%500 == 0 {
				if err := errors.Join(h.PutImage(r.Index, []byte("x")), h.Flush()); err != nil {
					done <- err
					return
				}
			}
		}
		done <- nil
	}()
	go func() {
		for to := 1000; to > 0; to -= 100 {
			if err := h.Backfill(chainBefore(log, to-99), log[to-100:to], callsOf(log[to-100:to])); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for range 3 {
		go func() {
			for head := uint64(0); head < 4000; head, _, _ = h.Head() {
				from := h.CompleteFrom()
				n, err := from-1, error(nil)
				err = h.Range(from, 1<<60, func(r Record) error { n++; return nil })
				if err != nil || n < head {
					done <- fmt.Errorf("range %d..%d: %w", from, n, err)
					return
				}
				if _, _, _, err := h.LatestImage(head); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range 5 {
		require.NoError(t, <-done)
	}
	requireHas(t, h, log)
}

func chainBefore(log []Record, first int) Digest {
	if first == 1 {
		return Digest{}
	}
	return log[first-2].Chain
}
