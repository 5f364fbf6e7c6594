package element

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/bits"
)

// SegmentBytes is the most that one segment covers: it is what one group of a
// GPU's threads sums, and how closely a difference can be placed.
const SegmentBytes = 256 << 10

// A Sum is the sum of a tensor's blocks of 16 bytes modulo 2^128, each weighed
// by its position. Sums of parts may be added in any order.
type Sum struct{ Lo, Hi uint64 }

// Add returns the sum of both.
func (a Sum) Add(b Sum) Sum {
	lo, carry := bits.Add64(a.Lo, b.Lo, 0)
	hi, _ := bits.Add64(a.Hi, b.Hi, carry)
	return Sum{lo, hi}
}

const (
	mixBlock = 0x9E3779B97F4A7C15
	mixKey   = 0xFF51AFD7ED558CCD
	mixOther = 0x9FB21C651E98DF25
)

// SumOf returns the sum of p, whose first byte is the first of the tensor's block
// of that number. The last block is filled up with zeros.
//
// A block's two words are added to two keys, mixed from its number, and
// multiplied (the NH hash). Four chains of additions keep the multiplier busy.
func SumOf(p []byte, block uint64) Sum {
	k := (block + 1) * mixBlock
	var lo, hi [4]uint64
	for len(p) >= 64 {
		b := (*[64]byte)(p)
		x0 := (k ^ k>>32) * mixKey
		k1 := k + mixBlock
		x1 := (k1 ^ k1>>32) * mixKey
		k2 := k1 + mixBlock
		x2 := (k2 ^ k2>>32) * mixKey
		k3 := k2 + mixBlock
		x3 := (k3 ^ k3>>32) * mixKey
		k = k3 + mixBlock
		var c uint64
		h0, l0 := bits.Mul64(binary.LittleEndian.Uint64(b[0:])+(x0^x0>>32), binary.LittleEndian.Uint64(b[8:])+bits.RotateLeft64(x0, 32)*mixOther)
		h1, l1 := bits.Mul64(binary.LittleEndian.Uint64(b[16:])+(x1^x1>>32), binary.LittleEndian.Uint64(b[24:])+bits.RotateLeft64(x1, 32)*mixOther)
		h2, l2 := bits.Mul64(binary.LittleEndian.Uint64(b[32:])+(x2^x2>>32), binary.LittleEndian.Uint64(b[40:])+bits.RotateLeft64(x2, 32)*mixOther)
		h3, l3 := bits.Mul64(binary.LittleEndian.Uint64(b[48:])+(x3^x3>>32), binary.LittleEndian.Uint64(b[56:])+bits.RotateLeft64(x3, 32)*mixOther)
		lo[0], c = bits.Add64(lo[0], l0, 0)
		hi[0], _ = bits.Add64(hi[0], h0, c)
		lo[1], c = bits.Add64(lo[1], l1, 0)
		hi[1], _ = bits.Add64(hi[1], h1, c)
		lo[2], c = bits.Add64(lo[2], l2, 0)
		hi[2], _ = bits.Add64(hi[2], h2, c)
		lo[3], c = bits.Add64(lo[3], l3, 0)
		hi[3], _ = bits.Add64(hi[3], h3, c)
		p = p[64:]
	}
	var a Sum
	for i := range lo {
		a = a.Add(Sum{lo[i], hi[i]})
	}
	return a.Add(sumRest(p, k))
}

// sumRest sums less than four blocks; k is the first one's mixed number.
func sumRest(p []byte, k uint64) (a Sum) {
	for len(p) > 0 {
		var b [16]byte
		n := copy(b[:], p)
		p = p[n:]
		x := (k ^ k>>32) * mixKey
		h, l := bits.Mul64(binary.LittleEndian.Uint64(b[0:])+(x^x>>32), binary.LittleEndian.Uint64(b[8:])+bits.RotateLeft64(x, 32)*mixOther)
		a = a.Add(Sum{l, h})
		k += mixBlock
	}
	return a
}

// A Segment is a run of bytes inside one tensor: what one sum is taken of.
type Segment struct {
	Offset uint64 // from the arena's start, in bytes; a multiple of 16
	Bytes  uint64 // at most SegmentBytes
	Block  uint64 // number of its first 16-byte block inside the tensor
}

// Segments cuts the n bytes of a tensor at offset into segments.
func Segments(offset, n uint64) []Segment {
	out := make([]Segment, 0, (n+SegmentBytes-1)/SegmentBytes)
	for at := uint64(0); at < n; at += SegmentBytes {
		out = append(out, Segment{Offset: offset + at, Bytes: min(n-at, SegmentBytes), Block: at / 16})
	}
	return out
}

// A Fingerprint tells a tensor's contents, type and shape apart from others. It
// is no signature: whoever wants a collision can make one. -0.0 and 0.0 differ,
// and so do NaNs of other payloads.
type Fingerprint [16]byte

// String returns 32 hexadecimal digits.
func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }

// MarshalText writes the hexadecimal digits.
func (f Fingerprint) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads them.
func (f *Fingerprint) UnmarshalText(b []byte) error {
	if n, err := hex.Decode(f[:], b[:min(len(b), 32)]); err != nil || n != len(f) || len(b) != 32 {
		return fmt.Errorf("fingerprint %.40q: expected 32 hexadecimal digits", b)
	}
	return nil
}

// Finish folds a tensor's element type, shape and byte count into its sum.
func (a Sum) Finish(dtype string, shape []uint64, n uint64) Fingerprint {
	h := make([]byte, 0, 128)
	h = append(h, "esperd tensor 1\x00"...)
	h = binary.LittleEndian.AppendUint64(h, a.Lo)
	h = binary.LittleEndian.AppendUint64(h, a.Hi)
	h = binary.LittleEndian.AppendUint64(h, n)
	h = binary.LittleEndian.AppendUint64(h, uint64(len(dtype)))
	h = append(h, dtype...)
	for _, d := range shape {
		h = binary.LittleEndian.AppendUint64(h, d)
	}
	d := sha256.Sum256(h)
	return Fingerprint(d[:16])
}
