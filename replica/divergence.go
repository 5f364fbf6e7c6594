package replica

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// A replica whose state is not the one that an entry was decided on freezes
// (machine.go) and then finds out, away from the apply path, who is at fault. It
// replays its own history up to there and compares three digests: the entry's,
// which is the writer's, its own live one, and its replay's. Nobody votes.

// Blame says whose state is wrong.
type Blame string

// What a replica may find.
const (
	BlamePending   Blame = ""          // its history is still being replayed
	BlameSelf      Blame = "self"      // its own: its memory was wrong, or it lost entries
	BlameWriter    Blame = "writer"    // that of the node which wrote the entry
	BlameUndecided Blame = "undecided" // it cannot be told here
)

// Divergence is what a replica found out about the state that it froze.
type Divergence struct {
	Index uint64 `json:"index"`           // of the entry that did not fit its state; without one, of its last entry
	First uint64 `json:"first,omitempty"` // the first entry after which its state was another than its replay's; 0: not known
	Which string `json:"which"`           // the digest that differs: "lifecycle" or "bookkeeping"; "index": it lacks entries
	Model string `json:"model,omitempty"` // of the lifecycle

	Entry  events.Digest `json:"entry,omitzero"`  // the state that the entry was decided on
	Live   events.Digest `json:"live,omitzero"`   // this replica's
	Replay events.Digest `json:"replay,omitzero"` // what its history gives

	Fault  Blame         `json:"fault"`
	Node   events.NodeID `json:"node,omitempty"` // at fault; empty: undecided
	Rank   *uint64       `json:"rank,omitempty"` // of that node, where the log says it
	Reason string        `json:"reason"`         // in a sentence

	Writer        events.NodeID `json:"writer,omitempty"` // of the entry
	WriterRank    *uint64       `json:"writer_rank,omitempty"`
	Version       string        `json:"version,omitempty"`        // the esperd that found it
	WriterVersion string        `json:"writer_version,omitempty"` // the writer's, if it answered
	Since         time.Time     `json:"since"`
}

// Known reports whether it is decided whose fault it is, or that it cannot be.
func (d *Divergence) Known() bool { return d != nil && d.Fault != BlamePending }

const (
	contradictTries  = 5
	contradictAgain  = 500 * time.Millisecond
	contradictWithin = 2 * time.Minute // a replay at the writer: 10 million entries take half of it
)

// Divergence is what this replica found out about its state; nil: it is the
// log's, as far as is known here.
func (n *Node) Divergence() *Divergence { return n.divergence.Load() }

// watchDivergence waits until this replica's state is frozen, and finds out why.
func (n *Node) watchDivergence() {
	select {
	case <-n.ctx.Done():
		return
	case <-n.machine.frozen:
	}
	_, problem := n.machine.trouble()
	var d *fsm.DivergedError
	if !errors.As(problem, &d) {
		return // it was found by a recheck, which has told
	}
	f := &Divergence{Index: d.Index, Which: d.Which, Model: d.Model, Entry: d.Want, Live: d.Got,
		Version: n.cfg.Build, Since: time.Now().UTC(), Reason: "its history is being replayed"}
	n.divergence.Store(f)
	if e, err := n.stored(d.Index); err == nil {
		f = f.with(func(f *Divergence) { f.Writer, f.WriterRank = e.Node, rankOf(n.State(), e.Node) })
	}
	n.conclude(n.judge(f, d.Predecessor))
}

// with returns a changed copy: others read the one before.
func (d *Divergence) with(change func(*Divergence)) *Divergence {
	next := *d
	change(&next)
	return &next
}

// stored reads an entry that is about to be in the history.
func (n *Node) stored(index uint64) (*events.Entry, error) {
	for {
		changed := n.machine.changes()
		if h, _ := n.machine.now(); h.index >= index {
			rec, err := n.history.Read(index)
			if err != nil {
				return nil, err
			}
			return events.Decode(rec.Entry)
		}
		if err := n.pause(n.ctx, changed, time.Second); err != nil {
			return nil, err
		}
	}
}

// judge compares the three digests.
func (n *Node) judge(f *Divergence, predecessor uint64) *Divergence {
	if f.Which == "index" {
		a := n.contradict(f, predecessor)
		return f.with(func(f *Divergence) { n.lacking(f, a, predecessor) })
	}
	r, err := replayHistory(n.ctx, n.history, f.Index-1)
	if err != nil {
		a := n.contradict(f, f.Index-1)
		return f.with(func(f *Divergence) {
			f.WriterVersion = a.Build
			n.undecided(f, fmt.Sprintf("the history of this replica cannot be replayed up to entry %d: %v; %s", f.Index-1, err, a.words()))
		})
	}
	f = f.with(func(f *Divergence) { f.Replay, f.First = digestOf(r.state, f.Which, f.Model), r.first })
	switch {
	case f.Writer == n.id && f.Replay != f.Entry:
		return f.with(func(f *Divergence) {
			n.blame(f, BlameSelf, n.id, fmt.Sprintf("this node wrote entry %d on a state that its own history does not give: its memory was wrong then", f.Index))
		})
	case f.Live != f.Replay && f.Replay == f.Entry:
		return f.with(func(f *Divergence) {
			n.blame(f, BlameSelf, n.id, fmt.Sprintf("the history of this replica gives the state that entry %d was decided on, and its own state was another: its memory was wrong", f.Index))
		})
	}
	a := n.contradict(f, f.Index-1)
	return f.with(func(f *Divergence) {
		f.WriterVersion = a.Build
		switch {
		case f.Live != f.Replay:
			n.undecided(f, "the entry, this replica's state and its replay all differ; "+a.words())
		case a.Wrong:
			f.First = max(f.First, a.First)
			n.blame(f, BlameWriter, f.Writer, fmt.Sprintf("entry %d was decided on a state that the writer's own history does not give: the writer's memory was wrong", f.Index))
		default:
			n.undecided(f, "this replica's replay gives its own state, and not the one that the entry was decided on; "+a.words()+f.builds())
		}
	})
}

