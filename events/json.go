package events

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"unsafe"
)

// The type of an event in JSON stands beside the fields of its payload:
//
//	{"type":"stage_changed","slot":"r0c1","seed":4,"from":"TRAINING",...}

// MarshalJSON writes the event flat; see above. An event without a payload is
// an error.
func (ev Event) MarshalJSON() ([]byte, error) {
	name, payload := ev.Payload()
	if payload == nil {
		return nil, errors.New("an event without a payload has no JSON")
	}
	fields, err := json.Marshal(payload)
	if err != nil {
		return nil, err
	}
	out := append(make([]byte, 0, len(fields)+len(name)+len(`"type":"",`)), `{"type":"`...)
	out = append(append(out, name...), '"')
	if !bytes.Equal(fields, []byte("{}")) {
		out = append(out, ',')
	}
	return append(out, fields[1:]...), nil
}

// UnmarshalJSON reads what MarshalJSON writes, strictly: an unknown type or
// field is an error, and so is what Encode would refuse in an entry.
func (ev *Event) UnmarshalJSON(b []byte) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(b, &fields); err != nil {
		return err
	}
	var name string
	if err := json.Unmarshal(fields["type"], &name); err != nil {
		return fmt.Errorf("an event needs a type, one of %q", payloadNames)
	}
	i := slices.Index(payloadNames, name)
	if i < 0 {
		return fmt.Errorf("unknown event type %.40q: expected one of %q", name, payloadNames)
	}
	delete(fields, "type")
	rest, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	var out Event
	f := reflect.ValueOf(&out).Elem().Field(i)
	f.Set(reflect.New(f.Type().Elem()))
	d := json.NewDecoder(bytes.NewReader(rest))
	d.DisallowUnknownFields()
	if err := d.Decode(f.Interface()); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	encoded, err := encMode.Marshal(out)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := readEvent(&decoder{b: encoded}, unsafe.Pointer(new(Event))); err != nil {
		return err
	}
	*ev = out
	return nil
}
