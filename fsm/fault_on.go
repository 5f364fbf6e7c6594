//go:build esperdfault

package fsm

import (
	"fmt"
	"os"
	"strconv"
)

// faultIndex is the entry that this build applies wrongly, by
// ESPERD_FAULT_APPLY; 0: none.
var faultIndex = func() uint64 {
	text := os.Getenv("ESPERD_FAULT_APPLY")
	if text == "" {
		return 0
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		panic(fmt.Sprintf("ESPERD_FAULT_APPLY: %v", err))
	}
	return n
}()

// tamper makes a wrong transition of one entry, each time that it is applied, as
// a wrong build would. Tests build this on purpose (-tags esperdfault).
func (s *State) tamper() {
	if s.Index == faultIndex {
		s.spoil()
	}
}

// Spoil returns a state as a machine with a wrong bit in its memory would have it.
func Spoil(s *State) *State {
	next := *s
	next.sealed = seal{}
	next.spoil()
	return next.seal()
}

// spoil makes the first living seed's epochs one too many.
func (s *State) spoil() {
	for _, m := range s.Models {
		for i := range m.Slots.Len() {
			slot := m.Slots.At(i)
			if slot.Seed == nil {
				continue
			}
			seed := *slot.Seed
			seed.Metrics.Epochs++
			s.setModel(m.withSlot(i, &Slot{Germinations: slot.Germinations, Seed: &seed}).seal())
			return
		}
	}
}
