package replica

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/esperd/esperd/events"
)

// hello is what a node tells about itself, every Timing.Hello, to the leader or
// to whoever may know one.
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
}

// welcome answers a hello.
type welcome struct {
	Run     string `cbor:"1,keyasint,omitempty"`
	Lineage string `cbor:"2,keyasint,omitempty"`
	Leader  string `cbor:"3,keyasint,omitempty"` // address; empty: none known
}

// roster remembers who said hello, and when. It is a node's view, never part of
// the log.
type roster struct {
	mu    sync.Mutex
	peers map[events.NodeID]peer
	hints []string // addresses learned from nodes that are part of a log
	wake  chan struct{}
}

type peer struct {
	hello
	seen time.Time
}

func (r *roster) init() {
	r.peers = map[events.NodeID]peer{}
	r.wake = make(chan struct{}, 1)
}

func (r *roster) note(h hello) {
	r.mu.Lock()
	before := r.peers[h.Node].hello
	r.peers[h.Node] = peer{hello: h, seen: time.Now()}
	r.mu.Unlock()
	if before.Index = h.Index; before != h {
		r.poke()
	}
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
