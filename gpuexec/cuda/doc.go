// Package cuda is an NVIDIA GPU as a device, through libcuda alone: no cgo, no
// toolkit. Its kernels are those of package kernels.
//
// The build tag nocuda leaves it out, and with it the dynamic linker: an esperd
// with it needs glibc.
//
// Files, in reading order:
//
//	cuda.go     Options; what a build without it answers is none.go
//	open.go     from a library to a GPU with its context and kernels
//	driver.go   libcuda's functions, looked up before they are bound
//	errors.go   its errors
//	thread.go   one locked thread that owns the context
//	arena.go    arenas: memory behind addresses, exported as file descriptors
//	launch.go   kernels: parameters in a block outside of Go's heap
//	scratch.go  memory for what kernels read and write besides the arena
package cuda
