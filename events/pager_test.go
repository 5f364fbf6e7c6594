package events

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// A pager reads what the file has, in whatever order, and fails where that does.
func TestPager(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	want := make([]byte, 3*pagerAhead+1234)
	for i := range want {
		want[i] = byte(rng.Uint32())
	}
	name := filepath.Join(t.TempDir(), "f")
	require.NoError(t, os.WriteFile(name, want, 0o600))
	f, err := os.Open(name)
	require.NoError(t, err)
	defer f.Close()
	p := &pager{f: f}
	reads, at := 0, 0
	for range 20_000 {
		n := 1 + rng.IntN(1<<rng.IntN(18))
		switch rng.IntN(20) {
		case 0:
			at = rng.IntN(len(want) + 10)
		case 1:
			p.forget()
		default:
			at += rng.IntN(8192)
		}
		got := make([]byte, n)
		k, err := p.ReadAt(got, int64(at))
		if at+n > len(want) {
			require.Error(t, err)
			at = 0
			continue
		}
		reads++
		require.NoError(t, err)
		require.Equal(t, n, k)
		require.True(t, bytes.Equal(want[at:at+n], got), "%d bytes at %d", n, at)
	}
	require.Greater(t, reads, 1000)
}

// Reading ahead ends with the transaction whose pages were read, and after
// forget nothing of before is told.
func TestPagerForgets(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	require.NoError(t, os.WriteFile(name, make([]byte, 64<<10), 0o600))
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	p := &pager{f: f}
	read := func(at int64) byte {
		b := make([]byte, 16)
		_, err := p.ReadAt(b, at)
		require.NoError(t, err)
		return b[0]
	}
	read(4096)
	read(8192) // and ahead
	_, err = f.WriteAt([]byte{1}, 12288)
	require.NoError(t, err)
	require.Zero(t, read(12288))
	p.forget()
	require.EqualValues(t, 1, read(12288))
}
