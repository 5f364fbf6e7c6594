package fsm

// slotVec is a persistent vector of slots: setting one copies a page and the
// page table, so that an entry costs the same with 10 slots and with 10,000.
type slotVec struct {
	pages [][]*Slot
	n     int
	owned int // 1 + the page that belongs to this draft alone, as the table does; 0: none yet
}

const slotPage = 128 // near the square root of the most slots: table and page cost alike

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
func (v slotVec) At(i int) *Slot { return v.pages[i/slotPage][i%slotPage] }

// Changed calls f with every slot that is not the same record in both models, in
// slot order. Pages that both share are passed over, so that it costs what has
// changed. The models have the same number of slots.
func (m *Model) Changed(before *Model, f func(i int)) {
	for p, page := range m.Slots.pages {
		old := before.Slots.pages[p]
		if &page[0] == &old[0] {
			continue
		}
		for i := range page {
			if page[i] != old[i] {
				f(p*slotPage + i)
			}
		}
	}
}

// set changes a draft. What it shares with others is copied first.
func (v *slotVec) set(i int, s *Slot) {
	page := i / slotPage
	if v.owned == 0 {
		v.pages = append([][]*Slot(nil), v.pages...)
	}
	if v.owned != page+1 {
		v.pages[page], v.owned = append([]*Slot(nil), v.pages[page]...), page+1
	}
	v.pages[page][i%slotPage] = s
}
