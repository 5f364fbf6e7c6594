package replica

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/hashicorp/raft"

	"github.com/esperd/esperd/events"
)

// tcpNetwork is the Network of real nodes: raft and peer RPC on one listener.
type tcpNetwork struct {
	listener  *Listener
	transport *raft.NetworkTransport
	peers     *httpPeers
	server    *peerServer
}

// NewNetwork listens for peers. Errors: the port is in use, or the address is
// not this machine's.
func NewNetwork(o ListenOptions) (Network, error) {
	l, err := Listen(o)
	if err != nil {
		return nil, err
	}
	t := &tcpNetwork{listener: l}
	t.transport = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:  l.Raft(),
		MaxPool: 3,
		Timeout: 5 * time.Second,
		Logger:  newRaftLogger(o.Log),
		// One: no pipeline. With one decision in flight it brings nothing, and
		// in v1.7.3 its sender can wait for ever on a reader that gave up, which
		// stalls that follower and then Shutdown (found by test/sim).
		MaxRPCsInFlight: 1,
	})
	t.peers = newHTTPPeers(func(ctx context.Context, addr string) (net.Conn, error) { return l.DialRPC(ctx, addr) })
	return t, nil
}

func (t *tcpNetwork) Transport() raft.Transport { return t.transport }

func (t *tcpNetwork) Addr() string { return t.listener.Addr().String() }

func (t *tcpNetwork) Find(where func(events.NodeID) string) { t.listener.whereabouts.set(where) }

func (t *tcpNetwork) Call(ctx context.Context, addr, method string, req, resp any) error {
	return t.peers.Call(ctx, addr, method, req, resp)
}

func (t *tcpNetwork) Serve(handlers map[string]peerHandler, log *slog.Logger) {
	t.server = servePeers(t.listener.RPC(), handlers, log)
}

func (t *tcpNetwork) Close() error {
	err := t.transport.Close()
	t.peers.Close()
	err = errors.Join(err, t.listener.Close())
	if t.server != nil {
		t.server.Close()
	}
	return err
}
