//go:build esperdfault

package replica

import (
	"os"
	"strconv"

	"github.com/esperd/esperd/fsm"
)

// tamper spoils the live state after the entry that ESPERD_FAULT_MEMORY names,
// and no replay of it: as a wrong bit in memory does.
func tamper(s *fsm.State) *fsm.State {
	if at := os.Getenv("ESPERD_FAULT_MEMORY"); at == "" || strconv.FormatUint(s.Index, 10) != at {
		return s
	}
	return fsm.Spoil(s)
}
