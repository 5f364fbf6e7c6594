package replica

import (
	"context"
	"io"
	"time"

	"github.com/hashicorp/raft"
)

// memTransport is raft.InmemTransport over the links of a MemNetwork, with the
// losses of a real network: InmemTransport itself knows peers that are there or
// not, in both directions at once. Like it, it has no fast path for heartbeats.
type memTransport struct {
	*raft.InmemTransport
	node *MemNode
}

var (
	_ raft.Transport   = (*memTransport)(nil)
	_ raft.WithPreVote = (*memTransport)(nil)
	_ raft.WithClose   = (*memTransport)(nil)
)

func newMemTransport(node *MemNode) *memTransport {
	_, t := raft.NewInmemTransportWithTimeout(raft.ServerAddress(node.Addr()), memTimeout)
	return &memTransport{InmemTransport: t, node: node}
}

// exchange sends one raft message and its answer over the links. The answer is
// written to resp only when it has arrived.
func exchange[R any](t *memTransport, to raft.ServerAddress, timeout time.Duration, resp *R, send func(raft.ServerAddress, *R) error) error {
	to = raft.ServerAddress(t.node.whereabouts.now(string(to)))
	ctx, cancel := context.WithTimeout(t.node.ctx, timeout)
	defer cancel()
	if _, err := t.node.net.carry(ctx, t.node.addr, string(to)); err != nil {
		return err
	}
	var r R
	if err := send(to, &r); err != nil {
		return err
	}
	if _, err := t.node.net.carry(ctx, string(to), t.node.addr); err != nil {
		return err
	}
	*resp = r
	return nil
}

func (t *memTransport) AppendEntries(id raft.ServerID, to raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	return exchange(t, to, memTimeout, resp, func(to raft.ServerAddress, r *raft.AppendEntriesResponse) error {
		return t.InmemTransport.AppendEntries(id, to, req, r)
	})
}

func (t *memTransport) RequestVote(id raft.ServerID, to raft.ServerAddress, req *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return exchange(t, to, memTimeout, resp, func(to raft.ServerAddress, r *raft.RequestVoteResponse) error {
		return t.InmemTransport.RequestVote(id, to, req, r)
	})
}

func (t *memTransport) RequestPreVote(id raft.ServerID, to raft.ServerAddress, req *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return exchange(t, to, memTimeout, resp, func(to raft.ServerAddress, r *raft.RequestPreVoteResponse) error {
		return t.InmemTransport.RequestPreVote(id, to, req, r)
	})
}

func (t *memTransport) TimeoutNow(id raft.ServerID, to raft.ServerAddress, req *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return exchange(t, to, memTimeout, resp, func(to raft.ServerAddress, r *raft.TimeoutNowResponse) error {
		return t.InmemTransport.TimeoutNow(id, to, req, r)
	})
}

func (t *memTransport) InstallSnapshot(id raft.ServerID, to raft.ServerAddress, req *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	return exchange(t, to, 10*memTimeout, resp, func(to raft.ServerAddress, r *raft.InstallSnapshotResponse) error {
		return t.InmemTransport.InstallSnapshot(id, to, req, r, data)
	})
}

// AppendEntriesPipeline is refused, as on a real network (network.go).
func (t *memTransport) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}
