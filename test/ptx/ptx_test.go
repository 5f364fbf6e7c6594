package ptx

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/gpuexec/element"
	"github.com/esperd/esperd/gpuexec/kernels"
)

// Where tests put memory.
const (
	arenaAt    = 0x7f0000000000
	segmentsAt = 0x7f1000000000
	sumsAt     = 0x7f2000000000
)

func shipped(t *testing.T) *Module {
	m, err := Parse(kernels.PTX)
	require.NoError(t, err)
	require.Equal(t, "7.0", m.Version)
	require.Equal(t, "sm_70", m.Target)
	require.Len(t, m.Kernels, len(kernels.Names))
	for _, name := range kernels.Names {
		require.Contains(t, m.Kernels, name)
	}
	return m
}

// params lays arguments out as kernels declare theirs: each at its alignment.
func params(list ...[]byte) (out []byte) {
	for _, p := range list {
		for len(out)%min(len(p), 8) != 0 {
			out = append(out, 0)
		}
		out = append(out, p...)
	}
	return out
}

// The checks of all kernels; each returns the first difference.
var checks = map[string]func(m *Module, rng *rand.Rand) string{"fill": checkFill, "fingerprint": checkFingerprint, "table": checkTable, "vectors": checkVectors}

func TestShippedKernels(t *testing.T) {
	m := shipped(t)
	for name, check := range checks {
		t.Run(name, func(t *testing.T) { require.Empty(t, check(m, rand.New(rand.NewPCG(1, 2)))) })
	}
}

func checkFill(m *Module, rng *rand.Rand) string {
	for i := range 60 {
		d := element.DType(i % element.DTypes)
		n := uint64(i / element.DTypes)
		if i >= 36 {
			n = uint64(rng.IntN(4000))
		}
		s := element.Source{Key: rng.Uint64(), Stream: rng.Uint64()}
		scale, _ := element.Scale(rng.Float64()*10+1e-6, d)
		if i%7 == 0 {
			scale, _ = element.Scale(2e-6, d) // subnormal in float16
		}
		got := bytes.Repeat([]byte{0xa5}, int(n*d.Size()))
		var mem Memory
		mem.Add(arenaAt, got)
		if _, err := m.Kernels[kernels.Uniform(d)].Launch(&mem, 1+rng.IntN(4), 32*(1+rng.IntN(4)),
			params(kernels.U64(arenaAt), kernels.U64(n), kernels.U64(s.Key), kernels.U64(s.Stream), kernels.F32(scale))); err != nil {
			return err.Error()
		}
		want := make([]byte, len(got))
		element.FillUniform(want, d, s, 0, scale)
		if !bytes.Equal(want, got) {
			return "fill of " + d.String() + " differs"
		}
	}
	return ""
}

func checkVectors(m *Module, rng *rand.Rand) string {
	for _, v := range element.Vectors() {
		if v.Bytes > 300_000 {
			continue
		}
		got, _ := v.Contents()
		var mem Memory
		mem.Add(arenaAt, got)
		if v.Fill != nil {
			clear(got)
			d, s, scale, err := v.Fill.Args()
			if err == nil {
				_, err = m.Kernels[kernels.Uniform(d)].Launch(&mem, 3, 64,
					params(kernels.U64(arenaAt), kernels.U64(v.Bytes/d.Size()), kernels.U64(s.Key), kernels.U64(s.Stream), kernels.F32(scale)))
			}
			if err != nil {
				return err.Error()
			}
		}
		sums, err := sumsOf(m, &mem, element.Segments(0, v.Bytes), 2, 128)
		if err != nil {
			return err.Error()
		}
		var total element.Sum
		for _, s := range sums {
			total = total.Add(s)
		}
		if err := v.Check(got, total); err != nil {
			return err.Error()
		}
	}
	return ""
}

func sumsOf(m *Module, mem *Memory, segments []element.Segment, groups, threads int) ([]element.Sum, error) {
	var in []byte
	for _, s := range segments {
		in = kernels.AppendSegment(in, s)
	}
	back := make([]byte, len(segments)*kernels.SumBytes)
	mem.Add(segmentsAt, in)
	mem.Add(sumsAt, back)
	_, err := m.Kernels[kernels.Fingerprint].Launch(mem, groups, threads,
		params(kernels.U64(arenaAt), kernels.U64(segmentsAt), kernels.U32(uint32(len(segments))), kernels.U64(sumsAt)))
	out := make([]element.Sum, len(segments))
	for i := range out {
		out[i] = element.Sum{Lo: binary.LittleEndian.Uint64(back[16*i:]), Hi: binary.LittleEndian.Uint64(back[16*i+8:])}
	}
	return out, err
}

