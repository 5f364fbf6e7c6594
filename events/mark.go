package events

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"reflect"
	"unsafe"
)

// MarkBytesMax is how long a mark may be.
const MarkBytesMax = 24 << 20

// markMagic begins every mark; its last digit is the format.
const markMagic = "esperd mark 1\n"

// A Mark is one model's lifecycle at one entry of a log: what a trainer stores
// beside its weights, to be able to go back to both.
//
// Its bytes are markMagic, the SHA-256 of the rest, and the rest in the log's
// encoding, so that equal marks are equal bytes and a damaged one is known.
type Mark struct {
	Run     string `cbor:"1,keyasint"`
	Lineage string `cbor:"2,keyasint"`
	Model   string `cbor:"3,keyasint"`
	Index   uint64 `cbor:"4,keyasint"` // of the last entry that the trainer had seen
	Chain   Digest `cbor:"5,keyasint"` // there

	Lifecycle Digest       `cbor:"6,keyasint"` // of the model there
	Slots     []SlotConfig `cbor:"7,keyasint"` // its configuration
	Record    ModelRecord  `cbor:"8,keyasint"`
}

// A MarkError says what is wrong with the bytes of a mark.
type MarkError struct{ Reason string }

func (e *MarkError) Error() string {
	return "not a mark that can be resumed: " + e.Reason + "; pass the bytes that checkpoint() returned"
}

// EncodeMark returns the bytes of a mark and their SHA-256, by which marks are
// compared.
func EncodeMark(m *Mark) ([]byte, Digest, error) {
	body, err := encMode.Marshal(m)
	if err != nil {
		return nil, Digest{}, fmt.Errorf("encode mark: %w", err)
	}
	sum := sha256.Sum256(body)
	b := append([]byte(markMagic), sum[:]...)
	b = append(b, body...)
	if len(b) > MarkBytesMax {
		return nil, Digest{}, fmt.Errorf("a mark of %d bytes, expected at most %d: name fewer slots and blueprints", len(b), MarkBytesMax)
	}
	return b, sha256.Sum256(b), nil
}

// DecodeMark reads what EncodeMark wrote, and nothing else. Errors are
// *MarkError.
func DecodeMark(b []byte) (*Mark, Digest, error) {
	fail := func(format string, args ...any) (*Mark, Digest, error) {
		return nil, Digest{}, &MarkError{fmt.Sprintf(format, args...)}
	}
	head := len(markMagic) + sha256.Size
	switch {
	case len(b) > MarkBytesMax:
		return fail("expected at most %d bytes, got %d", MarkBytesMax, len(b))
	case len(b) >= len(markMagic) && !bytes.HasPrefix(b, []byte(markMagic)) && bytes.HasPrefix(b, []byte(markMagic[:len(markMagic)-2])):
		return fail("it is of a format that this esperd does not know, %.20q; upgrade esperd", b[:len(markMagic)])
	case !bytes.HasPrefix(b, []byte(markMagic)):
		return fail("expected it to begin with %q, got %.20q", markMagic, b)
	case len(b) <= head:
		return fail("expected more than %d bytes, got %d: it was truncated", head, len(b))
	}
	if sum := sha256.Sum256(b[head:]); !bytes.Equal(sum[:], b[len(markMagic):head]) {
		return fail("its %d bytes are not those it was made of: truncated or changed", len(b))
	}
	m, d := new(Mark), &decoder{b: b[head:]}
	if err := readMark(d, unsafe.Pointer(m)); err != nil {
		return fail("%v", err)
	}
	if d.at != len(d.b) {
		return fail("%d bytes follow it", len(d.b)-d.at)
	}
	return m, sha256.Sum256(b), nil
}

// SumOf returns what marks are compared by, also of bytes that are none.
func SumOf(b []byte) Digest { return sha256.Sum256(b) }

var readMark = plan(reflect.TypeFor[Mark]())
