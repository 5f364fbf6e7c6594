package gpuexec

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/gpuexec/device"
)

func TestOpenDevice(t *testing.T) {
	for _, bad := range []string{"", "gpu", "host:1", "none:0", "auto:1", "cuda:x", "cuda:-1", "cuda:"} {
		_, _, err := OpenDevice(bad, "")
		require.ErrorContains(t, err, "expected auto, host, cuda, cuda:N or none", bad)
	}
	d, _, err := OpenDevice("none", "")
	require.NoError(t, err)
	require.Nil(t, d)
	d, _, err = OpenDevice("host", "")
	require.NoError(t, err)
	require.Equal(t, "host", d.Kind())
	require.NoError(t, d.Close())
	d, why, err := OpenDevice("auto", "")
	require.NoError(t, err)
	defer d.Close()
	if d.Kind() == "host" {
		require.ErrorIs(t, why, device.ErrUnsupported)
		_, _, err = OpenDevice("auto", "GPU-00000000-0000-0000-0000-000000000000")
		require.ErrorIs(t, err, device.ErrUnsupported, "a trainer on a GPU is not given the host's memory")
		_, _, err = OpenDevice("cuda:0", "")
		require.ErrorIs(t, err, device.ErrUnsupported)
	}
}
