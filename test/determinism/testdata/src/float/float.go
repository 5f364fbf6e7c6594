// Package float plants floating-point arithmetic.
package float

import "math"

type percent float64

type number interface{ ~int | ~float64 }

func sum[T number](list []T) (s T) {
	for _, v := range list {
		s += v // want "floating-point +"
	}
	return s
}

func Apply(a, b float64, n int, f float32, p percent, c complex128) []any {
	x := a*b + 1 // want "floating-point *" "floating-point +"
	x -= b       // want "floating-point -"
	x = x / a    // want "floating-point /"
	x = -x       // want "floating-point negation"
	p++          // want "floating-point +"
	return []any{
		x, p,
		float64(n),        // want "the conversion from int to float64"
		int(a),            // want "the conversion from float64 to int"
		float64(f),        // want "the conversion from float32 to float64"
		float32(b),        // want "the conversion from float64 to float32"
		min(a, b),         // want "floating-point min"
		max(a, 0),         // want "floating-point max"
		c * c,             // want "floating-point *"
		real(c),           // want "complex numbers"
		math.Sqrt(a),      // want "floating-point functions: math.Sqrt"
		math.FMA(a, b, a), // want "floating-point functions: math.FMA"
		sum([]float64{a, b}), sum([]int{n}),
		a < b, a == b, percent(a), n + 1, -n, min(n, 3),
		math.Float64bits(a),
	}
}
