package element

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"math/big"
	"math/bits"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/x448/float16"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write the vectors anew")

// The known answers of Random123 (kat_vectors, philox4x32 10).
func TestPhiloxKnownAnswers(t *testing.T) {
	ones := [4]uint32{^uint32(0), ^uint32(0), ^uint32(0), ^uint32(0)}
	require.Equal(t, [4]uint32{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}, Philox([4]uint32{}, [2]uint32{}))
	require.Equal(t, [4]uint32{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}, Philox(ones, [2]uint32{ones[0], ones[1]}))
	require.Equal(t, [4]uint32{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1},
		Philox([4]uint32{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, [2]uint32{0xa4093822, 0x299f31d0}))
}

func TestVectors(t *testing.T) {
	if *update {
		p := Parameter{Run: "r", Model: "main", Generation: 1, Slot: "r0c0", Germination: 1, Tensor: "conv.weight"}
		var list []Vector
		for _, n := range []uint64{0, 1, 15, 16, 17, 64, 1000, SegmentBytes + 40} {
			list = append(list, Vector{Name: fmt.Sprintf("bytes-%d", n), Bytes: n})
		}
		for _, d := range []string{"float32", "float16", "bfloat16"} {
			for _, n := range []uint64{4, 12, 20, 4096, 600_004} {
				p.Germination++
				list = append(list, Vector{Name: fmt.Sprintf("%s-%d", d, n), Bytes: n, Fill: &VectorFill{DType: d, Parameter: p, Bound: 1 / math.Sqrt(float64(p.Germination))}})
			}
		}
		for i := range list {
			b, err := list[i].Contents()
			require.NoError(t, err)
			sum := SumOf(b, 0)
			list[i].First, list[i].Lo, list[i].Hi = hex.EncodeToString(b[:min(len(b), 32)]), fmt.Sprintf("%016x", sum.Lo), fmt.Sprintf("%016x", sum.Hi)
		}
		text, err := json.MarshalIndent(list, "", " ")
		require.NoError(t, err)
		require.NoError(t, os.WriteFile("vectors.json", append(text, '\n'), 0o644))
		vectorsJSON = text
	}
	list := Vectors()
	require.Len(t, list, 23)
	for _, v := range list {
		b, err := v.Contents()
		require.NoError(t, err)
		require.NoError(t, v.Check(b, slowSum(b, 0)))
		if len(b) > 0 {
			b[0] ^= 1
			require.ErrorContains(t, v.Check(b, SumOf(b, 0)), v.Name)
		}
	}
}

// slowSum says what a sum is, with big numbers.
func slowSum(p []byte, block uint64) Sum {
	total := new(big.Int)
	for ; len(p) > 0; block++ {
		var b [16]byte
		p = p[copy(b[:], p):]
		x := (block + 1) * mixBlock
		x = (x ^ x>>32) * mixKey
		w0 := binary.LittleEndian.Uint64(b[:]) + (x ^ x>>32)
		w1 := binary.LittleEndian.Uint64(b[8:]) + bits.RotateLeft64(x, 32)*mixOther
		total.Add(total, new(big.Int).Mul(new(big.Int).SetUint64(w0), new(big.Int).SetUint64(w1)))
	}
	total.And(total, new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 128), big.NewInt(1)))
	lo := new(big.Int).And(total, new(big.Int).SetUint64(math.MaxUint64)).Uint64()
	return Sum{lo, new(big.Int).Rsh(total, 64).Uint64()}
}

func TestSum(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 0, 400).Draw(t, "bytes")
		block := rapid.Uint64().Draw(t, "block")
		want := slowSum(b, block)
		require.Equal(t, want, SumOf(b, block))
		cut := rapid.IntRange(0, len(b)/16).Draw(t, "cut") * 16
		require.Equal(t, want, SumOf(b[cut:], block+uint64(cut/16)).Add(SumOf(b[:cut], block)), "in parts, in any order")
	})
}

