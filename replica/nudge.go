package replica

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	nudgeResendsMax = 6 // of one index, to a follower that has not stored it
	nudgeWaitMax    = 8 * time.Millisecond
)

// A nudger tells followers that an entry is committed as soon as the leader has
// applied it. Raft itself tells them with its next AppendEntries, for sparse
// entries that is CommitTimeout later.
//
// The message is an empty AppendEntries whose Term and PrevLogTerm are the
// entry's own term, and whose PrevLogEntry and LeaderCommitIndex are its index.
// Where this node led that term, it is one that its raft could have sent then
// and the network delivered late, so it is safe however late it comes. In
// appendEntries of raft v1.7.3 (raft.go), in this order:
//
//   - a follower in a newer term refuses it, and nothing changes (Term < ours);
//   - in that term or an older one it follows the sender, as it must;
//   - without (index, term) in its log it refuses (PrevLogEntry, PrevLogTerm),
//     with a warning that newRaftLogger lowers; with it, log matching makes
//     everything before the same as on the sender, and committed;
//   - then it commits up to min(LeaderCommitIndex, *its own last index*), not
//     the last index that matched: so LeaderCommitIndex must not be above
//     PrevLogEntry.
//
// It goes through raft's main thread, not the heartbeats' fast path: that takes
// PrevLogEntry 0 alone (net_transport.go). The sender's raft never sees the
// answer, so no replication state moves.
//
// Never put the current term in: if leadership moved in between, the new
// leader gets a message of its own term, steps down (state != Follower), and
// takes this node for the leader.
type nudger struct {
	trans  raft.Transport
	header raft.RPCHeader
	log    *slog.Logger
	wait   time.Duration // before the first resend
	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex
	peers  map[raft.ServerID]*nudgePeer
	closed bool
	wg     sync.WaitGroup
}

// nudge is what one follower is to hear of next.
type nudge struct {
	index, term uint64
	addr        raft.ServerAddress
}

// nudgePeer is one follower's mailbox. It holds the newest nudge alone: that
// one commits all before it.
type nudgePeer struct {
	id     raft.ServerID
	box    chan nudge // of 1
	cancel context.CancelFunc
}

// newNudger starts without followers. wait is how long to leave a follower that
// has not stored an entry before telling it again: about as long as that takes.
func newNudger(trans raft.Transport, id raft.ServerID, addr raft.ServerAddress, log *slog.Logger, wait time.Duration) *nudger {
	ctx, cancel := context.WithCancel(context.Background())
	return &nudger{
		trans:  trans,
		header: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(id), Addr: trans.EncodePeer(id, addr)},
		log:    log,
		wait:   wait,
		ctx:    ctx,
		cancel: cancel,
		peers:  map[raft.ServerID]*nudgePeer{},
	}
}

// Applied says that this node applied the entry at index, raft's, of term.
// Call it for entries that this node wrote itself and for no others: whoever
// wrote an entry led its term, whoever applies one may not have. It never
// blocks. Followers that are no longer listed are forgotten.
func (n *nudger) Applied(index, term uint64, followers []raft.Server) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return
	}
	listed := 0
	for _, s := range followers {
		if string(s.ID) == string(n.header.ID) {
			continue
		}
		listed++
		n.peer(s.ID).put(nudge{index, term, s.Address})
	}
	if len(n.peers) > listed {
		n.forget(followers)
	}
}

func (n *nudger) peer(id raft.ServerID) *nudgePeer {
	if p, ok := n.peers[id]; ok {
		return p
	}
	ctx, cancel := context.WithCancel(n.ctx)
	p := &nudgePeer{id: id, box: make(chan nudge, 1), cancel: cancel}
	n.peers[id] = p
	n.wg.Go(func() { n.run(ctx, p) })
	return p
}

// put replaces what is in the box. There is one writer at a time (nudger.mu).
func (p *nudgePeer) put(m nudge) {
	select {
	case <-p.box:
	default:
	}
	p.box <- m // there is room: only the reader can have been there since
}

func (n *nudger) forget(followers []raft.Server) {
	listed := map[raft.ServerID]bool{}
	for _, s := range followers {
		listed[s.ID] = true
	}
	for id, p := range n.peers {
		if !listed[id] {
			p.cancel()
			delete(n.peers, id)
		}
	}
}

func (n *nudger) run(ctx context.Context, p *nudgePeer) {
	for {
		select {
		case m := <-p.box:
			n.deliver(ctx, p, m)
		case <-ctx.Done():
			return
		}
	}
}

// deliver sends m until the follower has taken it, or there is nothing more to
// gain: CommitTimeout is the net under all of this.
func (n *nudger) deliver(ctx context.Context, p *nudgePeer, m nudge) {
	wait := n.wait
	for resends := 0; ctx.Err() == nil; resends++ {
		done, err := n.send(p.id, m)
		if err != nil {
			n.log.Debug("cannot tell a follower of a commit", "peer", p.id, "index", m.index, "error", err)
			return
		}
		if done || resends == nudgeResendsMax {
			return
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
			wait = min(2*wait, nudgeWaitMax)
		case m = <-p.box: // a newer one
			timer.Stop()
			wait, resends = n.wait, -1
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// send reports whether the follower needs to hear no more of m.
func (n *nudger) send(id raft.ServerID, m nudge) (done bool, err error) {
	req := raft.AppendEntriesRequest{
		RPCHeader:         n.header,
		Term:              m.term,
		Leader:            n.header.Addr,
		PrevLogEntry:      m.index,
		PrevLogTerm:       m.term,
		LeaderCommitIndex: m.index,
	}
	var resp raft.AppendEntriesResponse
	if err := n.trans.AppendEntries(id, m.addr, &req, &resp); err != nil {
		return false, err
	}
	// A newer term has a leader of its own, who tells its followers.
	return resp.Success || resp.Term > m.term, nil
}

// Close stops sending. It waits for messages that are on their way, for which
// closing the transport first is the quick end.
func (n *nudger) Close() {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.cancel()
	n.wg.Wait()
}
