package door

import (
	"fmt"
	"net"
	"os"
	"syscall"
)

// checkPeer returns the process behind a connection (0: the kernel does not say),
// and an error unless it runs as this user or as root.
func checkPeer(c net.Conn) (pid int, err error) {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *syscall.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, fmt.Errorf("who connected cannot be found out: %w", credErr)
	}
	return int(cred.Pid), permit(cred.Uid, cred.Pid)
}

func permit(uid uint32, pid int32) error {
	if own := os.Getuid(); uid != 0 && int(uid) != own {
		return fmt.Errorf("process %d of user %d connected to the trainer's door, expected one of user %d: run trainer and esperd as one user", pid, uid, own)
	}
	return nil
}
