//go:build !race

package testesperd

var raceFlags []string
