package fsm

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
)

// BenchmarkApply is one advance whose gate passed, on a model of 10 and of
// 10,000 slots: it touches one slot and has to cost about the same.
func BenchmarkApply(b *testing.B) {
	for _, slots := range []int{10, 10_000} {
		b.Run(fmt.Sprintf("slots=%d", slots), func(b *testing.B) {
			state, e := advanceOn(b, slots)
			b.ReportAllocs()
			for b.Loop() {
				if _, out, err := Apply(state, e); err != nil || out.Refused != "" {
					b.Fatal(out, err)
				}
			}
		})
	}
}

// BenchmarkDecide is an epoch step in which no seed moves, and an advance, with so
// many seeds that train: a tick looks at each, an advance at one.
func BenchmarkDecide(b *testing.B) {
	for _, slots := range []int{10, 1000, 10_000} {
		state, e := advanceOn(b, slots)
		for name, args := range map[string]Args{"step": StepEpoch{Epoch: state.Model("main").Epoch + 1}, "advance": Advance{}} {
			slot := e.Key.Slot
			if name == "step" {
				slot = ""
			}
			c := Call{Key: NextKey(state, "main", slot, args), Args: args}
			b.Run(fmt.Sprintf("%s/slots=%d", name, slots), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if evs, err := Decide(state, c); err != nil || len(evs) == 0 {
						b.Fatal(evs, err)
					}
				}
			})
		}
	}
}

// advanceOn returns a state in which all slots hold a seed that trains, and the
// entry that moves one of them on to blending.
func advanceOn(t tester, slots int) (*State, *events.Entry) {
	names := make([]string, slots)
	for i := range names {
		names[i] = fmt.Sprintf("r%dc%d", i/100, i%100)
	}
	l := configured(t, names...)
	for _, name := range names {
		l.call(name, plainGermination)
		l.call(name, Advance{})
	}
	for i := range 12 {
		l.epoch(trained(names[slots/2], 50+5*float64(i)))
	}
	args := Advance{}
	key := NextKey(l.state, "main", names[slots/2], args)
	evs, err := Decide(l.state, Call{Key: key, Args: args, Observations: []Observation{trained(names[slots/2], 99)}})
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(evs), 3, "observed, evaluated, changed: %+v", evs)
	return l.state, &events.Entry{Version: events.Version, Kind: events.KindCall, Node: testNode, Round: 1, Predecessor: l.state.Index,
		Key: &key, Lifecycle: l.state.Lifecycle("main"), Bookkeeping: l.state.Bookkeeping(), Events: evs}
}

func trained(slot string, percent float64) Observation {
	o := accuracy(slot, percent)
	o.GradientRatio, o.GradientNorm, o.Health = value(events.Num(0.137)), value(events.Num(1.883)), value(events.Num(0.94))
	o.Exploding, o.Vanishing = value(false), value(false)
	return o
}

const replayedEntries = 50_000

// BenchmarkReplay reads a history from its file, checks the chain, decodes and
// applies every entry and compares both digests with the recorded ones: what
// audit does, and a restart.
func BenchmarkReplay(b *testing.B) {
	h := trainingHistory(b, replayedEntries)
	b.ReportAllocs()
	began := processorTime(b)
	b.ResetTimer()
	for b.Loop() {
		state := New()
		err := h.Range(1, replayedEntries, func(r events.Record) error {
			e, err := events.Decode(r.Entry)
			if err != nil {
				return err
			}
			if state, _, err = Apply(state, e); err != nil {
				return err
			}
			if state.Bookkeeping() != r.Bookkeeping || e.Key != nil && state.Lifecycle(e.Key.Model) != r.Lifecycle {
				return fmt.Errorf("entry %d: other digests", r.Index)
			}
			return nil
		})
		if err != nil || state.Index != replayedEntries {
			b.Fatal(state.Index, err)
		}
	}
	b.ReportMetric(float64(b.N)*replayedEntries/b.Elapsed().Seconds(), "entries/s")
	b.ReportMetric(float64(b.N)*replayedEntries/(processorTime(b)-began).Seconds(), "entries/cpu-s")
}

