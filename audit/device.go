package audit

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// device reads an attestation that names a minority: ranks whose devices hold
// something else than those of most, of one model at one fence. nil if all hold
// the same. together are the events of its entry, s is the state after that.
func (r *recorder) device(a *events.Attested, together []events.Event, s *fsm.State) *Finding {
	if len(a.Others) == 0 {
		return nil
	}
	f := &Finding{Verdict: VerdictDevice, Index: a.Index, Model: a.Model, Generation: a.Generation, Shard: a.Shard, AtFault: []Party{}}
	what := map[string]string{"active": "active set", "tensors": "parameters"}[a.What]
	var members []events.Member
	if s.Round.Number == a.Round {
		members = s.Round.Members
	}
	expected := Group{Value: what + " " + a.Value.Short(), Expected: true, Ranks: agreeing(a, together, members), Places: []string{}}
	if uint64(len(expected.Ranks)) != a.Ranks { // it is not known which
		expected.Value += fmt.Sprintf(" (%d ranks)", a.Ranks)
		expected.Ranks = []uint64{}
	}
	f.Groups = []Group{expected}
	var differences []Difference
	for i := range a.Others {
		o := &a.Others[i]
		differences = append(differences, Difference{what, a.Value.String(), o.Value.String()})
		f.Groups = append(f.Groups, Group{Value: what + " " + o.Value.Short(), Ranks: o.Ranks, Places: []string{}, Tensors: o.Tensors})
		for _, rank := range o.Ranks {
			p := Party{Rank: &rank}
			if rank < uint64(len(members)) {
				p.Node = members[rank].Node
				p.Host = r.nodes[p.Node].host
			}
			f.AtFault = append(f.AtFault, p)
		}
	}
	f.setDifferences(differences)
	slices.SortFunc(f.AtFault, func(x, y Party) int { return cmp.Compare(*x.Rank, *y.Rank) })
	f.Slot, f.Seed = slotOfTensors(a, s)
	if a.Shard != "" {
		what += " of shard " + a.Shard
	}
	f.What = fmt.Sprintf("the devices of %s do not hold the %s that %s", ranks(len(f.AtFault)), what, does(a.Ranks))
	return f
}

func ranks(n int) string {
	if n == 1 {
		return "1 rank"
	}
	return fmt.Sprintf("%d ranks", n)
}

// does says of how many ranks the expected value is.
func does(n uint64) string {
	switch n {
	case 0:
		return "the log says"
	case 1:
		return "1 other does"
	}
	return fmt.Sprintf("%d others do", n)
}

// agreeing are the ranks of the round that are neither named nor silent. Of a
// shard others may hold nothing at all: then they are too many.
func agreeing(a *events.Attested, together []events.Event, members []events.Member) []uint64 {
	not := map[uint64]bool{}
	for i := range together {
		if b := together[i].Attested; b != nil && b.Index == a.Index && b.Model == a.Model {
			for _, rank := range b.Missing {
				not[rank] = true
			}
		}
	}
	for _, o := range a.Others {
		for _, rank := range o.Ranks {
			not[rank] = true
		}
	}
	out := []uint64{}
	for _, m := range members {
		if !not[m.Rank] {
			out = append(out, m.Rank)
		}
	}
	return out
}

// slotOfTensors is the slot of the first tensor that differs, where its name
// begins with one, as those in the arena do, or the first slot that differs.
func slotOfTensors(a *events.Attested, s *fsm.State) (slot string, seed uint64) {
	m := s.Model(a.Model)
	if m == nil || m.Config == nil || m.Generation != a.Generation {
		return "", 0
	}
	for _, o := range a.Others {
		for _, name := range o.Tensors {
			slot, _, ok := strings.Cut(name, "/")
			i, known := m.Config.Slot(slot)
			if !known || ok == (a.What == "active") { // of the active set slots are named
				continue
			}
			if live := m.Slots.At(i).Seed; live != nil {
				seed = live.Count
			}
			return slot, seed
		}
	}
	return "", 0
}

// fenceOf fills in the fence at which a device was found to differ.
func (f *Finding) fenceOf(ctx context.Context, h *history) {
	list := h.entriesAt(ctx, f.Index, 1)
	if len(list) == 0 || list[0].entry.Key == nil {
		return
	}
	kind, epoch := list[0].entry.Kind, list[0].entry.Key.Epoch
	f.Kind, f.Epoch = &kind, &epoch
}

// follows says of a device's difference that the log of the same rank differed
// before, and what its device holds may come of that. logs are the findings
// before it.
func (f *Finding) follows(logs []Finding) {
	for i := range logs {
		before := &logs[i]
		if before.Verdict == VerdictDevice || before.Source == SourceRecorded {
			continue
		}
		for _, p := range before.AtFault {
			if p.Rank != nil && slices.ContainsFunc(f.AtFault, func(q Party) bool { return *q.Rank == *p.Rank }) {
				f.What += fmt.Sprintf("; what rank %d did with entry %d comes before it, and may be why", *p.Rank, before.Index)
				return
			}
		}
	}
}
