// Package fsm is the state machine: what the log means.
//
// It is two pure functions. Decide, which only the authority calls, turns a
// command and the state into events or a refusal; it may compute with floating
// point (gates, alpha easing). (DecideRequest is the same for what any rank may
// ask for.) Apply, which every replica calls, assigns what
// the events say: no floating-point arithmetic, no clock, no randomness, no map
// iteration, so that any two builds on any two processors agree. A test walks
// the call graph of Apply and fails when one of these appears
// (test/determinism).
//
// States are immutable: Apply returns a new State that shares what did not
// change, so a reader may keep any state for as long as it likes.
//
// The files, in reading order:
//
//	state.go      State, Model, Slot, Seed; slotvec.go holds the slots
//	apply.go      Apply: an entry's fit, then its events, one by one
//	assign.go     one event to one model
//	digest.go     the two digests, each independent of the number of slots
//	command.go    Call: what a trainer asks for; args.go its limits
//	decide.go     Decide: a call becomes events, through the same assignments
//	configure.go  call 0 of a model, and its fresh start
//	observe.go    rank 0's measurements
//	lifecycle.go  germinate, advance, prune, ... (lifecycle contract, section 6)
//	tick.go       one tick of one slot (section 7)
//	alpha.go      the alpha controller (section 4)
//	residency.go  votes of the ranks on the room for a seed, and what devices attest
//	request.go    what is asked for between calls, and done at the next fence
//	observed.go   a round in which the trainers decide by themselves
//	mark.go       a model as a mark; rewind.go goes back to one, and on from a lost log
//	argshash.go   what must be equal on all ranks, as a hash
//	image.go      a State as bytes, for snapshots
//	fault_on.go   a wrong transition, in builds for tests alone; fault_off.go
package fsm
