package gpuexec

import "math/bits"

// A slotSet is a set of slots. Its ends are found by looking at a word per 64
// slots, so that they cost much the same however many seeds live.
type slotSet []uint64

func newSlotSet(slots int) slotSet { return make(slotSet, (slots+63)/64) }

func (s slotSet) put(i int, in bool) {
	if in {
		s[i/64] |= 1 << (i % 64)
	} else {
		s[i/64] &^= 1 << (i % 64)
	}
}

func (s slotSet) has(i int) bool { return s[i/64]>>(i%64)&1 == 1 }

// ends returns the first and the last slot; false of an empty set.
func (s slotSet) ends() (first, last int, ok bool) {
	for w := range s {
		if s[w] != 0 {
			for e := len(s) - 1; ; e-- {
				if s[e] != 0 {
					return w*64 + bits.TrailingZeros64(s[w]), e*64 + 63 - bits.LeadingZeros64(s[e]), true
				}
			}
		}
	}
	return 0, 0, false
}
