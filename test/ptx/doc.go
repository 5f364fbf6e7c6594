// Package ptx runs the kernels that esperd ships, as PTX, on a machine without a
// GPU: an interpreter of the instructions that the pinned clang emits for them.
// It knows no others: an unknown instruction is an error of Parse.
//
// Memory is checked at every access: inside an allocation, aligned to its size.
// Warps run one after the other, each as far as it comes before a barrier, where
// all threads have to meet.
//
//	parse.go    modules, kernels, operands
//	compile.go  instructions as functions on a thread
//	arith.go    what they compute
//	run.go      launches: groups, warps, barriers, shuffles
//	memory.go   allocations
//
// The tests compare the embedded PTX with package element on random inputs, show
// that a mutated kernel is found out, and compile the sources again: that one
// needs clang-19 and is skipped without it, unless ESPERD_REQUIRE contains
// "clang".
package ptx
