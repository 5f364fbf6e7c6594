package replica

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/hashicorp/raft"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// Behind a writer whose state was wrong no replica that is right can apply any
// entry: each was decided on a state that the entries before it do not give. What
// can go on is the log before them, without what they say.

// Dropped are the entries at the end of a log that it goes on without.
type Dropped struct {
	From   uint64        `json:"from"`
	To     uint64        `json:"to"`               // the last that was found; raft's log may have had more
	Writer events.NodeID `json:"writer,omitempty"` // of the first; empty: it cannot be read
	Rank   *uint64       `json:"rank,omitempty"`   // of the writer, in the round that was open there
	Why    string        `json:"why"`
}

// Who names the writer, for people.
func (d *Dropped) Who() string {
	switch {
	case d.Rank != nil:
		return fmt.Sprintf("rank %d's node %s", *d.Rank, d.Writer)
	case d.Writer != "":
		return "node " + string(d.Writer)
	}
	return "an unknown node"
}

// CutOff fills an empty history with what the entries of another one give before
// the first that does not fit, which is why Verify has refused it. ok: that is
// what err says, and no other damage; only then is anything done.
func CutOff(from, to *events.History, err error) (d *Dropped, ok bool, failed error) {
	unfit, ok := errors.AsType[*fsm.DivergedError](err)
	if !ok || unfit.Which == "index" || unfit.Index < 2 || from.CompleteFrom() > 1 {
		return nil, false, nil // that one lost entries, or its first ones are not here
	}
	state := fsm.New()
	failed = from.Range(1, unfit.Index-1, func(r events.Record) error {
		e, err := events.Decode(r.Entry)
		if err != nil {
			return fmt.Errorf("entry %d: %w", r.Index, err)
		}
		next, out, err := fsm.Apply(state, e)
		if err != nil {
			return fmt.Errorf("entry %d: %w", r.Index, err)
		}
		var call *events.CallID
		if e.Kind == events.KindCall && out.Refused == "" {
			call = &events.CallID{Round: e.Key.Round, Model: e.Key.Model, Call: e.Key.Call}
		}
		state = next
		if err := to.Append(r, call); err != nil || r.Index%imageEvery != 0 {
			return err
		}
		return to.Flush() // what is not written is in memory
	})
	if failed != nil {
		return nil, true, failed
	}
	image, failed := state.Image()
	if failed = errors.Join(failed, to.PutImage(state.Index, image), to.Flush()); failed != nil {
		return nil, true, failed
	}
	head, _, _ := from.Head()
	d = &Dropped{From: unfit.Index, To: head, Why: unfit.Error()}
	if rec, err := from.Read(unfit.Index); err == nil {
		if e, err := events.Decode(rec.Entry); err == nil {
			d.Writer, d.Rank = e.Node, rankOf(state, e.Node)
		}
	}
	return d, true, nil
}

// VerifyCutOff is Verify of a history that CutOff has made. Of raft's log, which
// has the dropped entries, it takes who the members were.
func VerifyCutOff(history *events.History, old *Stores, d *Dropped, log *slog.Logger) (*Kept, error) {
	k, err := Verify(history, nil, log)
	if err != nil {
		return nil, err
	}
	k.Dropped, k.RaftProblem = d, fmt.Errorf("it has entry %d, which does not follow from those before it", d.From)
	if old != nil {
		k.readMembers(old)
	}
	return k, nil
}

// readMembers reads as much as can be: who is not known is not asked.
func (k *Kept) readMembers(old *Stores) {
	if snapshots, err := old.Snapshots.List(); err == nil && len(snapshots) > 0 {
		k.RaftTerm = snapshots[0].Term
		k.setMembers(snapshots[0].Configuration)
	}
	first, err := old.Log.FirstIndex()
	if err != nil {
		return
	}
	last, err := old.Log.LastIndex()
	for i := max(first, 1); err == nil && i <= last; i++ {
		var l raft.Log
		if old.Log.GetLog(i, &l) != nil {
			continue
		}
		k.RaftTerm = max(k.RaftTerm, l.Term)
		if l.Type == raft.LogConfiguration {
			k.setMembers(raft.DecodeConfiguration(l.Data))
		}
	}
}
