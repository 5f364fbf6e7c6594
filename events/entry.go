package events

import (
	"encoding/hex"
	"fmt"
)

// A Kind says which rules an entry has to fit (package fsm, misfit).
type Kind uint8

// The kinds of entries.
const (
	KindFound      Kind = 1 // entry 1: the log's identity
	KindMembership Kind = 2 // a node came or went
	KindRound      Kind = 3 // the trainers of all ranks are there
	KindCall       Kind = 4 // one numbered call of rank 0: decided or refused
	KindReport     Kind = 5 // what ranks told the leader; touches no slot
	KindFault      Kind = 6 // the round is over: ranks did not make the same calls
	KindRequest    Kind = 7 // somebody asks for something at the next fence
	KindRecover    Kind = 8 // the log goes on under a new lineage, from one copy that was left
)

var kindNames = []string{"", "found", "membership", "round", "call", "report", "fault", "request", "recover"}

// String returns the kind's name.
func (k Kind) String() string { return enumName(kindNames, uint8(k), "Kind") }

// MarshalText writes the name; an undefined code is an error.
func (k Kind) MarshalText() ([]byte, error) { return enumText(kindNames, uint8(k), "kind") }

// UnmarshalText reads a name.
func (k *Kind) UnmarshalText(b []byte) error { return enumParse(kindNames, b, "kind", (*uint8)(k)) }

// Valid reports whether the code is defined.
func (k Kind) Valid() bool { return enumValid(kindNames, uint8(k)) }

// A NodeID identifies one data directory for as long as it exists: 32
// hexadecimal digits. An emptied directory is another node.
type NodeID string

// A Digest is a SHA-256 value: of a state, or a link of the chain.
type Digest [32]byte

// String returns the digest in hexadecimal.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// Short returns the first 12 hexadecimal digits, for people.
func (d Digest) Short() string { return hex.EncodeToString(d[:6]) }

// IsZero reports whether d was never set.
func (d Digest) IsZero() bool { return d == Digest{} }

// MarshalText writes hexadecimal.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads 64 hexadecimal digits.
func (d *Digest) UnmarshalText(b []byte) error {
	if len(b) != 64 {
		return fmt.Errorf("expected a digest of 64 hexadecimal digits, got %d characters", len(b))
	}
	_, err := hex.Decode(d[:], b)
	return err
}

// ArgsHash is a truncated SHA-256 of those arguments of a call that must be
// equal on all ranks.
type ArgsHash [16]byte

// IsZero reports whether h was never set.
func (h ArgsHash) IsZero() bool { return h == ArgsHash{} }

// MarshalText writes hexadecimal.
func (h ArgsHash) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h[:])), nil }

// UnmarshalText reads 32 hexadecimal digits.
func (h *ArgsHash) UnmarshalText(b []byte) error {
	if len(b) != 32 {
		return fmt.Errorf("expected 32 hexadecimal digits, got %d characters", len(b))
	}
	_, err := hex.Decode(h[:], b)
	return err
}

// A Key says which call a call is. Call k of every rank must have the same one.
type Key struct {
	Round      uint64   `cbor:"1,keyasint,omitempty" json:"round"`
	Model      string   `cbor:"2,keyasint,omitempty" json:"model"`
	Generation uint64   `cbor:"3,keyasint,omitempty" json:"generation"`
	Call       uint64   `cbor:"4,keyasint,omitempty" json:"call"`  // k, from 0 in each (round, model)
	Fence      uint64   `cbor:"5,keyasint,omitempty" json:"fence"` // f: fences before this call, likewise
	Op         Op       `cbor:"6,keyasint" json:"op"`
	Slot       string   `cbor:"7,keyasint,omitempty" json:"slot,omitempty"`
	Seed       uint64   `cbor:"8,keyasint,omitempty" json:"seed,omitempty"` // germination count of the slot at the caller's cursor
	Epoch      int64    `cbor:"9,keyasint,omitempty" json:"epoch"`          // the argument of step_epoch, else the last stepped one (-1: none)
	Args       ArgsHash `cbor:"10,keyasint,omitzero" json:"args,omitzero"`
}

// String writes the key as people read it: what, where, and its number.
func (k Key) String() string {
	s := string(k.Op)
	if k.Slot != "" {
		s += fmt.Sprintf(" %s#%d", k.Slot, k.Seed)
	}
	return fmt.Sprintf("%s epoch %d (model %s.%d, round %d, call %d, fence %d)", s, k.Epoch, k.Model, k.Generation, k.Round, k.Call, k.Fence)
}

// Same reports whether two keys are of the same call but for its arguments.
func (k Key) Same(other Key) bool {
	k.Args = other.Args
	return k == other
}

// At writes the key with the line that the call was made in, if that is known.
func (k Key) At(site string) string {
	if site == "" {
		return k.String()
	}
	return k.String() + " at " + site
}

// An Entry is one command as the log keeps it. Its index is not in it: the
// index is its place in the dense order that Apply gives.
type Entry struct {
	Version     uint64  `cbor:"1,keyasint" json:"version"`
	Kind        Kind    `cbor:"2,keyasint" json:"kind"`
	Node        NodeID  `cbor:"3,keyasint" json:"node"`                     // who wrote it
	Round       uint64  `cbor:"4,keyasint,omitempty" json:"round"`          // 0: before the first
	Predecessor uint64  `cbor:"5,keyasint,omitempty" json:"predecessor"`    // index of the entry it was decided on
	Key         *Key    `cbor:"6,keyasint,omitempty" json:"key,omitempty"`  // calls only
	Site        string  `cbor:"7,keyasint,omitempty" json:"site,omitempty"` // where rank 0 called from, "train.py:88"
	Lifecycle   Digest  `cbor:"8,keyasint,omitzero" json:"lifecycle"`       // of the key's model, before; zero where there is none
	Bookkeeping Digest  `cbor:"9,keyasint,omitzero" json:"bookkeeping"`     // before
	Time        int64   `cbor:"10,keyasint" json:"time"`                    // the leader's clock, Unix nanoseconds: a fact, read by nobody
	Events      []Event `cbor:"11,keyasint,omitempty" json:"events"`
}
