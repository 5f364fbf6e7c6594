package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestFullDisk fills the disk of one node while decisions are made. Nothing
// that was acknowledged may be lost, the node has to say what is wrong, and it
// has to go on by itself when there is space again.
func TestFullDisk(t *testing.T) {
	plain(t)
	t.Parallel()
	for _, rank := range []int{0, 1} {
		t.Run(fmt.Sprintf("rank=%d", rank), func(t *testing.T) {
			w := newWorld(t, 3)
			n := w.nodes[rank]
			mountSmall(t, n.dir)
			w.startAll()
			w.settled()
			l := w.train()
			l.progress(answersBetween)

			ballast := filepath.Join(n.dir, "ballast")
			fill(t, ballast)
			awaitLog(t, n.logFile, "no space left on device")
			eventually(t, "a rank that is seen to wait", func() error {
				if waiting := w.waiting(); !strings.Contains(waiting, fmt.Sprintf(`"rank":%d,"what":"decision"`, rank)) {
					return errors.New(waiting)
				}
				return w.alive()
			})
			if rank == 0 {
				require.Error(t, n.ready())
			}
			require.NoError(t, os.Remove(ballast))
			l.progress(answersBetween)
			w.led()
			l.finish()
			w.verify(l)
		})
	}
}

// mountSmall makes dir a small disk of its own.
func mountSmall(t *testing.T, dir string) {
	t.Helper()
	require.NoError(t, os.Mkdir(dir, 0o700))
	out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", dir).CombinedOutput()
	if err != nil {
		if strings.Contains(os.Getenv("ESPERD_REQUIRE"), "mount") {
			t.Fatalf("cannot mount a tmpfs, and ESPERD_REQUIRE asks for it: %v: %s", err, out)
		}
		t.Skipf("cannot mount a tmpfs for a small disk; this needs root: %v: %s", err, out)
	}
	// Lazily: a killed process may hold a file for a moment more.
	t.Cleanup(func() { require.NoError(t, exec.Command("umount", "-l", dir).Run()) })
}

// fill writes a file until the disk is full.
func fill(t *testing.T, file string) {
	t.Helper()
	f, err := os.Create(file)
	require.NoError(t, err)
	defer f.Close()
	for block := make([]byte, 4096); err == nil; {
		_, err = f.Write(block)
	}
	require.ErrorIs(t, err, syscall.ENOSPC)
}

// fullDiskAtBoot: esperd does not start, and what it has stays as it is.
func fullDiskAtBoot(t *testing.T) {
	w := newWorld(t, 1)
	n := w.nodes[0]
	mountSmall(t, n.dir)
	w.startAll()
	w.settled()
	w.terminate()
	ballast := filepath.Join(n.dir, "ballast")
	fill(t, ballast)
	before := sums(t, n.dir)
	says(t, refuses(t, 1, w.dir, append([]string{"run"}, n.args...)...), filepath.Join(n.dir, "node.json"), "no space left on device")
	require.Subset(t, sums(t, n.dir), before)
	require.NoError(t, os.Remove(ballast))
	w.startAll()
	w.settled()
}
