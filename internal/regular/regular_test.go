package regular

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// What is no regular file is refused, and nothing waits for it.
func TestOpen(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	require.NoError(t, os.WriteFile(at("file"), []byte("words"), 0o600))
	require.NoError(t, os.Symlink("file", at("link")))
	require.NoError(t, syscall.Mkfifo(at("pipe"), 0o600))
	l, err := net.Listen("unix", at("socket"))
	require.NoError(t, err)
	defer l.Close()

	for _, name := range []string{"file", "link"} {
		b, err := ReadFile(at(name))
		require.NoError(t, err)
		require.Equal(t, "words", string(b))
	}
	for name, says := range map[string]string{at("pipe"): "is a pipe, expected a regular file", dir: "is a directory", at("socket"): "is a socket", os.DevNull: "is a device"} {
		_, err := ReadFile(name)
		require.ErrorContains(t, err, says)
	}
	_, err = Open(at("nothing"))
	require.ErrorIs(t, err, fs.ErrNotExist)
}
