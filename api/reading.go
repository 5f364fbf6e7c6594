package api

import (
	"encoding/json"
	"reflect"

	"github.com/danielgtaylor/huma/v2"

	"github.com/esperd/esperd/fsm"
)

// Reading is a JSON field that may be absent, null or a value.
type Reading[T any] struct{ fsm.Reading[T] }

// Value returns a reading that was measured.
func Value[T any](v T) Reading[T] { return Reading[T]{fsm.Reading[T]{Given: true, Value: &v}} }

// NotMeasured returns a reading that says so.
func NotMeasured[T any]() Reading[T] { return Reading[T]{fsm.Reading[T]{Given: true}} }

// IsZero reports whether the field is absent.
func (r Reading[T]) IsZero() bool { return !r.Given }

// MarshalJSON writes the value or null.
func (r Reading[T]) MarshalJSON() ([]byte, error) { return json.Marshal(r.Reading.Value) }

// UnmarshalJSON reads a value or null; it is not called for an absent field.
func (r *Reading[T]) UnmarshalJSON(b []byte) error {
	r.Given = true
	return json.Unmarshal(b, &r.Reading.Value)
}

// Schema describes the field for the OpenAPI document.
func (r Reading[T]) Schema(huma.Registry) *huma.Schema {
	if reflect.TypeFor[T]().Kind() == reflect.Bool {
		return &huma.Schema{Type: huma.TypeBoolean, Nullable: true}
	}
	return numberSchema(true)
}
