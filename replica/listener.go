package replica

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/raft"

	"github.com/esperd/esperd/events"
)

// The first byte on a peer connection says who it is for; greetingTail follows
// it, so that a TLS listener has a whole record header to refuse. The listener
// echoes the greeting: only then does a dialling peer know that its certificate
// was accepted, because a TLS 1.3 client is done before the server looked at it.
const (
	muxRaft byte = 'R'
	muxRPC  byte = 'P'

	greetingTail = "esp1"
	refusal      = "!!!!!" // the answer to anything else

	// Then the dialling side says which node it wants, or that any will do.
	anyNode = "--------------------------------"
	here    = 'y'
	notHere = 'n'
)

const (
	tlsRecordHandshake = 0x16                           // how a TLS client begins
	tlsAlert           = "\x15\x03\x01\x00\x02\x02\x50" // fatal, internal error: a plaintext client's answer
)

const (
	handshakeTimeout   = 5 * time.Second // from accept to the first byte
	handshakesPending  = 256             // more wait in the kernel's queue
	acceptBackoffStart = 5 * time.Millisecond
	acceptBackoffLimit = time.Second
	troubleEvery       = time.Minute // between two complaints of one host
)

// ListenOptions say where a node listens for its peers.
type ListenOptions struct {
	Listen    string        // HOST:PORT; an empty host is every address, port 0 any free one
	Advertise string        // host that peers dial; empty: the one of Listen
	Security  *PeerSecurity // nil: plaintext
	Node      events.NodeID // who listens; peers that look for another node are refused
	Log       *slog.Logger
}

// A Listener is a node's one TCP listener for its peers: raft and peer RPC on
// the same port.
type Listener struct {
	tcp      net.Listener
	addr     peerAddr
	security *PeerSecurity
	node     events.NodeID
	log      *slog.Logger
	raft     *muxListener
	rpc      *muxListener
	wg       sync.WaitGroup
	ctx      context.Context
	cancel   context.CancelFunc

	mu    sync.Mutex
	conns map[*peerConn]struct{} // open ones, both ways; nil: closed

	troubled map[string]time.Time // complaint of a host -> when it was last made

	whereabouts whereabouts
}

// Listen opens the port and starts accepting.
func Listen(o ListenOptions) (*Listener, error) {
	tcp, err := net.Listen("tcp", o.Listen)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("the address %s is in use by another process: stop it, or choose another --listen (ESPERD_LISTEN)", o.Listen)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w: --listen (ESPERD_LISTEN) wants HOST:PORT of this machine", o.Listen, err)
	}
	addr, err := advertisedAddr(tcp.Addr(), o.Advertise)
	if err != nil {
		tcp.Close()
		return nil, err
	}
	return newListener(tcp, addr, o), nil
}

func newListener(tcp net.Listener, addr peerAddr, o ListenOptions) *Listener {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	addr = peerAddr(addressOf(string(addr), o.Node))
	l := &Listener{tcp: tcp, addr: addr, node: o.Node, security: o.Security, log: o.Log, conns: map[*peerConn]struct{}{}}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.raft = newMuxListener(addr)
	l.rpc = newMuxListener(addr)
	l.wg.Go(l.acceptLoop)
	return l
}

// peerAddr is an address as peers dial it.
type peerAddr string

func (peerAddr) Network() string  { return "tcp" }
func (a peerAddr) String() string { return string(a) }

func advertisedAddr(bound net.Addr, host string) (peerAddr, error) {
	tcp, ok := bound.(*net.TCPAddr)
	if !ok {
		return "", fmt.Errorf("listening on %s, expected a TCP address", bound)
	}
	if host == "" {
		if tcp.IP.IsUnspecified() {
			return "", fmt.Errorf("listening on %s, which peers cannot dial: name this machine's address in --listen (ESPERD_LISTEN), or give one to advertise", bound)
		}
		host = tcp.IP.String()
	}
	return peerAddr(net.JoinHostPort(host, fmt.Sprint(tcp.Port))), nil
}

// Addr is the address that peers dial.
func (l *Listener) Addr() net.Addr { return l.addr }

// Raft is the connections of raft's transport, which also dials through it.
func (l *Listener) Raft() raft.StreamLayer { return raftLayer{l.raft, l} }

// RPC is the connections of peer RPC; DialRPC is its other end.
func (l *Listener) RPC() net.Listener { return l.rpc }

// Close stops listening and closes every connection, accepted or dialled:
// raft's transport leaves those to their peers.
func (l *Listener) Close() error {
	l.mu.Lock()
	conns := l.conns
	l.conns = nil
	l.mu.Unlock()
	if conns == nil {
		return nil
	}
	err := l.tcp.Close()
	l.cancel()
	l.raft.Close()
	l.rpc.Close()
	for c := range conns {
		_ = c.closeRaw() // it is going away; a TLS goodbye could block
	}
	l.wg.Wait()
	return err
}

