package replica

import (
	"context"
	"errors"

	"github.com/hashicorp/raft"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// requested is the leader's answer to a request.
type requested struct {
	Index uint64 `cbor:"1,keyasint"`
}

// requester numbers this node's requests, so that one which is sent again is
// known, whatever became of it meanwhile. One is on its way at a time: the log
// takes them in order.
type requester struct {
	turn chan struct{}
	last uint64
}

// init starts the numbering above everything that earlier boots used.
func (r *requester) init(boots uint64) {
	r.turn = make(chan struct{}, 1)
	r.last = boots << 32
}

// Request puts a request into the log and returns the index of its entry when
// that is applied here. One for the same that is pending already is found, not
// asked for again. Errors: those of fsm.DecideRequest; config-mismatch (a node is
// too old); unavailable (this node cannot serve, or ctx ended: the outcome is
// unknown, and asking again is harmless).
func (n *Node) Request(ctx context.Context, r events.Requested) (uint64, error) {
	select {
	case n.requester.turn <- struct{}{}:
		defer func() { <-n.requester.turn }()
	case <-ctx.Done():
		return 0, errorf(events.CodeUnavailable, "another request of this node is not in the log yet and the caller's time is up: ask again")
	}
	n.requester.last++
	r.Node, r.Number = n.id, n.requester.last
	var answer requested
	var last error
	for {
		changed := n.Changed()
		if answer.Index > 0 && n.State().Index >= answer.Index {
			return answer.Index, nil
		}
		if phase, problem := n.machine.trouble(); phase == PhaseFailed || phase == PhaseDiverged {
			return 0, errorf(events.CodeUnavailable, "this node applies no entries, so it would not know what becomes of the request: %v", problem)
		}
		if answer.Index == 0 {
			if last = n.callLeader(ctx, "request", r, &answer); last == nil {
				continue
			}
			var refused *Error
			if errors.As(last, &refused) && refused.Code != events.CodeUnavailable {
				return 0, last
			}
			n.log.Debug("a request is not in the log yet; trying again", "error", last)
		}
		if n.pause(ctx, changed, registerEvery) == nil {
			continue
		}
		if answer.Index > 0 {
			return 0, errorf(events.CodeUnavailable, "the request is entry %d, which is not applied here yet: ask again, which does not ask twice", answer.Index)
		}
		return 0, errorf(events.CodeUnavailable, "the request is not known to be in the log (leader: %s; last error: %v): ask again, which does not ask twice", n.leaderName(), last)
	}
}

func (n *Node) onRequest(ctx context.Context, req []byte) (any, error) {
	var r events.Requested
	if err := unmarshalPeer(req, &r); err != nil {
		return nil, errorf(events.CodeInvalidInput, "a request that does not decode: %v", err)
	}
	if n.raft.State() != raft.Leader {
		return nil, errNotLeader
	}
	var answer requested
	err := n.write(ctx, func(s *fsm.State) (*events.Entry, error) {
		asked, pending, refused := fsm.DecideRequest(s, r)
		switch {
		case refused != nil:
			return nil, &Error{Code: refused.Code, Reason: refused.Reason}
		case pending != nil:
			answer.Index = pending.Index
			return nil, nil
		}
		answer.Index = s.Index + 1
		return &events.Entry{Kind: events.KindRequest, Events: []events.Event{{Requested: asked}}}, nil
	})
	return answer, err
}
