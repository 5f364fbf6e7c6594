// Package exectest is for the tests of gpuexec, its devices and their checks on
// a real GPU: a log that moves seeds through their stages, and what every device
// must do.
//
//	log.go     states at fences, made by the state machine itself
//	device.go  the test of a device, whichever it is
package exectest
