package main

import "syscall"

// tiedToParent ends the command when the thread that starts it ends: with its
// esperd exec, however that is killed.
func tiedToParent(a *syscall.SysProcAttr) *syscall.SysProcAttr {
	a.Pdeathsig = syscall.SIGTERM
	return a
}
