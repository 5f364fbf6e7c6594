package fsm

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/esperd/esperd/events"
)

// Vote is what the ranks say about the room for one seed on their devices.
type Vote struct {
	Model  string        `cbor:"1,keyasint"`
	Slot   string        `cbor:"2,keyasint"`
	Seed   uint64        `cbor:"3,keyasint"`
	Ready  []uint64      `cbor:"4,keyasint,omitempty"` // ranks, ascending
	Failed []FailedVote  `cbor:"5,keyasint,omitempty"` // by rank
	leaf   events.Digest // of the above
}

// FailedVote is one rank that has no room.
type FailedVote struct {
	Rank   uint64 `cbor:"1,keyasint,omitempty"`
	Reason string `cbor:"2,keyasint,omitempty"`
}

func compareVotes(a, b Vote) int {
	if c := strings.Compare(a.Model, b.Model); c != 0 {
		return c
	}
	if c := strings.Compare(a.Slot, b.Slot); c != 0 {
		return c
	}
	return cmp.Compare(a.Seed, b.Seed)
}

// notResident is the check that fails while a seed waits for votes.
const notResident = "not_resident"

// vote turns residency on for the round, as the configuration asks for.
func (t *turn) vote(a Configure) {
	if ranks := uint64(len(t.s.Round.Members)); a.Residency {
		t.resides = true
		t.emit(events.Event{Residency: &events.Residency{Ranks: ranks}})
	}
}

// waits reports whether a seed may not enter a stage yet, for lack of votes.
func (t *turn) waits(i int, to events.Stage) bool {
	return t.resides && to == events.StageTraining && t.slot(i).Seed.Absent
}

// votes returns the votes on the living seeds of the model, in slot order.
func (t *turn) votes() []slotVote {
	var out []slotVote
	for _, v := range t.s.Votes {
		if i, ok := t.m.Config.Slot(v.Slot); ok && v.Model == t.m.Name {
			if seed := t.slot(i).Active(); seed != nil && seed.Count == v.Seed && seed.Stage != events.StageFossilized {
				out = append(out, slotVote{i, v})
			}
		}
	}
	slices.SortFunc(out, func(a, b slotVote) int { return cmp.Compare(a.slot, b.slot) })
	return out
}

type slotVote struct {
	slot int
	Vote
}

// takeFailures prunes the seeds for which some rank has no room.
func (t *turn) takeFailures() {
	for _, v := range t.votes() {
		if len(v.Failed) == 0 {
			continue
		}
		f := v.Failed[0]
		reason := fmt.Sprintf("rank %d has no room for it", f.Rank)
		if f.Reason != "" {
			reason += ": " + f.Reason
		}
		reason = strings.ToValidUTF8(reason[:min(len(reason), maxText)], "")
		t.remove(v.slot, reason, fmt.Sprintf("rank %d", f.Rank))
	}
}

// takeResidency lets those seeds train from here on for which all ranks have
// room.
func (t *turn) takeResidency() {
	needed := t.s.Cursor(t.m.Name).Residency
	for _, v := range t.votes() {
		if t.slot(v.slot).Seed.Absent && uint64(len(v.Ready)) >= needed && needed > 0 {
			t.emit(events.Event{Resided: &events.Resided{Slot: v.Slot, Seed: v.Seed}})
		}
	}
}

// BadVote says what is wrong with a vote; empty if nothing is. What has become of
// its seed meanwhile is none of it: a late vote changes nothing.
func BadVote(v *events.Voted) string {
	for _, name := range []string{v.Model, v.Slot} {
		if why := badString(name, maxName); why != "" {
			return "name: " + why
		}
	}
	if !v.Failed && v.Reason != "" {
		return "reason: expected one only where there is no room"
	}
	if why := badString(v.Reason, maxText); why != "" {
		return "reason: " + why
	}
	return ""
}

