//go:build linux && !nocuda && (amd64 || arm64)

package cuda

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"unsafe"

	"github.com/esperd/esperd/gpuexec/device"
	"github.com/esperd/esperd/gpuexec/kernels"
)

// load gives the PTX to the driver's compiler, whose log goes into the error.
func (g *gpu) load() error {
	ptx := append([]byte(kernels.PTX), 0)
	log := make([]byte, 8192)
	var pin runtime.Pinner
	pin.Pin(&log[0])
	defer pin.Unpin()
	opts := []int32{jitErrorLog, jitErrorSize}
	vals := []uintptr{uintptr(unsafe.Pointer(&log[0])), uintptr(len(log) - 1)}
	if code := g.driver.Load(&g.module, &ptx[0], uint32(len(opts)), &opts[0], &vals[0]); code != 0 {
		g.module = 0
		return fmt.Errorf("%w: %s", g.check("compile the kernels for "+g.name, code), text(&log[0]))
	}
	return nil
}

// launch starts a kernel on the stream. Its arguments are copied to the block of
// parameters, whose start is the list of pointers to them.
func (g *gpu) launch(name string, groups, threads uint32, args ...[]byte) error {
	at := 256
	for i, a := range args {
		copy(g.params[at:], a)
		binary.LittleEndian.PutUint64(g.params[8*i:], uint64(uintptr(unsafe.Pointer(&g.params[at]))))
		at += (len(a) + 15) &^ 15
	}
	return g.check("launch "+name, g.driver.Launch(g.functions[name], groups, 1, 1, threads, 1, 1, 0, g.stream, uintptr(unsafe.Pointer(&g.params[0])), 0))
}

// groups returns how many groups of threads do n pieces of work: a few on each
// processor, which go on with the rest.
func (g *gpu) groups(n uint64, threads, each uint32) uint32 {
	return uint32(max(1, min((n+uint64(threads)-1)/uint64(threads), uint64(g.processors)*uint64(each))))
}

const fillThreads, fillGroups = 256, 8

func (g *gpu) fill(base uint64, f device.Fill) error {
	dst := base + f.Offset
	switch {
	case f.Elements == 0:
		return nil
	case f.Uniform:
		k := kernels.Uniform(f.DType)
		return g.launch(k, g.groups(f.Bytes()/16+1, fillThreads, fillGroups), fillThreads,
			kernels.U64(dst), kernels.U64(f.Elements), kernels.U64(f.Source.Key), kernels.U64(f.Source.Stream), kernels.F32(f.Scale))
	case f.DType.Size() == 4:
		return g.check("fill", g.driver.Set32(dst, f.Bits, uintptr(f.Elements), g.stream))
	}
	return g.check("fill", g.driver.Set16(dst, uint16(f.Bits), uintptr(f.Elements), g.stream))
}

func (g *gpu) sync() error { return g.check("wait for the GPU", g.driver.Sync(g.stream)) }
