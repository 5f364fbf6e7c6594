package events

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"math"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write the golden files in testdata anew")

// A filler sets every field of a value, each to something else.
type filler struct {
	n    int
	draw func(n int) int // a number below n

	before3 bool // leave out what version 3 added to older events
}

// inOrder is the filler of the golden files: no randomness.
func inOrder() *filler {
	f := new(filler)
	f.draw = func(n int) int { f.n++; return f.n % n }
	return f
}

func (f *filler) fill(v reflect.Value) {
	names := func(list ...string) { v.SetString(list[f.draw(len(list))]) }
	switch v.Interface().(type) {
	case Gate:
		names("G0", "G1", "G2", "G3", "G5")
		return
	case Op:
		names("advance", "step_epoch", "germinate")
		return
	case Code:
		names("order-mismatch", "unavailable")
		return
	case Action:
		names("prune")
		return
	case InitRule:
		v.SetString(string(InitUniform))
		return
	case Tensor:
		if t := reflect.ValueOf(new(Tensor)).Elem(); f.before3 {
			for _, name := range []string{"Name", "Shape", "DType"} {
				f.fill(t.FieldByName(name))
			}
			v.Set(t)
			return
		}
	case Num:
		nums := []float64{81.7, math.NaN(), 0.5, math.Inf(1), 1.0 / 3, math.Inf(-1), 1e300, 3}
		v.SetFloat(nums[f.draw(len(nums))])
		return
	}
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint8:
		for {
			v.SetUint(uint64(1 + f.draw(10)))
			if v.Interface().(interface{ Valid() bool }).Valid() {
				return
			}
		}
	case reflect.Uint64:
		v.SetUint([]uint64{7, 300, 70_000, 1 << 40, math.MaxUint64}[f.draw(5)])
	case reflect.Int64:
		v.SetInt([]int64{7, -1, 300, -70_000, math.MaxInt64, math.MinInt64}[f.draw(6)])
	case reflect.Float64:
		v.SetFloat([]float64{0.7, 0.5, 12, 1e-6, float64(float32(0.1)), 65504, 5.960464477539063e-08, -2}[f.draw(8)])
	case reflect.String:
		v.SetString([]string{"r0c1", "naïve ☃", "x", strings.Repeat("long ", 20)}[f.draw(4)])
	case reflect.Array:
		for i := range v.Len() {
			v.Index(i).SetUint(uint64(1 + f.draw(255)))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		f.fill(v.Elem())
	case reflect.Slice:
		n := 1 + f.draw(2)
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			if v.Type().Elem().Kind() == reflect.Uint8 {
				v.Index(i).SetUint(uint64(f.draw(256)))
			} else {
				f.fill(v.Index(i))
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			f.fill(v.Field(i))
		}
	default:
		panic(v.Type())
	}
}

// event returns an event of the i-th type, everything set.
func (f *filler) event(i int) Event {
	var ev Event
	f.fill(reflect.ValueOf(&ev).Elem().Field(i))
	return ev
}

func (f *filler) entry(types ...int) *Entry {
	e := &Entry{Kind: KindCall, Node: "00112233445566778899aabbccddeeff", Time: 1_790_000_000_123_456_789}
	e.Key = new(Key)
	f.fill(reflect.ValueOf(e.Key).Elem())
	e.Round, e.Predecessor, e.Site, e.Lifecycle, e.Bookkeeping = 3, 41_233, "train.py:88", Digest{1}, Digest{2}
	for _, i := range types {
		e.Events = append(e.Events, f.event(i))
	}
	e.Version = VersionOf(e)
	return e
}

func golden(t *testing.T, file string, lines []string) {
	t.Helper()
	got := strings.Join(lines, "\n") + "\n"
	path := "testdata/" + file
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err, "go test ./events -update writes it")
	require.Equal(t, string(want), got, "logs of this version exist: old bytes have to stay what they are")
}

// The bytes of one entry of every event type, so that the format cannot change
// unnoticed; and its JSON, which is the HTTP API's. What a later version added to
// an older event has a line of its own, named after the version, and is absent
// from the older line.
func TestGoldenEntries(t *testing.T) {
	var encoded, asJSON []string
	add := func(name string, e *Entry) {
		e.Version = VersionOf(e)
		b, err := Encode(e)
		require.NoError(t, err, name)
		encoded = append(encoded, name+" "+hex.EncodeToString(b))
		j, err := e.Events[0].MarshalJSON()
		require.NoError(t, err, name)
		asJSON = append(asJSON, string(j))
	}
	older := func(i int) *Entry {
		f := inOrder()
		f.before3 = true
		return f.entry(i)
	}
	for i, name := range payloadNames {
		e := older(i)
		asOfVersion1(&e.Events[0])
		add(name, e)
	}
	add("round_faulted.2", inOrder().entry(slices.Index(payloadNames, "round_faulted")))
	reset := older(slices.Index(payloadNames, "configured"))
	reset.Key.Op = OpReset
	add("configured.2", reset)
	refused := inOrder().entry(slices.Index(payloadNames, "refused"))
	refused.Key.Op = OpResume
	add("refused.3", refused)
	add("configured.3", inOrder().entry(slices.Index(payloadNames, "configured")))
	add("germinated.3", inOrder().entry(slices.Index(payloadNames, "germinated")))
	golden(t, "entries.hex", encoded)
	golden(t, "events.ndjson", asJSON)
}

