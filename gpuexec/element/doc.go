// Package element defines the bits: what a parameter's initial values are, what
// its fingerprint is, and how the table of an arena is laid out. The same on
// every rank, on a CPU and on a GPU.
//
// kernels/elements.h says the same in C for the GPU. The tests hold the two
// together bit by bit, and both against the vectors in testdata.
//
// Files, in reading order:
//
//	dtype.go        the element types
//	philox.go       counter-based random numbers, and who is keyed by what
//	fill.go         uniform and constant fills
//	fingerprint.go  sums that tell positions apart, and fingerprints made of them
//	table.go        the table that kernels and CUDA graphs read
package element
