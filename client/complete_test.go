package client

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
)

func TestAnswersThatDoNotGoOnFromTheLastOne(t *testing.T) {
	fence := func(index, since uint64, names ...string) *api.Fence {
		f := &api.Fence{Index: index, Since: since}
		for _, n := range names {
			f.Slots = append(f.Slots, api.Slot{Name: n, Alpha: float64(index)})
		}
		return f
	}
	c := &Client{}
	require.ErrorIs(t, c.complete(fence(5, 4, "a")), errUnreadable, "none was kept")
	require.NoError(t, c.complete(fence(6, 0, "a", "b", "c")))
	f := fence(7, 6, "a", "c")
	require.NoError(t, c.complete(f))
	require.Equal(t, []api.Slot{{Name: "a", Alpha: 7}, {Name: "b", Alpha: 6}, {Name: "c", Alpha: 7}}, f.Slots)
	for _, bad := range []*api.Fence{fence(9, 6, "a"), fence(9, 7, "x"), fence(9, 7, "c", "a")} {
		require.ErrorIs(t, c.complete(bad), errUnreadable)
		require.Zero(t, c.since("/v1/fence"), "the next one is asked for all")
		require.NoError(t, c.complete(f))
	}
	require.Equal(t, uint64(7), c.since("/v1/fence"))
	require.Zero(t, c.since("/v1/slots/a/advance"))
}
