package door

import (
	"github.com/esperd/esperd/fsm"
)

// found returns how often ranks of a round have been found to hold something
// else than most.
func found(r *fsm.Round) (n uint64) {
	for _, k := range r.Attesting {
		n += k
	}
	return n
}