// asOfVersion1 takes out of an event what later versions added to it.
func asOfVersion1(ev *Event) {
	if f := ev.RoundFaulted; f != nil {
		f.Reason = ""
	}
	if g := ev.Germinated; g != nil {
		g.Absent = false
	}
}

// Golden bytes can be read by this build, and written again as they were.
func TestGoldenEntriesAreRead(t *testing.T) {
	for name, b := range goldenBytes(t) {
		e, err := Decode(b)
		require.NoError(t, err, name)
		again, err := Encode(e)
		require.NoError(t, err, name)
		require.Equal(t, b, again, name)
		got, payload := e.Events[0].Payload()
		want, _, _ := strings.Cut(name, ".")
		require.Equal(t, want, got)
		require.NotNil(t, payload)
		require.Equal(t, VersionOf(e), e.Version, name)
	}
}

func goldenBytes(t testing.TB) map[string][]byte {
	t.Helper()
	text, err := os.ReadFile("testdata/entries.hex")
	require.NoError(t, err)
	out := map[string][]byte{}
	for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		name, digits, _ := strings.Cut(line, " ")
		b, err := hex.DecodeString(digits)
		require.NoError(t, err)
		out[name] = b
	}
	return out
}

// Two decoders, one answer: Decode agrees with fxamacker/cbor on what Encode
// writes. (They are compared by encoding again: NaN is not equal to itself.)
func TestDecodeAgainstGeneralDecoder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := &filler{draw: func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "") }}
		e := f.entry(rapid.SliceOfN(rapid.IntRange(0, len(payloadNames)-1), 0, 3).Draw(t, "types")...)
		e.sparse(func() bool { return rapid.Bool().Draw(t, "absent") })
		b, err := Encode(e)
		require.NoError(t, err)
		requireSame(t, b)
	})
}

// sparse empties some of the optional fields.
func (e *Entry) sparse(absent func() bool) {
	var walk func(v reflect.Value)
	walk = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.Pointer:
			if !v.IsNil() {
				walk(v.Elem())
			}
		case reflect.Slice:
			for i := range v.Len() {
				walk(v.Index(i))
			}
		case reflect.Struct:
			for i := range v.NumField() {
				optional := strings.Contains(v.Type().Field(i).Tag.Get("cbor"), "omit") && v.Type() != reflect.TypeFor[Event]()
				if optional && v.Type().Field(i).Name != "Events" && absent() {
					v.Field(i).SetZero()
				} else {
					walk(v.Field(i))
				}
			}
		}
	}
	walk(reflect.ValueOf(e).Elem())
}

type testingT interface {
	require.TestingT
	Helper()
}

func requireSame(t testingT, b []byte) {
	t.Helper()
	ours, err := Decode(b)
	require.NoError(t, err)
	var theirs Entry
	require.NoError(t, Unmarshal(b, &theirs))
	for _, e := range []*Entry{ours, &theirs} {
		again, err := encMode.Marshal(e)
		require.NoError(t, err)
		require.Equal(t, b, again)
	}
}

