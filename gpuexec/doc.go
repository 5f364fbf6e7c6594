// Package gpuexec turns stage changes into active parameter sets on a device.
//
// The state machine says what a seed's stage is; this package says what that
// means for memory, and does it. It is pure but for the Executor: where
// everything lies (Layout), what has to be done (Plan) and what is active
// (ActiveSet) are functions of the log's state, the same on every rank.
//
// An Executor is one rank's and one model's. The door calls it at a fence,
// inside the call that the trainer waits in, with the state at the trainer's
// cursor; the answer carries its Report.
//
// It imports the state machine and no replica, no door.
//
// Files, in reading order:
//
//	plan.go       what a stage means, and the steps between two states
//	activeset.go  the digest of what is active
//	held.go       and what the device has of it, read back
//	layout.go     where parameters, gradients and master copies lie
//	report.go     what a fence did: votes, what is lost, spans
//	executor.go   the Executor: fences, attaching, views
//	file.go       fingerprints of a trainer's own tensors
//	run.go        its commands on a device, and fingerprints
//	backing.go    memory behind the ranges that are held
//	slotset.go    sets of slots
//	open.go       the device that --device names
//
// Below it: element has the bits, device the devices' interface and the host,
// cuda the GPU, kernels its PTX, exectest what tests share.
package gpuexec
