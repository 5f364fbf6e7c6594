package replica

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/esperd/esperd/events"
)

// hello is what a node tells about itself, every Timing.Hello, to the leader or
// to whoever may know one. Fields from 11 on are absent from older nodes' hellos.
type hello struct {
	Node    events.NodeID `cbor:"1,keyasint"`
	Rank    uint64        `cbor:"2,keyasint"`
	World   uint64        `cbor:"3,keyasint"`
	Run     string        `cbor:"4,keyasint,omitempty"`
	Lineage string        `cbor:"5,keyasint,omitempty"` // empty: not part of a log yet
	Address string        `cbor:"6,keyasint"`
	Host    string        `cbor:"7,keyasint,omitempty"`
	Version uint64        `cbor:"8,keyasint"` // newest entry version it knows
	Index   uint64        `cbor:"9,keyasint,omitempty"`
	Empty   bool          `cbor:"10,keyasint,omitempty"` // its directory held no log when it started

	Process string `cbor:"11,keyasint,omitempty"` // random, of its process
	Start   string `cbor:"12,keyasint,omitempty"` // of the job, as Config.Start
	Seeks   bool   `cbor:"13,keyasint,omitempty"` // it knows no leader, and wants to hear of others
	Led     bool   `cbor:"14,keyasint,omitempty"` // its log has a leader
}

const (
	worldMax      = 1 << 16
	helloBytesMax = 1024 // of one text in a hello
	knownMax      = 1 << 12
)

// check refuses what no node says of itself.
func (h *hello) check() error {
	host, id := splitAddress(h.Address)
	switch {
	case !nodeIDPattern.MatchString(string(h.Node)):
		return errorf(events.CodeInvalidInput, "a hello of node %.80q, expected an id of 32 hexadecimal digits", h.Node)
	case h.World == 0 || h.World > worldMax || h.Rank >= h.World:
		return errorf(events.CodeInvalidInput, "a hello of rank %d in a world of %d, expected a world of 1 to %d and a rank below it", h.Rank, h.World, worldMax)
	case host == "" || id != h.Node && id != "":
		return errorf(events.CodeInvalidInput, "a hello of node %s at %.80q, expected HOST:PORT#%[1]s", h.Node, h.Address)
	}
	for _, text := range []string{h.Run, h.Lineage, h.Address, h.Host, h.Process, h.Start} {
		if len(text) > helloBytesMax {
			return errorf(events.CodeInvalidInput, "a hello of node %s with a text of %d bytes, expected at most %d", h.Node, len(text), helloBytesMax)
		}
	}
	return nil
}

// sameStart reports whether two nodes may have been started together.
func sameStart(a, b hello) bool {
	return a.World == b.World && (a.Start == b.Start || a.Start == "" || b.Start == "")
}

// welcome answers a hello.
type welcome struct {
	Run     string `cbor:"1,keyasint,omitempty"`
	Lineage string `cbor:"2,keyasint,omitempty"`
	Leader  string `cbor:"3,keyasint,omitempty"` // address; empty: none known

	Problem string  `cbor:"4,keyasint,omitempty"` // with what the hello said, for people
	Known   []known `cbor:"5,keyasint,omitempty"` // for who seeks

	Ancestors []string `cbor:"6,keyasint,omitempty"` // lineages that its log continues; for strangers
}

// known is where a node was when it was last heard of, for others to find it.
type known struct {
	Address string `cbor:"1,keyasint"` // HOST:PORT#NODE
	Age     uint64 `cbor:"2,keyasint"` // in milliseconds
}

// roster remembers who said hello, and when, and where everybody is. It is a
// node's view, never part of the log.
type roster struct {
	mu    sync.Mutex
	peers map[events.NodeID]peer
	book  map[events.NodeID]place // also of nodes that others heard of
	hints []string                // addresses learned from nodes that are part of a log
	wake  chan struct{}
}

type peer struct {
	hello
	seen time.Time
}

type place struct {
	address string
	at      time.Time // somebody heard of the node there
}

func (r *roster) init() {
	r.peers = map[events.NodeID]peer{}
	r.book = map[events.NodeID]place{}
	r.wake = make(chan struct{}, 1)
}

func (r *roster) note(h hello) {
	now := time.Now()
	r.mu.Lock()
	before := r.peers[h.Node].hello
	r.peers[h.Node] = peer{hello: h, seen: now}
	r.book[h.Node] = place{h.Address, now}
	r.mu.Unlock()
	before.Index, before.Seeks, before.Led = h.Index, h.Seeks, h.Led
	if before != h {
		r.poke()
	}
}

// learn takes in where another node heard of nodes later than this one.
func (r *roster) learn(list []known) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range list[:min(len(list), knownMax)] {
		host, id := splitAddress(k.Address)
		at := now.Add(-time.Duration(min(k.Age, uint64(time.Hour/time.Millisecond))) * time.Millisecond)
		p, there := r.book[id]
		if host == "" || len(host) > helloBytesMax || !nodeIDPattern.MatchString(string(id)) || there && !at.After(p.at) || !there && len(r.book) >= knownMax {
			continue
		}
		r.book[id] = place{k.Address, at}
	}
}

// recall takes in places of an earlier start: anything that is heard is newer.
func (r *roster) recall(list []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, address := range list[:min(len(list), knownMax)] {
		if host, id := splitAddress(address); host != "" && len(host) <= helloBytesMax && nodeIDPattern.MatchString(string(id)) {
			r.book[id] = place{address: address}
		}
	}
}

// known lists everybody's place.
func (r *roster) known() []known {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]known, 0, len(r.book))
	for id, p := range r.book {
		out = append(out, known{addressOf(hostOf(p.address), id), uint64(max(time.Since(p.at), 0) / time.Millisecond)})
	}
	slices.SortFunc(out, func(a, b known) int { return strings.Compare(a.Address, b.Address) })
	return out[:min(len(out), knownMax)]
}

// where returns a node's address as it was last heard of, empty if it never was.
func (r *roster) where(id events.NodeID) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p, ok := r.book[id]; ok {
		return addressOf(hostOf(p.address), id)
	}
	return ""
}

// poke makes the loops that read the roster look at it now.
func (r *roster) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// fresh returns the peers heard of within the given time, by rank, the latest
// of a rank first.
func (r *roster) fresh(within time.Duration) []peer {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []peer
	for _, p := range r.peers {
		if time.Since(p.seen) <= within {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b peer) int {
		return cmp.Or(cmp.Compare(a.Rank, b.Rank), b.seen.Compare(a.seen), cmp.Compare(a.Node, b.Node))
	})
	return out
}

// last returns a node's last hello, however long ago.
func (r *roster) last(id events.NodeID) (peer, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, ok := r.peers[id]
	return p, ok
}

// claim returns another node that said hello for the same rank.
func (r *roster) claim(h hello, within time.Duration) (peer, bool) {
	for _, p := range r.fresh(within) {
		if p.Rank == h.Rank && p.Node != h.Node {
			return p, true
		}
	}
	return peer{}, false
}

func (r *roster) hint(address string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if address != "" && !slices.Contains(r.hints, address) {
		r.hints = append(r.hints, address)
		r.hints = r.hints[max(0, len(r.hints)-8):]
	}
}

func (r *roster) hinted() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.hints)
}
