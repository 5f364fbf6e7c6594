package e2e

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/test/internal/testesperd"
)

// badSettings: esperd does not start, and says which setting is wrong.
func badSettings(t *testing.T) {
	dir := tempDir(t)
	open := filepath.Join(dir, "open")
	require.NoError(t, os.WriteFile(open, []byte(strings.Repeat("x", 40)), 0o600))
	require.NoError(t, os.Chmod(open, 0o644)) // whatever the umask
	short := filepath.Join(dir, "short")
	require.NoError(t, os.WriteFile(short, []byte("x"), 0o600))
	long := filepath.Join(dir, strings.Repeat("s", 120))
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for name, bad := range map[string]struct {
		status int
		args   []string
		words  []string
	}{
		"a rank outside the world": {2, []string{"--rank", "3", "--world-size", "3", "--join", "127.0.0.1"}, []string{"--rank is 3 and --world-size is 3", "expected a rank from 0 to 2"}},
		"half of who it is":        {2, []string{"--rank", "1"}, []string{"--rank is set and --world-size is not"}},
		"nobody to join":           {2, []string{"--rank", "1", "--world-size", "2"}, []string{"nothing says where rank 0 is", "--join"}},
		"a run id that is no path": {2, []string{"--run-id", "../x"}, []string{`--run-id is "../x"`, "expected 1 to 128 letters"}},
		"a socket path too long":   {2, []string{"--socket", long}, []string{"--socket is a path of " + strconv.Itoa(len(long)) + " bytes", "expected at most 107", "choose a shorter one"}},
		"no such log store":        {2, []string{"--log-store", "paper"}, []string{`--log-store is "paper"`, "expected auto, boltdb or wal"}},
		"no such durability":       {2, []string{"--durability", "some"}, []string{`--durability is "some"`, "expected durable or relaxed"}},
		"an open secret":           {1, []string{"--secret-file", open}, []string{open, "has mode 0644", "chmod 600 " + open}},
		"a short secret":           {1, []string{"--secret-file", short}, []string{short, "holds 1 bytes, expected at least 16", "openssl rand"}},
		"no secret there":          {1, []string{"--secret-file", filepath.Join(dir, "none")}, []string{filepath.Join(dir, "none"), "no such file", "--secret-file"}},
		"no directory":             {1, []string{"--data-dir", file}, []string{file, "not a directory", "--data-dir"}},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"run", "--data-dir", filepath.Join(dir, "data")}, bad.args...)
			if bad.args[0] == "--data-dir" {
				args = append([]string{"run"}, bad.args...)
			}
			says(t, refuses(t, bad.status, dir, args...), bad.words...)
			require.NoDirExists(t, filepath.Join(dir, "data"), "nothing is made before the settings are right")
		})
	}
}

// placesInUse: two esperds cannot have one place, and the first goes on.
func placesInUse(t *testing.T) {
	w := startWorld(t, 1)
	n := w.nodes[0]
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	other := filepath.Join(w.dir, "other")
	pid := strconv.Itoa(n.process.cmd.Process.Pid)
	for name, bad := range map[string]struct {
		args  []string
		words []string
	}{
		"data directory": {[]string{"--data-dir", n.dir}, []string{n.dir, "in use by process " + pid, "stop it", "--data-dir"}},
		"peers' port":    {[]string{"--data-dir", other, "--listen", "127.0.0.1:" + n.port}, []string{"127.0.0.1:" + n.port, "in use", "--listen"}},
		"admin port":     {[]string{"--data-dir", other, "--listen", "127.0.0.1:0", "--admin-listen", taken.Addr().String()}, []string{taken.Addr().String(), "in use", "--admin-listen"}},
		"socket":         {[]string{"--data-dir", other, "--listen", "127.0.0.1:0", "--socket", n.socket}, []string{n.socket, "another esperd", "--socket"}},
	} {
		t.Run(name, func(t *testing.T) {
			says(t, refuses(t, 1, w.dir, append([]string{"run"}, bad.args...)...), bad.words...)
		})
	}
	require.Len(t, w.settled(), 1)
	w.terminate()
}

// noRunID: jobs that have none share a place, one at a time.
func noRunID(t *testing.T) {
	dir := tempDir(t)
	log := filepath.Join(dir, "log")
	p := start(t, dir, log)
	t.Cleanup(p.end)
	awaitLog(t, log, "esperd is up")
	says(t, refuses(t, 1, dir, "run"), "in use by process "+strconv.Itoa(p.cmd.Process.Pid), "Jobs without a run id share this place", "ESPERD_RUN_ID")
	other := start(t, dir, log+"2", "--run-id", "other")
	t.Cleanup(other.end)
	awaitLog(t, log+"2", "part of the log", `"run":"other"`)
	require.False(t, p.ended())
}

// exposure: whoever can connect to peers without a secret can write into the
// log, so that is not done by accident.
func exposure(t *testing.T) {
	dir := tempDir(t)
	data, address := filepath.Join(dir, "data"), "0.0.0.0:"+testesperd.FreePort(t)
	says(t, refuses(t, 1, dir, "run", "--data-dir", data, "--listen", address),
		"refusing to listen on "+address+" without a secret", "--secret-file", "--insecure")
	says(t, refuses(t, 1, dir, "run", "--data-dir", data, "--rank", "0", "--world-size", "2", "--join", "192.0.2.1"),
		"refusing to listen on 0.0.0.0:7400 without a secret")
	log := filepath.Join(dir, "log")
	p := start(t, dir, log, "--data-dir", data, "--listen", address, "--insecure")
	t.Cleanup(p.end)
	awaitLog(t, log, `"level":"WARN"`, "--insecure: whoever can reach the peers' address can write into the log", address)
	awaitLog(t, log, "part of the log")
}
