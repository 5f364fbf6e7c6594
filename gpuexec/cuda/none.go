//go:build !linux || nocuda || !(amd64 || arm64)

package cuda

import (
	"fmt"

	"github.com/esperd/esperd/gpuexec/device"
)

// Open fails: this build has no CUDA.
func Open(Options) (device.Device, error) {
	return nil, fmt.Errorf("CUDA: %w: this esperd was built without it (linux on amd64 or arm64, without the tag nocuda)", device.ErrUnsupported)
}
