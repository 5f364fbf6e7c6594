package api

import (
	"reflect"

	"github.com/danielgtaylor/huma/v2"

	"github.com/esperd/esperd/events"
)

// DescribeTypes tells an OpenAPI registry how the types of package events look
// in JSON, which their Go types do not say.
func DescribeTypes(registry huma.Registry) {
	alias := func(t, as reflect.Type) { registry.RegisterTypeAlias(t, as) }
	alias(reflect.TypeFor[events.Num](), reflect.TypeFor[numSchema]())
	alias(reflect.TypeFor[events.Event](), reflect.TypeFor[eventSchema]())
	alias(reflect.TypeFor[events.Stage](), reflect.TypeFor[stageSchema]())
	alias(reflect.TypeFor[events.Curve](), reflect.TypeFor[curveSchema]())
	alias(reflect.TypeFor[events.Algorithm](), reflect.TypeFor[algorithmSchema]())
	alias(reflect.TypeFor[events.Gate](), reflect.TypeFor[gateSchema]())
}

type (
	numSchema       struct{}
	eventSchema     struct{}
	stageSchema     struct{}
	curveSchema     struct{}
	algorithmSchema struct{}
	gateSchema      struct{}
)

func (numSchema) Schema(huma.Registry) *huma.Schema { return numberSchema(false) }

// numberSchema is a JSON number, or one of the strings that stand for what JSON
// numbers cannot say.
func numberSchema(nullable bool) *huma.Schema {
	return &huma.Schema{OneOf: []*huma.Schema{
		{Type: huma.TypeNumber, Nullable: nullable},
		{Type: huma.TypeString, Enum: []any{"NaN", "Infinity", "-Infinity"}},
	}}
}

func (eventSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeObject, Description: "one fact: its type, such as stage_changed, beside the fields of that type",
		Properties: map[string]*huma.Schema{"type": {Type: huma.TypeString}}, Required: []string{"type"}, AdditionalProperties: true}
}

// names makes a schema of the valid names of an enumeration. An absent optional
// value may also be sent as null.
func names[T interface {
	~uint8
	Valid() bool
	String() string
}]() *huma.Schema {
	s := &huma.Schema{Type: huma.TypeString, Nullable: true}
	for v := range T(16) {
		if v.Valid() {
			s.Enum = append(s.Enum, v.String())
		}
	}
	return s
}

func (stageSchema) Schema(huma.Registry) *huma.Schema     { return names[events.Stage]() }
func (curveSchema) Schema(huma.Registry) *huma.Schema     { return names[events.Curve]() }
func (algorithmSchema) Schema(huma.Registry) *huma.Schema { return names[events.Algorithm]() }

func (gateSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Enum: []any{string(events.G0), string(events.G1), string(events.G2), string(events.G3), string(events.G5)}}
}
