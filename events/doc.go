// Package events is the language of the log: what an entry is, which events it
// may carry, how it becomes bytes, and how those bytes are chained and kept.
//
// It knows nothing about Raft, about clocks or about how a decision is reached.
// An Entry is one command that was decided, refused or reported; it is atomic.
// Its events are facts with every number already computed, so that applying
// them is assignment (package fsm).
//
// The files, in reading order:
//
//	vocabulary.go  stages, gates, operations, problem codes
//	entry.go       Entry, Key, Digest
//	event.go       the events
//	codec.go       writing them: CBOR Core Deterministic Encoding (RFC 8949, 4.2.1)
//	decode.go      reading them, strictly; decode_items.go the items of CBOR
//	json.go        events as people and scripts read them
//	chain.go       the hash chain over encoded entries
//	history.go     the store that keeps every entry on every node; history_*.go its
//	               reading, writing behind, gaps, file and the check at its opening
//	reader.go      its file read without its lock, by audits; reader_pages.go the
//	               pages of bbolt, pager.go what they are read with
//
// Adding an event: a payload type and a field of Event with the next free
// number, a case in fsm's apply, a golden script. Numbers are never reused, and
// a field that later versions add is absent from the encoding while it has its
// zero value, so that old bytes and old digests stay what they were.
package events
