package audit

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// recordedMax is how many findings of the log itself are listed, and how many
// branches.
const recordedMax = 100

// recorder collects what a log says about ranks whose trainers differed, and
// where it branches, while it is replayed.
type recorder struct {
	findings []Finding
	more     int
	own      []uint64 // by rank
	branches []Branch
	nodes    map[events.NodeID]nodeFacts
	round    roundFacts

	before  uint64 // findings about earlier entries are only counted
	skipped uint64
}

// nodeFacts is who a node is, by the log.
type nodeFacts struct {
	rank *uint64
	host string
	left uint64 // the entry by which it left the world; 0: it did not, or came back
	why  string
}

// see is told of every entry, with the state after it.
func (r *recorder) see(index uint64, e *events.Entry, out fsm.Outcome, s *fsm.State) {
	if out.Refused != "" {
		return
	}
	if b := BranchOf(index, e); b != nil {
		b.Run = cmp.Or(s.Run, b.Run)
		r.branch(*b)
	}
	if e.Kind == events.KindCall {
		return
	}
	for i := range e.Events {
		ev := &e.Events[i]
		switch {
		case ev.Founded != nil && ev.Founded.Parent != nil:
			p := ev.Founded.Parent
			r.branch(Branch{Index: index, Kind: BranchContinues, Run: p.Run, Lineage: p.Lineage, From: Point{p.Index, p.Chain}})
		case ev.NodeJoined != nil, ev.NodeLeft != nil, ev.RoundOpened != nil:
			r.membership(index, ev)
		case ev.ShadowVerdict != nil:
			rank := ev.ShadowVerdict.Rank
			if rank < uint64(len(s.Round.Members)) {
				r.own = append(r.own, make([]uint64, max(0, int(rank)+1-len(r.own)))...)
				r.own[rank]++
			}
		case ev.Attested != nil:
			if f := r.device(ev.Attested, e.Events, s); f != nil {
				r.add(f, index, ev.Attested.Round, s)
			}
		default:
			if f := recordedFinding(ev); f != nil {
				r.add(f, index, e.Round, s)
			}
		}
	}
}

// branch notes a branch; of a governor's many, the latest.
func (r *recorder) branch(b Branch) {
	if len(r.branches) == recordedMax {
		r.branches = slices.Delete(r.branches, 0, 1)
	}
	r.branches = append(r.branches, b)
}

// BranchOf reads an entry that takes a model back to a mark, or goes on under a
// new lineage; nil for any other. The model's entries after the mark's, up to
// this one, are a branch that was left.
func BranchOf(index uint64, e *events.Entry) *Branch {
	for i := range e.Events {
		if p := e.Events[i].Recovered; p != nil {
			return &Branch{Index: index, Kind: BranchRecovered, Lineage: p.From.Lineage, From: Point{p.From.Index, p.From.Chain}}
		}
	}
	if e.Key == nil {
		return nil
	}
	for i := range e.Events {
		w := e.Events[i].Rewound
		if w == nil {
			continue
		}
		b := &Branch{Index: index, Kind: BranchRewound, Run: w.Run, Lineage: w.Lineage, Model: e.Key.Model, From: Point{w.Index, w.Chain}}
		switch {
		case w.Adopted: // of a log that is lost
			b.Kind = BranchAdopted
		case w.Index+1 < index:
			b.LeftFrom, b.LeftTo = w.Index+1, index-1
		}
		return b
	}
	return nil
}

func (r *recorder) add(f *Finding, index, round uint64, s *fsm.State) {
	if f.Index == 0 {
		f.Index = index
	}
	switch {
	case f.Index < r.before:
		r.skipped++
		return
	case len(r.findings) == recordedMax:
		r.more++
		return
	}
	f.Source, f.Round = SourceRecorded, round
	f.What += fmt.Sprintf(" (recorded by entry %d)", index)
	if m := s.Model(f.Model); m != nil && m.Config != nil {
		if slot := m.Slot(f.Slot); slot != nil {
			f.StageBefore = slot.Stage().String()
			f.StageAfter = f.StageBefore
		}
	}
	r.findings = append(r.findings, *f)
}

// recordedFinding reads an event that says that a rank's trainer did something
// else than rank 0's; nil for any other.
func recordedFinding(ev *events.Event) *Finding {
	switch {
	case ev.RoundFaulted != nil && ev.RoundFaulted.Code == events.CodeDiverged:
		f := ev.RoundFaulted
		out := &Finding{Verdict: VerdictApply, Index: f.Index, AtFault: []Party{}, What: fmt.Sprintf("round %d ended: %s", f.Round, f.What())}
		if f.Node != "" {
			out.AtFault = []Party{{Rank: &f.Rank, Node: f.Node}}
		}
		return out
	case ev.RoundFaulted != nil && ev.RoundFaulted.Code != events.CodeUnavailable:
		f := ev.RoundFaulted
		out := callFinding(f.Rank, f.Index, f.Got, f.GotSite, f.Want, f.WantSite)
		out.What = "round " + fmt.Sprint(f.Round) + " ended: " + f.What()
		return out
	case ev.Mismatched != nil:
		m := ev.Mismatched
		out := callFinding(m.Rank, m.Index, m.Got, m.GotSite, m.Want, m.WantSite)
		if m.Code == events.CodeMissingCall && !m.Got.Op.Fence() {
			out.Verdict = VerdictExtra
		}
		out.What = fmt.Sprintf("rank %d called %s where rank 0 called %s, and the round went on", m.Rank, m.Got.At(m.GotSite), m.Want.At(m.WantSite))
		return out
	case ev.OutcomeDiffers != nil:
		d := ev.OutcomeDiffers
		out := &Finding{Verdict: VerdictPayload, Index: d.Index,
			What: fmt.Sprintf("rank %d has another outcome of %s than rank 0", d.Rank, d.Key.At(d.Site))}
		out.about(&d.Key)
		out.Slot = d.Want.Slot
		out.Sites = []Site{{Rank: 0, Outcome: &d.Want}, {Rank: d.Rank, Call: &d.Key, Site: d.Site, Outcome: &d.Got}}
		out.setDifferences(compareFields(fieldsOf("outcome", d.Want), fieldsOf("outcome", d.Got)))
		out.AtFault = []Party{{Rank: &d.Rank}}
		return out
	}
	return nil
}

// callFinding is about a rank's call that is not rank 0's.
func callFinding(rank, index uint64, got events.Key, gotSite string, want events.Key, wantSite string) *Finding {
	f := &Finding{Index: index, AtFault: []Party{{Rank: &rank}}}
	switch {
	case got.Same(want):
		f.Verdict = VerdictPayload // with other arguments
	case got.Op.Fence() && !want.Op.Fence():
		f.Verdict = VerdictMissing
	case want.Op.Fence() && !got.Op.Fence():
		f.Verdict = VerdictExtra
	default:
		f.Verdict = VerdictOrder
	}
	f.about(&want)
	f.Sites = []Site{{Rank: 0, Call: &want, Site: wantSite}, {Rank: rank, Call: &got, Site: gotSite}}
	f.setDifferences(compareFields(fieldsOf("call", want), fieldsOf("call", got)))
	return f
}

// about fills in what a call is about.
func (f *Finding) about(k *events.Key) {
	if k == nil {
		return
	}
	epoch := k.Epoch
	f.Round, f.Model, f.Generation, f.Epoch, f.Slot, f.Seed = k.Round, k.Model, k.Generation, &epoch, k.Slot, k.Seed
}