func (l *Listener) acceptLoop() {
	pending := make(chan struct{}, handshakesPending)
	backoff := acceptBackoffStart
	for {
		select {
		case pending <- struct{}{}:
		case <-l.ctx.Done():
			return
		}
		raw, err := l.tcp.Accept()
		if err != nil {
			<-pending
			if l.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of file descriptors, most likely: others will be closed.
			l.log.Error("cannot accept connections of peers", "error", err, "retry", backoff)
			if !sleep(l.ctx, backoff) {
				return
			}
			backoff = min(2*backoff, acceptBackoffLimit)
			continue
		}
		backoff = acceptBackoffStart
		l.wg.Go(func() {
			defer func() { <-pending }()
			l.welcome(raw)
		})
	}
}

// welcome brings one accepted connection to whom it is for.
func (l *Listener) welcome(raw net.Conn) {
	peer := raw.RemoteAddr().String()
	c, err := l.track(raw)
	if err != nil {
		return
	}
	to, err := l.handshake(c, peer)
	if err != nil {
		linger(raw)
		_ = c.closeRaw()
		level := slog.LevelDebug // port scans and health checks
		if s, ok := errors.AsType[*SecurityError](err); ok && l.newTrouble(peer, s.Text) {
			level = slog.LevelWarn
		}
		l.log.Log(l.ctx, level, "refused a connection", "peer", peer, "error", err)
		return
	}
	if !to.deliver(c) {
		_ = c.Close()
	}
}

// newTrouble reports whether this is to be complained of again: the host comes
// back every half second, each time from another port.
func (l *Listener) newTrouble(peer, text string) bool {
	host, _, err := net.SplitHostPort(peer)
	if err != nil {
		host = peer
	}
	what := strings.ReplaceAll(text, peer, host)
	l.mu.Lock()
	defer l.mu.Unlock()
	if last, known := l.troubled[what]; known && time.Since(last) < troubleEvery {
		return false
	}
	if l.troubled == nil || len(l.troubled) >= handshakesPending {
		l.troubled = map[string]time.Time{}
	}
	l.troubled[what] = time.Now()
	return true
}

// linger lets the peer read why it was refused: closing with bytes unread
// resets the connection, and takes the answer along.
func linger(raw net.Conn) {
	if tcp, ok := raw.(*net.TCPConn); ok {
		_ = tcp.CloseWrite()
	}
	_ = raw.SetReadDeadline(time.Now().Add(time.Second))
	_, _ = io.CopyN(io.Discard, raw, 64<<10)
}

func (l *Listener) handshake(c *peerConn, peer string) (*muxListener, error) {
	if err := c.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return nil, err
	}
	if l.security != nil {
		t := tls.Server(c.raw, l.security.config)
		if err := t.Handshake(); err != nil {
			if _, plain := errors.AsType[tls.RecordHeaderError](err); plain {
				_, _ = c.raw.Write([]byte(tlsAlert)) // Go's server says nothing
			}
			return nil, l.security.explain(peer, err)
		}
		c.Conn = t
	}
	got := make([]byte, len(refusal))
	if _, err := io.ReadFull(c, got); err != nil {
		return nil, l.security.explain(peer, err)
	}
	var to *muxListener
	switch string(got) {
	case string(muxRaft) + greetingTail:
		to = l.raft
	case string(muxRPC) + greetingTail:
		to = l.rpc
	default:
		_, _ = c.Write([]byte(refusal)) // a TLS client reads it as "no TLS here"
		if l.security == nil && got[0] == tlsRecordHandshake {
			return nil, &SecurityError{Text: fmt.Sprintf("peer %s speaks TLS, this node has no secret: %s", peer, plaintextRemedy)}
		}
		return nil, fmt.Errorf("peer %s sent %q, expected the greeting of an esperd peer: is it another program, or another version?", peer, got)
	}
	if _, err := c.Write(got); err != nil {
		return nil, l.security.explain(peer, err)
	}
	if err := l.checkWanted(c, peer); err != nil {
		return nil, err
	}
	return to, c.SetDeadline(time.Time{})
}

// checkWanted refuses a peer that looks for another node: one that was here
// before. Raft would take this node's vote for that one's.
func (l *Listener) checkWanted(c *peerConn, peer string) error {
	wanted := make([]byte, len(anyNode))
	if _, err := io.ReadFull(c, wanted); err != nil {
		return l.security.explain(peer, err)
	}
	if w := string(wanted); w != anyNode && w != string(l.node) {
		_, _ = c.Write([]byte{notHere})
		return fmt.Errorf("peer %s looks for node %s, this is node %s", peer, w, l.node)
	}
	_, err := c.Write([]byte{here})
	return err
}

