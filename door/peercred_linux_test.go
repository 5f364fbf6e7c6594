package door

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWhoMayConnect(t *testing.T) {
	require.NoError(t, permit(uint32(os.Getuid()), 1))
	require.NoError(t, permit(0, 1))
	err := permit(uint32(os.Getuid())+1, 77)
	require.ErrorContains(t, err, "process 77 of user")
	require.ErrorContains(t, err, "run trainer and esperd as one user")
}
