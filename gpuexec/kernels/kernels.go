// Package kernels has the kernels for NVIDIA's GPUs, as the PTX that is shipped,
// and lays out their parameters.
//
//	src/         elements.h: the element functions, in C
//	             kernels.c: the kernels over them
//	esperd.ptx   what "make kernels" compiles of the two, with the clang it pins
//	kernels.go   names, and parameters as bytes
//
// test/ptx runs esperd.ptx itself, instruction by instruction, against package
// element, and compares it with what the pinned clang makes of the sources.
package kernels

import (
	_ "embed"
	"encoding/binary"
	"math"

	"github.com/esperd/esperd/gpuexec/element"
)

// PTX is what the driver compiles.
//
//go:embed esperd.ptx
var PTX string

// Names of the kernels.
const (
	Fingerprint = "esperd_fingerprint"
	Table       = "esperd_table"
)

// Names are all of them.
var Names = []string{Uniform(element.Float32), Uniform(element.Float16), Uniform(element.BFloat16), Fingerprint, Table}

// Uniform returns the name of the kernel that fills elements of a type.
func Uniform(d element.DType) string {
	return [element.DTypes]string{"esperd_uniform_f32", "esperd_uniform_f16", "esperd_uniform_bf16"}[d]
}

// Sizes of the structures of elements.h, in bytes.
const (
	SegmentBytes = 24
	SumBytes     = 16
	updateBytes  = 32
	UpdatesBytes = 16 + element.MaxUpdates*updateBytes
)

// U64 returns the bytes of a parameter.
func U64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

// U32 returns the bytes of a parameter.
func U32(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }

// F32 returns the bytes of a parameter.
func F32(v float32) []byte { return U32(math.Float32bits(v)) }

// AppendSegment appends a struct segment.
func AppendSegment(b []byte, s element.Segment) []byte {
	b = binary.LittleEndian.AppendUint64(b, s.Offset)
	b = binary.LittleEndian.AppendUint64(b, s.Bytes)
	return binary.LittleEndian.AppendUint64(b, s.Block)
}

// Updates returns a struct updates of up to element.MaxUpdates.
func Updates(list []element.Update, generation uint64) []byte {
	b := make([]byte, UpdatesBytes)
	binary.LittleEndian.PutUint32(b, uint32(len(list)))
	binary.LittleEndian.PutUint64(b[8:], generation)
	for i, u := range list {
		at := b[16+i*updateBytes:]
		binary.LittleEndian.PutUint32(at, u.Slot)
		binary.LittleEndian.PutUint64(at[8:], u.Offset)
		binary.LittleEndian.PutUint64(at[16:], u.Elements)
		binary.LittleEndian.PutUint32(at[24:], math.Float32bits(u.Alpha))
		binary.LittleEndian.PutUint32(at[28:], uint32(u.Flags))
	}
	return b
}
