//go:build linux && !nocuda && (amd64 || arm64)

package cuda

import (
	"encoding/binary"

	"github.com/esperd/esperd/gpuexec/element"
	"github.com/esperd/esperd/gpuexec/kernels"
)

// scratch is memory of the GPU for segments and their sums. It grows as needed,
// up to maxSegments at a time.
type scratch struct{ at, size uint64 }

const (
	maxSegments = 1 << 16 // 16 GiB of tensors in one launch
	sumThreads  = 256
	sumGroups   = 16
)

func (g *gpu) need(size uint64) error {
	if g.scratch.size >= size {
		return nil
	}
	if g.scratch.at != 0 {
		at := g.scratch.at
		g.scratch = scratch{}
		if err := g.check("free memory", g.driver.Free(at)); err != nil {
			return err
		}
	}
	if err := g.check("allocate memory", g.driver.Alloc(&g.scratch.at, uintptr(size))); err != nil {
		g.scratch.at = 0
		return err
	}
	g.scratch.size = size
	return nil
}

// sums launches one group of threads for each segment, or several in turn.
func (g *gpu) sums(base uint64, segments []element.Segment, out []element.Sum) error {
	n := len(segments)
	in := make([]byte, 0, n*kernels.SegmentBytes)
	for _, s := range segments {
		in = kernels.AppendSegment(in, s)
	}
	inside := uint64(len(in)+15) &^ 15
	if err := g.need(inside + uint64(n)*kernels.SumBytes); err != nil {
		return err
	}
	results := g.scratch.at + inside
	if err := g.check("copy to the GPU", g.driver.ToGPU(g.scratch.at, &in[0], uintptr(len(in)), g.stream)); err != nil {
		return err
	}
	groups := g.groups(uint64(n)*sumThreads, sumThreads, sumGroups)
	if err := g.launch(kernels.Fingerprint, groups, sumThreads, kernels.U64(base), kernels.U64(g.scratch.at), kernels.U32(uint32(n)), kernels.U64(results)); err != nil {
		return err
	}
	back := make([]byte, n*kernels.SumBytes)
	if err := g.check("copy from the GPU", g.driver.ToHost(&back[0], results, uintptr(len(back)), g.stream)); err != nil {
		return err
	}
	if err := g.sync(); err != nil {
		return err
	}
	for i := range out {
		out[i] = element.Sum{Lo: binary.LittleEndian.Uint64(back[i*kernels.SumBytes:]), Hi: binary.LittleEndian.Uint64(back[i*kernels.SumBytes+8:])}
	}
	return nil
}
