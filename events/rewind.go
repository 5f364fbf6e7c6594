package events

// Rewound takes a model back to a mark: what the log has of it after the mark's
// entry becomes a branch that was left. Call numbers and requests are no part of
// it.
type Rewound struct {
	Run     string `cbor:"1,keyasint" json:"run"`
	Lineage string `cbor:"2,keyasint" json:"lineage"`
	Index   uint64 `cbor:"3,keyasint" json:"index"` // of the mark's entry
	Chain   Digest `cbor:"4,keyasint" json:"chain"` // there

	Lifecycle Digest      `cbor:"5,keyasint" json:"lifecycle"` // of the model there, and now
	Model     ModelRecord `cbor:"6,keyasint" json:"model"`

	// Adopted says that this log does not hold the mark's entry: the mark
	// continues one that was lost.
	Adopted bool `cbor:"7,keyasint,omitempty" json:"adopted,omitempty"`
}

// Recovered continues a log under a new lineage, from a copy of it that was left
// when its quorum was lost. All nodes of before are gone from it.
type Recovered struct {
	Lineage string   `cbor:"1,keyasint" json:"lineage"` // random, 32 hexadecimal digits
	From    Ancestor `cbor:"2,keyasint" json:"from"`
}

// Ancestor is another log that this one continues.
type Ancestor struct {
	Lineage string `cbor:"1,keyasint" json:"lineage"`
	Index   uint64 `cbor:"2,keyasint" json:"index"` // the last entry in common; 0: it was lost, but for a mark
	Chain   Digest `cbor:"3,keyasint" json:"chain"` // there
}

// ModelRecord is one model's lifecycle without its configuration.
type ModelRecord struct {
	Generation uint64       `cbor:"1,keyasint,omitempty" json:"generation"`
	Epoch      int64        `cbor:"2,keyasint,omitempty" json:"epoch"`   // last stepped; -1: none
	FenceN     int64        `cbor:"3,keyasint,omitempty" json:"fence_n"` // argument of the last fence; -1: none
	Tick       uint64       `cbor:"4,keyasint,omitempty" json:"tick"`
	Slots      []SlotRecord `cbor:"5,keyasint,omitempty" json:"slots"` // those that ever held a seed, ascending
}

// SlotRecord is one slot that has held a seed.
type SlotRecord struct {
	Slot         uint64      `cbor:"1,keyasint,omitempty" json:"slot"` // its place in the configuration
	Germinations uint64      `cbor:"2,keyasint" json:"germinations"`
	Seed         *SeedRecord `cbor:"3,keyasint,omitempty" json:"seed,omitempty"` // nil: DORMANT
}

// SeedRecord is everything that the log says about one seed.
type SeedRecord struct {
	Count     uint64  `cbor:"1,keyasint,omitempty" json:"count"` // the slot's germination count when it germinated
	ID        string  `cbor:"2,keyasint,omitempty" json:"id"`
	Blueprint string  `cbor:"3,keyasint,omitempty" json:"blueprint"`
	Blend     string  `cbor:"4,keyasint,omitempty" json:"blend"`
	Tempo     int64   `cbor:"5,keyasint,omitempty" json:"tempo"`
	Target    float64 `cbor:"6,keyasint,omitempty" json:"target"`

	Stage     Stage     `cbor:"7,keyasint,omitempty" json:"stage"`
	Previous  Stage     `cbor:"8,keyasint,omitempty" json:"previous"`
	Amplitude Amplitude `cbor:"9,keyasint" json:"amplitude"`
	Metrics   Metrics   `cbor:"10,keyasint" json:"metrics"`

	BlendAccuracy *Num         `cbor:"11,keyasint,omitempty" json:"blend_accuracy,omitempty"` // when blending began; nil: it has not
	Pending       *PruneReason `cbor:"12,keyasint,omitempty" json:"pending,omitempty"`        // of the scheduled prune that is running
	Pruned        *PruneReason `cbor:"13,keyasint,omitempty" json:"pruned,omitempty"`         // of the prune that put it into cooldown

	Absent bool `cbor:"14,keyasint,omitempty" json:"absent,omitempty"` // not every rank has made room for it yet: it does not train
}

// PruneReason is why a seed is or will be pruned, and who asked.
type PruneReason struct {
	Reason    string `cbor:"1,keyasint,omitempty" json:"reason"`
	Initiator string `cbor:"2,keyasint,omitempty" json:"initiator"`
}
