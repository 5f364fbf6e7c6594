package audit

import (
	"encoding"
	"encoding/hex"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// Difference is one field in which two states, or two entries, differ.
type Difference struct {
	Field    string `json:"field"`              // as main.r0c1.seed.amplitude.alpha
	Expected string `json:"expected,omitempty"` // absent: at its default, or not there
	Got      string `json:"got,omitempty"`
}

// differencesMax is how many fields are told of.
const differencesMax = 64

// field is a value in words, at its path.
type field struct{ path, value string }

// flatten lists the fields of a value that are not at their default. Elements of
// a list are named by what name says, or by their place.
func flatten(path string, v reflect.Value, out *[]field) {
	if text, ok := scalar(v); ok {
		if !v.IsZero() {
			*out = append(*out, field{path, text})
		}
		return
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return
		}
		elem := v.Elem()
		if text, ok := scalar(elem); ok { // a value that is there says something at 0 too
			*out = append(*out, field{path, text})
			return
		}
		flatten(path, elem, out)
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				flatten(join(path, snake(f.Name)), v.Field(i), out)
			}
		}
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			flatten(fmt.Sprintf("%s[%d]", path, i), v.Index(i), out)
		}
	default:
		*out = append(*out, field{path, fmt.Sprint(v)})
	}
}

// scalar writes a value that has no parts.
func scalar(v reflect.Value) (string, bool) {
	switch x := v.Interface().(type) {
	case events.Num:
		return strconv.FormatFloat(float64(x), 'g', -1, 64), true
	case []byte:
		const shown = 32
		return fmt.Sprintf("%d bytes %s", len(x), hex.EncodeToString(x[:min(shown, len(x))])), true
	case encoding.TextMarshaler:
		b, err := x.MarshalText()
		if err != nil {
			return fmt.Sprint(v), true
		}
		return string(b), true
	}
	switch v.Kind() {
	case reflect.Bool, reflect.Int64, reflect.Uint8, reflect.Uint64, reflect.Int:
		return fmt.Sprint(v), true
	case reflect.String:
		return v.String(), true
	case reflect.Float64:
		return strconv.FormatFloat(v.Float(), 'g', -1, 64), true
	default:
		return "", false
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func snake(s string) string {
	var out strings.Builder
	for i, c := range s {
		if upper := c >= 'A' && c <= 'Z'; upper && i > 0 && (s[i-1] < 'A' || s[i-1] > 'Z') {
			out.WriteByte('_')
		}
		out.WriteRune(c)
	}
	return strings.ToLower(out.String())
}

// compareFields merges two lists of fields, in the order of the first.
func compareFields(expected, got []field) []Difference {
	have := make(map[string]string, len(got))
	for _, f := range got {
		have[f.path] = f.value
	}
	var out []Difference
	seen := make(map[string]bool, len(expected))
	for _, f := range expected {
		seen[f.path] = true
		if value, ok := have[f.path]; !ok || value != f.value {
			out = append(out, Difference{f.path, f.value, value})
		}
	}
	for _, f := range got {
		if !seen[f.path] {
			out = append(out, Difference{Field: f.path, Got: f.value})
		}
	}
	return out
}

// DiffStates returns the fields in which two states differ, slot by slot.
func DiffStates(expected, got *fsm.State) []Difference {
	out := compareFields(bookkeepingFields(expected), bookkeepingFields(got))
	for _, m := range expected.Models {
		out = append(out, diffModels(m, got.Model(m.Name))...)
	}
	for _, m := range got.Models {
		if expected.Model(m.Name) == nil {
			out = append(out, diffModels(nil, m)...)
		}
	}
	return out
}

func bookkeepingFields(s *fsm.State) []field {
	var out []field
	add := func(path string, v any) { flatten(path, reflect.ValueOf(v), &out) }
	add("run", s.Run)
	add("lineage", s.Lineage)
	add("parent", s.Parent)
	for _, n := range s.Nodes {
		add("nodes."+string(n.ID), n)
	}
	add("round", s.Round)
	for _, c := range s.Cursors {
		add("cursors."+c.Model, c)
	}
	for _, c := range s.Sources {
		add("sources."+string(c.Node), c)
	}
	for _, r := range s.Requests {
		add(fmt.Sprintf("requests.%d", r.Index), r)
	}
	return out
}

func diffModels(expected, got *fsm.Model) []Difference {
	out := compareFields(modelFields(expected), modelFields(got))
	for i := range max(slotsOf(expected), slotsOf(got)) {
		a, b := slotAt(expected, i), slotAt(got, i)
		if a != b { // states share what did not change
			out = append(out, compareFields(slotFields(expected, i, a), slotFields(got, i, b))...)
		}
	}
	return out
}

func modelFields(m *fsm.Model) []field {
	if m == nil {
		return nil
	}
	var out []field
	add := func(path string, v any) { flatten(join(m.Name, path), reflect.ValueOf(v), &out) }
	add("generation", m.Generation)
	out = append(out, field{join(m.Name, "epoch"), fmt.Sprint(m.Epoch)}, field{join(m.Name, "fence"), fmt.Sprint(m.FenceN)})
	add("tick", m.Tick)
	if m.Config != nil {
		for _, s := range m.Config.Slots {
			add(s.Name+".config", s)
		}
	}
	return out
}

func slotsOf(m *fsm.Model) int {
	if m == nil {
		return 0
	}
	return m.Slots.Len()
}

func slotAt(m *fsm.Model, i int) *fsm.Slot {
	if i >= slotsOf(m) {
		return nil
	}
	return m.Slots.At(i)
}

func slotFields(m *fsm.Model, i int, s *fsm.Slot) []field {
	if s == nil {
		return nil
	}
	path := join(m.Name, m.Config.Slots[i].Name)
	out := []field{{join(path, "stage"), s.Stage().String()}}
	flatten(join(path, "germinations"), reflect.ValueOf(s.Germinations), &out)
	if s.Seed != nil {
		flatten(join(path, "seed"), reflect.ValueOf(*s.Seed), &out)
	}
	return out
}

// diffEntries returns the fields in which two entries differ, without those that
// only say where an entry stands or when it was written.
func diffEntries(expected, got *events.Entry) []Difference {
	return compareFields(entryFields(expected), entryFields(got))
}

func entryFields(e *events.Entry) []field {
	var out []field
	if e == nil {
		return nil
	}
	content := *e
	list := content.Events
	content.Events = nil
	flatten("", reflect.ValueOf(content), &out)
	for i := range list {
		name, payload := list[i].Payload()
		flatten(fmt.Sprintf("events[%d].%s", i, name), reflect.ValueOf(payload), &out)
	}
	return out
}

// fieldsOf lists the fields of any value.
func fieldsOf(path string, v any) []field {
	var out []field
	flatten(path, reflect.ValueOf(v), &out)
	return out
}

// cutLast parts a path before its last name.
func cutLast(path string) (before, last string, found bool) {
	if i := strings.LastIndexByte(path, '.'); i >= 0 {
		return path[:i], path[i+1:], true
	}
	return "", path, false
}
