package device

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Two arenas share the limit; what is dropped, refused or closed is free again.
func TestLimited(t *testing.T) {
	h, err := Host()
	require.NoError(t, err)
	const chunk = hostGranularity
	d := Limited(h, 3*chunk+chunk/2)
	defer d.Close()
	require.Equal(t, "host", d.Kind())
	a, err := d.NewArena(100 * chunk)
	require.NoError(t, err, "addresses cost nothing")
	b, err := d.NewArena(100 * chunk)
	require.NoError(t, err)
	require.NoError(t, a.Back(0, 2*chunk))
	require.Error(t, a.Back(chunk, chunk), "it has memory")
	require.NoError(t, b.Back(chunk, chunk))
	require.ErrorIs(t, b.Back(0, chunk), ErrOutOfMemory)
	require.ErrorContains(t, b.Back(0, 1<<63), "6291456 taken: out of memory: arenas have 7340032 here")
	require.NoError(t, a.Drop(0, 2*chunk))
	require.Error(t, a.Drop(0, 2*chunk))
	require.NoError(t, a.Back(0, chunk))
	require.NoError(t, b.Back(0, chunk))
	require.ErrorIs(t, a.Back(chunk, chunk), ErrOutOfMemory)
	require.NoError(t, b.Close())
	require.NoError(t, b.Close())
	require.NoError(t, a.Back(chunk, 2*chunk))
	require.Len(t, a.Chunks(), 2)
}
