package replica

import (
	"fmt"
	"log/slog"
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"
)

// withoutFsync runs fn on a thread of its own, on which the kernel refuses to
// sync: only what does not try to succeeds. Seccomp tells it apart from any
// disk's speed, and from what a store says of itself.
func withoutFsync(t *testing.T, fn func()) {
	t.Helper()
	const (
		setSeccomp, modeFilter = 22, 2         // prctl's
		noNewPrivs             = 38            // prctl's; without it only root may filter
		load, ifEqual, give    = 0x20, 0x15, 6 // BPF
		allow, refuse          = 0x7fff0000, 0x00050000
	)
	calls := []uint32{syscall.SYS_FSYNC, syscall.SYS_FDATASYNC, syscall.SYS_MSYNC}
	filter := []syscall.SockFilter{{Code: load}} // the call's number
	for i, nr := range calls {
		filter = append(filter, syscall.SockFilter{Code: ifEqual, K: nr, Jt: uint8(len(calls) - i)})
	}
	filter = append(filter, syscall.SockFilter{Code: give, K: allow}, syscall.SockFilter{Code: give, K: refuse | uint32(syscall.EIO)})
	program := syscall.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	refused := make(chan syscall.Errno, 1)
	go func() {
		defer close(refused)
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		_, _, errno := syscall.RawSyscall6(syscall.SYS_PRCTL, noNewPrivs, 1, 0, 0, 0, 0)
		if errno == 0 {
			_, _, errno = syscall.RawSyscall(syscall.SYS_PRCTL, setSeccomp, modeFilter, uintptr(unsafe.Pointer(&program)))
		}
		if errno != 0 {
			refused <- errno
			return
		}
		fn()
	}()
	if errno := <-refused; errno != 0 {
		t.Skip("this kernel takes no seccomp filter: ", errno)
	}
}

// TestDurability: relaxed, nothing that raft waits for is synced; durable,
// nothing succeeds that is not.
func TestDurability(t *testing.T) {
	for _, kind := range []string{logStoreBolt, logStoreWAL} {
		for _, durability := range []string{durabilityDurable, durabilityRelaxed} {
			t.Run(fmt.Sprint(kind, " ", durability), func(t *testing.T) {
				dir, err := OpenDataDir(t.TempDir(), DataDirOptions{})
				require.NoError(t, err)
				defer dir.Close()
				n := &Node{cfg: Config{Dir: dir, LogStore: kind, Durability: durability}, log: slog.New(slog.DiscardHandler)}
				stores, err := n.openStores()
				require.NoError(t, err)
				defer func() {
					require.NoError(t, stores.History.Close())
					for _, c := range n.closers {
						require.NoError(t, c.Close())
					}
				}()
				var logs []*raft.Log
				for i := uint64(1); i <= 200; i++ { // the file has to grow, which bbolt syncs apart
					logs = append(logs, &raft.Log{Index: i, Term: 1, Data: make([]byte, 10_000)})
				}
				var errs []error
				withoutFsync(t, func() {
					errs = []error{stores.Log.StoreLogs(logs), stores.Stable.SetUint64([]byte("CurrentTerm"), 7), stores.Log.DeleteRange(1, 150)}
				})
				for i, err := range errs {
					switch {
					case durability == durabilityRelaxed:
						require.NoError(t, err)
					case i < 2: // then there is nothing to delete
						require.ErrorContains(t, err, syscall.EIO.Error()) // bbolt does not wrap it
					}
				}
			})
		}
	}
}

// A store that cannot be synced keeps its mark, and is not trusted again: the
// kernel tells of a lost write once.
func TestSettleThatCannotSync(t *testing.T) {
	for _, kind := range []string{logStoreBolt, logStoreWAL} {
		dir := t.TempDir()
		_, _, closer, err := openLogStore(kind, dir, true)
		require.NoError(t, err)
		err = nil
		withoutFsync(t, func() { err = closer.Close() })
		require.ErrorIs(t, err, syscall.EIO)
		for _, relaxed := range []bool{false, true} {
			_, _, _, err = openLogStore(kind, dir, relaxed)
			require.ErrorContains(t, err, "nothing tells whether all that it wrote is on disk")
		}
	}
}

// No log is opened under a mark that is not on disk.
func TestMarkThatCannotBeSynced(t *testing.T) {
	dir := t.TempDir()
	var err error
	withoutFsync(t, func() { _, _, _, err = openLogStore(logStoreBolt, dir, true) })
	require.ErrorIs(t, err, syscall.EIO)
	require.NoFileExists(t, dir+"/raft.db")
}
