package determinism

import (
	"bytes"
	"compress/gzip"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

var update = flag.Bool("update", false, "make testdata/history.cbor.gz anew; its digests follow with TestReplayIsTheSameEverywhere -update")

const (
	historyFile = "history.cbor.gz"
	digestsFile = "digests.txt"
)

// TestMakeHistory makes the end of the recorded history, which this version of the
// log added. Without -update it does nothing: what is recorded stays what it is,
// whatever Decide would decide today, and even where another processor rounds
// otherwise.
func TestMakeHistory(t *testing.T) {
	if !*update {
		t.Skip("the history is made anew with -update only")
	}
	g := &generator{t: t, rng: rand.New(rand.NewPCG(20, 27)), state: fsm.New()}
	g.keep(recordedEntries(t)[:released])
	g.version3() // what comes later goes after it
	var file bytes.Buffer
	z, err := gzip.NewWriterLevel(&file, gzip.BestCompression)
	require.NoError(t, err)
	for _, b := range g.entries {
		item, err := cbor.Marshal(b)
		require.NoError(t, err)
		_, err = z.Write(item)
		require.NoError(t, err)
	}
	require.NoError(t, z.Close())
	require.NoError(t, os.WriteFile(filepath.Join("testdata", historyFile), file.Bytes(), 0o644))
	t.Logf("%d entries, %d bytes", len(g.entries), file.Len())
}

// generator is rank 0 and a leader whose trainers do all that they may, and
// more.
type generator struct {
	t       *testing.T
	rng     *rand.Rand
	state   *fsm.State
	entries [][]byte
	chain   events.Digest
}

func node(i int) events.NodeID { return events.NodeID(fmt.Sprintf("%032x", 0xe5be000+i)) }

// released is how many entries were recorded by version 2. They are kept as they
// are: refusals, for one, are worded otherwise today.
const released = 673

func (g *generator) keep(recorded [][]byte) {
	for _, b := range recorded {
		g.take(b)
	}
}

// write completes an entry as the leader does, and applies it.
func (g *generator) write(e events.Entry) {
	e.Version, e.Node, e.Round, e.Predecessor = events.VersionOf(&e), g.writer(), g.state.Round.Number, g.state.Index
	e.Bookkeeping = g.state.Bookkeeping()
	if e.Key != nil {
		e.Lifecycle = g.state.Lifecycle(e.Key.Model)
	}
	g.writeAs(e)
}

func (g *generator) writeAs(e events.Entry) {
	e.Time = 1_790_000_000_000_000_000 + int64(len(g.entries))*1_000_003
	b, err := events.Encode(&e)
	require.NoError(g.t, err)
	g.take(b)
}

func (g *generator) take(b []byte) {
	decoded, err := events.Decode(b)
	require.NoError(g.t, err)
	next, _, err := fsm.Apply(g.state, decoded)
	require.NoError(g.t, err)
	g.state, g.entries, g.chain = next, append(g.entries, b), events.Chain(g.chain, next.Index, b)
}

func (g *generator) writer() events.NodeID {
	if a := g.state.Round.Authority(); a != "" {
		return a
	}
	return node(0)
}

func (g *generator) openRound(nodes ...int) { g.openRoundOf(events.ModeKeyed, nodes...) }

func (g *generator) openRoundOf(mode events.TrainerMode, nodes ...int) {
	ev := &events.RoundOpened{Round: g.state.Round.Number + 1, Fingerprint: fmt.Sprintf("10.0.0.1:29500/3/%d", g.state.Round.Number)}
	for rank, n := range nodes {
		ev.Members = append(ev.Members, events.Member{Rank: uint64(rank), Node: node(n), Incarnation: fmt.Sprintf("%032x", g.rng.Uint64()), Mode: mode})
	}
	g.write(events.Entry{Kind: events.KindRound, Events: []events.Event{{RoundOpened: ev}}})
}

func (g *generator) configure(model string, slots []events.SlotConfig) {
	g.call(model, "", fsm.Configure{Slots: slots})
}

func (g *generator) call(model, slot string, args fsm.Args, observations ...fsm.Observation) {
	c := fsm.Call{Key: fsm.NextKey(g.state, model, slot, args), Observations: observations, Args: args}
	if g.state.Round.Mode() == events.ModeObserve {
		c.Outcomes = g.outcomes(g.state.Model(model), slot)
	}
	evs, err := fsm.Decide(g.state, c)
	require.NoError(g.t, err)
	g.write(events.Entry{Kind: events.KindCall, Key: &c.Key, Site: "train.py:" + fmt.Sprint(80+len(observations)), Events: evs})
}

// train makes calls of both models; most of them make sense.
func (g *generator) train(calls int) {
	for range calls {
		m := g.state.Model([]string{"main", "main", "aux"}[g.rng.IntN(3)])
		slot := m.Config.Slots[g.rng.IntN(len(m.Config.Slots))].Name
		var observed []fsm.Observation
		for range g.rng.IntN(3) {
			observed = append(observed, g.observe(m.Config.Slots[g.rng.IntN(len(m.Config.Slots))].Name))
		}
		if g.rng.IntN(40) == 0 {
			slot = "nowhere"
		}
		if op := g.rng.IntN(10); op < 5 {
			g.call(m.Name, "", fsm.StepEpoch{Epoch: m.Epoch + int64(g.rng.IntN(12)+10)/11}, observed...) // now and then the last one again
		} else if op == 5 {
			g.call(m.Name, "", fsm.Fence{N: m.FenceN + int64(g.rng.IntN(9)+2)/3}, observed...)
		} else {
			if s := m.Slot(slot); s != nil && s.Stage() == events.StageHolding {
				observed = append(observed, fsm.Observation{Slot: slot, Contribution: given(events.Num(g.num()))})
			}
			g.call(m.Name, slot, g.move(m.Slot(slot)), observed...)
		}
	}
}

// move is what a trainer does with a slot, most often.
func (g *generator) move(s *fsm.Slot) fsm.Args {
	if s == nil || g.rng.IntN(6) == 0 {
		return g.anyMove()
	}
	switch s.Stage() {
	case events.StageDormant:
		return g.germination()
	case events.StageGerminated, events.StageTraining:
		if g.rng.IntN(3) == 0 {
			return fsm.Verdict{Verdict: events.Verdict{Gate: events.G2, Passed: true, Score: g.num(), ChecksPassed: []string{"own"}, Message: "as I see it"}}
		}
		return fsm.Advance{}
	case events.StageBlending:
		if g.rng.IntN(4) == 0 {
			return fsm.AlphaTarget{Target: events.Num(g.rng.Float64()), Ticks: int64(g.rng.IntN(5)), Steepness: 12}
		}
		return fsm.Advance{}
	case events.StageHolding:
		if g.rng.IntN(4) == 0 {
			return fsm.SchedulePrune{Ticks: int64(g.rng.IntN(4)), Steepness: 9, Reason: "slow", Initiator: "policy"}
		}
		target := events.StageFossilized
		return fsm.Advance{Target: &target}
	case events.StageFossilized:
		return g.anyMove()
	default:
		return fsm.Advance{}
	}
}

func (g *generator) germination() fsm.Args {
	a := fsm.Germinate{Blueprint: []string{"conv", "norm", "conv", "attention"}[g.rng.IntN(4)], Blend: "sigmoid", Tempo: 1 + int64(g.rng.IntN(4)), Algorithm: events.AlgorithmAdd}
	switch g.rng.IntN(4) {
	case 0:
		a.Blend, a.Algorithm = "gated", events.AlgorithmGate
	case 1:
		target := events.Num(1 - g.rng.Float64()/2)
		a.Blend, a.Target, a.SeedID = "linear", &target, "seed-of-mine"
	}
	return a
}

// anyMove is any operation on a slot, legal or not.
func (g *generator) anyMove() fsm.Args {
	curve := events.Curve(1 + g.rng.IntN(3))
	algorithm := events.AlgorithmMultiply
	stage := events.Stage(g.rng.IntN(11))
	return []fsm.Args{
		g.germination(),
		fsm.Advance{Target: &stage},
		fsm.Verdict{Verdict: events.Verdict{Gate: []events.Gate{events.G0, events.G1, events.G2, events.G3, events.G5}[g.rng.IntN(5)], Passed: g.rng.IntN(2) == 0, ChecksFailed: []string{"no"}}},
		fsm.Prune{Reason: []string{"", "governor_nan"}[g.rng.IntN(2)], Initiator: "policy"},
		fsm.SchedulePrune{Ticks: int64(g.rng.IntN(5)) - 1, Curve: &curve, Steepness: events.Num(g.num()), Reason: "any", Initiator: "governor"},
		fsm.AlphaTarget{Target: events.Num(g.rng.Float64()), Ticks: int64(g.rng.IntN(6)), Curve: &curve, Steepness: 3, Algorithm: &algorithm},
	}[g.rng.IntN(6)]
}

// num is a finite number with all its digits.
func (g *generator) num() float64 { return g.rng.Float64() * 10 }

// observe measures something, all kinds of numbers among it.
func (g *generator) observe(slot string) fsm.Observation {
	o := fsm.Observation{Slot: slot, Replace: true, Accuracy: given(events.Num(40 + 60*g.rng.Float64()))}
	if g.rng.IntN(2) == 0 {
		o.GradientRatio, o.GradientNorm, o.Health = given(events.Num(g.rng.Float64())), given(events.Num(g.num())), given(events.Num(0.7+0.3*g.rng.Float64()))
		o.Exploding, o.Vanishing, o.Contribution = given(false), given(g.rng.IntN(2) == 0), given(events.Num(g.num()))
	}
	switch g.rng.IntN(12) {
	case 0:
		o.Accuracy = given(odd[g.rng.IntN(len(odd))])
	case 1:
		o.Contribution = given(odd[g.rng.IntN(len(odd))])
	case 2:
		o.Health, o.Exploding = fsm.Reading[events.Num]{Given: true}, fsm.Reading[bool]{Given: true} // not measured
	case 3:
		o.GradientRatio = given(odd[g.rng.IntN(len(odd))])
	case 4:
		o.Healthy, o.Exploding = given(g.rng.IntN(2) == 0), given(true)
	case 5:
		o.Replace = false // as the reference counts
	}
	return o
}

func given[T any](v T) fsm.Reading[T] { return fsm.Reading[T]{Given: true, Value: &v} }

// odd are the numbers on which builds and encodings disagree first.
var odd = []events.Num{
	events.Num(math.NaN()), events.Num(math.Float64frombits(0xfff8_0000_dead_beef)), // two of the many NaNs
	events.Num(math.Inf(1)), events.Num(math.Inf(-1)), events.Num(math.Copysign(0, -1)), 0,
	5e-324, 2.2250738585072014e-308, math.MaxFloat64, 65504, 65520, 5.960464477539063e-08, 0.1, 1.0 / 3, 100,
}
