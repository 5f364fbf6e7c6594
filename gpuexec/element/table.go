package element

import (
	"encoding/binary"
	"math"
)

// Sizes of the table, which stands at the start of every arena: a header and an
// entry per slot, in slot order.
const (
	HeaderBytes = 64
	EntryBytes  = 32
	MaxUpdates  = 64 // entries that one launch changes

	tableMagic   = 0x6C62617464707365 // "espdtabl"
	tableVersion = 1

	generationAt = 16 // in the header
)

// Flags say what a slot's seed is, to kernels and trainers.
type Flags uint32

// The flags. A seed that is reserved and not active is GERMINATED.
const (
	Reserved  Flags = 1 << iota // it has memory
	Active                      // its output is blended into the host by alpha
	Trainable                   // its parameters learn
	Isolated                    // the gradient of its input is cut off from the host
	Permanent                   // FOSSILIZED
)

// An Entry is what the table says of a slot. The zero entry is an empty slot.
type Entry struct {
	Offset     uint64  `json:"offset"`   // of the seed's first parameter in the arena, in bytes
	Elements   uint64  `json:"elements"` // of all its parameters
	Alpha      float32 `json:"alpha"`    // 0 to 1
	Flags      Flags   `json:"flags"`
	Generation uint64  `json:"generation"` // of the update that wrote it; written last
}

// An Update changes one slot's entry.
type Update struct {
	Slot uint32 // index in slot order
	Entry
}

// TableBytes returns the size of a table.
func TableBytes(slots int) uint64 { return HeaderBytes + uint64(slots)*EntryBytes }

// NewTable returns the bytes of an empty one.
func NewTable(slots int) []byte {
	b := make([]byte, TableBytes(slots))
	binary.LittleEndian.PutUint64(b, tableMagic)
	binary.LittleEndian.PutUint32(b[8:], tableVersion)
	binary.LittleEndian.PutUint32(b[12:], uint32(slots))
	return b
}

// TableGeneration returns the generation of the newest update.
func TableGeneration(table []byte) uint64 {
	return binary.LittleEndian.Uint64(table[generationAt:])
}

// ReadEntry returns a slot's entry.
func ReadEntry(table []byte, slot int) Entry {
	b := table[HeaderBytes+slot*EntryBytes:][:EntryBytes]
	return Entry{
		Offset:     binary.LittleEndian.Uint64(b),
		Elements:   binary.LittleEndian.Uint64(b[8:]),
		Alpha:      math.Float32frombits(binary.LittleEndian.Uint32(b[16:])),
		Flags:      Flags(binary.LittleEndian.Uint32(b[20:])),
		Generation: binary.LittleEndian.Uint64(b[24:]),
	}
}

// WriteTable makes updates in a table in memory, in the order of the kernel: the
// entries, their generations, the header's generation. An update of a slot that
// the table has not got changes nothing.
func WriteTable(table []byte, updates []Update, generation uint64) {
	slots := uint32((len(table) - HeaderBytes) / EntryBytes)
	at := func(slot uint32) []byte { return table[HeaderBytes+int(slot)*EntryBytes:][:EntryBytes] }
	for _, u := range updates {
		if u.Slot >= slots {
			continue
		}
		b := at(u.Slot)
		binary.LittleEndian.PutUint64(b, u.Offset)
		binary.LittleEndian.PutUint64(b[8:], u.Elements)
		binary.LittleEndian.PutUint32(b[16:], math.Float32bits(u.Alpha))
		binary.LittleEndian.PutUint32(b[20:], uint32(u.Flags))
	}
	for _, u := range updates {
		if u.Slot < slots {
			binary.LittleEndian.PutUint64(at(u.Slot)[24:], generation)
		}
	}
	binary.LittleEndian.PutUint64(table[generationAt:], generation)
}
