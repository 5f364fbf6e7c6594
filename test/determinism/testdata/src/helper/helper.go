// Package helper is what another package of the module does for Apply.
package helper

import "time"

func Names(m map[string]int) (out []string) {
	for k := range m { // want "a range over a map"
		out = append(out, k)
	}
	return out
}

// Unreached is nobody's fault.
func Unreached() time.Time { return time.Now() }
