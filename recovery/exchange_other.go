//go:build !linux

package recovery

import "errors"

// exchange is Linux's.
func exchange(string, string) error { return errors.ErrUnsupported }