// Single flipped bits, opposite changes at two places, swapped blocks and a
// shifted tensor are all seen.
func TestSumSeesChanges(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 4096)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	seen := map[Sum]string{SumOf(b, 0): "as it was"}
	add := func(what string, b []byte) {
		s := SumOf(b, 0)
		if before, ok := seen[s]; ok {
			t.Fatalf("%s has the sum of %s", what, before)
		}
		seen[s] = what
	}
	for bit := range 8 * len(b) {
		b[bit/8] ^= 1 << (bit % 8)
		add(fmt.Sprint("bit ", bit), b)
		b[bit/8] ^= 1 << (bit % 8)
	}
	for range 20_000 {
		c := bytes.Clone(b)
		i, j := 8*rng.IntN(512), 8*rng.IntN(512)
		if i == j {
			continue
		}
		d := rng.Uint64() >> rng.IntN(63)
		binary.LittleEndian.PutUint64(c[i:], binary.LittleEndian.Uint64(c[i:])+d)
		binary.LittleEndian.PutUint64(c[j:], binary.LittleEndian.Uint64(c[j:])-d)
		if d != 0 {
			require.NotEqual(t, SumOf(b, 0), SumOf(c, 0))
		}
	}
	c := bytes.Clone(b)
	copy(c, b[16:32])
	copy(c[16:], b[:16])
	add("swapped blocks", c)
	add("shifted", b[16:])
	add("without its end", b[:4095])
}

func TestFingerprint(t *testing.T) {
	sum := Sum{1, 2}
	f := sum.Finish("float32", []uint64{2, 3}, 24)
	for _, other := range []Fingerprint{sum.Finish("float32", []uint64{3, 2}, 24), sum.Finish("float32", []uint64{2}, 24), sum.Finish("int32", []uint64{2, 3}, 24),
		sum.Finish("float32", []uint64{2, 3}, 23), Sum{2, 1}.Finish("float32", []uint64{2, 3}, 24)} {
		require.NotEqual(t, f, other)
	}
	text, err := json.Marshal(f)
	require.NoError(t, err)
	var again Fingerprint
	require.NoError(t, json.Unmarshal(text, &again))
	require.Equal(t, f, again)
	for _, bad := range []string{"", "00", f.String() + "00", "zz" + f.String()[2:]} {
		require.ErrorContains(t, again.UnmarshalText([]byte(bad)), "32 hexadecimal digits")
	}
}

func TestSegments(t *testing.T) {
	require.Empty(t, Segments(64, 0))
	require.Equal(t, []Segment{{64, 5, 0}}, Segments(64, 5))
	require.Equal(t, []Segment{{256, SegmentBytes, 0}, {256 + SegmentBytes, 16, SegmentBytes / 16}}, Segments(256, SegmentBytes+16))
}

// Rounding agrees with the library (float16) and with arithmetic (bfloat16).
func TestBits(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for i := range 2_000_000 {
		u := rng.Uint32()
		if i < 1<<20 {
			u = uint32(i)<<12 | rng.Uint32()&0x1fff&-(uint32(i)&1) // near ties too
		}
		f := math.Float32frombits(u)
		if u&0x7f800000 == 0x7f800000 {
			continue
		}
		if want := uint32(float16.Fromfloat32(f)); want != Float16.Bits(f) {
			t.Fatalf("float16 of %x: expected %x, got %x", u, want, Float16.Bits(f))
		}
		down := u &^ 0xffff
		want := down >> 16
		if rest := u & 0xffff; rest > 0x8000 || rest == 0x8000 && want&1 == 1 {
			want++
		}
		if want != BFloat16.Bits(f) {
			t.Fatalf("bfloat16 of %x: expected %x, got %x", u, want, BFloat16.Bits(f))
		}
	}
}

// An element depends on its number alone; 16-bit elements are the rounded
// float32 ones; all lie inside the bound and none is 0.
func TestFillUniform(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Parameter{Run: rapid.StringN(0, 5, -1).Draw(t, "run"), Germination: rapid.Uint64().Draw(t, "germination")}.Source()
		n := rapid.IntRange(0, 70).Draw(t, "n")
		bound := rapid.Float64Range(1e-4, 100).Draw(t, "bound")
		scale, err := Scale(bound, Float32)
		require.NoError(t, err)
		exact := make([]byte, 4*n)
		FillUniform(exact, Float32, s, 0, scale)
		cut := rapid.IntRange(0, n/4).Draw(t, "cut")
		parts := make([]byte, 4*n)
		FillUniform(parts[16*cut:], Float32, s, uint64(cut), scale)
		FillUniform(parts[:16*cut], Float32, s, 0, scale)
		require.Equal(t, exact, parts)
		for _, d := range []DType{Float16, BFloat16} {
			short := make([]byte, 2*n)
			FillUniform(short, d, s, 0, scale)
			for i := range n {
				f := math.Float32frombits(binary.LittleEndian.Uint32(exact[4*i:]))
				require.Equal(t, uint16(d.Bits(f)), binary.LittleEndian.Uint16(short[2*i:]))
				require.Less(t, math.Abs(float64(f)), bound*(1+1e-6))
				require.NotZero(t, f)
			}
		}
	})
}

