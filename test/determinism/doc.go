// Package determinism keeps the promise of package fsm: any two builds on any
// two processors that apply the same log have the same state.
//
//	look_test.go      what is an offence in one instruction
//	walk_test.go      walks everything that a function reaches in a module, and
//	                  names what may differ between builds, processors or runs
//	apply_test.go     fsm.Apply reaches none of that
//	planted_test.go   the walk finds each offence planted under testdata/src
//	replay_test.go    a recorded history gives the recorded digests in other
//	                  builds: arm64 (under qemu), amd64 with fused multiply-add
//	generate_test.go  made that history (-update makes it anew);
//	                  generate2_test.go its entries of version 2
//
// Where qemu-aarch64 is missing, the arm64 replay is skipped, and fails if
// ESPERD_REQUIRE contains "qemu".
package determinism
