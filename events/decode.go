package events

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
	"unsafe"
)

// The reader of entries. It is compiled once from the struct tags that the
// encoder follows, and takes exactly the bytes that the encoder writes: keys
// ascend, numbers are in their shortest form, a field at its default is absent.
// So one value has one encoding, and reading is one pass without look-ups.
//
// Replaying and auditing a log is mostly decoding. The general decoder
// (Unmarshal) takes five times as long; reading through reflect.Value instead
// of unsafe.Pointer, twice. What keeps the pointers right is that a reader is
// only ever made by plan, from the type at which it will be pointed.

// CBOR major types (RFC 8949, 3.1).
const (
	majorUint   = 0
	majorInt    = 1
	majorBytes  = 2
	majorText   = 3
	majorArray  = 4
	majorMap    = 5
	majorSimple = 7
)

const (
	simpleFalse = 20
	simpleTrue  = 21
)

// A readFunc reads one item into the variable at p, which holds its type's zero
// value, or a pointer to one, or an empty list with memory that holds nothing
// else. plan made it for that type.
type readFunc func(d *decoder, p unsafe.Pointer) error

// A fieldPlan is one field of a struct.
type fieldPlan struct {
	key    uint64
	offset uintptr
	name   string
	read   readFunc
	zero   func(p unsafe.Pointer) bool // nil: the field is always present
}

// plan compiles the reader of a type. It panics on what the format has no form
// for: that is found by the first test, not by a user.
func plan(t reflect.Type) readFunc {
	if names, ok := vocabulary[t]; ok {
		return readName(t, names)
	}
	switch t.Kind() {
	case reflect.Bool:
		return readBool
	case reflect.Uint8:
		return readEnum(t)
	case reflect.Uint64:
		return readUint
	case reflect.Int64:
		return readInt
	case reflect.Float64:
		if t == reflect.TypeFor[Num]() {
			return readNum
		}
		return readFloat
	case reflect.String:
		return readString
	case reflect.Array:
		return readArray(t)
	case reflect.Pointer:
		return readPointer(t)
	case reflect.Slice:
		return readSlice(t)
	case reflect.Struct:
		return readStruct(t)
	}
	panic(fmt.Sprintf("events: no reader for %s", t))
}

func readStruct(t reflect.Type) readFunc {
	fields := make([]fieldPlan, t.NumField())
	for i := range fields {
		f := t.Field(i)
		parts := strings.Split(f.Tag.Get("cbor"), ",")
		key, err := strconv.ParseUint(parts[0], 10, 8)
		if err != nil || len(parts) < 2 || parts[1] != "keyasint" {
			panic(fmt.Sprintf("events: %s.%s lacks a numeric cbor key", t, f.Name))
		}
		if i > 0 && key <= fields[i-1].key {
			panic(fmt.Sprintf("events: %s.%s is out of the order of its keys", t, f.Name))
		}
		fields[i] = fieldPlan{key: key, offset: f.Offset, name: snakeCase(f.Name), read: plan(f.Type)}
		if len(parts) > 2 {
			fields[i].zero = zeroTest(f.Type, parts[2])
		}
	}
	if t == reflect.TypeFor[Event]() {
		if fields[len(fields)-1].key != uint64(len(fields)) {
			panic("events: the types of events are not numbered without a gap")
		}
		return func(d *decoder, p unsafe.Pointer) error { return d.event(fields, p) }
	}
	return func(d *decoder, p unsafe.Pointer) error { return d.fields(fields, p) }
}

// event reads the one payload of an event. The numbers of the payloads are
// dense, so it is found without a search.
func (d *decoder) event(fields []fieldPlan, p unsafe.Pointer) error {
	n, err := d.head(majorMap)
	if err != nil {
		return err
	}
	if n != 1 {
		return d.errorf("an event with %d payloads instead of one", n)
	}
	key, err := d.head(majorUint)
	if err != nil {
		return err
	}
	if key == 0 || key > uint64(len(fields)) {
		return d.errorf("an event of the unknown type %d", key)
	}
	f := &fields[key-1]
	if err := f.read(d, unsafe.Add(p, f.offset)); err != nil {
		return fmt.Errorf("%s: %w", f.name, err)
	}
	return nil
}

