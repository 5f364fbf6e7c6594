package replica

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// doubt is what a replica tells the writer of an entry that does not fit
// its state.
type doubt struct {
	Index uint64        `cbor:"1,keyasint"` // of the entry
	Chain events.Digest `cbor:"2,keyasint"` // there; zero: it has another place at who asks
	Node  events.NodeID `cbor:"3,keyasint"` // who asks
}

// contradicted is what the writer found when it replayed its own history.
type contradicted struct {
	Agrees  bool   `cbor:"1,keyasint,omitempty"` // its history gives the state that it decided on
	Wrong   bool   `cbor:"2,keyasint,omitempty"` // its history gives another: it is at fault, and has stopped
	First   uint64 `cbor:"3,keyasint,omitempty"` // Wrong: the first entry after which its state was another; 0: not known
	Problem string `cbor:"4,keyasint,omitempty"` // neither: why that cannot be told
	Build   string `cbor:"5,keyasint,omitempty"`
}

// words says for people what the writer answered.
func (a contradicted) words() string {
	switch {
	case a.Agrees:
		return "the writer's own replay gives the state that it decided on"
	case a.Wrong:
		return "the writer's own replay does not give the state that it decided on"
	}
	return "the writer could not say: " + a.Problem
}

// contradict tells the writer of an entry that it does not fit here, and returns
// what it found about itself.
func (n *Node) contradict(f *Divergence, after uint64) contradicted {
	if f.Writer == "" || f.Writer == n.id {
		return contradicted{Problem: "the writer of the entry is not known here, or this node itself"}
	}
	q := doubt{Index: after + 1, Node: n.id}
	var err error
	if f.Which != "index" { // else the entry has another place here than at the writer
		if q.Chain, err = n.history.ChainAt(f.Index); err != nil {
			return contradicted{Problem: err.Error()}
		}
	}
	for range contradictTries {
		var a contradicted
		member, ok := server(n.members(), f.Writer)
		if !ok {
			return contradicted{Problem: fmt.Sprintf("node %s is no member of the log any more", f.Writer)}
		}
		ctx, cancel := context.WithTimeout(n.ctx, contradictWithin)
		err = n.net.Call(ctx, string(member.Address), "contradiction", q, &a)
		cancel()
		if err == nil {
			return a
		}
		if n.pause(n.ctx, nil, contradictAgain) != nil {
			break
		}
	}
	return contradicted{Problem: err.Error()}
}

// onContradiction is the writer's side: an entry of its own does not fit another
// replica. It replays its history, and stops if that does not give what it wrote.
func (n *Node) onContradiction(ctx context.Context, req []byte) (any, error) {
	var q doubt
	if err := unmarshalPeer(req, &q); err != nil {
		return nil, errorf(events.CodeInvalidInput, "a contradiction that does not decode: %v", err)
	}
	rec, err := n.history.Read(q.Index)
	if err != nil || !q.Chain.IsZero() && rec.Chain != q.Chain {
		return nil, errorf(events.CodeInvalidInput, "a contradiction about entry %d, which is not that of this node", q.Index)
	}
	e, err := events.Decode(rec.Entry)
	if err != nil {
		return nil, err
	}
	if e.Node != n.id {
		return nil, errorf(events.CodeInvalidInput, "a contradiction about entry %d, which node %s wrote, not this one", q.Index, e.Node)
	}
	n.log.Error("another replica's state is not the one that this node wrote an entry on: replaying this node's history", "index", q.Index, "replica", q.Node)
	n.replaying.Lock() // one at a time, however many ask
	defer n.replaying.Unlock()
	if d := n.Divergence(); d.Known() && d.Fault == BlameSelf && d.Index <= q.Index {
		return contradicted{Wrong: true, First: d.First, Build: n.cfg.Build}, nil
	}
	r, err := replayHistory(ctx, n.history, e.Predecessor)
	if err != nil {
		return contradicted{Problem: err.Error(), Build: n.cfg.Build}, nil
	}
	wrong := disagrees(r.state, e, q.Index)
	if wrong == nil {
		// If this build is what is wrong, its image is how an audit by another one
		// names the field. If not, it is an image like any other.
		n.machine.keepImage(r.state)
		return contradicted{Agrees: true, Build: n.cfg.Build}, nil
	}
	n.disown(wrong, r.first)
	return contradicted{Wrong: true, First: r.first, Build: n.cfg.Build}, nil
}

// disagrees compares a replayed state with the one that an entry says it was
// decided on.
func disagrees(s *fsm.State, e *events.Entry, index uint64) *Divergence {
	d := &Divergence{Index: index, Which: "bookkeeping", Entry: e.Bookkeeping, Live: e.Bookkeeping, Replay: s.Bookkeeping()}
	if d.Replay == d.Entry && e.Key != nil {
		d.Which, d.Model = "lifecycle", e.Key.Model
		d.Entry, d.Live, d.Replay = e.Lifecycle, e.Lifecycle, s.Lifecycle(e.Key.Model)
	}
	if d.Replay == d.Entry {
		return nil
	}
	return d
}

// disown freezes this node, whose own history does not give its state, and has
// it give up leadership.
func (n *Node) disown(d *Divergence, first uint64) {
	d.First, d.Writer, d.WriterRank, d.Version, d.WriterVersion = first, n.id, &n.cfg.Rank, n.cfg.Build, n.cfg.Build
	d.Since = time.Now().UTC()
	n.blame(d, BlameSelf, n.id, fmt.Sprintf("the history of this replica does not give the state that it had at entry %d: its memory was wrong", max(first, 1)))
	n.machine.freeze(errors.New(d.Text()))
	if first > 0 {
		n.machine.keepEvidence(first)
	}
	n.conclude(d)
	n.roster.poke()
}

// Recheck replays this replica's history and compares it with the state that it
// has now. Where it differs, this replica stops, and says that it is at fault.
func (n *Node) Recheck(ctx context.Context) error {
	n.replaying.Lock()
	defer n.replaying.Unlock()
	h, phase := n.machine.now()
	if phase != PhaseMember || h.state.Index != h.index || h.index == 0 || n.rechecked == h.index {
		return nil
	}
	r, err := replayHistory(ctx, n.history, h.index)
	if err != nil {
		return fmt.Errorf("replaying the history of this node: %w", err)
	}
	n.rechecked = h.index
	d := &Divergence{Index: h.index, Which: "bookkeeping", Live: h.state.Bookkeeping(), Replay: r.state.Bookkeeping()}
	for _, m := range h.state.Models {
		if d.Live == d.Replay {
			d.Which, d.Model, d.Live, d.Replay = "lifecycle", m.Name, m.Digest(), r.state.Lifecycle(m.Name)
		}
	}
	if d.Live != d.Replay {
		n.disown(d, r.first)
	}
	return nil
}
