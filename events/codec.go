package events

import (
	"errors"
	"fmt"
	"reflect"
	"unsafe"

	"github.com/fxamacker/cbor/v2"
)

// Limits of what is decoded, whoever sent it.
const (
	MaxEntryBytes = 16 << 20 // of one encoded entry: 10,000 slots may tick in it
	maxElements   = 1 << 17  // of one array
	maxMapPairs   = 1 << 12  // of one map, in Unmarshal
	maxNested     = 16       // arrays and maps inside each other
)

// VersionError says that an entry, or a file, is newer than this build.
type VersionError struct {
	Got, Known uint64
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("format version %d: this esperd knows versions 1 to %d; upgrade esperd on this node", e.Got, e.Known)
}

// ErrMalformed is what all errors of Decode and Unmarshal wrap, except
// *VersionError.
var ErrMalformed = errors.New("malformed")

var (
	encMode = must(encOptions().EncMode())
	decMode = must(decOptions().DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // a constant of this file is wrong
	}
	return v
}

func encOptions() cbor.EncOptions {
	o := cbor.CoreDetEncOptions()
	o.TagsMd = cbor.TagsForbidden
	o.NilContainers = cbor.NilContainerAsEmpty
	return o
}

func decOptions() cbor.DecOptions {
	return cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
		MaxNestedLevels:   maxNested,
		MaxArrayElements:  maxElements,
		MaxMapPairs:       maxMapPairs,
	}
}

// Marshal returns v in CBOR Core Deterministic Encoding (RFC 8949, 4.2.1): the
// same value gives the same bytes in every build. For state images and peers'
// messages; entries have Encode.
func Marshal(v any) ([]byte, error) { return encMode.Marshal(v) }

// Unmarshal reads one item that Marshal wrote, strictly: no unknown field, no
// duplicate key, nothing after it. Errors wrap ErrMalformed.
func Unmarshal(b []byte, v any) error {
	if err := decMode.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return nil
}

// Encode returns the bytes of e as the log keeps them. It refuses whatever
// Decode would refuse, so that no such entry enters a log.
func Encode(e *Entry) ([]byte, error) {
	b, err := encMode.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode entry: %w", err)
	}
	if _, err := Decode(b); err != nil {
		return nil, fmt.Errorf("encode entry: %w", err)
	}
	return b, nil
}

// Decode reads an entry, and accepts only what Encode writes: one value has one
// encoding. A newer format is a *VersionError; all else wraps ErrMalformed and
// says where. The entry shares no memory with b.
func Decode(b []byte) (*Entry, error) {
	e := new(Entry)
	if err := DecodeInto(e, b); err != nil {
		return nil, err
	}
	return e, nil
}

// DecodeInto is Decode into an entry that nobody uses any more: the memory of its
// key and of its list of events is used again, that of their payloads, which
// states share, is not. After an error, e is good for another DecodeInto alone.
func DecodeInto(e *Entry, b []byte) error {
	if len(b) > MaxEntryBytes {
		return fmt.Errorf("%w: entry of %d bytes, more than %d", ErrMalformed, len(b), MaxEntryBytes)
	}
	if v, ok := peekVersion(b); ok && v > Version {
		return &VersionError{Got: v, Known: Version}
	}
	d := decoders.Get().(*decoder)
	d.b, d.at = b, 0
	defer func() {
		d.b = nil
		decoders.Put(d)
	}()
	e.empty()
	if err := readEntry(d, unsafe.Pointer(e)); err != nil {
		return fmt.Errorf("entry: %w", err)
	}
	if d.at != len(b) {
		return fmt.Errorf("entry: %w", d.errorf("%d bytes follow it", len(b)-d.at))
	}
	if e.Key != nil && e.Key.Op == "" { // no key was read: none is without an operation
		e.Key = nil
	}
	// Builds that know e.Version could not read it; but for the modes of a round,
	// which an older leader copies from what the trainers say.
	if since := VersionOf(e); e.Version < since && e.Kind != KindRound {
		return fmt.Errorf("entry: %w", d.errorf("version %d, but what it holds is of version %d", e.Version, since))
	}
	return nil
}

// eventsKept is the longest list of events whose memory is used again.
const eventsKept = 64

// empty makes e the zero entry, but for memory that reading finds again.
func (e *Entry) empty() {
	key, list := e.Key, e.Events
	if key != nil {
		*key = Key{}
	}
	if cap(list) > eventsKept {
		list = nil
	}
	clear(list)
	*e = Entry{Key: key, Events: list[:0]}
}

var (
	readEntry = plan(reflect.TypeFor[Entry]())
	readEvent = plan(reflect.TypeFor[Event]())
)

// peekVersion reads the version, the first field of every entry of every
// version, before anything that this build may not know.
func peekVersion(b []byte) (uint64, bool) {
	d := decoder{b: b}
	if n, err := d.head(majorMap); err != nil || n == 0 {
		return 0, false
	}
	if key, err := d.head(majorUint); err != nil || key != 1 {
		return 0, false
	}
	v, err := d.head(majorUint)
	return v, err == nil
}

// The closed vocabularies that are strings: decoding refuses any other.
var (
	gateNames = []Gate{G0, G1, G2, G3, G5}
	opNames   = []Op{OpConfigure, OpGerminate, OpAdvance, OpVerdict, OpPrune, OpSchedulePrune, OpAlphaTarget, OpStepEpoch, OpFence, OpReset, OpResume}
	codeNames = []Code{CodeOrderMismatch, CodeMissingCall, CodeRoundFaulted, CodeDecisionTimeout, CodeNotAuthority,
		CodeIllegalTransition, CodeUnknownSlot, CodeConfigMismatch, CodeMarkMismatch, CodeNoRoom, CodeInvalidInput, CodeDiverged, CodeUnavailable}

	actionNames = []Action{ActionPrune}
	ruleNames   = []InitRule{InitConstant, InitUniform}

	vocabulary = map[reflect.Type]map[string]string{
		reflect.TypeFor[Action]():   nameSet(actionNames),
		reflect.TypeFor[InitRule](): nameSet(ruleNames),
		reflect.TypeFor[Gate]():     nameSet(gateNames),
		reflect.TypeFor[Op]():       nameSet(opNames),
		reflect.TypeFor[Code]():     nameSet(codeNames),
	}
)

func nameSet[T ~string](names []T) map[string]string {
	set := make(map[string]string, len(names))
	for _, n := range names {
		set[string(n)] = string(n)
	}
	return set
}

var payloadNames = func() []string {
	t := reflect.TypeFor[Event]()
	names := make([]string, t.NumField())
	for i := range names {
		names[i] = snakeCase(t.Field(i).Name)
	}
	return names
}()

func snakeCase(s string) string {
	var out []byte
	for i := range len(s) {
		c := s[i]
		if c >= 'A' && c <= 'Z' {
			if i > 0 {
				out = append(out, '_')
			}
			c += 'a' - 'A'
		}
		out = append(out, c)
	}
	return string(out)
}

// Payload returns the one field that is set and its name, such as
// "stage_changed"; "" and nil if none is.
func (ev *Event) Payload() (name string, payload any) {
	v := reflect.ValueOf(ev).Elem()
	for i, name := range payloadNames {
		if f := v.Field(i); !f.IsNil() {
			return name, f.Interface()
		}
	}
	return "", nil
}