// builds says which code gives which state.
func (d *Divergence) builds() string {
	if d.Version != d.WriterVersion {
		return fmt.Sprintf(" (this replica runs esperd %s, the writer %s: builds that differ; run one build on all ranks)", orUnknown(d.Version), orUnknown(d.WriterVersion))
	}
	return fmt.Sprintf(" (both run esperd %s, so one of the two machines computes wrongly)", orUnknown(d.Version))
}

func orUnknown(version string) string {
	if version == "" {
		return "of an unknown version"
	}
	return version
}

// lacking is for an entry that was decided on one which is not here.
func (n *Node) lacking(f *Divergence, a contradicted, predecessor uint64) {
	f.WriterVersion = a.Build
	if a.Agrees {
		n.blame(f, BlameSelf, n.id, fmt.Sprintf("entry %d here was decided on entry %d, which the writer's verified history has: this replica lost the entries in between", f.Index, predecessor))
		return
	}
	n.undecided(f, fmt.Sprintf("entry %d here was decided on entry %d: this replica lacks entries in between; %s", f.Index, predecessor, a.words()))
}

func (n *Node) blame(f *Divergence, who Blame, node events.NodeID, reason string) {
	f.Fault, f.Node, f.Rank, f.Reason = who, node, rankOf(n.State(), node), reason
	if node == n.id {
		rank := n.cfg.Rank
		f.Rank = &rank
	}
}

func (n *Node) undecided(f *Divergence, reason string) {
	f.Fault, f.Node, f.Rank, f.Reason = BlameUndecided, "", nil, reason
}

// conclude keeps what was found, as evidence and for whoever asks.
func (n *Node) conclude(f *Divergence) {
	if n.ctx.Err() != nil {
		return // the next start finds it again
	}
	if f.First == 0 && f.Fault == BlameSelf && f.Which != "index" {
		f.First = f.Index // what it kept until then is as recorded
	}
	if err := writeDivergence(n.cfg.Dir, f); err != nil {
		n.log.Error("what was found about this replica's divergence cannot be kept", "error", err)
	}
	n.divergence.Store(f)
	n.machine.explain(errors.New(f.Text()))
	n.log.Error("this replica has diverged, and it is known why", "fault", f.Fault, "at_fault", f.Node, "index", f.Index, "first", f.First,
		"entry", f.Entry.Short(), "live", f.Live.Short(), "replay", f.Replay.Short(), "reason", f.Reason)
}

// Text says what was found, for people.
func (d *Divergence) Text() string {
	who := "it cannot be decided whose state is wrong"
	switch {
	case d.Fault == BlamePending:
		return fmt.Sprintf("diverged at entry %d: %s", d.Index, d.Reason)
	case d.Rank != nil:
		who = fmt.Sprintf("rank %d is at fault", *d.Rank)
	case d.Node != "":
		who = fmt.Sprintf("node %s is at fault", d.Node)
	}
	what := d.Which + " digest"
	if d.Model != "" {
		what = "lifecycle digest of model " + d.Model
	}
	text := fmt.Sprintf("diverged at entry %d (%s), %s", d.Index, what, who)
	if d.First > 0 && d.First < d.Index {
		text += fmt.Sprintf(", first after entry %d", d.First)
	}
	return text + ": " + d.Reason
}

// rankOf is the rank of a node in the open round; nil: it has none.
func rankOf(s *fsm.State, node events.NodeID) *uint64 {
	for _, m := range s.Round.Members {
		if m.Node == node {
			rank := m.Rank
			return &rank
		}
	}
	return nil
}

func digestOf(s *fsm.State, which, model string) events.Digest {
	if which == "lifecycle" {
		return s.Lifecycle(model)
	}
	return s.Bookkeeping()
}

// replayedHistory is the state that a history gives.
type replayedHistory struct {
	state *fsm.State
	first uint64 // the first entry whose recorded digests are others; 0: none
}

// replayHistory applies the entries of a history from its beginning, with none of
// the states that were kept: they are what is doubted. Memory does not grow with it.
func replayHistory(ctx context.Context, history *events.History, to uint64) (*replayedHistory, error) {
	state, err := oldestImage(history)
	if err != nil {
		return nil, err
	}
	out := &replayedHistory{state: state}
	err = history.Range(state.Index+1, to, func(r events.Record) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := events.Decode(r.Entry)
		if err != nil {
			return fmt.Errorf("entry %d: %w", r.Index, err)
		}
		next, _, err := fsm.Apply(out.state, e)
		if err != nil {
			return err
		}
		out.state = next
		odd := !r.Bookkeeping.IsZero() && r.Bookkeeping != next.Bookkeeping() ||
			e.Key != nil && !r.Lifecycle.IsZero() && r.Lifecycle != next.Lifecycle(e.Key.Model)
		if odd && out.first == 0 {
			out.first = r.Index
		}
		return nil
	})
	if err == nil && out.state.Index != to {
		err = fmt.Errorf("it ends with entry %d, expected %d", out.state.Index, to)
	}
	return out, err
}
