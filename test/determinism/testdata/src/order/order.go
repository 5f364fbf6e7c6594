// Package order plants what depends on the order of a map.
package order

import (
	"maps"
	"slices"

	"planted/helper"
)

type set map[string]int

func Apply(m set) []string {
	var out []string
	for k := range m { // want "a range over a map"
		out = append(out, k)
	}
	for range m { // want "a range over a map"
		break
	}
	out = append(out, slices.Collect(maps.Keys(m))...) // want "the order of a map: maps.Keys"
	for _, v := range maps.All(m) {                    // want "the order of a map: maps.All"
		out[v] = ""
	}
	for i := range 3 {
		out[i] = ""
	}
	return append(out, helper.Names(m)...)
}
