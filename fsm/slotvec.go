package fsm

// slotVec is a persistent vector of slots: setting one copies a page and the
// page table, so that an entry costs the same with 10 slots and with 10,000.
type slotVec struct {
	pages [][]*Slot
	n     int
}

const slotPage = 64

func newSlotVec(n int, fill *Slot) slotVec {
	v := slotVec{n: n}
	for i := 0; i < n; i += slotPage {
		page := make([]*Slot, min(slotPage, n-i))
		for j := range page {
			page[j] = fill
		}
		v.pages = append(v.pages, page)
	}
	return v
}

// Len returns the number of slots.
func (v slotVec) Len() int { return v.n }

// At returns slot i, in slot order.
func (v slotVec) At(i int) *Slot { return v.at(i) }

func (v slotVec) at(i int) *Slot { return v.pages[i/slotPage][i%slotPage] }

func (v slotVec) with(i int, s *Slot) slotVec {
	pages := append([][]*Slot(nil), v.pages...)
	page := append([]*Slot(nil), pages[i/slotPage]...)
	page[i%slotPage] = s
	pages[i/slotPage] = page
	return slotVec{pages: pages, n: v.n}
}
