// Package audit reads logs back: it verifies the history of one rank, finds
// where those of several part, and says what differs and who is at fault. It
// changes nothing, and needs no esperd that runs.
//
// The files, in reading order:
//
//	place.go     what is audited: Place, Open
//	dir.go       a data directory, also one that an esperd has open
//	export.go    an exported log, written and read
//	archive.go   ... and one that grows with its log
//	remote.go    an esperd's admin door
//	stream.go    the entries of a place, checked against the chain and decoded
//	verify.go    one history by itself: every entry replayed through package fsm
//	same.go      ... or found to be the same as one that was replayed
//	store.go     what a directory keeps beside the entries: images, index of calls
//	recorded.go  what the log itself says about ranks that differed
//	departed.go  ... about who has left the world
//	device.go    ... and about devices
//	asked.go     ... asked of an esperd whose entries are not downloaded
//	bisect.go    the first index at which two places differ
//	compare.go   several histories: who agrees with whom, until where
//	classify.go  two entries that should be one: payload, order, missing, extra
//	fields.go    states and entries, field by field
//	slots.go     which slot an event is about
//	replay.go    states at an index, as esperd replay shows them
//	findings.go  what was found, in the order in which it began
//	report.go    the report, and its JSON
//	audit.go     Run: all of it; coverage.go what was checked, and how far
//	follow.go    Follow: all of it while the world goes on
//	watch.go     ... one place of it; ledger.go its links, compared with the others'
//
// A difference between two logs is found by bisection over the chain: one link
// answers for all entries before it.
package audit
