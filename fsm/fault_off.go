//go:build !esperdfault

package fsm

// tamper does nothing but in a build for tests (fault_on.go).
func (*State) tamper() {}
