package fsm

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/esperd/esperd/events"
)

// Outcome says what became of an entry. A refused entry keeps its index and its
// place in the chain and changes nothing else; every replica refuses it alike.
type Outcome struct {
	Refused string // why; empty: applied
}

// DivergedError says that this replica's state before the entry is not the
// state that the entry was decided on.
type DivergedError struct {
	Index uint64 // of the entry
	Which string // "lifecycle" or "bookkeeping"; "index": this replica lacks entries
	Model string
	Want  events.Digest // the leader's, from the entry
	Got   events.Digest // this replica's

	Predecessor uint64 // "index": the entry that the leader decided on
}

func (e *DivergedError) Error() string {
	if e.Which == "index" {
		return fmt.Sprintf("entry %d here was decided on entry %d: this replica lacks entries in between; keep the data directories of all ranks as evidence and compare them", e.Index, e.Predecessor)
	}
	what := e.Which
	if e.Model != "" {
		what += " of model " + e.Model
	}
	return fmt.Sprintf("entry %d was decided on a state whose %s digest is %s, but here it is %s: this replica or the leader has diverged; keep the data directories of all ranks as evidence and compare them",
		e.Index, what, e.Want.Short(), e.Got.Short())
}

// New returns the state before entry 1.
func New() *State { return &State{} }

// Apply returns the state after the entry. An error means that this replica
// must stop: a *DivergedError, or an entry that no correct leader writes. The
// given state is never changed.
func Apply(s *State, e *events.Entry) (*State, Outcome, error) {
	return ApplyInto(new(State), s, e)
}

// ApplyInto is Apply that makes the state after the entry in the memory of one
// that nobody uses any more, which is not s; what the two had in common with
// others stays. It is for who replays a log and keeps only its end.
func ApplyInto(next, s *State, e *events.Entry) (*State, Outcome, error) {
	*next = *s
	next.Index++
	if e.Predecessor > s.Index { // decided on applied state, so this replica lost some of it
		return nil, Outcome{}, &DivergedError{Index: next.Index, Which: "index", Predecessor: e.Predecessor}
	}
	if why := misfit(s, e); why != "" {
		return next, Outcome{Refused: why}, nil
	}
	if err := checkDigests(s, e); err != nil {
		return nil, Outcome{}, err
	}
	next.sealed = seal{}
	var err error
	switch e.Kind {
	case events.KindCall:
		err = next.applyCall(e)
	default:
		for i := range e.Events {
			if err = next.applyBookkeeping(&e.Events[i], e); err != nil {
				break
			}
		}
	}
	if err != nil {
		return nil, Outcome{}, fmt.Errorf("entry %d (%s) cannot be applied: %w; stop, and keep this data directory", next.Index, e.Kind, err)
	}
	next.tamper()
	return next.seal(), Outcome{}, nil
}

// misfit says why every replica refuses the entry; empty if it fits. It looks
// only at what all replicas have in common.
func misfit(s *State, e *events.Entry) string {
	switch {
	case e.Predecessor != s.Index:
		return fmt.Sprintf("decided on entry %d, but follows entry %d", e.Predecessor, s.Index)
	case (e.Kind == events.KindFound) != (s.Lineage == ""):
		return "a log is founded once, by its first entry"
	case e.Round != s.Round.Number:
		return fmt.Sprintf("belongs to round %d, but the round is %d", e.Round, s.Round.Number)
	case e.Kind == events.KindFault && s.Round.Fault != nil:
		return "the round is faulted already"
	case e.Kind != events.KindCall:
		return ""
	case e.Key == nil:
		return "a call without a key"
	case e.Node != s.Round.Authority():
		return fmt.Sprintf("written by node %s, but rank 0 of round %d is on node %s", e.Node, s.Round.Number, s.Round.Authority())
	case s.Round.Fault != nil:
		return fmt.Sprintf("round %d is faulted", s.Round.Number)
	}
	if c := s.Cursor(e.Key.Model); e.Key.Round != s.Round.Number || e.Key.Call != c.Calls || e.Key.Fence != c.Fence {
		return fmt.Sprintf("call %d, fence %d of model %s, but the next is call %d, fence %d", e.Key.Call, e.Key.Fence, e.Key.Model, c.Calls, c.Fence)
	}
	return ""
}

func checkDigests(s *State, e *events.Entry) error {
	if got := s.Bookkeeping(); got != e.Bookkeeping {
		return &DivergedError{Index: s.Index + 1, Which: "bookkeeping", Want: e.Bookkeeping, Got: got}
	}
	if e.Key == nil {
		return nil
	}
	if got := s.Lifecycle(e.Key.Model); got != e.Lifecycle {
		return &DivergedError{Index: s.Index + 1, Which: "lifecycle", Model: e.Key.Model, Want: e.Lifecycle, Got: got}
	}
	return nil
}

