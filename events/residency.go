package events

// Residency says that in this round seeds of a model wait, once germinated, for
// the votes of all ranks before they may train: each has to make room on its
// device.
type Residency struct {
	Ranks uint64 `cbor:"1,keyasint" json:"ranks"` // whose votes a seed needs
}

// Voted is what one rank says about the room for a seed on its device. It stands
// in the bookkeeping until the model's next fence.
type Voted struct {
	Round      uint64 `cbor:"1,keyasint" json:"round"`
	Rank       uint64 `cbor:"2,keyasint,omitempty" json:"rank"`
	Model      string `cbor:"3,keyasint" json:"model"`
	Generation uint64 `cbor:"4,keyasint" json:"generation"`
	Slot       string `cbor:"5,keyasint" json:"slot"`
	Seed       uint64 `cbor:"6,keyasint" json:"seed"`
	Failed     bool   `cbor:"7,keyasint,omitempty" json:"failed,omitempty"` // there is none: the seed is pruned for all
	Reason     string `cbor:"8,keyasint,omitempty" json:"reason,omitempty"` // why it failed
}

// Resided says that all ranks have made room for a seed: it may train from here
// on.
type Resided struct {
	Slot string `cbor:"1,keyasint" json:"slot"`
	Seed uint64 `cbor:"2,keyasint" json:"seed"`
}

// Attested is what the ranks of a round have of a model on their devices at one
// fence, compared: the value of most of them, and who has another.
type Attested struct {
	Round      uint64 `cbor:"1,keyasint" json:"round"`
	Model      string `cbor:"2,keyasint" json:"model"`
	Generation uint64 `cbor:"3,keyasint" json:"generation"`
	Index      uint64 `cbor:"4,keyasint" json:"index"`                     // of the fence's entry
	What       string `cbor:"5,keyasint" json:"what"`                      // "active": the active set; "tensors": fingerprints
	Shard      string `cbor:"6,keyasint,omitempty" json:"shard,omitempty"` // only equal shards are compared; "": all ranks hold the same
	Value      Digest `cbor:"7,keyasint" json:"value"`                     // of most
	Ranks      uint64 `cbor:"8,keyasint" json:"ranks"`                     // that have it

	Others  []AttestedOther `cbor:"9,keyasint,omitempty" json:"others,omitempty"`   // by value, ascending
	Missing []uint64        `cbor:"10,keyasint,omitempty" json:"missing,omitempty"` // ranks that said nothing in time
}

// AttestedOther are ranks whose value is not that of most.
type AttestedOther struct {
	Value   Digest   `cbor:"1,keyasint" json:"value"`
	Ranks   []uint64 `cbor:"2,keyasint" json:"ranks"`
	Tensors []string `cbor:"3,keyasint,omitempty" json:"tensors,omitempty"` // that differ, as slot/tensor; of the active set, slots
}