func TestDecodeRefuses(t *testing.T) {
	fenced := func(mutate func(e *Entry)) []byte {
		e := &Entry{Version: 1, Kind: KindReport, Node: "n", Events: []Event{{Fenced: &Fenced{N: 7}}}}
		if mutate != nil {
			mutate(e)
		}
		b, err := encMode.Marshal(e)
		require.NoError(t, err)
		return b
	}
	good := fenced(nil)
	_, err := Decode(good)
	require.NoError(t, err)
	require.Equal(t, "a5010102050361 6e0a000b81a112a10107", strings.Replace(hex.EncodeToString(good), "0361", "0361 ", 1))
	replace := func(old, with string) []byte {
		s := hex.EncodeToString(good)
		require.Contains(t, s, old)
		b, err := hex.DecodeString(strings.Replace(s, old, with, 1))
		require.NoError(t, err)
		return b
	}
	nan := fenced(func(e *Entry) { e.Events = []Event{{Fossilized: &Fossilized{Slot: "a", Improvement: Num(math.NaN())}}} })
	for name, c := range map[string]struct {
		b    []byte
		want string
	}{
		"nothing":               {nil, "end early"},
		"not a map":             {[]byte{0x80}, "major type"},
		"cut":                   {good[:len(good)-1], "end early"},
		"trailing bytes":        {append(slices.Clone(good), 0), "follow"},
		"indefinite map":        {append(replace("a50101", "bf0101"), 0xff), "31 is not used"},
		"indefinite array":      {append(replace("0b81", "0b9f"), 0xff), "31 is not used"},
		"a tag":                 {replace("0b81", "0bc181"), "major type 6"},
		"duplicate key":         {replace("02050361", "01010361"), "repeated"},
		"unknown key":           {replace("0a000b", "0a00181e"), "unknown"},
		"order of keys":         {replace("0101020503616e", "010103616e0205"), "out of order"},
		"long integer":          {replace("0a00", "0a1800"), "shortest"},
		"long length":           {replace("03616e", "0378016e"), "shortest"},
		"default not absent":    {replace("a10107", "a10100"), "must be absent"},
		"required missing":      {replace("a501010205", "a40101"), "missing"},
		"kind":                  {replace("0205", "0209"), "undefined kind code 9"},
		"version 0":             {replace("0101", "0100"), "version 0"},
		"version too low":       {fenced(func(e *Entry) { e.Kind = KindRequest }), "version 1, but what it holds is of version 2"},
		"not UTF-8":             {replace("616e", "61ff"), "UTF-8"},
		"null":                  {replace("a10107", "a101f6"), "major type 7"},
		"no payload":            {replace("a112a10107", "a0"), "0 payloads"},
		"two payloads":          {replace("a112a10107", "a211a1020112a10107"), "2 payloads"},
		"array too long":        {replace("0b81", "0b9a00100000"), "array of"},
		"integer too large":     {replace("a10107", "a1011bffffffffffffffff"), "out of range"},
		"NaN not canonical":     {bytes.Replace(nan, []byte{0xf9, 0x7e, 0}, []byte{0xf9, 0x7e, 1}, 1), "canonical"},
		"number not shortest":   {bytes.Replace(nan, []byte{0xf9, 0x7e, 0}, []byte{0xfa, 0x3f, 0x80, 0, 0}, 1), "shortest"},
		"number not shortest 2": {bytes.Replace(nan, []byte{0xf9, 0x7e, 0}, []byte{0xfb, 0x3f, 0xf0, 0, 0, 0, 0, 0, 0}, 1), "shortest"},
		"negative zero":         {bytes.Replace(nan, []byte{0xf9, 0x7e, 0}, []byte{0xf9, 0x80, 0}, 1), "must be absent"},
		"stage": {fenced(func(e *Entry) {
			e.Events = []Event{{StageChanged: &StageChanged{Slot: "a", Seed: 1, From: 5, To: StageTraining}}}
		}), "undefined stage code 5"},
		"gate": {fenced(func(e *Entry) {
			e.Events = []Event{{GateEvaluated: &GateEvaluated{Slot: "a", Verdict: Verdict{Gate: "G4"}}}}
		}), `unknown gate "G4"`},
		"action": {fenced(func(e *Entry) {
			e.Version, e.Events = 2, []Event{{Requested: &Requested{Action: "sing"}}}
		}), `unknown action "sing"`},
		"code":             {fenced(func(e *Entry) { e.Events = []Event{{Refused: &Refused{Code: "because"}}} }), `unknown code "because"`},
		"not finite alpha": {fenced(func(e *Entry) { e.Events = []Event{{Fossilized: &Fossilized{Alpha: math.Inf(1)}}} }), "not finite"},
		"too large":        {make([]byte, MaxEntryBytes+1), "more than 16777216"},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := Decode(c.b)
			require.ErrorIs(t, err, ErrMalformed)
			require.ErrorContains(t, err, c.want)
			require.Nil(t, e)
		})
	}
}

// Flip every bit of every golden entry: it is refused, or it is another value
// with its own one encoding.
func TestDecodeEveryBit(t *testing.T) {
	if testing.Short() {
		t.Skip("nothing runs beside it")
	}
	for name, b := range goldenBytes(t) {
		for at := range len(b) * 8 {
			b[at/8] ^= 1 << (at % 8)
			if e, err := Decode(b); err == nil {
				again, err := encMode.Marshal(e)
				require.NoError(t, err)
				require.Equal(t, b, again, "%s, bit %d", name, at)
			}
			b[at/8] ^= 1 << (at % 8)
		}
	}
}

