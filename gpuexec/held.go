package gpuexec

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/gpuexec/element"
)

// HeaderName stands among slots for the head of the table.
const HeaderName = "(the table's header)"

// Held is what a device had since the fence before, as it was found at this one:
// what the trainer has used.
type Held struct {
	Index      uint64        `json:"index"`      // of that fence's entry; 0: there was none, or all is rebuilt
	Generation uint64        `json:"generation"` // of the model, then
	Planned    events.Digest `json:"planned"`    // of the active set, as the log has it

	// Value is Planned, or something else where the table on the device says
	// something else.
	Value events.Digest `json:"value"`

	// Altered names the slots whose entries were not what was written: somebody
	// else wrote into the table. They are written anew at this fence.
	Altered []string `json:"altered,omitempty"`
}

// held reads the table back, before a fence changes it, and returns the slots
// whose entries are to be written again.
func (x *Executor) held() (h Held, again []int) {
	if x.at == nil {
		return Held{}, nil
	}
	h = Held{Index: x.index, Generation: x.at.Generation, Planned: x.active.digest()}
	h.Value = h.Planned
	if !x.usable() {
		return h, nil
	}
	found := x.readback[:len(x.table)]
	if _, err := x.arena.ReadAt(found, 0); err != nil {
		x.fail(fmt.Errorf("read the table of model %s back from %s: %w", x.opts.Model, x.opts.Device.Name(), err))
		return h, nil
	}
	if bytes.Equal(found, x.table) {
		return h, nil
	}
	sum := sha256.New()
	sum.Write(h.Planned[:])
	if head := found[:element.HeaderBytes]; !bytes.Equal(head, x.table[:element.HeaderBytes]) {
		h.Altered = append(h.Altered, HeaderName)
		sum.Write(head)
		_, err := x.arena.WriteAt(x.table[:element.HeaderBytes], 0)
		x.fail(err)
	}
	for i := range x.members {
		at := element.HeaderBytes + i*element.EntryBytes
		entry := found[at : at+element.EntryBytes]
		if bytes.Equal(entry, x.table[at:at+element.EntryBytes]) {
			continue
		}
		h.Altered, again = append(h.Altered, x.at.Config.Slots[i].Name), append(again, i)
		sum.Write(binary.BigEndian.AppendUint64(nil, uint64(i)))
		sum.Write(entry)
	}
	h.Value = events.Digest(sum.Sum(nil))
	return h, again
}
