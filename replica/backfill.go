package replica

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/esperd/esperd/events"
)

// backfillChunk is how many entries are asked for at once.
const backfillChunk = 2000

// historyRequest asks for entries From to To; an answer may begin later, never
// end earlier.
type historyRequest struct {
	From uint64 `cbor:"1,keyasint"`
	To   uint64 `cbor:"2,keyasint"`
}

type historyAnswer struct {
	Previous events.Digest   `cbor:"1,keyasint"` // chain before the first record
	Records  []events.Record `cbor:"2,keyasint"`
}

// onRebased is called when the state came from a snapshot: entries below the
// head are missing here, and raft's log must not hold any of them.
func (n *Node) onRebased() error {
	select {
	case n.gap <- struct{}{}:
	default:
	}
	return n.anchor.dropCovered()
}

// fillHistory fetches missing history from any peer, newest first: each chunk
// is checked against the chain above it, so a peer cannot slip anything in.
func (n *Node) fillHistory() {
	for {
		from, to, missing := n.history.Missing()
		if !missing {
			select {
			case <-n.gap:
				continue
			case <-n.ctx.Done():
				return
			}
		}
		if to-from >= backfillChunk {
			from = to - backfillChunk + 1
		}
		if err := n.fetch(from, to); err != nil {
			n.log.Warn("missing history could not be fetched; trying again", "from", from, "to", to, "error", err)
			if n.wait(time.Second) != nil {
				return
			}
		}
	}
}

func (n *Node) fetch(from, to uint64) error {
	last := fmt.Errorf("no other node is known")
	for _, s := range n.members().Servers {
		if s.ID == "" || string(s.ID) == string(n.id) {
			continue
		}
		ctx, cancel := context.WithTimeout(n.ctx, 30*time.Second)
		var a historyAnswer
		err := n.net.Call(ctx, string(s.Address), "history", historyRequest{From: from, To: to}, &a)
		cancel()
		if err == nil {
			err = n.backfill(a)
		}
		if err == nil {
			return nil
		}
		last = fmt.Errorf("node %s at %s: %w", s.ID, s.Address, err)
	}
	return last
}

func (n *Node) backfill(a historyAnswer) error {
	calls := make([]*events.CallID, len(a.Records))
	for i, r := range a.Records {
		e, err := events.Decode(r.Entry)
		if err != nil {
			return fmt.Errorf("entry %d: %w", r.Index, err)
		}
		if e.Kind == events.KindCall && e.Key != nil && e.Predecessor+1 == r.Index {
			calls[i] = &events.CallID{Round: e.Key.Round, Model: e.Key.Model, Call: e.Key.Call}
		}
	}
	return n.history.Backfill(a.Previous, a.Records, calls)
}

// onHistory answers with as much of the asked range as a message holds, its end
// always included.
func (n *Node) onHistory(_ context.Context, req []byte) (any, error) {
	var q historyRequest
	if err := unmarshalPeer(req, &q); err != nil {
		return nil, errorf(events.CodeInvalidInput, "a history request that does not decode: %v", err)
	}
	h, phase := n.machine.now()
	if phase != PhaseMember {
		return nil, errorf(events.CodeUnavailable, "this node is %s and vouches for no history", phase)
	}
	complete := n.history.CompleteFrom()
	if q.From == 0 || q.To < q.From || q.To-q.From >= backfillChunk || q.To > h.index || q.To < complete {
		return nil, errorf(events.CodeUnavailable, "asked for entries %d to %d; this node has %d to %d and gives at most %d at once", q.From, q.To, complete, h.index, backfillChunk)
	}
	var a historyAnswer
	from := q.To + 1
	for bytes := 0; from > max(q.From, complete) && (bytes == 0 || bytes < peerBodyBytesMax/4); from-- {
		rec, err := n.history.Read(from - 1)
		if err != nil {
			return nil, err
		}
		a.Records, bytes = append(a.Records, rec), bytes+len(rec.Entry)
	}
	slices.Reverse(a.Records)
	if from > 1 {
		prev, err := n.history.Read(from - 1)
		if err != nil {
			return nil, err
		}
		a.Previous = prev.Chain
	}
	return a, nil
}
