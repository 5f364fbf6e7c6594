package gpuexec

import (
	"errors"
	"slices"

	"github.com/esperd/esperd/gpuexec/device"
)

// backing puts memory behind the ranges of an arena that somebody holds, and
// takes a chunk away when nobody holds any part of it. Ranges may overlap.
type backing struct {
	arena  device.Arena
	grain  uint64
	holds  map[uint64]int    // by granule
	chunks map[uint64]*Range // by granule

	changes uint64 // chunks that came or went
}

func newBacking(a device.Arena) *backing {
	return &backing{arena: a, grain: a.Granularity(), holds: map[uint64]int{}, chunks: map[uint64]*Range{}}
}

func (b *backing) count() uint64 {
	if b == nil {
		return 0
	}
	return b.changes
}

// granules returns the first granule of r, and the first behind it.
func (b *backing) granules(r Range) (first, end uint64) {
	if r.Size == 0 {
		return 0, 0
	}
	return r.Offset / b.grain, (r.End() + b.grain - 1) / b.grain
}

// hold makes sure that all of r has memory until release(r). What fails changes
// nothing.
func (b *backing) hold(r Range) error {
	first, end := b.granules(r)
	var made []*Range
	for g := first; g < end; g++ {
		if b.chunks[g] != nil {
			continue
		}
		run := g + 1
		for run < end && b.chunks[run] == nil {
			run++
		}
		c := &Range{g * b.grain, (run - g) * b.grain}
		if err := b.arena.Back(c.Offset, c.Size); err != nil {
			for _, c := range made {
				err = errors.Join(err, b.drop(c))
			}
			return err
		}
		b.changes++
		made = append(made, c)
		for ; g < run; g++ {
			b.chunks[g] = c
		}
		g--
	}
	for g := first; g < end; g++ {
		b.holds[g]++
	}
	return nil
}

// release undoes a hold of the same range.
func (b *backing) release(r Range) error {
	first, end := b.granules(r)
	var touched []*Range
	for g := first; g < end; g++ {
		if b.holds[g]--; b.holds[g] == 0 {
			delete(b.holds, g)
			if c := b.chunks[g]; len(touched) == 0 || touched[len(touched)-1] != c {
				touched = append(touched, c)
			}
		}
	}
	var errs []error
	for _, c := range slices.Compact(touched) {
		if c != nil && !b.held(c) {
			errs = append(errs, b.drop(c))
		}
	}
	return errors.Join(errs...)
}

func (b *backing) held(c *Range) bool {
	first, end := b.granules(*c)
	for g := first; g < end; g++ {
		if b.holds[g] > 0 {
			return true
		}
	}
	return false
}

func (b *backing) drop(c *Range) error {
	first, end := b.granules(*c)
	for g := first; g < end; g++ {
		delete(b.chunks, g)
	}
	b.changes++
	return b.arena.Drop(c.Offset, c.Size)
}