// The mean and spread of a long fill are those of the distribution.
func TestFillUniformMoments(t *testing.T) {
	b := make([]byte, 4<<18)
	scale, _ := Scale(1, Float32)
	FillUniform(b, Float32, Parameter{Run: "x"}.Source(), 0, scale)
	var sum, squares float64
	for i := 0; i < len(b); i += 4 {
		f := float64(math.Float32frombits(binary.LittleEndian.Uint32(b[i:])))
		sum, squares = sum+f, squares+f*f
	}
	n := float64(len(b) / 4)
	require.InDelta(t, 0, sum/n, 0.005)
	require.InDelta(t, 1.0/3, squares/n, 0.005)
}

// Whoever differs in one part of the name shares nothing.
func TestParameterSource(t *testing.T) {
	base := Parameter{"run", "main", 1, "r0c0", 1, "w"}
	seen := map[Source]Parameter{}
	for _, p := range []Parameter{base, {"run2", "main", 1, "r0c0", 1, "w"}, {"run", "m", 1, "r0c0", 1, "w"}, {"run", "main", 2, "r0c0", 1, "w"},
		{"run", "main", 1, "r0c1", 1, "w"}, {"run", "main", 1, "r0c0", 2, "w"}, {"run", "main", 1, "r0c0", 1, "v"}, {"runm", "ain", 1, "r0c0", 1, "w"},
		{"run", "main", 1, "r0c0w", 1, ""}, {}} {
		s := p.Source()
		require.NotContains(t, seen, s, p)
		seen[s] = p
	}
	require.Equal(t, base.Source(), base.Source())
}

func TestBadFills(t *testing.T) {
	for _, bound := range []float64{0, -1, math.NaN(), math.Inf(1), 1e-30, 1e30} {
		_, err := Scale(bound, Float32)
		require.ErrorContains(t, err, "uniform bound")
	}
	_, err := Scale(70_000, Float16)
	require.ErrorContains(t, err, "65504 for float16")
	for _, v := range []float64{math.NaN(), math.Inf(-1), 1e39} {
		_, err := Constant(v, Float32)
		require.ErrorContains(t, err, "constant")
	}
	_, err = Constant(-65_600, Float16)
	require.ErrorContains(t, err, "float16")
	bits, err := Constant(1, BFloat16)
	require.NoError(t, err)
	require.Equal(t, uint32(0x3f80), bits)
	for _, name := range []string{"", "float64", "int8", "torch.float32", "float8_e4m3fn"} {
		_, err := ParseDType(name)
		require.ErrorContains(t, err, "expected float32, float16 or bfloat16")
	}
	for d := range DType(DTypes) {
		again, err := ParseDType(d.String())
		require.NoError(t, err)
		require.Equal(t, d, again)
	}
}

func TestFillConstant(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3, 5, 64, 1000} {
		b := make([]byte, 4*n)
		FillConstant(b, Float32, 0x3f800001)
		require.Equal(t, bytes.Repeat([]byte{1, 0, 0x80, 0x3f}, n), b)
		FillConstant(b[:2*n], BFloat16, 0x3f80)
		require.Equal(t, bytes.Repeat([]byte{0x80, 0x3f}, n), b[:2*n])
	}
}

func TestTable(t *testing.T) {
	table := NewTable(3)
	u := []Update{{2, Entry{Offset: 4096, Elements: 7, Alpha: 0.25, Flags: Active | Trainable}}, {0, Entry{Elements: 1}}, {3, Entry{Offset: 1}}}
	WriteTable(table, u, 41)
	require.Equal(t, Entry{4096, 7, 0.25, Active | Trainable, 41}, ReadEntry(table, 2))
	require.Equal(t, Entry{Elements: 1, Generation: 41}, ReadEntry(table, 0))
	require.Equal(t, Entry{}, ReadEntry(table, 1))
	require.Equal(t, uint64(41), TableGeneration(table))
	require.Equal(t, TableBytes(3), uint64(len(table)), "a slot that is not there is left alone")
}
