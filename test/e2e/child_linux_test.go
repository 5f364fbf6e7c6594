package e2e

import "syscall"

// childAttr ends a child with this test: one that timed out leaves nothing
// behind.
func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
