package audit

import (
	"context"
	"errors"
	"fmt"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// history is what one place turned out to hold.
type history struct {
	place Place
	about *About

	opened   error  // it could not be opened: nothing else is set
	good     uint64 // the last entry that is whole and fits the chain
	chain    events.Digest
	replayed uint64     // the last entry replayed, with all before it; 0: none
	state    *fsm.State // after replayed
	sameAs   string     // the place that was replayed in its stead, and holds the same
	refused  uint64     // entries that every replica refuses
	faults   []fault    // in the order in which they were found
	left     uint64     // the last entry before the log went on under another lineage, elsewhere; 0: it did not
	compared uint64     // the last entry that was compared with another place
	asked    bool       // of an esperd that is compared without reading its entries
	digested uint64     // ... and the last entry after which its digests were compared
	adopted  uint64     // up to there it was only compared with one that was replayed; 0: all was replayed
	followed bool       // while it grew
	stopped  error      // why checking ended before the head; nil: it did not
	damaged  bool       // ... because the place is damaged, which is a fault too
	notes    []string   // what was not checked, without being wrong
	recorded recorder
	sums     blockSums // of whole blocks, while replayed
	calls    callCheck // of the replayed entries
}

// fault is what is wrong with one history by itself.
type fault struct {
	verdict   Verdict
	index     uint64 // 0: no entry's
	which     string // apply: "lifecycle" or "bookkeeping"
	model     string
	want, got events.Digest
	node      events.NodeID // apply: whose replica is at fault; empty: this place's
	what      string
	fields    []Difference
}

// errFrozen ends a replay that nothing more can be learned from.
var errFrozen = errors.New("the entries after this one were decided on another state")

// verifier replays one history.
type verifier struct {
	h        *history
	suspect  *fault       // a digest that does not fit, until the next record says why
	states   [2]fsm.State // after the entry before and after this one, in turns
	told     bool         // that it applied an entry wrongly: what follows is a consequence
	frozen   bool         // it stopped applying, as its records say
	replay   bool         // entries are applied, and not only checked against the chain
	images   *imageCheck
	progress func(done uint64)      // nil: nobody is told
	passed   func(r *events.Record) // likewise, of every entry that is whole
}

// verify checks a history by itself, from its first entry to the head that it
// had when it was opened.
func verify(ctx context.Context, h *history, progress func(done uint64)) {
	v := newVerifier(h)
	v.progress = progress
	err := v.advance(ctx, h.about.Head)
	v.conclude()
	v.ended(err)
	if v.progress != nil {
		v.progress(h.good)
	}
	if p, ok := h.place.(*dirPlace); ok && ctx.Err() == nil {
		v.checkStore(p)
	}
}

// newVerifier begins before the first entry of a history.
func newVerifier(h *history) *verifier {
	v := &verifier{h: h, images: newImageCheck(h.place)}
	a := h.about
	h.good, h.chain, h.state = a.From-1, a.FirstChain, fsm.New()
	if v.replay = a.From <= 1; v.replay {
		return v
	}
	if s := v.images.stateAt(a.From - 1); s != nil {
		h.state, h.replayed, v.replay = s, a.From-1, true
	} else {
		h.stopped = fmt.Errorf("entries 1 to %d are not here, nor the state after them: what follows is checked against the chain alone", a.From-1)
	}
	return v
}

// advance goes on to an entry. The error is a *events.CorruptError, or the
// place's: what comes before it is checked, and advance may be called again.
func (v *verifier) advance(ctx context.Context, to uint64) error {
	h := v.h
	return stream(ctx, h.place, h.good+1, to, h.chain, v.replay, func(e *streamed) error {
		if v.replay {
			switch err := v.step(e); {
			case errors.Is(err, errFrozen):
				v.replay = false // goes on with the chain
			case err != nil:
				return err
			}
		}
		h.good, h.chain = e.Record.Index, e.Record.Chain
		h.sums.add(&e.Record)
		if v.passed != nil {
			v.passed(&e.Record)
		}
		if v.progress != nil && h.good%4096 == 0 {
			v.progress(h.good)
		}
		return nil
	})
}

// conclude decides about the suspect when no record comes that would.
func (v *verifier) conclude() {
	if v.suspect != nil {
		v.blame(*v.suspect)
	}
}

// ended notes why the stream ended.
func (v *verifier) ended(err error) {
	h := v.h
	var damage *events.CorruptError
	switch {
	case err == nil:
	case errors.As(err, &damage):
		index := damage.Index
		if index == 0 && h.good < h.about.Head {
			index = h.good + 1
		}
		h.faults = append(h.faults, fault{verdict: VerdictCorrupt, index: index, what: damage.What})
		h.stopped, h.damaged = errors.New(damage.What), true
	default:
		h.stopped = err
	}
	if h.stopped == nil && h.about.Problem != "" && h.about.Kind == "export" {
		h.stopped = errors.New(h.about.Problem)
	}
}

// step replays one entry and compares what the replica had after it.
func (v *verifier) step(e *streamed) error {
	h, r := v.h, &e.Record
	if e.Err != nil {
		if _, newer := errors.AsType[*events.VersionError](e.Err); newer {
			h.stopped = fmt.Errorf("entry %d: %w", r.Index, e.Err)
			return errFrozen
		}
		return &events.CorruptError{File: h.about.Place, Index: r.Index, What: "it is no entry: " + e.Err.Error()}
	}
	entry := &e.Entry
	next, out, err := fsm.ApplyInto(&v.states[r.Index%2], h.state, entry)
	if err != nil {
		return v.unfit(r.Index, entry, err)
	}
	v.judge(entry, v.compare(r, entry, next))
	h.state, h.replayed = next, r.Index
	v.images.compare(next)
	if entry.Kind == events.KindCall && out.Refused == "" && !v.frozen {
		h.calls.add(events.CallID{Round: entry.Key.Round, Model: entry.Key.Model, Call: entry.Key.Call}, r.Index)
	}
	if out.Refused != "" {
		h.refused++
	}
	h.recorded.see(r.Index, entry, out, next)
	return nil
}

// compare returns what does not fit in the replica's digests, nil if they are
// those of the replay. A replica that has stopped applying writes none.
func (v *verifier) compare(r *events.Record, e *events.Entry, next *fsm.State) *fault {
	if v.frozen && frozen(r) {
		return nil
	}
	lifecycle, model := events.Digest{}, ""
	if e.Key != nil {
		lifecycle, model = next.Lifecycle(e.Key.Model), e.Key.Model
	}
	if r.Lifecycle == lifecycle && r.Bookkeeping == next.Bookkeeping() && !frozen(r) {
		return nil
	}
	f := &fault{verdict: VerdictApply, index: r.Index, model: model}
	switch {
	case frozen(r):
		v.frozen = true
		if v.suspect != nil {
			return nil // that is why
		}
		f.index, f.which = r.Index-1, "state"
		f.what = fmt.Sprintf("this replica stopped applying at entry %d: its state after entry %d was not the one that its own records say", r.Index, r.Index-1)
		return f
	case r.Lifecycle != lifecycle:
		f.which, f.want, f.got = "lifecycle", lifecycle, r.Lifecycle
	default:
		f.which, f.model, f.want, f.got = "bookkeeping", "", next.Bookkeeping(), r.Bookkeeping
	}
	f.what = fmt.Sprintf("replaying entry %d gives the %s digest %s, this replica had %s", f.index, f.which, f.want.Short(), f.got.Short())
	return f
}

// judge decides about the suspect, once a record says more: a replica that
// applied an entry wrongly had a wrong state afterwards, or stopped; one whose
// next digest of the same kind is right again did not.
func (v *verifier) judge(e *events.Entry, own *fault) {
	switch s := v.suspect; {
	case s == nil:
	case own != nil || v.frozen:
		v.blame(*s)
	case s.which == "bookkeeping" || e.Key != nil && e.Key.Model == s.model:
		s.verdict = VerdictCorrupt
		s.what += ", and the right one after a later entry: the record is not what was written"
		v.h.faults = append(v.h.faults, *s)
		v.suspect = nil
	}
	switch {
	case own == nil || v.told:
	case own.which == "state":
		v.blame(*own)
	case v.suspect == nil:
		v.suspect = own
	}
}

// blame notes that this replica applied an entry wrongly. What its records say
// after that is a consequence.
func (v *verifier) blame(f fault) {
	v.h.faults = append(v.h.faults, f)
	v.suspect, v.told = nil, true
}

// unfit says what an entry means that does not follow from the state.
func (v *verifier) unfit(index uint64, e *events.Entry, err error) error {
	h := v.h
	if v.suspect != nil { // its next state is not right either
		v.blame(*v.suspect)
	}
	diverged, ok := errors.AsType[*fsm.DivergedError](err)
	switch {
	case ok && diverged.Which == "index":
		h.faults = append(h.faults, fault{verdict: VerdictMissing, index: index,
			what: fmt.Sprintf("the entry here was decided on entry %d: entries in between are missing", diverged.Predecessor)})
	case ok && !v.told:
		h.faults = append(h.faults, fault{verdict: VerdictApply, index: index - 1, which: diverged.Which, model: diverged.Model,
			want: diverged.Got, got: diverged.Want, node: e.Node,
			what: fmt.Sprintf("replaying entry %d gives the %s digest %s; the node that wrote entry %d had %s", index-1, diverged.Which, diverged.Got.Short(), index, diverged.Want.Short())})
	case !ok:
		h.faults = append(h.faults, fault{verdict: VerdictApply, index: index, what: "this build cannot apply the entry: " + err.Error()})
	}
	if h.stopped == nil {
		h.stopped = fmt.Errorf("entry %d was decided on another state than the one that entries 1 to %d give: from there on only the chain is checked", index, index-1)
	}
	return errFrozen
}
