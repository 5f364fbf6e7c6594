package replica

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/esperd/esperd/events"
)

// PeerStatus is what was heard at a peers' address, by somebody who is no node.
type PeerStatus struct {
	Address string // HOST:PORT
	Err     error  // nobody answered; a *SecurityError: somebody who does not let this process in
	Node    events.NodeID
	Rank    uint64
	Index   uint64 // of its last entry
	Run     string // empty: as Lineage
	Lineage string // empty: not part of a log yet, or an older esperd
	Leader  events.NodeID
}

// Refused reports whether somebody is there who does not answer this process.
func (p *PeerStatus) Refused() bool {
	_, security := errors.AsType[*SecurityError](p.Err)
	_, peer := errors.AsType[*PeerError](p.Err)
	return security || peer
}

const inquiryWithin = 5 * time.Second

// Inquire asks whoever is at the addresses where they stand. It listens nowhere.
func Inquire(ctx context.Context, security *PeerSecurity, addresses []string, log *slog.Logger) []PeerStatus {
	l := newListener(deaf{}, "", ListenOptions{Security: security, Log: log})
	defer l.Close()
	peers := newHTTPPeers(l.DialRPC)
	defer peers.Close()
	ctx, cancel := context.WithTimeout(ctx, inquiryWithin)
	defer cancel()
	out := make([]PeerStatus, len(addresses))
	var wg sync.WaitGroup
	for i, address := range addresses {
		wg.Go(func() {
			var a statusAnswer
			err := peers.Call(ctx, address, "status", nil, &a)
			out[i] = PeerStatus{Address: address, Err: err, Node: a.Node, Rank: a.Rank, Index: a.Index, Run: a.Run, Lineage: a.Lineage, Leader: a.Leader}
		})
	}
	wg.Wait()
	return out
}

// deaf is a listener that nobody can reach.
type deaf struct{}

func (deaf) Accept() (net.Conn, error) { return nil, net.ErrClosed }
func (deaf) Close() error              { return nil }
func (deaf) Addr() net.Addr            { return peerAddr("") }
