package determinism

import (
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

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
