package audit

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"hash/maphash"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// callCheck compares the index of calls with the entries, as two sets: what a
// set adds up to does not depend on an order, and takes no memory.
type callCheck struct{ count, sum, mixed uint64 }

type indexedCall struct {
	id    events.CallID
	index uint64
}

// callSeed is another one in every process: only checks of one audit are
// compared.
var callSeed = maphash.MakeSeed()

func (c *callCheck) add(id events.CallID, index uint64) {
	// A hash and a second one of it: to tell faults, not forgers.
	h := maphash.Comparable(callSeed, indexedCall{id, index})
	c.count++
	c.sum += h
	c.mixed += (h ^ h>>29) * 0xbf58476d1ce4e5b9
}

// checkStore checks what a data directory keeps beside its entries, and its
// file's structure.
func (v *verifier) checkStore(p *dirPlace) {
	h := v.h
	h.faults = append(h.faults, v.images.faults...)
	if p.bad != nil {
		v.storeFault(p.bad)
	}
	for _, img := range p.images {
		if img.Index > h.about.Head && !h.about.Live {
			h.faults = append(h.faults, fault{verdict: VerdictCorrupt, index: h.about.Head + 1,
				what: fmt.Sprintf("the records end with entry %d, but there is a state image of entry %d, which is written after it", h.about.Head, img.Index)})
		}
	}
	if !h.damaged && h.replayed == h.good && h.good == h.about.Head && h.about.From == 1 {
		v.checkCalls(p)
	}
	switch err := p.reader.Check(); {
	case errors.Is(err, events.ErrBusy):
		h.notes = append(h.notes, "the structure of its file was not checked: it is being written to")
	case err != nil && !h.damaged: // else it was met before, at its entry
		v.storeFault(err)
	}
	if p.reader.Extent().TornHeader {
		h.faults = append(h.faults, fault{verdict: VerdictCorrupt, index: h.about.Head + 1,
			what: "one of the two headers of its file cannot be read: the last entries that were written may be lost with it"})
	}
}

// storeFault is damage beside the records.
func (v *verifier) storeFault(err error) {
	if damage, ok := errors.AsType[*events.CorruptError](err); ok {
		v.h.faults = append(v.h.faults, fault{verdict: VerdictCorrupt, index: damage.Index, what: damage.What})
	} else if v.h.stopped == nil {
		v.h.stopped = err
	}
}

// checkCalls compares the index of calls, and looks for the difference only if
// there is one.
func (v *verifier) checkCalls(p *dirPlace) {
	h := v.h
	got := callCheck{}
	beyond := uint64(0)
	err := p.reader.Calls(func(id events.CallID, index uint64) error {
		if index <= h.good {
			got.add(id, index)
		} else if !h.about.Live {
			beyond = index
		}
		return nil
	})
	switch {
	case err != nil:
		v.storeFault(err)
	case beyond > 0:
		h.faults = append(h.faults, fault{verdict: VerdictCorrupt, index: h.good + 1,
			what: fmt.Sprintf("the records end with entry %d, but the index of calls knows entry %d", h.good, beyond)})
	case got != h.calls:
		h.faults = append(h.faults, v.wrongCall(p))
	}
}

// wrongCall finds the first entry that the index of calls does not have, or has
// for another call.
func (v *verifier) wrongCall(p *dirPlace) fault {
	f := fault{verdict: VerdictCorrupt, what: "the index of calls is not that of the entries"}
	seen := errors.New("found")
	err := p.reader.Calls(func(id events.CallID, index uint64) error {
		r, err := p.reader.Read(index)
		if err != nil {
			return err
		}
		e, err := events.Decode(r.Entry)
		if err == nil && (e.Key == nil || id != (events.CallID{Round: e.Key.Round, Model: e.Key.Model, Call: e.Key.Call})) {
			f.index, f.what = index, fmt.Sprintf("the index of calls has entry %d for call %d of model %s in round %d, which it does not answer", index, id.Call, id.Model, id.Round)
			return seen
		}
		return err
	})
	if err != nil {
		return f
	}
	_ = p.reader.Records(1, v.h.good, func(b *events.Batch) error {
		for i := range b.Records {
			e, err := events.Decode(b.Records[i].Entry)
			if err != nil || e.Kind != events.KindCall || e.Key == nil {
				continue
			}
			at, ok, err := p.reader.Find(events.CallID{Round: e.Key.Round, Model: e.Key.Model, Call: e.Key.Call})
			if err == nil && (!ok || at < b.Records[i].Index) {
				f.index, f.what = b.Records[i].Index, fmt.Sprintf("the index of calls lacks call %d of model %s in round %d", e.Key.Call, e.Key.Model, e.Key.Round)
				return seen
			}
		}
		return nil
	})
	return f
}

// whichImage marks a fault that a kept state image shows.
const whichImage = "image"

// imageCheck compares kept state images with the replay as it passes them.
type imageCheck struct {
	images []events.Image
	faults []fault
}

func newImageCheck(p Place) *imageCheck {
	c := new(imageCheck)
	if d, ok := p.(*dirPlace); ok {
		c.images = d.images
	}
	for _, img := range c.images {
		if damage, ok := errors.AsType[*events.CorruptError](img.Err); ok {
			c.faults = append(c.faults, fault{verdict: VerdictCorrupt, index: img.Index, what: damage.What})
		}
	}
	return c
}

// stateAt returns the state that an image holds, nil if none does.
func (c *imageCheck) stateAt(index uint64) *fsm.State {
	for _, img := range c.images {
		if img.Index == index && img.Err == nil {
			if s, err := fsm.FromImage(img.Bytes); err == nil && s.Index == index {
				return s
			}
		}
	}
	return nil
}

// compare looks at the image of a state, if one was kept. A replica that applied
// an entry wrongly shows there in which fields.
func (c *imageCheck) compare(s *fsm.State) {
	for len(c.images) > 0 && c.images[0].Index <= s.Index {
		img := c.images[0]
		c.images = c.images[1:]
		if img.Index != s.Index || img.Err != nil {
			continue
		}
		if want, err := s.Image(); err == nil && bytes.Equal(want, img.Bytes) {
			continue
		}
		kept, err := fsm.FromImage(img.Bytes)
		if err != nil {
			c.faults = append(c.faults, fault{verdict: VerdictCorrupt, index: s.Index, what: err.Error()})
			continue
		}
		if diff := DiffStates(s, kept); len(diff) > 0 {
			c.faults = append(c.faults, fault{verdict: VerdictApply, index: s.Index, which: whichImage, fields: diff,
				what: fmt.Sprintf("the state image of entry %d is not the state that the entries give", s.Index)})
		}
	}
}

// blockSums are what blocks of a history come to: api.Chain.Sum of the entries
// 1..65,536, of the next 65,536, and so on.
type blockSums struct {
	whole []events.Digest
	part  hash.Hash
}

func (b *blockSums) add(r *events.Record) {
	if b.part == nil {
		if (r.Index-1)%api.ChainMax != 0 {
			return // of a history that does not begin there
		}
		b.part = sha256.New()
	}
	sumRecord(b.part, r)
	if r.Index%api.ChainMax == 0 {
		for uint64(len(b.whole)) < r.Index/api.ChainMax-1 {
			b.whole = append(b.whole, events.Digest{}) // not known
		}
		b.whole = append(b.whole, events.Digest(b.part.Sum(nil)))
		b.part = nil
	}
}

func sumRecord(h hash.Hash, r *events.Record) {
	h.Write(r.Chain[:])
	h.Write(r.Lifecycle[:])
	h.Write(r.Bookkeeping[:])
}
