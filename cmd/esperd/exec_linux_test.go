package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// The command does not outlive its esperd, not even one that was killed.
func TestExecKilledEndsTheCommand(t *testing.T) {
	home := t.TempDir()
	said := filepath.Join(home, "said")
	cmd := esperd(t, home, "exec", "--", "sh", "-c", `trap "echo told > `+said+`; exit" TERM; echo ready; while :; do sleep 0.02; done`)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = out.Read(make([]byte, 16))
	require.NoError(t, err)
	require.NoError(t, cmd.Process.Kill())
	require.Eventually(t, func() bool {
		b, err := os.ReadFile(said)
		return err == nil && string(b) == "told\n"
	}, 20*time.Second, 10*time.Millisecond)
	require.Error(t, cmd.Wait())
}

// A command reads the terminal as it would alone, gets what is typed there
// once, and what is sent to esperd exec.
func TestExecUnderTerminal(t *testing.T) {
	home := t.TempDir()
	master, slave := terminal(t)
	cmd := esperd(t, home, "exec", "--log-level", "warn", "--", "sh", "-c",
		`n=0; trap 'n=$((n+1)); echo interrupted $n; [ $n -lt 2 ] || exit 6' INT; trap 'echo terminated' TERM
		echo ready; read x; echo "read $x"; while :; do read x; done`)
	log, err := os.CreateTemp(home, "log")
	require.NoError(t, err)
	defer log.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, log // the terminal's last words may get lost
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	require.NoError(t, slave.Close())
	lines := make(chan string, 64)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(master); s.Scan(); { // ends with an error: nobody has the terminal
			lines <- strings.TrimSpace(s.Text())
		}
	}()
	var heard []string
	await := func(line string) {
		t.Helper()
		deadline := time.After(30 * time.Second)
		for {
			select {
			case got, open := <-lines:
				require.True(t, open, "it ended without %q: %q", line, heard)
				heard = append(heard, got)
				if strings.TrimPrefix(got, "^C") == line { // the terminal's own
					return
				}
			case <-deadline:
				t.Fatalf("no %q in %q", line, heard)
			}
		}
	}
	await("ready")
	_, err = master.WriteString("hello\n")
	require.NoError(t, err)
	await("read hello")
	_, err = master.WriteString("\x03")
	require.NoError(t, err)
	await("interrupted 1")
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	await("terminated") // after a second interrupt, were there one
	require.NotContains(t, heard, "interrupted 2")
	_, err = master.WriteString("\x03")
	require.NoError(t, err)
	require.IsType(t, &exec.ExitError{}, cmd.Wait())
	require.Equal(t, 6, cmd.ProcessState.ExitCode())
	said, err := os.ReadFile(log.Name())
	require.NoError(t, err)
	require.NotContains(t, string(said), "stopping at once", "what was typed was for the command")
}

// terminal makes a pseudo terminal.
func terminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { master.Close() })
	var number, unlock int32
	for _, call := range []struct {
		request uintptr
		value   *int32
	}{{syscall.TIOCGPTN, &number}, {syscall.TIOCSPTLCK, &unlock}} {
		_, _, failed := syscall.Syscall(syscall.SYS_IOCTL, master.Fd(), call.request, uintptr(unsafe.Pointer(call.value)))
		require.Zero(t, failed, "%v", failed)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	require.NoError(t, err)
	return master, slave
}
