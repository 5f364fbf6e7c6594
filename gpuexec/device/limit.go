package device

import (
	"fmt"
	"sync"
)

// Limited returns a device whose arenas have at most max bytes of memory, all
// together.
func Limited(d Device, max uint64) Device { return &limited{Device: d, max: max} }

type limited struct {
	Device
	max uint64

	mu   sync.Mutex
	used uint64
}

func (d *limited) NewArena(size uint64) (Arena, error) {
	a, err := d.Device.NewArena(size)
	if err != nil {
		return nil, err
	}
	return &limitedArena{Arena: a, d: d}, nil
}

func (d *limited) take(size uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if size > d.max-d.used {
		return fmt.Errorf("%d bytes, with %d taken: %w: arenas have %d here (--device-memory)", size, d.used, ErrOutOfMemory, d.max)
	}
	d.used += size
	return nil
}

func (d *limited) give(size uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.used -= size
}

type limitedArena struct {
	Arena
	d *limited

	mu   sync.Mutex
	held uint64
}

func (a *limitedArena) Back(offset, size uint64) error {
	if err := a.d.take(size); err != nil {
		return err
	}
	if err := a.Arena.Back(offset, size); err != nil {
		a.d.give(size)
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.held += size
	return nil
}

func (a *limitedArena) Drop(offset, size uint64) error {
	if err := a.Arena.Drop(offset, size); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.held -= size
	a.d.give(size)
	return nil
}

func (a *limitedArena) Close() error {
	a.mu.Lock()
	held := a.held
	a.held = 0
	a.mu.Unlock()
	a.d.give(held)
	return a.Arena.Close()
}