// vote assigns a rank's vote. One of another round, or on a seed that is not
// there any more, stays in the log and changes nothing.
func (s *State) vote(ev *events.Voted) error {
	if ev.Round != s.Round.Number {
		return nil
	}
	if ev.Rank >= uint64(len(s.Round.Members)) {
		return fmt.Errorf("a vote of rank %d, but round %d has %d ranks", ev.Rank, s.Round.Number, len(s.Round.Members))
	}
	m := s.Model(ev.Model)
	if m == nil || m.Generation != ev.Generation {
		return nil
	}
	slot := m.Slot(ev.Slot)
	if slot == nil || slot.Active() == nil || slot.Seed.Count != ev.Seed || slot.Seed.Stage == events.StageFossilized || !ev.Failed && !slot.Seed.Absent {
		return nil
	}
	v := Vote{Model: ev.Model, Slot: ev.Slot, Seed: ev.Seed}
	if i, ok := slices.BinarySearchFunc(s.Votes, v, compareVotes); ok {
		v = s.Votes[i]
	}
	if ev.Failed {
		v.Failed = upsert(v.Failed, FailedVote{ev.Rank, ev.Reason}, func(a, b FailedVote) int { return cmp.Compare(a.Rank, b.Rank) }, nil)
	} else {
		v.Ready = upsert(v.Ready, ev.Rank, cmp.Compare[uint64], nil)
	}
	s.setVote(v)
	return nil
}

func (s *State) setVote(v Vote) {
	v.leaf = voteLeaf(v)
	s.Votes = upsert(s.Votes, v, compareVotes, func(old *Vote) {
		if old != nil {
			s.votesSum = s.votesSum.sub(old.leaf)
		}
		s.votesSum = s.votesSum.add(v.leaf)
	})
}

func voteLeaf(v Vote) events.Digest {
	var b recordBuffer
	r := b.record("vote")
	r = r.str(1, v.Model)
	r = r.str(2, v.Slot)
	r = r.uint(3, v.Seed)
	for _, rank := range v.Ready {
		r = r.uint(4, rank+1)
	}
	for _, f := range v.Failed {
		r = r.uint(5, f.Rank+1)
		r = r.str(6, f.Reason)
	}
	return r.digest()
}

// dropVotes removes the votes that have been counted, and those on seeds that are
// gone: all of them where the model begins anew or goes back to a mark.
func (s *State) dropVotes(m *Model, evs []events.Event) {
	if len(s.Votes) == 0 {
		return
	}
	anew := false
	for i := range evs {
		anew = anew || evs[i].Configured != nil || evs[i].Rewound != nil
	}
	kept := make([]Vote, 0, len(s.Votes))
	for _, v := range s.Votes {
		if v.Model == m.Name && (anew || !m.votesOn(&v)) {
			s.votesSum = s.votesSum.sub(v.leaf)
			continue
		}
		kept = append(kept, v)
	}
	s.Votes = kept
}

// votesOn reports whether a vote still waits for a fence.
func (m *Model) votesOn(v *Vote) bool {
	slot := m.Slot(v.Slot)
	return slot != nil && slot.Active() != nil && slot.Seed.Count == v.Seed && (slot.Seed.Absent || len(v.Failed) > 0)
}

// highestRank returns the highest rank that differs; 0: none.
func highestRank(ev *events.Attested) (rank uint64) {
	for i := range ev.Others {
		for _, r := range ev.Others[i].Ranks {
			rank = max(rank, r)
		}
	}
	return rank
}

// attested counts the ranks whose devices have another content than most.
func (s *State) attested(ev *events.Attested) error {
	if ev.Round != s.Round.Number || len(ev.Others) == 0 {
		return nil
	}
	round := s.Round
	for i := range ev.Others {
		for _, rank := range ev.Others[i].Ranks {
			if err := round.count(func(r *Round) *[]uint64 { return &r.Attesting }, rank); err != nil {
				return err
			}
		}
	}
	s.setRound(round)
	return nil
}
