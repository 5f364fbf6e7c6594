// Package clean does what Apply may do.
package clean

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
)

type kind uint8

func (k kind) String() string { return [...]string{"a", "b"}[k&1] }

type event struct {
	name  string
	value float64
	kind  kind
}

type state struct {
	list  []event
	index map[string]int // looked up, never iterated
	sum   [32]byte
}

func Apply(s *state, e event) (*state, error) {
	const half = 1.0 / 2 // the compiler's arithmetic, not the processor's
	next := *s
	if e.value != e.value || e.value < half {
		return nil, fmt.Errorf("a %s of %v", e.kind, e.value)
	}
	i, ok := s.index[e.name]
	if !ok {
		i, _ = slices.BinarySearchFunc(s.list, e.name, func(a event, name string) int { return strings.Compare(a.name, name) })
	}
	next.list = slices.Clone(s.list)
	next.list[i] = e
	next.list[i].value = float64(e.value)
	b := make([]byte, 0, 64)
	for _, r := range e.name {
		b = binary.BigEndian.AppendUint64(b, uint64(r)-1)
	}
	next.sum = sha256.Sum256(binary.BigEndian.AppendUint64(b, math.Float64bits(e.value)))
	return &next, nil
}