// zeroTest returns the test by which the encoder leaves a field out.
func zeroTest(t reflect.Type, option string) func(unsafe.Pointer) bool {
	kind := t.Kind()
	switch {
	case option == "omitzero" && kind == reflect.Array:
		size := t.Len()
		return func(p unsafe.Pointer) bool { return !slices.ContainsFunc(unsafe.Slice((*byte)(p), size), nonZero) }
	case option != "omitempty":
	case kind == reflect.Pointer:
		return func(p unsafe.Pointer) bool { return *(*unsafe.Pointer)(p) == nil }
	case kind == reflect.String:
		return func(p unsafe.Pointer) bool { return *(*string)(p) == "" }
	case kind == reflect.Slice:
		return func(p unsafe.Pointer) bool { return len(*(*[]byte)(p)) == 0 }
	case kind == reflect.Bool, kind == reflect.Uint8:
		return func(p unsafe.Pointer) bool { return *(*byte)(p) == 0 }
	case kind == reflect.Uint64, kind == reflect.Int64:
		return func(p unsafe.Pointer) bool { return *(*uint64)(p) == 0 }
	case kind == reflect.Float64:
		return func(p unsafe.Pointer) bool { return *(*float64)(p) == 0 } // -0 as well
	}
	panic(fmt.Sprintf("events: %s cannot be %s", t, option))
}

func nonZero(b byte) bool { return b != 0 }

// fields reads a map into the fields of the struct at p; both ascend.
func (d *decoder) fields(fields []fieldPlan, p unsafe.Pointer) error {
	n, err := d.head(majorMap)
	if err != nil {
		return err
	}
	next := 0
	for range n {
		var key uint64
		if d.at < len(d.b) && d.b[d.at] < 24 { // as all keys are so far
			key = uint64(d.b[d.at])
			d.at++
		} else if key, err = d.head(majorUint); err != nil {
			return err
		}
		for next < len(fields) && fields[next].key < key && fields[next].zero != nil {
			next++
		}
		if next == len(fields) || fields[next].key != key {
			return d.errorf("key %d is unknown, repeated, out of order or follows a missing one", key)
		}
		f := &fields[next]
		next++
		at := unsafe.Add(p, f.offset)
		if err := f.read(d, at); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		if f.zero != nil && f.zero(at) {
			return fmt.Errorf("%s: %w", f.name, d.errorf("a field at its default must be absent"))
		}
	}
	for ; next < len(fields); next++ {
		if fields[next].zero == nil {
			return d.errorf("%s is missing", fields[next].name)
		}
	}
	return nil
}

func readPointer(t reflect.Type) readFunc {
	elem := t.Elem()
	read := plan(elem)
	if elem == reflect.TypeFor[Num]() {
		return func(d *decoder, p unsafe.Pointer) error {
			v := d.num()
			*(**Num)(p) = v
			return read(d, unsafe.Pointer(v))
		}
	}
	return func(d *decoder, p unsafe.Pointer) error {
		v := *(*unsafe.Pointer)(p)
		if v == nil {
			v = reflect.New(elem).UnsafePointer()
			*(*unsafe.Pointer)(p) = v
		}
		return read(d, v)
	}
}

func readSlice(t reflect.Type) readFunc {
	elem := t.Elem()
	if elem.Kind() == reflect.Uint8 {
		return readBytes
	}
	read, size := plan(elem), elem.Size()
	var short [8]reflect.Type // one allocation each; most slices in entries are as short
	for n := range short {
		short[n] = reflect.ArrayOf(n, elem)
	}
	return func(d *decoder, p unsafe.Pointer) error {
		n, err := d.head(majorArray)
		if err != nil {
			return err
		}
		if n > maxElements || n > uint64(len(d.b)-d.at) {
			return d.errorf("array of %d elements", n)
		}
		if n == 0 {
			return nil // nil and empty are one value
		}
		h := (*sliceHeader)(p)
		base := h.data
		switch {
		case n <= uint64(h.cap):
			h.len = int(n)
		case n < uint64(len(short)):
			base = reflect.New(short[n]).UnsafePointer()
			*h = sliceHeader{base, int(n), int(n)}
		default:
			base = reflect.MakeSlice(t, int(n), int(n)).UnsafePointer()
			*h = sliceHeader{base, int(n), int(n)}
		}
		for i := range uintptr(n) {
			if err := read(d, unsafe.Add(base, i*size)); err != nil {
				return fmt.Errorf("[%d]: %w", i, err)
			}
		}
		return nil
	}
}