func TestEncodeRefusesWhatDecodeDoes(t *testing.T) {
	for name, e := range map[string]*Entry{
		"version 0":       {Kind: KindReport},
		"version too low": {Version: 1, Kind: KindRequest},
		"no kind":         {Version: 1},
		"no payload":      {Version: 1, Kind: KindReport, Events: []Event{{}}},
		"two payloads":    {Version: 1, Kind: KindReport, Events: []Event{{Fenced: &Fenced{}, EpochStepped: &EpochStepped{}}}},
		"NaN alpha":       {Version: 1, Kind: KindReport, Events: []Event{{StageChanged: &StageChanged{Alpha: math.NaN()}}}},
		"not UTF-8":       {Version: 1, Kind: KindReport, Site: "\xff"},
		"too many events": {Version: 1, Kind: KindReport, Events: make([]Event, maxElements+1)},
	} {
		_, err := Encode(e)
		require.Error(t, err, name)
	}
}

// An epoch of 10,000 slots in one entry is within the limits.
func TestEncodeTenThousandSlots(t *testing.T) {
	if testing.Short() {
		t.Skip("nothing runs beside it")
	}
	e := &Entry{Version: 1, Kind: KindCall, Node: "n", Key: &Key{Op: OpStepEpoch}}
	for i := range 10_000 {
		for _, ev := range advanceEntry().Events {
			payload := reflect.ValueOf(&ev).Elem()
			for f := range payload.NumField() {
				if p := payload.Field(f); !p.IsNil() {
					p.Elem().FieldByName("Slot").SetString("slot-" + strconv.Itoa(i))
				}
			}
			e.Events = append(e.Events, ev)
		}
	}
	b, err := Encode(e)
	require.NoError(t, err)
	t.Logf("%d bytes", len(b))
	require.Less(t, len(b), MaxEntryBytes/2)
}

func TestDecodeSharesNoMemory(t *testing.T) {
	b, err := Encode(inOrder().entry(0, 1, 5))
	require.NoError(t, err)
	want := bytes.Clone(b)
	e, err := Decode(b)
	require.NoError(t, err)
	clear(b)
	again, err := Encode(e)
	require.NoError(t, err)
	require.Equal(t, want, again)
}

func TestUnmarshalIsStrict(t *testing.T) {
	type message struct {
		A []int          `cbor:"1,keyasint"`
		B map[string]int `cbor:"2,keyasint,omitempty"`
	}
	b, err := Marshal(message{B: map[string]int{"z": 1, "b": 2}})
	require.NoError(t, err)
	require.Equal(t, "a2018002a2616202617a01", hex.EncodeToString(b), "nil arrays are empty, keys sorted")
	var m message
	require.NoError(t, Unmarshal(b, &m))
	for _, bad := range []string{"a2018002a261620261620180", "a10180" + "00", "bf0180ff", "a10380", "a201800180", "c1a10180", "a1019f01ff"} {
		raw, err := hex.DecodeString(bad)
		require.NoError(t, err)
		require.ErrorIs(t, Unmarshal(raw, new(message)), ErrMalformed, bad)
	}
}

func TestPayload(t *testing.T) {
	seen := map[string]bool{}
	for i, want := range payloadNames {
		ev := inOrder().event(i)
		name, payload := ev.Payload()
		require.Equal(t, want, name)
		require.Equal(t, reflect.TypeFor[Event]().Field(i).Type, reflect.TypeOf(payload))
		require.False(t, seen[name])
		seen[name] = true
	}
	require.True(t, seen["stage_changed"])
	name, payload := new(Event).Payload()
	require.Zero(t, name)
	require.Nil(t, payload)
}

func TestChain(t *testing.T) {
	// Python: hashlib.sha256(bytes(32) + (1).to_bytes(8, "big") + b"x")
	require.Equal(t, "01dd2c7811112320cd1c6f939902bcf16eb7ab90d8a4500f9516fc0abc42927a", Chain(Digest{}, 1, []byte("x")).String())
	seen := map[Digest]string{}
	for _, size := range []int{0, 1, 983, 984, 985, 5000} { // around the buffer on the stack
		for index := range uint64(3) {
			e := bytes.Repeat([]byte{'a'}, size)
			d := Chain(Digest{1}, index, e)
			require.Empty(t, seen[d])
			seen[d] = fmt.Sprint(size, index)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, b := range goldenBytes(f) {
		f.Add(b)
	}
	b, _ := Encode(advanceEntry())
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := Decode(b)
		if err != nil {
			require.Nil(t, e)
			return
		}
		requireSame(t, b)
		for _, ev := range e.Events {
			requireJSON(t, ev)
		}
	})
}
