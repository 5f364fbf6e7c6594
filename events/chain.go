package events

import (
	"crypto/sha256"
	"encoding/binary"
)

// Chain returns the link that the entry at index adds to the chain whose last
// link is prev: SHA-256(prev || index, big-endian || entry). The link before
// entry 1 is the zero Digest.
//
// Two logs with the same link at an index hold the same bytes at every index up
// to it, so one comparison answers for all of history.
func Chain(prev Digest, index uint64, entry []byte) Digest {
	// Typical entries fit the stack: one pass over one buffer costs less than
	// a hash.Hash and its interface calls.
	var small [1024]byte
	buf := append(small[:0], prev[:]...)
	buf = binary.BigEndian.AppendUint64(buf, index)
	if len(buf)+len(entry) <= len(small) {
		return sha256.Sum256(append(buf, entry...))
	}
	h := sha256.New()
	h.Write(buf) // a hash's Write never fails
	h.Write(entry)
	var d Digest
	h.Sum(d[:0])
	return d
}
