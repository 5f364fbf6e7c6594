package replica

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// registerEvery is how often a waiting trainer's node repeats its registration;
// the leader forgets one that is three times as old.
const registerEvery = 200 * time.Millisecond

// registration is a Registration with the node it came from.
type registration struct {
	Registration
	Node    events.NodeID `cbor:"6,keyasint"`
	Address string        `cbor:"7,keyasint"`
	since   time.Time     // the leader first heard of this incarnation
	seen    time.Time
}

// registered says which ranks the leader still waits for.
type registered struct {
	Missing []uint64 `cbor:"1,keyasint,omitempty"`
	Round   uint64   `cbor:"2,keyasint"` // the open one, for who registers for the next
}

// Register announces a trainer to the leader and returns when a round with
// exactly this incarnation is open. It repeats itself, so that a new leader
// learns of it. Errors: config-mismatch, not-authority (the trainer was replaced
// by a newer one), unavailable (ctx ended).
func (n *Node) Register(ctx context.Context, r Registration) (uint64, error) {
	var answer registered
	var last error
	asked, began := false, uint64(0) // the round that was open at the leader when it first answered
	msg := registration{Registration: r, Node: n.id, Address: n.net.Addr()}
	for {
		changed := n.Changed()
		round := n.State().Round
		switch mine := inRound(round, msg); {
		case mine && round.Members[r.Rank].Node == n.id:
			return round.Number, nil
		case asked && round.Number > began:
			return 0, errorf(events.CodeNotAuthority, "round %d was opened %s: this one is not part of it; connect again on all ranks to open the next round", round.Number, without(round, r.Rank))
		}
		if phase, problem := n.machine.trouble(); phase == PhaseFailed || phase == PhaseDiverged {
			code := events.CodeUnavailable
			if phase == PhaseDiverged {
				code = events.CodeDiverged
			}
			return 0, errorf(code, "this node cannot take part in a round: %v", problem)
		}
		err := n.callLeader(ctx, "register", msg, &answer)
		if ctx.Err() == nil {
			last = err
		}
		if err == nil && !asked {
			asked, began = true, answer.Round
		}
		var refused *Error
		if errors.As(err, &refused) && refused.Code == events.CodeConfigMismatch {
			return 0, err
		}
		if err := n.pause(ctx, changed, registerEvery); err != nil {
			if last != nil {
				return 0, errorf(events.CodeUnavailable, "no round was opened in time: %v (leader: %s); connect again", last, n.leaderName())
			}
			return 0, errorf(events.CodeUnavailable, "no round was opened in time: ranks %v of %d have not connected (leader: %s); start their trainers and connect again", answer.Missing, r.World, n.leaderName())
		}
	}
}

// without says how a round did without a rank's trainer.
func without(round fsm.Round, rank uint64) string {
	if rank >= uint64(len(round.Members)) {
		return fmt.Sprintf("with %d ranks, without a rank %d", len(round.Members), rank)
	}
	m := round.Members[rank]
	return fmt.Sprintf("with another trainer of rank %d (incarnation %s on node %s)", rank, m.Incarnation, m.Node)
}

// pause waits for a change, at most for d.
func (n *Node) pause(ctx context.Context, changed <-chan struct{}, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-changed:
	case <-t.C:
	case <-ctx.Done():
		return ctx.Err()
	case <-n.ctx.Done():
		return n.ctx.Err()
	}
	return nil
}

// onRegister is the leader's side. When the trainers of all ranks are there, it
// opens the round.
func (n *Node) onRegister(ctx context.Context, req []byte) (any, error) {
	var r registration
	if err := unmarshalPeer(req, &r); err != nil {
		return nil, errorf(events.CodeInvalidInput, "a registration that does not decode: %v", err)
	}
	if n.raft.State() != raft.Leader {
		return nil, errNotLeader
	}
	if err := checkRegistration(r, len(n.members().Servers)); err != nil {
		return nil, err
	}
	if _, member := server(n.members(), r.Node); !member {
		return nil, errorf(events.CodeUnavailable, "node %s is not part of the log yet", r.Node)
	}
	open := n.State().Round.Number
	r.seen, r.Mode = time.Now(), cmp.Or(r.Mode, events.ModeKeyed)
	missing, complete, err := n.registrations.put(n.State().Round, r)
	if err != nil {
		return nil, err
	}
	if complete == nil {
		return registered{Missing: missing, Round: open}, nil
	}
	return registered{Round: open}, n.openRound(ctx, complete)
}

func checkRegistration(r registration, nodes int) error {
	switch {
	case r.World == 0 || r.World > worldMax || r.Rank >= r.World:
		return errorf(events.CodeConfigMismatch, "rank %d does not exist in a world of %d, expected a world of 1 to %d and a rank below it", r.Rank, r.World, worldMax)
	case r.World > uint64(nodes):
		return errorf(events.CodeUnavailable, "a world of %d needs as many nodes, and %d are part of the log yet", r.World, nodes)
	}
	return nil
}

// openRound writes the round's entry, unless the round has moved on meanwhile.
func (n *Node) openRound(ctx context.Context, ranks []registration) error {
	err := n.write(ctx, func(s *fsm.State) (*events.Entry, error) {
		ev := &events.RoundOpened{Round: s.Round.Number + 1, Fingerprint: ranks[0].Fingerprint}
		for _, r := range ranks {
			if r.Rank < uint64(len(s.Round.Members)) && s.Round.Members[r.Rank].Incarnation == r.Incarnation {
				return nil, nil // opened meanwhile
			}
			ev.Members = append(ev.Members, events.Member{Rank: r.Rank, Node: r.Node, Incarnation: r.Incarnation, Mode: r.Mode})
		}
		n.log.Info("opening a round", "round", ev.Round, "fingerprint", ev.Fingerprint)
		return &events.Entry{Kind: events.KindRound, Events: []events.Event{{RoundOpened: ev}}}, nil
	})
	if err == nil {
		n.opened.Store(true)
	}
	return err
}
