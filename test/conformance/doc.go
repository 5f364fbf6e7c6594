// Package conformance replays recorded behaviour of esper-lite through package
// gates, the alpha controller, and Decide and Apply of package fsm, operation
// by operation (lifecycle contract, sections 1, 2 and 9).
//
// Four files of vectors are replayed: alpha, gates, lifecycle and multi. Results,
// primary observables, events and all bookkeeping keys are compared: doubles
// with an absolute tolerance of 1e-12, everything else exactly. A slot is
// compared up to, not including, its first operation that carries a mark of the
// stop set: behaviour that esperd refuses. Every operation goes through an
// encoded entry, so what is compared is what a replica would show.
//
//	go test ./test/conformance                          the committed sample
//	ESPERD_VECTORS=DIR go test ./test/conformance       other vectors, .jsonl or .jsonl.gz
//
// The package also replays rank 0 of a recorded training run
// (cmd/esperd/recordings/digits-ddp4).
package conformance
