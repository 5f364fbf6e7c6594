// Package e2e runs the esperd program as its users do: real processes on
// loopback, with data directories, sockets and a secret of their own, which are
// killed, stopped and started again while trainers call them. Everything is
// seen through the public doors: the client, the command line, and what a
// process writes and exits with.
//
//	main_test.go        the binary: built here, or the one that ESPERD_BINARY names
//	child_*_test.go     children end with the test
//	process_test.go     one process; commands that run to their end
//	world_test.go       one esperd for each rank, and what is awaited of them
//	load_test.go        trainers that make the same scripted calls on every rank
//	evidence_test.go    what must hold whatever happened: answers, logs, states
//	processes_test.go   killed, stopped and drained processes
//	modes_test.go       the modes follow and observe, ordering warn, requests
//	resume_test.go      marks: of other ranks, runs and times, and with every disk lost
//	trainers_test.go    a trainer that is a process of its own
//	gone_test.go        trainers that die, or are busy
//	relaxed_test.go     relaxed durability, which is for killed processes too
//	upgrade_test.go     another build of esperd, one rank at a time
//	emptydisk_test.go   nodes that come back with an empty disk
//	recover_test.go     esperd recover, and nodes that return with another history
//	badinput_test.go    the list of bad input, and a trainer that writes its own requests
//	calls_test.go       bad input in a trainer's calls
//	refused_test.go     settings with which esperd does not start
//	contradicts_test.go nodes and trainers that contradict the log, or each other
//	damage_test.go      damaged data directories
//	diskfull_test.go    a full disk (needs root; a must if ESPERD_REQUIRE has "mount")
//	audit_test.go       esperd audit of running, stopped and faulty worlds
//	commands_test.go    what people type
//	demo_test.go        the demonstration
//
// With -short a smaller world and fewer faults. ESPERD_E2E_KEEP names a directory
// that keeps what the worlds have written.
package e2e
