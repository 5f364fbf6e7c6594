package events

import (
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"
)

// smallFile returns the bytes of a history of n entries with a gap and images,
// written in several transactions, and its log.
func smallFile(t testing.TB, n uint64) ([]byte, []Record) {
	t.Helper()
	path := tempHistory(t)
	log := logOf(n)
	h := openHistory(t, path, HistoryOptions{NoSync: true, FlushInterval: time.Hour})
	for i, r := range log {
		require.NoError(t, h.Append(r, callOf(r.Index)))
		if i%50 == 49 {
			require.NoError(t, h.PutImage(r.Index, entryBytes(39)))
			require.NoError(t, h.Flush())
		}
	}
	require.NoError(t, h.Close())
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return b, log
}

// requireHonest opens a file that may be damaged: whatever comes back without
// an error must be what was written. It reports how many entries did, -1 if the
// file was refused.
func requireHonest(t testing.TB, path string, log []Record) int {
	t.Helper()
	h, err := OpenHistory(path, HistoryOptions{NoSync: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		var corrupt *CorruptError
		var version *VersionError
		require.True(t, errors.As(err, &corrupt) || errors.As(err, &version), "%v", err)
		require.ErrorContains(t, err, path)
		return -1
	}
	defer h.Abandon()
	head, chain, _ := h.Head()
	require.LessOrEqual(t, head, uint64(len(log)))
	if head > 0 {
		require.Equal(t, log[head-1].Chain, chain)
	}
	n := 0
	err = h.Range(1, head, func(r Record) error {
		require.Equal(t, log[n], r)
		n++
		return nil
	})
	if err == nil {
		require.EqualValues(t, head, n)
	}
	for _, r := range log {
		if call := callOf(r.Index); call != nil {
			if index, ok, err := h.Find(*call); ok && err == nil {
				require.Equal(t, r.Index, index)
			}
		}
	}
	if _, image, ok, err := h.LatestImage(1 << 60); ok && err == nil {
		require.Equal(t, entryBytes(39), image)
	}
	// Writing onto it may fail, but not otherwise.
	next := Record{Index: head + 1, Entry: []byte("next"), Chain: Chain(chain, head+1, []byte("next"))}
	require.NoError(t, h.Append(next, nil))
	if h.Flush() == nil {
		got, err := h.Read(next.Index)
		if err == nil {
			require.Equal(t, next.Entry, got.Entry)
		}
	}
	return n
}

func TestHistoryTruncatedAtEveryPage(t *testing.T) {
	good, log := smallFile(t, 200)
	page := os.Getpagesize()
	refused := 0
	for size := 0; size <= len(good); size += page / 2 {
		path := filepath.Join(t.TempDir(), "history.db")
		require.NoError(t, os.WriteFile(path, good[:size], 0o600))
		switch n := requireHonest(t, path, log); {
		case n < 0:
			refused++
			after, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, good[:size], after, "a refused file is left alone")
		default:
			require.Len(t, log, n, "cut to %d bytes: all or nothing", size)
		}
	}
	require.Greater(t, refused, 10)
}

func TestHistoryEveryPageGarbled(t *testing.T) {
	if testing.Short() {
		t.Skip("nothing runs beside it")
	}
	good, log := smallFile(t, 200)
	page := os.Getpagesize()
	for at := 0; at < len(good); at += page {
		for name, garble := range map[string]func(b []byte){
			"zeroed": func(b []byte) { clear(b) },
			"header": func(b []byte) { copy(b, "not a database at all") },
			"kind":   func(b []byte) { b[8] ^= 3 },
			"count":  func(b []byte) { b[11] = 0xff },
			"body":   func(b []byte) { clear(b[len(b)/2:]) },
			"swap": func(b []byte) {
				for i := 16; i+8 <= len(b); i += 8 {
					binary.NativeEndian.PutUint64(b[i:], 3) // pointers in circles
				}
			},
		} {
			bad := append([]byte(nil), good...)
			garble(bad[at : at+page])
			path := filepath.Join(t.TempDir(), "history.db")
			require.NoError(t, os.WriteFile(path, bad, 0o600))
			t.Logf("page %d %s: %d", at/page, name, requireHonest(t, path, log))
		}
	}
}

func TestHistoryBothHeadersGarbled(t *testing.T) {
	good, _ := smallFile(t, 20)
	for i := range 2 * os.Getpagesize() {
		good[i] ^= 0x55
	}
	path := tempHistory(t)
	require.NoError(t, os.WriteFile(path, good, 0o600))
	_, err := OpenHistory(path, HistoryOptions{})
	var corrupt *CorruptError
	require.ErrorAs(t, err, &corrupt)
	require.ErrorContains(t, err, path)
	require.ErrorContains(t, err, "header")
	require.ErrorContains(t, err, "move the file aside")
}

// The file is cut while it is open: the kernel answers reads with SIGBUS.
func TestHistoryTruncatedWhileOpen(t *testing.T) {
	path := tempHistory(t)
	log := logOf(2000)
	h := openHistory(t, path, HistoryOptions{NoSync: true})
	appendAll(t, h, log)
	require.NoError(t, h.Flush())
	require.NoError(t, os.Truncate(path, int64(3*os.Getpagesize())))
	_, err := readAll(h, 1, 2000)
	var corrupt *CorruptError
	require.ErrorAs(t, err, &corrupt)
	_, err = h.Read(1500)
	require.ErrorAs(t, err, &corrupt)
	next := Record{Index: 2001, Chain: Chain(log[1999].Chain, 2001, nil)}
	require.NoError(t, h.Append(next, nil))
	require.Error(t, h.Flush())
	require.Equal(t, 1, h.Lag().Records)
}

