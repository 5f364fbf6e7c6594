package door

import (
	"fmt"
	"net"
	"os"
	"syscall"
)

// checkPeer returns an error unless the process behind the connection runs as
// this user or as root.
func checkPeer(c net.Conn) error {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return err
	}
	var cred *syscall.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return fmt.Errorf("who connected cannot be found out: %w", credErr)
	}
	return permit(cred.Uid, cred.Pid)
}

func permit(uid uint32, pid int32) error {
	if own := os.Getuid(); uid != 0 && int(uid) != own {
		return fmt.Errorf("process %d of user %d connected to the trainer's door, expected one of user %d: run trainer and esperd as one user", pid, uid, own)
	}
	return nil
}
