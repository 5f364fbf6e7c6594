// Package device is what an executor needs of the memory that parameters live
// in, and the device that every machine has: shared memory of the host.
//
// An arena is one flat range of addresses. Memory is put behind parts of it
// (chunks) as seeds need it, zeroed, and taken away again; its addresses never
// change. Chunks are handed to the trainer as file descriptors over a unix
// socket, from memory of the host and of a GPU alike.
//
// Files, in reading order:
//
//	device.go      Device, Arena, Chunk, the errors
//	limit.go       a device of which arenas may have a part
//	host_linux.go  the host: a sealed memfd
//	host_other.go  where there is none
//	send_linux.go  handing chunks over a unix socket, and taking them
package device
