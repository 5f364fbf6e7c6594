//go:build !linux

package main

import "syscall"

// tiedToParent changes nothing: here a command outlives a killed esperd exec.
func tiedToParent(a *syscall.SysProcAttr) *syscall.SysProcAttr { return a }
