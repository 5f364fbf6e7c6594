package gpuexec

import (
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/gpuexec/device"
	"github.com/esperd/esperd/gpuexec/element"
)

// A Report is what a fence did to the device.
type Report struct {
	Index     uint64        `json:"index"` // of the fence's entry: the table's generation
	Commands  []Command     `json:"commands,omitempty"`
	ActiveSet events.Digest `json:"active_set"`
	Held      Held          `json:"held"`

	// Votes are the new ones: a seed that has its memory, or cannot have it.
	Votes []Vote `json:"votes,omitempty"`

	// Lost names the seeds whose contents a trainer has to load again
	// ("arena-lost"): they have learned, and their memory is new.
	Lost []SeedRef `json:"lost,omitempty"`

	// Remap says that chunks came or went: the trainer takes Offer again.
	Remap bool `json:"remap,omitempty"`

	Spans []Span `json:"spans,omitempty"`

	// Device is what is wrong with the device as a whole; empty: nothing. The
	// plan and the active set are right all the same.
	Device string `json:"device,omitempty"`
}

// A SeedRef names a seed.
type SeedRef struct {
	Slot string `json:"slot"`
	Seed uint64 `json:"seed"`
}

// A Vote says whether this rank has what a seed needs (design: residency).
type Vote struct {
	SeedRef
	Ready  bool   `json:"ready"`
	Reason string `json:"reason,omitempty"` // why not
}

// A Span is the range of the gradient plane that holds the gradients of all
// seeds that learn, of one element type: one all-reduce serves them. What
// belongs to no such seed is zero.
type Span struct {
	DType    string `json:"dtype"`
	Offset   uint64 `json:"offset"`   // in the arena, bytes
	Elements uint64 `json:"elements"` // from the first to the last
	Learning uint64 `json:"learning"` // of them, in seeds that learn
}

// An Attestation is the fingerprint of one parameter.
type Attestation struct {
	SeedRef
	Tensor      string              `json:"tensor"`
	Fingerprint element.Fingerprint `json:"fingerprint"`
}

// A View is what a trainer binds a seed's module to.
type View struct {
	SeedRef
	Blueprint string        `json:"blueprint"`
	Tensors   []Tensor      `json:"tensors"`
	Entry     uint64        `json:"entry"` // offset of the slot's entry in the table, bytes
	Lost      bool          `json:"lost,omitempty"`
	Flags     element.Flags `json:"flags"`
	Alpha     float64       `json:"alpha"`
}

// Offer is what device.Send hands to a trainer.
type Offer = device.Offer
