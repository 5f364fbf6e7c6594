package element

import (
	"fmt"
	"testing"
)

// What fingerprinting and filling cost against copying, in one run: bytes of the
// tensor for each. One core; 64 MiB, beyond most caches.
func BenchmarkElement(b *testing.B) {
	const size = 64 << 20
	src, dst := make([]byte, size), make([]byte, size)
	s := Parameter{Run: "bench"}.Source()
	scale, _ := Scale(0.1, Float32)
	FillUniform(src, Float32, s, 0, scale)
	for _, c := range []struct {
		name string
		run  func()
	}{
		{"copy", func() { copy(dst, src) }},
		{"fingerprint", func() { sink = sink.Add(SumOf(src, 0)) }},
		{"init/float32", func() { FillUniform(dst, Float32, s, 0, scale) }},
		{"init/float16", func() { FillUniform(dst, Float16, s, 0, scale) }},
		{"init/bfloat16", func() { FillUniform(dst, BFloat16, s, 0, scale) }},
		{"zero", func() { clear(dst) }},
	} {
		b.Run(fmt.Sprintf("%s/%dMiB", c.name, size>>20), func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				c.run()
			}
		})
	}
}

var sink Sum