// applyCall applies the events of one call to its model and moves the model's
// cursor on.
func (s *State) applyCall(e *events.Entry) error {
	cursor := s.Cursor(e.Key.Model)
	cursor.Calls++
	m := s.Model(e.Key.Model)
	for i := range e.Events {
		ev := &e.Events[i]
		if Closes(ev) {
			cursor.Fence++
		}
		if ev.Refused != nil {
			continue
		}
		if ev.Residency != nil {
			cursor.Residency = ev.Residency.Ranks
			continue
		}
		if ev.RequestDone != nil {
			if err := s.removeRequest(ev.RequestDone.Request); err != nil {
				return fmt.Errorf("event %d: %w", i, err)
			}
			continue
		}
		if ev.Rewound != nil && ev.Rewound.Adopted {
			s.addAncestor(events.Ancestor{Lineage: ev.Rewound.Lineage})
		}
		if m == nil {
			m = &Model{Name: e.Key.Model, Epoch: -1, FenceN: -1}
		}
		var err error
		if m, err = m.assign(ev); err != nil {
			name, _ := ev.Payload()
			return fmt.Errorf("event %d (%s): %w", i, name, err)
		}
	}
	if m != nil {
		s.setModel(m.seal())
		s.dropVotes(m, e.Events)
	}
	s.setCursor(cursor)
	return nil
}

// Closes reports whether an event closes a stretch of calls: the fences of a
// model are the entries that hold one.
func Closes(ev *events.Event) bool {
	return ev.EpochStepped != nil || ev.Fenced != nil || ev.Configured != nil && ev.Configured.Generation > 1 || ev.Rewound != nil
}

func (s *State) setModel(m *Model) {
	s.Models = upsert(s.Models, m, func(a, b *Model) int { return strings.Compare(a.Name, b.Name) }, nil)
}

func (s *State) setCursor(c Cursor) {
	c.leaf = cursorLeaf(c)
	s.Cursors = upsert(s.Cursors, c, func(a, b Cursor) int { return strings.Compare(a.Model, b.Model) },
		func(old *Cursor) {
			if old != nil {
				s.cursorsSum = s.cursorsSum.sub(old.leaf)
			}
			s.cursorsSum = s.cursorsSum.add(c.leaf)
		})
}

func (s *State) setSource(c Source) {
	s.Sources = upsert(s.Sources, c, func(a, b Source) int { return cmp.Compare(a.Node, b.Node) },
		func(old *Source) {
			if old != nil {
				s.sourcesSum = s.sourcesSum.sub(sourceLeaf(*old))
			}
			s.sourcesSum = s.sourcesSum.add(sourceLeaf(c))
		})
}

func (s *State) setNode(n Node) {
	s.Nodes = upsert(s.Nodes, n, func(a, b Node) int { return cmp.Compare(a.ID, b.ID) },
		func(old *Node) {
			if old != nil {
				s.nodesSum = s.nodesSum.sub(nodeLeaf(*old))
			}
			s.nodesSum = s.nodesSum.add(nodeLeaf(n))
		})
}

func (s *State) removeNode(id events.NodeID) error {
	i, ok := slices.BinarySearchFunc(s.Nodes, id, func(n Node, id events.NodeID) int { return cmp.Compare(n.ID, id) })
	if !ok {
		return fmt.Errorf("node %s leaves, but it never joined", id)
	}
	s.nodesSum = s.nodesSum.sub(nodeLeaf(s.Nodes[i]))
	s.Nodes = slices.Delete(slices.Clone(s.Nodes), i, i+1)
	return nil
}

// upsert returns a copy of the sorted list with v in its place, and tells
// changed what stood there before.
func upsert[T any](list []T, v T, compare func(a, b T) int, changed func(old *T)) []T {
	i, ok := slices.BinarySearchFunc(list, v, compare)
	if ok {
		if changed != nil {
			changed(&list[i])
		}
		next := append(make([]T, 0, len(list)), list...)
		next[i] = v
		return next
	}
	if changed != nil {
		changed(nil)
	}
	return slices.Insert(append(make([]T, 0, len(list)+1), list...), i, v)
}

func (s *State) setRound(r Round) {
	s.Round = r
	s.roundLeaf = roundLeaf(r)
}

