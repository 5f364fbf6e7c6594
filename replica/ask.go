package replica

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/hashicorp/raft"

	"github.com/esperd/esperd/events"
)

// question is how Ask travels: one peer method that dispatches by name, since
// the doors add theirs after the peers' listener is open.
type question struct {
	Method string          `cbor:"1,keyasint"`
	Body   cbor.RawMessage `cbor:"2,keyasint"`
}

type statusAnswer struct {
	Node  events.NodeID `cbor:"1,keyasint"`
	Rank  uint64        `cbor:"2,keyasint"`
	Index uint64        `cbor:"3,keyasint"`
	Chain events.Digest `cbor:"4,keyasint"`

	RaftLast uint64 `cbor:"5,keyasint,omitempty"` // last entry of its raft log, committed or not
	Reports  uint64 `cbor:"6,keyasint,omitempty"` // of its own that are not in the log yet
	Process  string `cbor:"7,keyasint,omitempty"` // as in hello

	Lineage string        `cbor:"8,keyasint,omitempty"` // these are absent from older nodes
	Leader  events.NodeID `cbor:"9,keyasint,omitempty"` // empty: none known
	Run     string        `cbor:"10,keyasint,omitempty"`

	Diverged bool `cbor:"11,keyasint,omitempty"` // it writes no entries
}

func (n *Node) installHandlers() {
	n.peerHandlers = map[string]peerHandler{
		"hello":    n.onHello,
		"status":   n.onStatus,
		"register": n.onRegister,
		"report":   n.onReport,
		"fault":    n.onFault,
		"request":  n.onRequest,
		"ended":    n.onEnded,
		"history":  n.onHistory,
		"ask":      n.onAsk,

		"contradiction": n.onContradiction,
	}
}

func (n *Node) onStatus(context.Context, []byte) (any, error) {
	h, phase := n.machine.now()
	_, leader := n.raft.LeaderWithID()
	return statusAnswer{Node: n.id, Rank: n.cfg.Rank, Index: h.index, Chain: h.chain, RaftLast: n.raft.LastIndex(), Reports: n.outbox.waiting(), Process: n.process,
		Run: h.state.Run, Lineage: h.state.Lineage, Leader: events.NodeID(leader), Diverged: phase == PhaseDiverged}, nil
}

// Handle answers the questions that other nodes Ask under this name.
func (n *Node) Handle(method string, answer func(ctx context.Context, question []byte) (any, error)) {
	n.handlerMu.Lock()
	defer n.handlerMu.Unlock()
	n.handlers[method] = answer
}

func (n *Node) onAsk(ctx context.Context, req []byte) (any, error) {
	var q question
	if err := unmarshalPeer(req, &q); err != nil {
		return nil, errorf(events.CodeInvalidInput, "a question that does not decode: %v", err)
	}
	n.handlerMu.RLock()
	handler := n.handlers[q.Method]
	n.handlerMu.RUnlock()
	if handler == nil {
		return nil, errorf(events.CodeUnavailable, "this node cannot answer %q yet", q.Method)
	}
	return handler(ctx, q.Body)
}

// Ask puts a question to every other node of the world at once and returns
// their answers, errors included, in the order of raft's membership.
func (n *Node) Ask(ctx context.Context, method string, q any) []Answer {
	body, err := events.Marshal(q)
	var others []raft.Server
	for _, s := range n.servers() {
		if s.ID != raft.ServerID(n.id) {
			others = append(others, s)
		}
	}
	out := make([]Answer, len(others))
	var wg sync.WaitGroup
	for i, s := range others {
		out[i] = Answer{Node: events.NodeID(s.ID), Address: hostOf(string(s.Address)), Err: err}
		if err != nil {
			continue
		}
		wg.Go(func() {
			var raw cbor.RawMessage
			out[i].Err = n.net.Call(ctx, string(s.Address), "ask", question{Method: method, Body: body}, &raw)
			out[i].Body = raw
		})
	}
	wg.Wait()
	return out
}

// AskNode puts a question to one other node.
func (n *Node) AskNode(ctx context.Context, id events.NodeID, method string, q any) Answer {
	out := Answer{Node: id}
	body, err := events.Marshal(q)
	if err != nil {
		out.Err = err
		return out
	}
	servers := n.members().Servers
	i := slices.IndexFunc(servers, func(s raft.Server) bool { return s.ID == raft.ServerID(id) })
	if i < 0 {
		out.Err = errorf(events.CodeUnavailable, "node %s is no member of the log", id)
		return out
	}
	var raw cbor.RawMessage
	out.Address = hostOf(string(servers[i].Address))
	out.Err = n.net.Call(ctx, string(servers[i].Address), "ask", question{Method: method, Body: body}, &raw)
	out.Body = raw
	return out
}

// drain gives the others what they still need of this node, for as long as ctx
// allows: its reports, and, from a leader, the last entry and an ear for their
// reports.
func (n *Node) drain(ctx context.Context) {
	if phase, _ := n.machine.trouble(); phase != PhaseMember {
		return
	}
	for n.raft.State() == raft.Leader {
		late := n.behind(ctx)
		if len(late) == 0 {
			break
		}
		if n.pause(ctx, nil, 20*time.Millisecond) != nil {
			n.log.Warn("stopping before every node has the last entry; they get it from each other, or when this node is back", "behind", late)
			break
		}
	}
	for n.outbox.waiting() > 0 {
		address, _ := n.raft.LeaderWithID()
		if address == "" || n.pause(ctx, n.outbox.drained(), 100*time.Millisecond) != nil {
			n.log.Warn("stopping with reports that are not in the log; shadow verdicts are lost, decisions are not")
			return
		}
	}
}

// behind names the nodes that answer and lack this node's last entry, or have
// something left to tell. One that does not answer within a second is gone.
func (n *Node) behind(ctx context.Context) []string {
	h, _ := n.machine.now()
	ask, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var (
		mu   sync.Mutex
		late []string
		wg   sync.WaitGroup
	)
	for _, s := range n.members().Servers {
		if s.ID == raft.ServerID(n.id) {
			continue
		}
		wg.Go(func() {
			var a statusAnswer
			err := n.net.Call(ask, string(s.Address), "status", nil, &a)
			if err == nil && (a.Index < h.index || a.Reports > 0) {
				mu.Lock()
				defer mu.Unlock()
				late = append(late, fmt.Sprintf("rank %d (entry %d of %d)", a.Rank, a.Index, h.index))
			}
		})
	}
	wg.Wait()
	slices.Sort(late)
	return late
}

func lower(s string) string { return strings.ToLower(s) }