// Segments of all lengths, the whole arena's end among them.
func checkFingerprint(m *Module, rng *rand.Rand) string {
	for round := range 12 {
		b := make([]byte, 20_000+rng.IntN(20_000))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		var segments []element.Segment
		for i := range rng.IntN(12) {
			at := 16 * rng.IntN(len(b)/16)
			n := rng.IntN(len(b) - at + 1)
			if i == 0 {
				n = len(b) - at
			} else if round < 4 {
				n = min(n, 4*round+i)
			}
			segments = append(segments, element.Segment{Offset: uint64(at), Bytes: uint64(n), Block: rng.Uint64() >> rng.IntN(63)})
		}
		mem := Memory{Backward: round%2 == 1}
		mem.Add(arenaAt, b)
		got, err := sumsOf(m, &mem, segments, 1+rng.IntN(3), 32*(1+rng.IntN(8<<(round%3))))
		if err != nil {
			return err.Error()
		}
		for i, s := range segments {
			if got[i] != element.SumOf(b[s.Offset:s.Offset+s.Bytes], s.Block) {
				return "a sum differs"
			}
		}
	}
	return ""
}

func checkTable(m *Module, rng *rand.Rand) string {
	const slots = 100
	want := element.NewTable(slots)
	got := bytes.Clone(want)
	for round := range 20 {
		var updates []element.Update
		for _, slot := range rng.Perm(slots + 20)[:rng.IntN(element.MaxUpdates+1)] { // some are no slots
			updates = append(updates, element.Update{Slot: uint32(slot), Entry: element.Entry{Offset: rng.Uint64(), Elements: rng.Uint64(),
				Alpha: rng.Float32(), Flags: element.Flags(rng.Uint32())}})
		}
		var mem Memory
		mem.Add(arenaAt, got)
		if _, err := m.Kernels[kernels.Table].Launch(&mem, 1, 32*(1+rng.IntN(2)), params(kernels.U64(arenaAt), kernels.U64(arenaAt+element.HeaderBytes),
			kernels.U32(slots), kernels.Updates(updates, uint64(round)))); err != nil {
			return err.Error()
		}
		element.WriteTable(want, updates, uint64(round))
		if !bytes.Equal(want, got) {
			return "the table differs"
		}
	}
	return ""
}

// What a kernel must not touch is an error: a byte beyond the end, an address
// that is not aligned.
func TestBadAccess(t *testing.T) {
	m := shipped(t)
	fill := func(at, have, n uint64, d element.DType) error {
		var mem Memory
		mem.Add(arenaAt, make([]byte, have))
		_, err := m.Kernels[kernels.Uniform(d)].Launch(&mem, 1, 32, params(kernels.U64(at), kernels.U64(n), kernels.U64(0), kernels.U64(0), kernels.F32(1)))
		return err
	}
	for d := range element.DType(element.DTypes) {
		require.NoError(t, fill(arenaAt, 64, 64/d.Size(), d))
		require.ErrorContains(t, fill(arenaAt, 64, 64/d.Size()+1, d), "out of bounds")
		require.ErrorContains(t, fill(arenaAt+4, 64, 8, d), "misaligned")
		require.ErrorContains(t, fill(arenaAt-16, 64, 8, d), "out of bounds")
	}
	sum := func(s element.Segment) error {
		var mem Memory
		mem.Add(arenaAt, make([]byte, 100))
		_, err := sumsOf(m, &mem, []element.Segment{s}, 1, 32)
		return err
	}
	require.ErrorContains(t, sum(element.Segment{Bytes: 101}), "out of bounds")
	require.ErrorContains(t, sum(element.Segment{Offset: 8, Bytes: 16}), "misaligned")
	require.NoError(t, sum(element.Segment{Offset: 96, Bytes: 4}), "the last bytes of an arena, less than a block")
}

