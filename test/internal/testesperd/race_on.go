//go:build race

package testesperd

// raceFlags has the processes under test watched as their tests are.
var raceFlags = []string{"-race"}
