package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/esperd/esperd/events"
)

// memTimeout is how long a raft message waits on a link that is cut, in fake
// time: what a real transport's I/O deadline is.
const memTimeout = 500 * time.Millisecond

var errLost = errors.New("the message was lost: the link is cut or the peer is down")

// MemNetwork joins nodes inside one process, for simulated clusters under
// testing/synctest: it waits only on channels and timers, and holds its mutex
// for map look-ups alone. A link that is cut swallows messages, as a real
// partition does: the sender learns of it by its timeout. Raft and peer RPC
// share the links.
type MemNetwork struct {
	mu    sync.Mutex
	nodes map[string]*MemNode
	cut   map[memLink]bool
	delay func(from, to string) time.Duration
}

// memLink is one direction between two addresses.
type memLink struct{ from, to string }

// NewMemNetwork makes a network without nodes, cuts or delay.
func NewMemNetwork() *MemNetwork {
	return &MemNetwork{nodes: map[string]*MemNode{}, cut: map[memLink]bool{}}
}

// MemNode is one node's place in a MemNetwork: a PeerClient, and the transport
// and server of its address.
type MemNode struct {
	net      *MemNetwork
	addr     string // without the node
	id       events.NodeID
	raft     *memTransport
	ctx      context.Context // ends when the node closes
	cancel   context.CancelFunc
	requests gate
	handlers map[string]peerHandler
	log      *slog.Logger

	whereabouts whereabouts
}

// Join puts a node at addr, HOST:PORT#NODE or without the node. A node that was there before is cut off for good,
// as by a restart: what was sent to it is lost.
func (n *MemNetwork) Join(addr string) *MemNode {
	node := &MemNode{net: n}
	node.addr, node.id = splitAddress(addr)
	addr = node.addr
	node.ctx, node.cancel = context.WithCancel(context.Background())
	node.raft = newMemTransport(node)
	n.mu.Lock()
	old := n.nodes[addr]
	n.nodes[addr] = node
	others := maps.Clone(n.nodes)
	n.mu.Unlock()
	if old != nil {
		old.Close()
	}
	// raft.InmemTransport finds its peers by itself; the links decide what passes.
	for _, other := range others {
		node.raft.InmemTransport.Connect(raft.ServerAddress(other.Addr()), other.raft.InmemTransport)
		other.raft.InmemTransport.Connect(raft.ServerAddress(node.Addr()), node.raft.InmemTransport)
	}
	return node
}

// Cut swallows every message from a to b. The other direction stays: cut both
// for a partition.
func (n *MemNetwork) Cut(a, b string) { n.setCut(a, b, true) }

// Heal lets messages from a to b pass again.
func (n *MemNetwork) Heal(a, b string) { n.setCut(a, b, false) }

func (n *MemNetwork) setCut(a, b string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[memLink{a, b}] = cut
}

// Isolate cuts addr off from every node that is there now, both ways.
func (n *MemNetwork) Isolate(addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for other := range n.nodes {
		if other != addr {
			n.cut[memLink{addr, other}] = true
			n.cut[memLink{other, addr}] = true
		}
	}
}

// HealAll lets every message pass again.
func (n *MemNetwork) HealAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
}

// SetDelay makes every message take as long as delay says; nil: no time. It is
// called without a lock held, by many goroutines.
func (n *MemNetwork) SetDelay(delay func(from, to string) time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay = delay
}

// at returns the node at the other end of an open link; nil: there is none, or
// another one than is wanted.
func (n *MemNetwork) at(from, to string) *MemNode {
	from = hostOf(from)
	to, wanted := splitAddress(to)
	n.mu.Lock()
	defer n.mu.Unlock()
	node := n.nodes[to]
	if n.cut[memLink{from, to}] || node == nil || wanted != "" && wanted != node.id {
		return nil
	}
	return node
}

// carry takes one message over a link: after the link's delay it is there, or
// lost. Losing takes until ctx ends.
func (n *MemNetwork) carry(ctx context.Context, from, to string) (*MemNode, error) {
	n.mu.Lock()
	delay := n.delay
	n.mu.Unlock()
	sent := n.at(from, to) != nil // what goes into a cut link stays lost when it heals
	if delay != nil {
		if !sleep(ctx, delay(hostOf(from), hostOf(to))) {
			return nil, ctx.Err()
		}
	}
	if sent {
		if node := n.at(from, to); node != nil {
			return node, nil
		}
	}
	<-ctx.Done()
	return nil, fmt.Errorf("%w (%w)", errLost, ctx.Err())
}

// Addr is the node's address.
func (m *MemNode) Addr() string { return addressOf(m.addr, m.id) }

// Find tells where nodes are now.
func (m *MemNode) Find(where func(events.NodeID) string) { m.whereabouts.set(where) }

// Transport is the node's raft transport.
func (m *MemNode) Transport() raft.Transport { return m.raft }

// Serve starts answering peers; before, messages to this node are lost.
func (m *MemNode) Serve(handlers map[string]peerHandler, log *slog.Logger) {
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	m.handlers, m.log = handlers, log
}

// Close takes the node off the network and waits for its handlers. Its own
// calls fail at once, calls to it are lost.
func (m *MemNode) Close() error {
	m.net.mu.Lock()
	if m.net.nodes[m.addr] == m {
		delete(m.net.nodes, m.addr)
	}
	m.net.mu.Unlock()
	m.cancel()
	m.requests.close()
	return nil
}

// within returns parent, ending with the node too; call the function when done.
func (m *MemNode) within(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(parent)
	stop := context.AfterFunc(m.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// Call implements PeerClient. Values cross as bytes, as on a real network.
func (m *MemNode) Call(ctx context.Context, addr, method string, req, resp any) error {
	b, err := encodeRequest(method, req)
	if err != nil {
		return err
	}
	ctx, cancel := m.within(ctx)
	defer cancel()
	body, failed, err := m.exchange(ctx, addr, method, b)
	if err != nil {
		return fmt.Errorf("peer %s, method %s: %w", addr, method, err)
	}
	if failed != nil {
		copied := *failed
		return &copied
	}
	return decodeAnswer(addr, method, body, resp)
}

func (m *MemNode) exchange(ctx context.Context, addr, method string, req []byte) ([]byte, *PeerError, error) {
	addr = m.whereabouts.now(addr)
	peer, err := m.net.carry(ctx, m.addr, addr)
	if err != nil {
		return nil, nil, err
	}
	m.net.mu.Lock()
	handlers, log := peer.handlers, peer.log
	m.net.mu.Unlock()
	if handlers == nil || !peer.requests.enter() {
		<-ctx.Done()
		return nil, nil, fmt.Errorf("%w (%w)", errLost, ctx.Err())
	}
	type result struct {
		body   []byte
		failed *PeerError
	}
	done := make(chan result, 1)
	go func() { // the handler outlives a caller that gives up, until it notices
		defer peer.requests.leave()
		ctx, cancel := peer.within(ctx)
		defer cancel()
		body, failed := answer(ctx, handlers, method, req, log)
		done <- result{body, failed}
	}()
	select {
	case r := <-done:
		if _, err := m.net.carry(ctx, addr, m.addr); err != nil {
			return nil, nil, err
		}
		return r.body, r.failed, nil
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
}