// A newer esperd's file is not damage.
func TestHistoryNewerFormat(t *testing.T) {
	path := tempHistory(t)
	require.NoError(t, openHistory(t, path, HistoryOptions{}).Close())
	db, err := bbolt.Open(path, 0o600, boltOptions())
	require.NoError(t, err)
	require.NoError(t, db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketFormat).Put(keyVersion, indexKey(2)) }))
	require.NoError(t, db.Close())
	_, err = OpenHistory(path, HistoryOptions{})
	var version *VersionError
	require.ErrorAs(t, err, &version)
	require.ErrorContains(t, err, "upgrade esperd")
}

// One bit anywhere in a record is found, whichever field it is in.
func TestHistoryFindsOneBit(t *testing.T) {
	path := tempHistory(t)
	log := logOf(10)
	h := openHistory(t, path, HistoryOptions{})
	appendAll(t, h, log)
	require.NoError(t, h.PutImage(7, []byte("seven")))
	require.NoError(t, h.Flush())
	flip := func(bucket, key []byte, at int) (undo func()) {
		var old []byte
		change := func(f func(v []byte)) {
			require.NoError(t, h.update(func(tx *bbolt.Tx) error {
				v := append([]byte(nil), tx.Bucket(bucket).Get(key)...)
				f(v)
				return tx.Bucket(bucket).Put(key, v)
			}))
		}
		change(func(v []byte) { old = append(old, v...); v[at] ^= 4 })
		return func() { change(func(v []byte) { copy(v, old) }) }
	}
	var corrupt *CorruptError
	for at := range recordOverhead + len(log[5].Entry) {
		undo := flip(bucketRecords, indexKey(6), at)
		_, err := h.Read(6)
		require.ErrorAs(t, err, &corrupt, "byte %d", at)
		require.EqualValues(t, 6, corrupt.Index)
		undo()
	}
	requireHas(t, h, log)
	undo := flip(bucketImages, indexKey(7), 33)
	_, _, _, err := h.LatestImage(9)
	require.ErrorAs(t, err, &corrupt)
	undo()
	flip(bucketCalls, callKey(*callOf(5)), 6)
	_, _, err = h.Find(*callOf(5))
	require.ErrorAs(t, err, &corrupt)
	// A record whose own checksum is right but which is of another log.
	forged := log[5]
	forged.Entry = []byte("forged")
	require.NoError(t, h.update(func(tx *bbolt.Tx) error {
		return putRecords(tx, []pending{{forged, nil}})
	}))
	_, err = readAll(h, 1, 10)
	require.ErrorAs(t, err, &corrupt)
	require.EqualValues(t, 6, corrupt.Index)
}

// In a large file the leaves are not read at open, the pointers to them are.
func TestHistoryShallowCheck(t *testing.T) {
	path := tempHistory(t)
	h := openHistory(t, path, HistoryOptions{NoSync: true})
	appendAll(t, h, logOf(20000))
	require.NoError(t, h.Close())
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	info, err := f.Stat()
	require.NoError(t, err)
	check := func() (*checker, error) {
		c := &checker{f: &pager{f: f}, size: info.Size(), pageSize: int64(os.Getpagesize())}
		_, err := c.check()
		return c, err
	}
	_, err = check()
	require.NoError(t, err)
	// Every branch page, one wrong pointer each.
	branches := 0
	b := make([]byte, os.Getpagesize())
	for at := int64(0); at < info.Size(); at += int64(len(b)) {
		_, err := f.ReadAt(b, at)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		if binary.NativeEndian.Uint16(b[8:]) != pageBranch || binary.NativeEndian.Uint64(b) != uint64(at)/uint64(len(b)) {
			continue
		}
		c, err := check()
		require.NoError(t, err)
		id := uint64(at) / uint64(len(b))
		if c.used[id/64]&(1<<(id%64)) == 0 {
			continue
		}
		branches++
		old := append([]byte(nil), b[24:32]...)
		binary.NativeEndian.PutUint64(b[24:], id)
		_, err = f.WriteAt(b, at)
		require.NoError(t, err)
		_, err = check()
		if err == nil {
			// A page left over from before: free, so nothing points here.
			t.Logf("page %d is free", id)
			branches--
		}
		copy(b[24:], old)
		_, err = f.WriteAt(b, at)
		require.NoError(t, err)
	}
	require.Greater(t, branches, 2)
}

func FuzzOpenHistory(f *testing.F) {
	good, log := smallFile(f, 120)
	page := os.Getpagesize()
	f.Add(uint32(0), []byte{1}, uint32(page), []byte{2}, uint32(0))
	f.Add(uint32(3*page+8), []byte{1, 0}, uint32(3*page+24), []byte{3, 0, 0, 0, 0, 0, 0, 0}, uint32(0))
	f.Add(uint32(5*page), make([]byte, 64), uint32(6*page+16), []byte{0xff, 0xff}, uint32(7*page))
	f.Fuzz(func(t *testing.T, at1 uint32, b1 []byte, at2 uint32, b2 []byte, cut uint32) {
		bad := append([]byte(nil), good...)
		copy(bad[int(at1)%len(bad):], b1)
		copy(bad[int(at2)%len(bad):], b2)
		if cut > 0 {
			bad = bad[:int(cut)%len(bad)]
		}
		path := filepath.Join(t.TempDir(), "history.db")
		require.NoError(t, os.WriteFile(path, bad, 0o600))
		requireHonest(t, path, log)
	})
}
