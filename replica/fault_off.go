//go:build !esperdfault

package replica

import "github.com/esperd/esperd/fsm"

// tamper does nothing but in a build for tests (fault_on.go).
func tamper(s *fsm.State) *fsm.State { return s }
