package determinism

import (
	"fmt"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// version3 goes on with what version 3 of the log added: marks of this log and of
// a lost one, and a log that goes on under another lineage.
func (g *generator) version3() {
	for i := range 3 {
		g.write(events.Entry{Kind: events.KindMembership, Events: []events.Event{{NodeJoined: &events.NodeJoined{Node: node(i + 1), Version: 3}}}})
	}
	g.openRound(2, 1, 3)
	g.configure("main", nil)
	g.configure("aux", nil)
	g.train(40)
	mark := g.mark("main")
	g.asked(60)
	g.resume(mark, true)
	g.train(40)
	g.resume(mark, true) // once more, from the branch
	mark.Index += 100_000
	g.resume(mark, false) // refused: of the future

	recovered := events.Recovered{Lineage: fmt.Sprintf("%032x", 8), From: events.Ancestor{Lineage: g.state.Lineage, Index: g.state.Index, Chain: g.chain}}
	e := events.Entry{Kind: events.KindRecover, Events: []events.Event{{Recovered: &recovered}, {NodeJoined: &events.NodeJoined{Node: node(4), Version: 3}}}}
	g.write(e)
	e.Version, e.Node, e.Round, e.Predecessor = 3, node(4), g.state.Round.Number, g.state.Index-1
	g.writeAs(e) // decided on the entry before: every replica refuses it
	g.openRound(4, 4)
	g.configure("aux", nil)
	g.configure("main", nil)
	g.train(30)
	lost := g.mark("aux")
	lost.Lineage = fmt.Sprintf("%032x", 5)
	g.resume(lost, false) // refused: it was trained
	g.call("aux", "", fsm.Reset{})
	g.resume(lost, false)
	g.train(40)

	g.openRound(4, 2, 1)
	g.call("main", "", fsm.Configure{Residency: true})
	g.configure("aux", nil)
	for range 60 {
		g.train(2)
		g.vote()
	}
	r := g.state.Round
	g.write(events.Entry{Kind: events.KindReport, Events: []events.Event{
		{Attested: &events.Attested{Round: r.Number, Model: "main", Generation: 3, Index: g.state.Index, What: "active", Value: events.Digest{1}, Ranks: 3}},
		{Attested: &events.Attested{Round: r.Number, Model: "main", Generation: 3, Index: g.state.Index, What: "tensors", Shard: "0/2", Value: events.Digest{2}, Ranks: 1,
			Others: []events.AttestedOther{{Value: events.Digest{3}, Ranks: []uint64{0, 2}, Tensors: []string{"r0c0/weight"}}}, Missing: []uint64{1}}}}})
	require.EqualValues(g.t, 1, g.state.Round.Tally(2).Attesting)
}

// vote has a rank say whether it has room for a seed: also for one that is gone.
func (g *generator) vote() {
	m := g.state.Model("main")
	i := g.rng.IntN(len(m.Config.Slots))
	slot, rank := m.Slots.At(i), uint64(g.rng.IntN(3))
	for range 3 {
		v := &events.Voted{Round: g.state.Round.Number, Rank: rank, Model: m.Name, Generation: m.Generation, Slot: m.Config.Slots[i].Name, Seed: slot.Germinations}
		switch g.rng.IntN(16) {
		case 0:
			v.Failed, v.Reason = true, "out of memory"
		case 1:
			v.Seed++
		case 2:
			v.Round--
		}
		g.write(events.Entry{Kind: events.KindReport, Events: []events.Event{{Voted: v},
			{Reported: &events.Reported{Node: g.state.Round.Members[rank].Node, Sequence: g.state.Index}}}})
		rank = (rank + 1) % 3
	}
}

func (g *generator) mark(model string) *events.Mark {
	return g.state.Mark(g.state.Model(model), g.state.Index, g.chain)
}

func (g *generator) resume(mark *events.Mark, held bool) {
	copied := *mark
	b, sum, err := events.EncodeMark(&copied)
	require.NoError(g.t, err)
	decoded, _, err := events.DecodeMark(b)
	require.NoError(g.t, err)
	g.call(mark.Model, "", fsm.Resume{Mark: decoded, Sum: sum, Held: held})
}
