//go:build linux && !nocuda && (amd64 || arm64)

package cuda

import (
	"fmt"
	"slices"

	"github.com/esperd/esperd/gpuexec/device"
)

const (
	outOfMemory result = 2
	noDevice    result = 100
)

// sticky are the errors after which a context answers nothing any more.
var sticky = []result{
	4,   // DEINITIALIZED
	46,  // DEVICE_UNAVAILABLE
	201, // INVALID_CONTEXT
	214, // ECC_UNCORRECTABLE
	220, // NVLINK_UNCORRECTABLE
	700, // ILLEGAL_ADDRESS
	702, // LAUNCH_TIMEOUT
	709, // CONTEXT_IS_DESTROYED
	710, // ASSERT
	714, // HARDWARE_STACK_ERROR
	715, // ILLEGAL_INSTRUCTION
	716, // MISALIGNED_ADDRESS
	717, // INVALID_ADDRESS_SPACE
	718, // INVALID_PC
	719, // LAUNCH_FAILED
	999, // UNKNOWN
}

// check turns a result into an error: nil, ErrOutOfMemory, ErrLost for good, or
// another.
func (g *gpu) check(what string, code result) error {
	if code == 0 {
		return nil
	}
	err := g.driver.failure(what, code)
	if slices.Contains(sticky, code) {
		g.lost = fmt.Errorf("%w: %w", device.ErrLost, err)
		return g.lost
	}
	return err
}

func (d *driver) failure(what string, code result) error {
	var name, words *byte
	d.ErrorName(code, &name)
	d.ErrorText(code, &words)
	err := fmt.Errorf("CUDA: %s: %s (%d): %s", what, text(name), code, text(words))
	if code == outOfMemory {
		return fmt.Errorf("%w: %w", device.ErrOutOfMemory, err)
	}
	return err
}
