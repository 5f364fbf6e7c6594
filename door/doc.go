// Package door is HTTP on both of esperd's doors: the trainer's, a unix socket
// on which the trainer beside this esperd makes its calls, and the admin's, a
// TCP address on which people and monitoring look at what the node knows.
//
// A numbered call goes through these steps, the same on every rank:
//
//	session.go   which trainer calls, and in which round
//	calls.go     the call's number and key, from the state at the caller's cursor
//	calls.go     rank 0: replica.Decide puts it into the log
//	wait.go      other ranks: wait until rank 0's call of that number is in it
//	follow.go    mode follow: until rank 0's next fence is in it
//	warn.go      ordering warn: until rank 0's call of that kind is in it
//	match.go     all: the entry's key is compared with the caller's
//	resume.go    a resume only: until all ranks have brought the same mark (offers.go)
//	track.go     the cursor moves to the entry
//	memory.go    a fence's: what it means for the seeds' memory is done, or told
//	answer.go    the answer is computed from the state there, never from the head
//
// So all ranks get the same answer to the same call, however far the replica
// has run ahead, and a rank that calls something else than rank 0 did is told
// at once and ends the round for all (fault.go). The ranks other than 0 also
// follow the log with their own measurements (shadow.go), to tell where they
// would have decided otherwise. Who waits for whom is in ledger.go.
//
// In the mode observe (tell.go) a call is answered at once, and recorded and
// compared behind the trainer's back. What is no numbered call is in
// unnumbered.go: requests, busy, the end of a session; marks are in checkpoint.go,
// the votes on the room for a seed in votes.go. What devices hold is handed in
// in attest.go and compared by rank 0's node in gatherings.go; what their tables
// say, at every fence, in held.go; devices.go shows who differed. arena.go hands
// the seeds' memory over. How long a call waits is
// in patience.go. A trainer that ends without a word is noticed in gone.go, also
// if esperd was started again meanwhile (noted.go), a replica that has diverged in
// diverged.go, and word.go keeps the memory
// that trainers look at between two steps. Audits read the log through records.go.
package door