const plaintextRemedy = "give this node the job's --secret-file (ESPERD_SECRET_FILE)"

// DialRPC opens a connection to the peer RPC of addr.
func (l *Listener) DialRPC(ctx context.Context, addr string) (net.Conn, error) {
	return l.dial(ctx, addr, muxRPC)
}

func (l *Listener) dial(ctx context.Context, addr string, first byte) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()
	var d net.Dialer
	host, wanted := splitAddress(l.whereabouts.now(addr))
	raw, err := d.DialContext(ctx, "tcp", host)
	if err != nil {
		return nil, fmt.Errorf("cannot reach peer %s: %w", host, err)
	}
	c, err := l.track(raw)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.closeRaw() })
	err = l.greet(c, host, first)
	if err == nil {
		err = l.ask(c, host, wanted)
	}
	if !stop() {
		err = fmt.Errorf("connection with peer %s: %w", host, ctx.Err()) // the cause of whatever greet saw
	}
	if err == nil {
		err = c.SetDeadline(time.Time{})
	}
	if err != nil {
		_ = c.closeRaw()
		return nil, err
	}
	return c, nil
}

// ask is the dialling side of checkWanted.
func (l *Listener) ask(c *peerConn, host string, wanted events.NodeID) error {
	id := string(wanted)
	if id == "" {
		id = anyNode
	}
	if _, err := io.WriteString(c, id); err != nil {
		return l.security.explain(host, err)
	}
	var answer [1]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		return l.security.explain(host, err)
	}
	if answer[0] != here {
		return fmt.Errorf("at %s there is another node now, not %s: its data directory was replaced", host, wanted)
	}
	return nil
}

// greet is the dialling side of handshake.
func (l *Listener) greet(c *peerConn, addr string, first byte) error {
	if err := c.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return err
	}
	if l.security != nil {
		t := tls.Client(c.raw, l.security.config)
		if err := t.Handshake(); err != nil {
			return l.security.explain(addr, err)
		}
		c.Conn = t
	}
	greeting := string(first) + greetingTail
	if _, err := c.Write([]byte(greeting)); err != nil {
		return l.security.explain(addr, err)
	}
	echo := make([]byte, len(greeting))
	if _, err := io.ReadFull(c, echo); err != nil {
		return l.security.explain(addr, err)
	}
	switch {
	case string(echo) == greeting:
		return nil
	case l.security == nil && echo[0] == tlsAlert[0]:
		return &SecurityError{Text: fmt.Sprintf("peer %s wants TLS, this node has no secret: %s", addr, plaintextRemedy)}
	default:
		return fmt.Errorf("peer %s answered %q, expected %q: is it another program, or another version?", addr, echo, greeting)
	}
}

// peerConn is a connection that its Listener knows of.
type peerConn struct {
	net.Conn // raw, or TLS over it once that is established
	raw      net.Conn
	l        *Listener
}

func (l *Listener) track(raw net.Conn) (*peerConn, error) {
	c := &peerConn{Conn: raw, raw: raw, l: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns == nil {
		raw.Close()
		return nil, net.ErrClosed
	}
	l.conns[c] = struct{}{}
	return c, nil
}

func (c *peerConn) forget() {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	delete(c.l.conns, c)
}

// Close closes the connection.
func (c *peerConn) Close() error {
	c.forget()
	return c.Conn.Close()
}

func (c *peerConn) closeRaw() error {
	c.forget()
	return c.raw.Close()
}

// muxListener hands out the connections that one first byte brought.
type muxListener struct {
	addr   net.Addr
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newMuxListener(addr net.Addr) *muxListener {
	return &muxListener{addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
}

// deliver waits until somebody accepts c, but not for ever: raft may not have
// started yet, and must not keep RPC waiting.
func (m *muxListener) deliver(c net.Conn) bool {
	t := time.NewTimer(handshakeTimeout)
	defer t.Stop()
	select {
	case m.conns <- c:
		return true
	case <-m.closed:
		return false
	case <-t.C:
		return false
	}
}

func (m *muxListener) Accept() (net.Conn, error) {
	select {
	case c := <-m.conns:
		return c, nil
	case <-m.closed:
		return nil, net.ErrClosed
	}
}

func (m *muxListener) Close() error {
	m.once.Do(func() { close(m.closed) })
	return nil
}

func (m *muxListener) Addr() net.Addr { return m.addr }

// raftLayer is what raft.NewNetworkTransport wants.
type raftLayer struct {
	*muxListener
	l *Listener
}

// Dial connects to the raft of a peer.
func (r raftLayer) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(r.l.ctx, timeout)
	defer cancel()
	return r.l.dial(ctx, string(addr), muxRaft)
}

// sleep waits for d; false: ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
