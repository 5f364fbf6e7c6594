package api

import "github.com/esperd/esperd/events"

// Record is an entry as it is kept: its bytes and its place. A line of
// GET /v1/records and of an exported log is one.
type Record struct {
	Index       uint64        `json:"index"`
	Chain       events.Digest `json:"chain" doc:"SHA-256 of the link before, the index (8 bytes, big-endian) and the entry's bytes"`
	Lifecycle   events.Digest `json:"lifecycle,omitzero" doc:"of the entry's model, after it, as this node's replica had it; absent where the entry has no model, or the replica's state is frozen"`
	Bookkeeping events.Digest `json:"bookkeeping,omitzero" doc:"after it, likewise"`
	Entry       []byte        `json:"entry" doc:"the entry's bytes in base64"`
}

// RecordOf returns what is told of a record.
func RecordOf(r *events.Record) Record {
	return Record{Index: r.Index, Chain: r.Chain, Lifecycle: r.Lifecycle, Bookkeeping: r.Bookkeeping, Entry: r.Entry}
}

// Chain answers GET /v1/chain: what a stretch of the log comes to, so that two
// nodes can be compared without sending it.
type Chain struct {
	From         uint64        `json:"from"`
	To           uint64        `json:"to" doc:"last index of the stretch: as asked for, unless that is more than 65,536 entries or beyond the head"`
	Head         uint64        `json:"head"`
	CompleteFrom uint64        `json:"complete_from" doc:"first index of the history that is here without a gap"`
	Before       events.Digest `json:"before,omitzero" doc:"the link before from; absent for entry 1"`
	Chain        events.Digest `json:"chain" doc:"at to: two logs with the same link hold the same entries up to it"`
	Lifecycle    events.Digest `json:"lifecycle,omitzero" doc:"of the model of the entry at to, after it"`
	Bookkeeping  events.Digest `json:"bookkeeping,omitzero" doc:"after the entry at to"`
	Sum          events.Digest `json:"sum" doc:"SHA-256 of chain, lifecycle and bookkeeping (32 bytes each) of every entry from from to to"`
}

// ChainMax is how many entries one answer of GET /v1/chain is about at most.
const ChainMax = 1 << 16
