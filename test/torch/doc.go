// Package torch shows on real torch DDP (gloo, a process for each rank) what
// goes wrong in users' training loops today, and that it does not with esperd.
// Each failure is shown both ways, and both are asserted.
//
//	torch_test.go      the failures: BUG-030, JANK-003, B2-CR-03, B2-DRL-05, skew,
//	                   and seeds that DDP does not know
//	arena_test.go      seeds in esperd's arena, and what differs is named
//	digits_test.go     the example, examples/ddp_digits.py
//	kills_*_test.go    the example, killed and started again
//	python_test.go     the Python client's own tests
//	main_test.go       what is needed: esperd is built here, or is the one that
//	                   ESPERD_BINARY names; Python is ESPERD_PYTHON or Debian's
//	processes_test.go  esperds, and ranks of the cases in workers/
//
// Without Python or torch the tests that need it are skipped, unless
// ESPERD_REQUIRE contains "torch".
package torch
