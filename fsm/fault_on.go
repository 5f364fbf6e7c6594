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

// tamper makes a wrong transition of one entry: the first living seed's epochs
// are one too many. Tests build this on purpose (-tags esperdfault).
func (s *State) tamper() {
	if s.Index != faultIndex {
		return
	}
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
