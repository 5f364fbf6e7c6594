package determinism

import (
	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// version2 goes on with what version 2 of the log added: requests, resets, rounds
// of other modes, and what ranks report from them.
func (g *generator) version2() {
	for i := range 3 {
		g.write(events.Entry{Kind: events.KindMembership, Events: []events.Event{{NodeJoined: &events.NodeJoined{Node: node(i + 1), Version: 2}}}})
	}
	g.openRound(3, 1, 2)
	g.configure("main", nil)
	g.configure("aux", nil)
	g.call("main", "", fsm.Reset{})
	g.asked(40)
	g.call("aux", "", fsm.Reset{}, g.observe("a"))
	g.asked(40)
	g.reportsOfRound()

	g.openRoundOf(events.ModeObserve, 1, 2, 3) // requests that wait end with it
	g.configure("main", nil)
	g.configure("aux", nil)
	g.asked(80)
	g.call("main", "", fsm.Reset{})
	g.train(20)
	g.reportsOfRound()
	r := g.state.Round
	last := events.Key{Round: r.Number, Model: "main", Generation: 3, Call: 30, Fence: 9, Op: events.OpReset, Epoch: -1}
	g.write(events.Entry{Kind: events.KindFault, Events: []events.Event{{RoundFaulted: &events.RoundFaulted{Round: r.Number, Code: events.CodeUnavailable, Rank: 1,
		Node: r.Members[1].Node, Index: g.state.Index, Got: last, GotSite: "train.py:90", Want: last, Reason: "its process is gone"}}}})

	g.openRoundOf(events.ModeFollow, 1, 2, 3) // and goes on from what was observed
	g.configure("main", nil)
	g.configure("aux", nil)
	g.asked(80)
	r = g.state.Round
	for rank := range uint64(2) {
		g.write(events.Entry{Kind: events.KindReport, Events: []events.Event{{TrainerEnded: &events.TrainerEnded{Round: r.Number, Rank: rank}},
			{Reported: &events.Reported{Node: r.Members[rank].Node, Sequence: g.state.Index}}}})
	}
}

// asked trains, with requests in between: of living seeds and of others. Those
// that are made last wait for what comes after.
func (g *generator) asked(calls int) {
	for range calls / 5 {
		g.train(5)
		m := g.state.Model([]string{"main", "aux"}[g.rng.IntN(2)])
		g.ask(m, m.Config.Slots[g.rng.IntN(len(m.Config.Slots))].Name)
	}
	for _, m := range g.state.Models {
		for _, s := range m.Config.Slots {
			g.ask(m, s.Name)
		}
	}
}

func (g *generator) ask(m *fsm.Model, slot string) {
	r := events.Requested{Node: node(1 + g.rng.IntN(3)), Model: m.Name, Slot: slot, Action: events.ActionPrune,
		Reason: []string{"", "governor_nan"}[g.rng.IntN(2)], Initiator: "rank 2"}
	ev, _, refused := fsm.DecideRequest(g.state, r)
	if ev == nil || refused != nil {
		return
	}
	e := events.Entry{Kind: events.KindRequest, Events: []events.Event{{Requested: ev}}}
	g.write(e)
	if g.rng.IntN(4) == 0 { // again, decided on the state before: every replica refuses it
		e.Version, e.Node, e.Round, e.Predecessor = 2, g.writer(), g.state.Round.Number, g.state.Index-1
		g.writeAs(e)
	}
}

// outcomes is what a trainer did by itself: to one slot, or at a step to all.
func (g *generator) outcomes(m *fsm.Model, slot string) []events.Outcome {
	var out []events.Outcome
	for _, s := range m.Config.Slots {
		if slot != "" && slot != s.Name {
			continue
		}
		o := events.Outcome{Slot: s.Name, Stage: m.Slot(s.Name).Stage(), Alpha: events.Num(g.rng.Float64())}
		if g.rng.IntN(3) > 0 {
			o.Stage = []events.Stage{events.StageDormant, events.StageGerminated, events.StageTraining, events.StageBlending, events.StageHolding,
				events.StageFossilized, events.StagePruned, events.StageEmbargoed}[g.rng.IntN(8)]
		}
		switch g.rng.IntN(8) {
		case 0:
			o.Alpha = odd[g.rng.IntN(len(odd))]
		case 1, 2:
			passed := g.rng.IntN(2) == 0
			o.Passed = &passed
		}
		out = append(out, o)
	}
	return out
}

// reportsOfRound writes what the ranks of a round that went on have to tell.
func (g *generator) reportsOfRound() {
	cursor, round := g.state.Cursor("main"), g.state.Round
	key := events.Key{Round: round.Number, Model: "main", Generation: 2, Call: cursor.Calls - 1, Fence: cursor.Fence, Op: events.OpAdvance, Slot: "r0c0", Seed: 1, Epoch: 4}
	other := key
	other.Slot = "r0c1"
	passed := true
	member := round.Members[2].Node
	evs := []events.Event{
		{Mismatched: &events.Mismatched{Rank: 2, Code: events.CodeOrderMismatch, Index: g.state.Index, Got: key, GotSite: "train.py:88", Want: other, WantSite: "train.py:90"}},
		{Mismatched: &events.Mismatched{Rank: 1, Code: events.CodeMissingCall, Index: g.state.Index, Got: key, Want: other}},
		{OutcomeDiffers: &events.OutcomeDiffers{Rank: 2, Index: g.state.Index, Key: key, Got: events.Outcome{Slot: "r0c0", Stage: events.StageTraining, Alpha: odd[0], Passed: &passed},
			Want: events.Outcome{Slot: "r0c0", Stage: events.StageBlending, Alpha: 0.1}}},
	}
	old := *evs[0].Mismatched
	old.Got.Round = 1 // of a round that is over: it counts no more
	evs = append(evs, events.Event{Mismatched: &old},
		events.Event{Reported: &events.Reported{Node: member, Sequence: g.state.Source(member).Sequence + 4}})
	g.write(events.Entry{Kind: events.KindReport, Events: evs})
	require.NotZero(g.t, g.state.Round.Tally(2).Misplaced)
}
