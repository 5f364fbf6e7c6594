package events

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// readWith reads everything that a reader finds, and checks the chain.
func readWith(t testing.TB, r *Reader, log []Record) uint64 {
	t.Helper()
	var chain Digest
	next := uint64(1)
	require.NoError(t, r.Records(1, r.Extent().Head, func(b *Batch) error {
		for _, rec := range b.Records {
			require.Equal(t, log[next-1], rec)
			chain = Chain(chain, rec.Index, rec.Entry)
			require.Equal(t, rec.Chain, chain)
			next++
		}
		b.Release()
		return nil
	}))
	require.Equal(t, r.Extent().Head, next-1)
	require.Equal(t, r.Extent().Chain, chain)
	return next - 1
}

func TestReader(t *testing.T) {
	path := tempHistory(t)
	log := logOf(3000)
	h := openHistory(t, path, HistoryOptions{NoSync: true, FlushInterval: time.Hour})
	appendAll(t, h, log)
	for _, at := range []uint64{700, 1400, 2100, 2800} {
		require.NoError(t, h.PutImage(at, entryBytes(at)))
	}
	require.NoError(t, h.Flush())
	r, err := OpenReader(path) // while h has it
	require.NoError(t, err)
	defer r.Close()
	require.EqualValues(t, 3000, readWith(t, r, log))
	require.NoError(t, r.Check())
	images, err := r.Images()
	require.NoError(t, err)
	require.Len(t, images, imagesKept)
	for i, img := range images {
		require.Equal(t, Image{Index: uint64(1400 + 700*i), Bytes: entryBytes(uint64(1400 + 700*i))}, img)
	}
	calls := map[CallID]uint64{}
	require.NoError(t, r.Calls(func(id CallID, index uint64) error { calls[id] = index; return nil }))
	for _, rec := range log {
		if id := callOf(rec.Index); id != nil {
			require.Equal(t, rec.Index, calls[*id])
			at, ok, err := r.Find(*id)
			require.NoError(t, err)
			require.True(t, ok)
			require.Equal(t, rec.Index, at)
		}
	}
	require.Len(t, calls, 2000)
	rec, err := r.Read(1234)
	require.NoError(t, err)
	require.Equal(t, log[1233], rec)
	_, err = r.Read(3001)
	require.Error(t, err)
}

func TestReaderOfAGap(t *testing.T) {
	path := tempHistory(t)
	log := logOf(60)
	h := openHistory(t, path, HistoryOptions{})
	require.NoError(t, h.Rebase(40, log[39].Chain, 90, []byte("forty")))
	appendAll(t, h, log[40:])
	require.NoError(t, h.Flush())
	r, err := OpenReader(path)
	require.NoError(t, err)
	defer r.Close()
	require.Equal(t, Extent{Head: 60, Chain: log[59].Chain, Missing: []Gap{{1, 40, log[39].Chain}}}, r.Extent())
	_, err = r.Read(7)
	require.ErrorIs(t, err, ErrNotFound)
	rec, err := r.Read(41)
	require.NoError(t, err)
	require.Equal(t, log[40], rec)
}

// What a reader reads while the file is written to is what was written.
func TestReaderWhileWritten(t *testing.T) {
	path := tempHistory(t)
	log := logOf(6000)
	h := openHistory(t, path, HistoryOptions{NoSync: true})
	r, err := OpenReader(path)
	require.NoError(t, err)
	defer r.Close()
	done := make(chan error, 1)
	go func() {
		for i := range log {
			if err := h.Append(log[i], callOf(log[i].Index)); err != nil {
				done <- err
				return
			}
			if i%40 == 39 {
				if err := errors.Join(h.PutImage(log[i].Index, entryBytes(log[i].Index)), h.Flush()); err != nil {
					done <- err
					return
				}
			}
		}
		done <- h.Flush()
	}()
	for seen := uint64(0); seen < uint64(len(log)); {
		require.NoError(t, r.Refresh())
		seen = readWith(t, r, log)
		images, err := r.Images()
		require.NoError(t, err)
		for _, img := range images {
			require.NoError(t, img.Err)
			require.Equal(t, entryBytes(img.Index), img.Bytes)
		}
		require.NoError(t, r.Calls(func(id CallID, index uint64) error {
			require.Equal(t, *callOf(index), id)
			return nil
		}))
		if err := r.Check(); !errors.Is(err, ErrBusy) {
			require.NoError(t, err)
		}
	}
	require.NoError(t, <-done)
}

// What a reader has read ahead is forgotten when the file has changed, entry by
// entry, whose pages take the place of others.
func TestReaderFollowsAFile(t *testing.T) {
	log := logOf(400)
	h := openHistory(t, tempHistory(t), HistoryOptions{NoSync: true})
	r, err := OpenReader(h.path)
	require.NoError(t, err)
	defer r.Close()
	for i, rec := range log {
		require.NoError(t, h.Append(rec, callOf(rec.Index)))
		require.NoError(t, errors.Join(h.PutImage(rec.Index, entryBytes(rec.Index)), h.Flush()))
		require.NoError(t, r.Refresh())
		require.EqualValues(t, i+1, readWith(t, r, log))
		require.NoError(t, r.Check())
	}
}

func TestReaderRefuses(t *testing.T) {
	dir := t.TempDir()
	_, err := OpenReader(filepath.Join(dir, "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = OpenReader(dir)
	require.ErrorContains(t, err, "expected a regular file")
	for name, content := range map[string][]byte{"empty": nil, "short": []byte("x"), "noise": make([]byte, 1<<16)} {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, content, 0o600))
		_, err = OpenReader(path)
		var corrupt *CorruptError
		require.ErrorAs(t, err, &corrupt, name)
	}
}

// FuzzReader: whatever the bytes, what comes back without an error was written.
func FuzzReader(f *testing.F) {
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
		r, err := OpenReader(path)
		if err != nil {
			return
		}
		defer r.Close()
		_ = r.Records(1, r.Extent().Head, func(b *Batch) error {
			for _, rec := range b.Records {
				require.Equal(t, log[rec.Index-1], rec)
			}
			b.Release()
			return nil
		})
		_, _ = r.Images()
		_ = r.Calls(func(id CallID, index uint64) error {
			require.Equal(t, *callOf(index), id)
			return nil
		})
		_ = r.Check()
	})
}