// A kernel with one instruction changed is found out. (Changes that no result
// shows, such as a carry at equality, are not among these.)
func TestMutants(t *testing.T) {
	if testing.Short() {
		t.Skip("many runs of one goroutine, of which the race detector sees nothing")
	}
	list := strings.Split(kernels.PTX, "\n")
	mutations := []struct{ from, to string }{
		{"add.s64", "sub.s64"}, {"xor.b32", "or.b32"}, {"xor.b64", "and.b64"}, {"mul.hi.u64", "mul.lo.s64"}, {"shr.u64", "shl.b64"},
		{"setp.lt.u64", "setp.gt.u64"}, {"setp.ge.u64", "setp.gt.u64"}, {"-16777216", "-8388608"}, {", 16, 31, -1", ", 8, 31, -1"},
		{"bar.sync", "membar.sys; //"}, {"st.global.v4.u32", "st.global.v2.u64"}, {"bfe.u32", "shr.u32"}, {"st.volatile.global.u64", "ld.global.u64"},
	}
	tried, found := 0, 0
	for _, mutation := range mutations {
		var at []int
		for i, l := range list {
			if strings.Contains(l, mutation.from) {
				at = append(at, i)
			}
		}
		require.NotEmpty(t, at, "nothing to change: %q", mutation.from)
		if mutation.from == "bar.sync" {
			at = at[:2] // of the fingerprint; the table's only say in which order a reader sees it
		}
		for _, i := range []int{at[0], at[len(at)/2], at[len(at)-1]} {
			mutant := slices.Clone(list)
			mutant[i] = strings.Replace(mutant[i], mutation.from, mutation.to, 1)
			tried++
			m, err := Parse(strings.Join(mutant, "\n"))
			if err != nil || differs(m) {
				found++
				continue
			}
			t.Logf("not found out: %q for %q in line %d: %s", mutation.to, mutation.from, i+1, list[i])
		}
	}
	t.Logf("%d of %d mutants were found out", found, tried)
	require.Equal(t, tried, found)
}

func differs(m *Module) bool {
	for _, check := range checks {
		if check(m, rand.New(rand.NewPCG(3, 4))) != "" {
			return true
		}
	}
	return false
}

// What the interpreter does not know it refuses, rather than guess.
func TestParseRefuses(t *testing.T) {
	kernel := func(body string) string {
		return ".version 7.0\n.visible .entry k(\n.param .u64 p\n)\n{\n" + body + "\n}\n"
	}
	for _, body := range []string{"add.f32 %f1, %f2, %f3;", "fma.rn.f32 %f1, %f2, %f3, %f4;", "mul.rn.ftz.f32 %f1, %f2, %f3;", "bra nowhere;", "atom.add.u64 %r1, [p], 1;",
		"ld.global.u64 %r1, nowhere;", "call f;", "shfl.sync.bfly.b32 %r1, %r2, 1, 31, -1;", "setp.lt.f32 %p1, %f1, %f2;", "mov.u64 %r1, other;"} {
		_, err := Parse(kernel(body))
		require.Error(t, err, body)
	}
	m, err := Parse(kernel("$loop:\nbra $loop;"))
	require.NoError(t, err)
	_, err = m.Kernels["k"].Launch(new(Memory), 1, 32, nil)
	require.ErrorContains(t, err, "expected 8")
	_, err = m.Kernels["k"].Launch(new(Memory), 1, 33, make([]byte, 8))
	require.ErrorContains(t, err, "multiple of 32")
	m, err = Parse(kernel("mov.u32 %r1, %tid.x;\nsetp.eq.s32 %p1, %r1, 0;\n@%p1 bra $end;\nbar.sync 0;\n$end:\nret;"))
	require.NoError(t, err)
	_, err = m.Kernels["k"].Launch(new(Memory), 1, 32, make([]byte, 8))
	require.ErrorContains(t, err, "wait in different places")
}

// The PTX that is shipped is what the pinned clang makes of the sources.
func TestPTXIsOfItsSources(t *testing.T) {
	if _, err := exec.LookPath("clang-19"); err != nil {
		if strings.Contains(os.Getenv("ESPERD_REQUIRE"), "clang") {
			t.Fatal("clang-19 is missing, and ESPERD_REQUIRE asks for it")
		}
		t.Skip("clang-19 is missing: apt-get install clang-19")
	}
	out := filepath.Join(t.TempDir(), "esperd.ptx")
	text, err := exec.Command("make", "-C", "../..", "kernels", "PTX="+out).CombinedOutput()
	require.NoError(t, err, "%s", text)
	got, err := os.ReadFile(out)
	require.NoError(t, err)
	require.True(t, kernels.PTX == string(got), "run make kernels, and commit gpuexec/kernels/esperd.ptx")
}
