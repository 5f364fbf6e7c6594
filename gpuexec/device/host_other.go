//go:build !linux

package device

import (
	"fmt"
	"net"
	"os"
)

// Host fails: sealed shared memory is Linux's.
func Host() (Device, error) {
	return nil, fmt.Errorf("shared memory of the host: %w; run with --device none", ErrUnsupported)
}

// Send fails, as there is nothing to hand over.
func Send(*net.UnixConn, *Offer) error { return fmt.Errorf("hand over the arena: %w", ErrUnsupported) }

// ReceiveFile fails likewise.
func ReceiveFile(*net.UnixConn) (*os.File, error) {
	return nil, fmt.Errorf("take a file: %w", ErrUnsupported)
}
