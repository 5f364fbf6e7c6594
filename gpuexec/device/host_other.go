//go:build !linux

package device

import "fmt"

// Host fails: sealed shared memory is Linux's.
func Host() (Device, error) {
	return nil, fmt.Errorf("shared memory of the host: %w; run with --device none", ErrUnsupported)
}
