// Package replica is one node: a data directory, its part in raft, its state
// machine, and the way to the other nodes. It is the only importer of raft.
//
// The files, in reading order:
//
//	node.go           Node: opening, asking, draining, closing
//	start.go          what a node looks at, and makes, before it starts
//	verify.go         ... and what a new build replays first
//	propose.go        Decide: rank 0's calls become entries, one at a time
//	machine.go        what raft drives: index, chain, Apply, history, snapshots
//	nudge.go          committed entries become visible on all ranks at once
//
//	hello.go          how a world comes together; roster.go remembers who is where
//	welcome.go        who is let in, who has to wait, and who must end
//	otherlog.go       ... and what becomes of a node whose run goes on elsewhere
//	joining.go        what a node without a leader waits for; founding.go
//	membership.go     admission, replaced and lost nodes, few voters: what is due
//	leader.go         a leader does it, and hands leadership to rank 0's node
//	rounds.go         trainers register; registrations.go until all are there
//	report.go         shadow verdicts and faults, to the leader and into the log
//	request.go        what any node asks for at the next fence, likewise
//	divergence.go     whose state is wrong, when an entry does not fit; divergence_file.go keeps it
//	contradict.go     ... and the writer of that entry is told, and looks, too
//	backfill.go       missing history, from any peer, checked against the chain
//	ask.go            questions to all nodes; draining
//
//	survive.go        a log goes on from what one node kept; inquire.go asks the others,
//	                  cutoff.go leaves out what a wrong writer led
//	datadir.go        the directory's identity and lock; adopt.go moves one to another rank
//	glance.go         what it shows without its esperd; evidence.go sets it aside
//	logstore.go       raft's log on disk, behind one constructor; boltdb
//	walstore.go       raft-wal, and what it needs to be safe; waltail.go mends its end
//	walnosync.go      raft-wal without fsync, for relaxed durability
//	snapshots.go      and raft's snapshots in files, synced to the last name
//	relaxed.go        and how a crash of the machine is noticed then
//	anchor.go         what raft v1.7.3 misses in its log after a snapshot, or a failed write
//	stable.go         and that it cannot bear a full disk
//
//	network.go        raft and peer RPC on one TCP listener: listener.go, tls.go,
//	                  peers.go, address.go; raftlog.go adapts its log
//	whereabouts.go    and where nodes are now
//	memnet.go         the same in memory, for simulated clusters; memraft.go
//	types.go          what the doors see
package replica
