// Package indirect plants one offence at the end of each way that a call can
// take.
package indirect

import (
	"fmt"
	"slices"
)

type scaler interface{ scale(float64) float64 }

type (
	direct     struct{}
	pointer    struct{ k float64 }
	embedded   struct{ *pointer }
	named      func(float64) float64
	text       float64
	box[T any] struct{ v T }
	inner      float64
)

func (direct) scale(x float64) float64     { return x + 1 }   // want "floating-point +"
func (p *pointer) scale(x float64) float64 { return p.k - x } // want "floating-point -"
func (f named) scale(x float64) float64    { return f(x) }
func (t text) String() string              { return fmt.Sprint(t+1 > 2) } // want "floating-point +"
func (b box[T]) get(f func(T) T) T         { return f(b.v) }
func (i inner) GoString() string           { return fmt.Sprint(i*i > 2) } // want "floating-point *"

type holder struct {
	then  func(float64) float64
	inner []inner
}

var table = map[string]func(float64, int) float64{
	"half": func(x float64, _ int) float64 { return x / 2 }, // want "floating-point /"
}

func Apply(s scaler, x float64, list []float64) []any {
	k := 2.0
	local := func(x float64) float64 { return x * k } // want "floating-point *"
	h := holder{then: embedded{&pointer{k}}.scale}
	slices.SortFunc(list, func(a, b float64) int {
		if a-b < 0 { // want "floating-point -"
			return -1
		}
		return 1
	})
	defer func() {
		if recover() != nil {
			list[0]++ // want "floating-point +"
		}
	}()
	return []any{
		s.scale(x), local(x), h.then(x), table["half"](x, 1), named(local).scale(x),
		fmt.Sprint(text(x)), fmt.Sprintf("%#v", h),
		box[float64]{x}.get(double),
	}
}

func double(x float64) float64 { return x + x } // want "floating-point +"

// Unreached has no way to it.
func Unreached(x float64) float64 { return x + 1 }

type stranger struct{}

func (stranger) weigh(x float64) float64 { return x + 1 }