// applyBookkeeping applies one event of an entry that is not a call.
func (s *State) applyBookkeeping(ev *events.Event, e *events.Entry) error {
	switch {
	case ev.Founded != nil && e.Kind == events.KindFound:
		s.Run, s.Lineage, s.Parent = ev.Founded.Run, ev.Founded.Lineage, ev.Founded.Parent
	case ev.Recovered != nil && e.Kind == events.KindRecover:
		return s.recovered(ev.Recovered)
	case ev.NodeJoined != nil && (e.Kind == events.KindFound || e.Kind == events.KindMembership || e.Kind == events.KindRecover):
		s.setNode(Node{ID: ev.NodeJoined.Node, Version: ev.NodeJoined.Version, Host: ev.NodeJoined.Host})
	case ev.NodeLeft != nil && e.Kind == events.KindMembership:
		return s.removeNode(ev.NodeLeft.Node)
	case ev.RoundOpened != nil && e.Kind == events.KindRound:
		return s.openRound(ev.RoundOpened)
	case ev.RoundFaulted != nil && e.Kind == events.KindFault:
		round := s.Round
		round.Fault = ev.RoundFaulted
		s.setRound(round)
	case e.Kind == events.KindReport && ev.Voted != nil:
		return s.vote(ev.Voted)
	case e.Kind == events.KindReport && ev.Attested != nil:
		return s.attested(ev.Attested)
	case e.Kind == events.KindReport && Reports(ev) != nil:
		return s.countReport(Reports(ev))
	case ev.Requested != nil && e.Kind == events.KindRequest:
		return s.addRequest(ev.Requested)
	case ev.Reported != nil && e.Kind == events.KindReport:
		src := s.Source(ev.Reported.Node)
		src.Sequence = ev.Reported.Sequence
		s.setSource(src)
	default:
		name, _ := ev.Payload()
		return fmt.Errorf("event %s does not belong into an entry of kind %s", name, e.Kind)
	}
	return nil
}

func (s *State) openRound(ev *events.RoundOpened) error {
	if ev.Round != s.Round.Number+1 || len(ev.Members) == 0 {
		return fmt.Errorf("round %d with %d members follows round %d", ev.Round, len(ev.Members), s.Round.Number)
	}
	for i, m := range ev.Members {
		if m.Rank != uint64(i) {
			return fmt.Errorf("member %d of round %d is rank %d", i, ev.Round, m.Rank)
		}
	}
	s.setRound(Round{Number: ev.Round, Fingerprint: ev.Fingerprint, Members: ev.Members})
	s.Votes, s.votesSum = nil, setSum{} // the new trainers have to make room anew
	return nil
}

// Report is what a report has in common with all others: whose it is, of which
// round, and which of the round's counters it moves.
type Report struct {
	Round, Rank uint64
	counter     func(*Round) *[]uint64 // nil: none, a vote or an attestation
}

// Reports reads an event that a rank reports; nil for any other.
func Reports(ev *events.Event) *Report {
	switch {
	case ev.ShadowVerdict != nil:
		v := ev.ShadowVerdict
		return &Report{v.Key.Round, v.Rank, func(r *Round) *[]uint64 { return &r.Disagreements }}
	case ev.Mismatched != nil && ev.Mismatched.Code == events.CodeMissingCall:
		v := ev.Mismatched
		return &Report{v.Got.Round, v.Rank, func(r *Round) *[]uint64 { return &r.Missing }}
	case ev.Mismatched != nil:
		v := ev.Mismatched
		return &Report{v.Got.Round, v.Rank, func(r *Round) *[]uint64 { return &r.Misplaced }}
	case ev.OutcomeDiffers != nil:
		v := ev.OutcomeDiffers
		return &Report{v.Key.Round, v.Rank, func(r *Round) *[]uint64 { return &r.Differing }}
	case ev.Voted != nil:
		return &Report{ev.Voted.Round, ev.Voted.Rank, nil}
	case ev.Attested != nil: // of rank 0's node, about others
		return &Report{ev.Attested.Round, highestRank(ev.Attested), nil}
	case ev.TrainerEnded != nil:
		v := ev.TrainerEnded
		return &Report{v.Round, v.Rank, func(r *Round) *[]uint64 { return &r.Ended }}
	}
	return nil
}

// countReport counts for the current round's ranks only: a late report of an
// older round stays in the log and moves no counter.
func (s *State) countReport(r *Report) error {
	if r.Round != s.Round.Number {
		return nil
	}
	round := s.Round
	if err := round.count(r.counter, r.Rank); err != nil {
		return err
	}
	s.setRound(round)
	return nil
}

// count moves a rank's counter on. It leaves the round it was copied from alone.
func (r *Round) count(counter func(*Round) *[]uint64, rank uint64) error {
	if rank >= uint64(len(r.Members)) {
		return fmt.Errorf("a report of rank %d, but round %d has %d ranks", rank, r.Number, len(r.Members))
	}
	counts := counter(r)
	next := make([]uint64, len(r.Members))
	copy(next, *counts)
	next[rank]++
	*counts = next
	return nil
}
