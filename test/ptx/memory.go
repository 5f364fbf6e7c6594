package ptx

import "fmt"

// Memory is a device's: allocations at addresses of the test's choice.
type Memory struct {
	allocations []allocation

	Backward bool // the last warp of a group runs first
}

type allocation struct {
	base  uint64
	bytes []byte
}

// Add makes b readable and writable at an address.
func (m *Memory) Add(base uint64, b []byte) {
	m.allocations = append(m.allocations, allocation{base, b})
}

// at returns n bytes, or what is wrong with the access.
func (m *Memory) at(address, n uint64) ([]byte, error) {
	if address%n != 0 {
		return nil, fmt.Errorf("misaligned access of %d bytes at %#x", n, address)
	}
	for i := range m.allocations {
		a := &m.allocations[i]
		if size := uint64(len(a.bytes)); address >= a.base && address-a.base < size && n <= size-(address-a.base) {
			return a.bytes[address-a.base:][:n], nil
		}
	}
	return nil, fmt.Errorf("access out of bounds: %d bytes at %#x", n, address)
}
