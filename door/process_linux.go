package door

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// process is another process, held by a descriptor that stays its own when the
// number is given to a new one (pidfd_open(2)).
type process struct {
	pid  int
	file *os.File
	once sync.Once
	over atomic.Bool // it has ended, which close makes impossible to see
}

func openProcess(pid int) (*process, error) {
	if pid <= 0 {
		return nil, errors.New("the kernel does not say which process it is: it is in another pid namespace")
	}
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, os.ErrProcessDone
	}
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return &process{pid: pid, file: os.NewFile(uintptr(fd), "pidfd")}, nil
}

// wait returns nil when the process has ended, and an error when ctx did before.
func (p *process) wait(ctx context.Context) error {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err = raw.Read(func(fd uintptr) bool { return pidfdReadable(fd) })
	if err == nil {
		p.over.Store(true)
	}
	return err
}

// ended reports whether the process has ended; a zombie has.
func (p *process) ended() bool {
	if p.over.Load() {
		return true
	}
	raw, err := p.file.SyscallConn()
	if err != nil {
		return false
	}
	over := false
	_ = raw.Control(func(fd uintptr) { over = pidfdReadable(fd) })
	return over
}

func (p *process) close() { p.once.Do(func() { p.file.Close() }) }

func pidfdReadable(fd uintptr) bool {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n == 1 && poll[0].Revents&unix.POLLIN != 0
}

// identify tells a process from others that had or will have its number: when it
// began, in ticks since the machine did, and in which pid namespace that is so.
func identify(pid int) (start uint64, space string, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, "", err
	}
	const startAt = 22 - 3 // among the fields after the name, which may hold anything
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) <= startAt {
		return 0, "", fmt.Errorf("expected more fields in /proc/%d/stat, got %q", pid, stat)
	}
	if start, err = strconv.ParseUint(fields[startAt], 10, 64); err != nil {
		return 0, "", err
	}
	space, err = os.Readlink("/proc/self/ns/pid")
	return start, space, err
}
