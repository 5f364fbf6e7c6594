package element

import (
	"crypto/sha256"
	"encoding/binary"
)

// Philox is Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011): ten rounds over a
// counter, by a key.
func Philox(counter [4]uint32, key [2]uint32) [4]uint32 {
	a, b, c, d := philox(counter[0], counter[1], counter[2], counter[3], key[0], key[1])
	return [4]uint32{a, b, c, d}
}

// philox keeps everything in registers, which arrays would not.
func philox(c0, c1, c2, c3, k0, k1 uint32) (uint32, uint32, uint32, uint32) {
	for range 5 {
		a, b := uint64(0xD2511F53)*uint64(c0), uint64(0xCD9E8D57)*uint64(c2)
		c0, c1, c2, c3 = uint32(b>>32)^c1^k0, uint32(b), uint32(a>>32)^c3^k1, uint32(a)
		a, b = uint64(0xD2511F53)*uint64(c0), uint64(0xCD9E8D57)*uint64(c2)
		c0, c1, c2, c3 = uint32(b>>32)^c1^(k0+0x9E3779B9), uint32(b), uint32(a>>32)^c3^(k1+0xBB67AE85), uint32(a)
		k0 += 0x3C6EF372 // twice each
		k1 += 0x76CF5D0A
	}
	return c0, c1, c2, c3
}

// Source names a stream of random numbers: Philox's key, and the upper half of
// its counter.
type Source struct {
	Key, Stream uint64
}

// Parameter names a parameter of a seed over all that a run ever trains.
type Parameter struct {
	Run, Model  string
	Generation  uint64 // of the model, from 1
	Slot        string
	Germination uint64 // the seed's number in its slot, from 1
	Tensor      string
}

// Source returns the random numbers that fill the parameter. Two parameters
// share none.
func (p Parameter) Source() Source {
	h := make([]byte, 0, 256)
	for _, s := range []string{"esperd parameter 1", p.Run, p.Model, p.Slot, p.Tensor} {
		h = binary.LittleEndian.AppendUint64(h, uint64(len(s)))
		h = append(h, s...)
	}
	h = binary.LittleEndian.AppendUint64(h, p.Generation)
	h = binary.LittleEndian.AppendUint64(h, p.Germination)
	d := sha256.Sum256(h)
	return Source{Key: binary.LittleEndian.Uint64(d[:]), Stream: binary.LittleEndian.Uint64(d[8:])}
}

// block returns the words of elements 4*i to 4*i+3.
func (s Source) block(i uint64) (a, b, c, d uint32) {
	return philox(uint32(i), uint32(i>>32), uint32(s.Stream), uint32(s.Stream>>32), uint32(s.Key), uint32(s.Key>>32))
}
