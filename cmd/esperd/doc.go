// Command esperd runs beside every rank of a training job and keeps the ranks'
// growing networks the same: rank 0's decisions go through a replicated log.
//
// The files, in reading order:
//
//	main.go           the commands, exit statuses
//	config.go         flags, variables and launchers become a Config: pure
//	config_peers.go   ... its addresses
//	config_socket.go  ... its socket's path
//	adopt.go          the data directory of a rank that this host has no more
//	daemon.go         a node with its doors, opened and closed in order
//	archive.go        ... and the copy of its log elsewhere
//	rejoin.go         ... and again, where the run goes on as another log
//	run.go, exec.go   a daemon alone, and with a command
//	exec_linux.go     ... which ends with it, exec_other.go: or does not
//	recover.go        recover; tables_recover.go: and what people see of it
//	token.go          who may make requests at the admin door
//	target.go         which esperd the commands that look ask
//	view.go           status, slots, ranks
//	events.go         events; place.go those of a directory or file, and exports
//	audit.go          audit; audit_text.go its report for people
//	replay.go         replay
//	request.go        request
//	gc.go             gc; gc_scan.go: the state directory, which nothing leads out of
//	tables.go         what people see of all that:
//	tables_ranks.go   ... of the ranks, and of what they ask for
//	describe.go       an entry of the log in words
//	recording.go      a recorded run, read strictly
//	demo.go           replaying one through a process a rank:
//	demo_cluster.go   ... the processes
//	demo_feed.go      ... their trainers
//	demo_gather.go    ... what the ranks have in the end
//	demo_check.go     ... compared with what was recorded
//	demo_report.go    ... and told
package main