// sliceHeader is a slice of any type.
type sliceHeader struct {
	data     unsafe.Pointer
	len, cap int
}

func readBytes(d *decoder, p unsafe.Pointer) error {
	b, err := d.str(majorBytes)
	*(*[]byte)(p) = append([]byte(nil), b...)
	return err
}

func readArray(t reflect.Type) readFunc {
	if t.Elem().Kind() != reflect.Uint8 {
		panic(fmt.Sprintf("events: no reader for %s", t))
	}
	size := t.Len()
	return func(d *decoder, p unsafe.Pointer) error {
		b, err := d.str(majorBytes)
		if err != nil {
			return err
		}
		if len(b) != size {
			return d.errorf("%d bytes instead of %d", len(b), size)
		}
		copy(unsafe.Slice((*byte)(p), size), b)
		return nil
	}
}

func readString(d *decoder, p unsafe.Pointer) error {
	b, err := d.str(majorText)
	if err != nil {
		return err
	}
	known := d.known(b)
	if known != nil && *known == string(b) {
		*(*string)(p) = *known
		return nil
	}
	if !utf8.Valid(b) {
		return d.errorf("text is not UTF-8")
	}
	*(*string)(p) = string(b)
	if known != nil {
		*known = *(*string)(p)
	}
	return nil
}

// readName reads a string type of a closed vocabulary, without allocating.
func readName(t reflect.Type, names map[string]string) readFunc {
	return func(d *decoder, p unsafe.Pointer) error {
		b, err := d.str(majorText)
		if err != nil {
			return err
		}
		name, ok := names[string(b)]
		if !ok {
			return d.errorf("unknown %s %.40q", strings.ToLower(t.Name()), b)
		}
		*(*string)(p) = name
		return nil
	}
}

func readEnum(t reflect.Type) readFunc {
	var valid [256]bool
	v := reflect.New(t).Elem()
	for code := range valid {
		v.SetUint(uint64(code))
		valid[code] = v.Interface().(interface{ Valid() bool }).Valid()
	}
	return func(d *decoder, p unsafe.Pointer) error {
		code, err := d.head(majorUint)
		if err != nil {
			return err
		}
		if code > 255 || !valid[code] {
			return d.errorf("undefined %s code %d", strings.ToLower(t.Name()), code)
		}
		*(*uint8)(p) = uint8(code)
		return nil
	}
}

func readBool(d *decoder, p unsafe.Pointer) error {
	n, err := d.head(majorSimple)
	if err != nil {
		return err
	}
	if n != simpleFalse && n != simpleTrue {
		return d.errorf("simple value %d instead of true or false", n)
	}
	*(*bool)(p) = n == simpleTrue
	return nil
}

func readUint(d *decoder, p unsafe.Pointer) (err error) {
	*(*uint64)(p), err = d.head(majorUint)
	return err
}

func readInt(d *decoder, p unsafe.Pointer) error {
	major := byte(majorUint)
	if d.at < len(d.b) && d.b[d.at]>>5 == majorInt {
		major = majorInt
	}
	n, err := d.head(major)
	if err != nil {
		return err
	}
	if n > math.MaxInt64 {
		return d.errorf("the integer is out of range")
	}
	if major == majorInt {
		n = ^n // -1 - n
	}
	*(*int64)(p) = int64(n)
	return nil
}

func readNum(d *decoder, p unsafe.Pointer) (err error) {
	*(*float64)(p), err = d.float()
	return err
}

func readFloat(d *decoder, p unsafe.Pointer) error {
	f, err := d.float()
	if err != nil {
		return err
	}
	if !Num(f).Finite() {
		return d.errorf("the number is not finite")
	}
	*(*float64)(p) = f
	return nil
}
