// Package chance plants randomness.
package chance

import (
	crypto "crypto/rand"
	"math/rand"
	v2 "math/rand/v2"
)

func Apply(b []byte) int {
	_, _ = crypto.Read(b)        // want "randomness: crypto/rand.Read"
	n := rand.Int()              // want "randomness: math/rand.Int"
	r := v2.New(v2.NewPCG(1, 2)) // want "randomness: math/rand/v2.New" "randomness: math/rand/v2.NewPCG"
	return n + r.IntN(3)         // want "randomness: (*math/rand/v2.Rand).IntN"
}
