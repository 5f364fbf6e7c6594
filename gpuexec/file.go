package gpuexec

import (
	"fmt"
	"io"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/gpuexec/element"
)

const maxFileBytes = 1 << 40

// FingerprintOf fingerprints a tensor of the trainer's own that it has put into a
// file, at offset. A shape that has not so many bytes is an error.
func FingerprintOf(f io.ReaderAt, dtype string, shape []uint64, offset, n uint64) (element.Fingerprint, error) {
	if len(shape) > 64 || len(dtype) > 64 || offset > maxFileBytes || n > maxFileBytes {
		return element.Fingerprint{}, fmt.Errorf("tensor at %d, %d bytes: expected a range of a file of at most %d bytes, and at most 64 dimensions", offset, n, uint64(maxFileBytes))
	}
	if d, err := element.ParseDType(dtype); err == nil && n > 0 {
		t, err := newTensor(&events.Tensor{Name: "tensor", DType: dtype, Shape: shape})
		if err != nil {
			return element.Fingerprint{}, err
		}
		if t.Elements*d.Size() != n {
			return element.Fingerprint{}, fmt.Errorf("tensor of %s %v: expected %d bytes, got %d", dtype, shape, t.Elements*d.Size(), n)
		}
	}
	var total element.Sum
	buf := make([]byte, min(n, element.SegmentBytes))
	for at := uint64(0); at < n; at += element.SegmentBytes {
		b := buf[:min(n-at, element.SegmentBytes)]
		if _, err := f.ReadAt(b, int64(offset+at)); err != nil {
			return element.Fingerprint{}, fmt.Errorf("tensor at %d, %d bytes: %w", offset, n, err)
		}
		total = total.Add(element.SumOf(b, at/16))
	}
	return total.Finish(dtype, shape, n), nil
}