// processorTime is what this process has used so far, the garbage collector
// included: what one core does in a second, also on a machine that others use.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// trainingHistory is the log of a trainer with 4 slots: every epoch it observes
// and advances each slot and steps. Seeds that hold are pruned, and the slot is
// used again.
func trainingHistory(b *testing.B, n uint64) *events.History {
	b.Helper()
	path := filepath.Join(b.TempDir(), "history.db")
	h, err := events.OpenHistory(path, events.HistoryOptions{NoSync: true})
	require.NoError(b, err)
	t := &benchTrainer{b: b, h: h, state: New(), rng: rand.New(rand.NewPCG(1, 1))}
	t.write(events.Entry{Kind: events.KindFound, Events: []events.Event{{Founded: &events.Founded{Run: "bench", Lineage: "00112233445566778899aabbccddeeff"}}}})
	t.write(events.Entry{Kind: events.KindRound, Events: []events.Event{{RoundOpened: &events.RoundOpened{Round: 1, Members: []events.Member{{Node: benchNode, Incarnation: "1", Mode: "keyed"}}}}}})
	names := []string{"r0c0", "r0c1", "r1c0", "r1c1"}
	t.call("", Configure{Slots: testSlots(names...)})
	for epoch := int64(0); t.state.Index < n; epoch++ {
		for _, name := range names {
			t.visit(name)
		}
		t.call("", StepEpoch{Epoch: epoch})
	}
	require.NoError(b, h.Close())
	h, err = events.OpenHistory(path, events.HistoryOptions{NoSync: true})
	require.NoError(b, err)
	b.Cleanup(func() { h.Close() })
	entries := float64(t.state.Index)
	b.Logf("an entry has %.0f bytes and %.1f events on average", float64(t.bytes)/entries, float64(t.events)/entries)
	return h
}

const benchNode = events.NodeID("00112233445566778899aabbccddeeff")

// benchTrainer is rank 0 with a log in a file.
type benchTrainer struct {
	b             *testing.B
	h             *events.History
	state         *State
	chain         events.Digest
	rng           *rand.Rand
	bytes, events int
}

func (t *benchTrainer) visit(slot string) {
	seed := t.state.Model("main").Slot(slot).Seed
	switch {
	case seed == nil:
		t.call(slot, Germinate{Blueprint: "conv", Blend: "sigmoid", Tempo: 5, Algorithm: events.AlgorithmAdd})
	case seed.Stage.Cooldown():
	case seed.Stage == events.StageHolding && t.rng.IntN(4) == 0:
		t.call(slot, Prune{Reason: "stagnation", Initiator: "policy"})
	default:
		o := trained(slot, 60+30*t.rng.Float64())
		o.GradientRatio, o.GradientNorm, o.Health = value(events.Num(t.rng.Float64()/4)), value(events.Num(2*t.rng.Float64())), value(events.Num(0.6+0.4*t.rng.Float64()))
		o.Contribution = value(events.Num(t.rng.Float64()))
		t.call(slot, Advance{}, o)
	}
}

func (t *benchTrainer) call(slot string, args Args, observations ...Observation) {
	key := NextKey(t.state, "main", slot, args)
	evs, err := Decide(t.state, Call{Key: key, Args: args, Observations: observations})
	require.NoError(t.b, err)
	t.write(events.Entry{Kind: events.KindCall, Key: &key, Site: "train.py:188", Events: evs})
}

func (t *benchTrainer) write(e events.Entry) {
	e.Version, e.Node, e.Round, e.Predecessor = events.Version, benchNode, t.state.Round.Number, t.state.Index
	e.Time, e.Bookkeeping = 1_790_000_000_123_456_789+int64(t.state.Index)*2_345_678, t.state.Bookkeeping()
	if e.Key != nil {
		e.Lifecycle = t.state.Lifecycle(e.Key.Model)
	}
	raw, err := events.Encode(&e)
	require.NoError(t.b, err)
	next, out, err := Apply(t.state, &e)
	require.NoError(t.b, err)
	require.Empty(t.b, out.Refused)
	t.state, t.chain = next, events.Chain(t.chain, next.Index, raw)
	r := events.Record{Index: next.Index, Chain: t.chain, RaftIndex: next.Index, Bookkeeping: next.Bookkeeping(), Entry: raw}
	if e.Key != nil {
		r.Lifecycle = next.Lifecycle(e.Key.Model)
	}
	require.NoError(t.b, t.h.Append(r, nil))
	t.bytes, t.events = t.bytes+len(raw), t.events+len(e.Events)
}
