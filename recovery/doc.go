// Package recovery continues a log whose quorum is lost, or which no replica can
// apply any further, from what stopped nodes have left in their data directories.
// It puts a recovered directory in the place of the best of them, and never
// changes or removes what it found.
//
// The files, in reading order:
//
//	inspect.go   one directory: verified on a copy
//	plan.go      which directory is continued, and what speaks against it
//	recover.go   the steps that continue it
//	swap.go      the new directory in the place of the old one; what a crash left
//	exchange_*.go  ... in one step, where the system has one
//	files.go     copying, locks, disk space
package recovery
