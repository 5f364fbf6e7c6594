package audit

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/gates"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tester is what *testing.T, *testing.B and *rapid.T have in common.
type tester interface {
	require.TestingT
	Helper()
}

// testLog is the log of a world that trains, as its leader writes it.
type testLog struct {
	t       tester
	rng     *rand.Rand
	ranks   int
	state   *fsm.State
	entries [][]byte
	sink    func([]byte) // where entries go instead; nil: entries
}

func nodeOf(rank int) events.NodeID { return events.NodeID(fmt.Sprintf("%032x", 0xa0d17000+rank)) }

// newLog founds a log and opens its first round.
func newLog(t tester, seed uint64, run string, ranks int) *testLog {
	l := &testLog{t: t, rng: rand.New(rand.NewPCG(seed, 5)), ranks: ranks, state: fsm.New()}
	found := []events.Event{{Founded: &events.Founded{Run: run, Lineage: fmt.Sprintf("%032x", seed+1)}}}
	round := &events.RoundOpened{Round: 1, Fingerprint: "here"}
	for rank := range ranks {
		found = append(found, events.Event{NodeJoined: &events.NodeJoined{Node: nodeOf(rank), Version: events.Version, Host: fmt.Sprintf("host%d", rank)}})
		round.Members = append(round.Members, events.Member{Rank: uint64(rank), Node: nodeOf(rank), Incarnation: fmt.Sprint(rank), Mode: events.ModeKeyed})
	}
	l.write(events.Entry{Kind: events.KindFound, Events: found})
	l.write(events.Entry{Kind: events.KindRound, Events: []events.Event{{RoundOpened: round}}})
	l.call("", fsm.Configure{Slots: slotConfigs("r0c0", "r0c1", "r1c0")})
	return l
}

func slotConfigs(names ...string) []events.SlotConfig {
	var out []events.SlotConfig
	for _, name := range names {
		g := gates.Defaults()
		g.MinBlendingEpochs, g.MinTrainingImprovement = 1, -1000
		out = append(out, events.SlotConfig{Name: name, Gates: g, AutoForward: []events.Gate{events.G1}})
	}
	return out
}

func (l *testLog) write(e events.Entry) {
	l.t.Helper()
	e.Version, e.Node, e.Round, e.Predecessor = events.VersionOf(&e), nodeOf(0), l.state.Round.Number, l.state.Index
	e.Bookkeeping, e.Time = l.state.Bookkeeping(), 1_790_000_000_000_000_000+int64(l.state.Index)*1_000_003
	if e.Key != nil {
		e.Lifecycle = l.state.Lifecycle(e.Key.Model)
	}
	b, err := events.Encode(&e)
	require.NoError(l.t, err)
	next, out, err := fsm.Apply(l.state, decoded(l.t, b))
	require.NoError(l.t, err)
	require.Empty(l.t, out.Refused)
	if l.state = next; l.sink != nil {
		l.sink(b)
	} else {
		l.entries = append(l.entries, b)
	}
}

func decoded(t tester, b []byte) *events.Entry {
	e, err := events.Decode(b)
	require.NoError(t, err)
	return e
}

func (l *testLog) call(slot string, args fsm.Args, observations ...fsm.Observation) {
	l.t.Helper()
	key := fsm.NextKey(l.state, "main", slot, args)
	evs, err := fsm.Decide(l.state, fsm.Call{Key: key, Args: args, Observations: observations})
	require.NoError(l.t, err)
	l.write(events.Entry{Kind: events.KindCall, Key: &key, Site: fmt.Sprintf("train.py:%d", 80+len(slot)), Events: evs})
}

// train writes entries until the log has n.
func (l *testLog) train(n uint64) {
	more := func() bool { return l.state.Index < n }
	for epoch := l.state.Model("main").Epoch + 1; more(); epoch++ {
		for _, c := range l.state.Model("main").Config.Slots {
			if more() {
				l.visit(c.Name)
			}
		}
		if l.rng.IntN(8) == 0 && l.ranks > 1 && more() {
			l.report()
		}
		if more() {
			l.call("", fsm.StepEpoch{Epoch: epoch})
		}
	}
}

func (l *testLog) visit(slot string) {
	seed := l.state.Model("main").Slot(slot).Seed
	switch {
	case seed == nil:
		l.call(slot, fsm.Germinate{Blueprint: "conv", Blend: "sigmoid", Tempo: 3, Algorithm: events.AlgorithmAdd})
	case seed.Stage.Cooldown():
		l.call(slot, fsm.Advance{})
	case seed.Stage == events.StageHolding && l.rng.IntN(2) == 0:
		l.call(slot, fsm.Prune{Reason: "stagnation", Initiator: "policy"})
	default:
		o := fsm.Observation{Slot: slot, Replace: true}
		num := func(scale float64) fsm.Reading[events.Num] {
			v := events.Num(scale * l.rng.Float64())
			return fsm.Reading[events.Num]{Given: true, Value: &v}
		}
		o.Accuracy, o.GradientRatio, o.GradientNorm, o.Health = num(100), num(1), num(2), num(1)
		l.call(slot, fsm.Advance{}, o)
	}
}

// report is a rank's own verdict that is not rank 0's.
func (l *testLog) report() {
	rank := 1 + l.rng.IntN(l.ranks-1)
	key := events.Key{Round: 1, Model: "main", Op: events.OpConfigure, Epoch: -1}
	l.write(events.Entry{Kind: events.KindReport, Events: []events.Event{
		{ShadowVerdict: &events.ShadowVerdict{Rank: uint64(rank), Index: 3, Key: key, Site: "train.py:88", Verdict: events.Verdict{Gate: events.G2}}},
		{Reported: &events.Reported{Node: nodeOf(rank), Sequence: l.state.Source(nodeOf(rank)).Sequence + 1}},
	}})
}

// replica is one rank's node: what it does with the entries of a log.
type replica struct {
	rank    int
	entries [][]byte
	// applied gives another entry to the state machine than the log has, where it
	// does: a wrong transition.
	applied map[uint64]*events.Entry
	images  uint64 // an image after each so many entries; 0: none
}

// rows returns what the replica keeps, like package replica's machine.
func (r *replica) rows(t tester) (records []events.Record, calls []*events.CallID, images map[uint64][]byte) {
	state, chain, diverged := fsm.New(), events.Digest{}, false
	images = map[uint64][]byte{}
	keep := func(index uint64, s *fsm.State) {
		b, err := s.Image()
		require.NoError(t, err)
		images[index] = b
	}
	for i, b := range r.entries {
		index := uint64(i) + 1
		chain = events.Chain(chain, index, b)
		rec := events.Record{Index: index, Chain: chain, RaftIndex: index + 2, Entry: b}
		var call *events.CallID
		e := decoded(t, b)
		if !diverged {
			apply := e
			if wrong := r.applied[index]; wrong != nil {
				apply = wrong
			}
			next, out, err := fsm.Apply(state, apply)
			if err != nil {
				diverged = true
				keep(state.Index, state)
			} else {
				state, rec.Bookkeeping = next, next.Bookkeeping()
				if e.Key != nil {
					rec.Lifecycle = next.Lifecycle(e.Key.Model)
				}
				if e.Kind == events.KindCall && out.Refused == "" {
					call = &events.CallID{Round: e.Key.Round, Model: e.Key.Model, Call: e.Key.Call}
				}
				if r.images > 0 && index%r.images == 0 {
					keep(index, next)
				}
			}
		}
		records, calls = append(records, rec), append(calls, call)
	}
	return records, calls, images
}

// write makes a data directory of it.
func (r *replica) write(t tester, dir string) string {
	dir = filepath.Join(dir, fmt.Sprintf("rank%d", r.rank))
	require.NoError(t, os.MkdirAll(dir, 0o700))
	node, err := json.Marshal(map[string]any{"format": 1, "node": nodeOf(r.rank), "boots": 1, "created": time.Unix(1, 0)})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "node.json"), node, 0o600))
	records, calls, images := r.rows(t)
	h, err := events.OpenHistory(filepath.Join(dir, historyName), events.HistoryOptions{NoSync: true, FlushInterval: time.Hour, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	for i := range records {
		require.NoError(t, h.Append(records[i], calls[i]))
		if image := images[records[i].Index]; image != nil {
			require.NoError(t, h.PutImage(records[i].Index, image))
		}
		if i%50 == 49 {
			require.NoError(t, h.Flush())
		}
	}
	require.NoError(t, h.Close())
	return dir
}

// auditOf audits places quietly.
func auditOf(t *testing.T, places ...string) *Report {
	t.Helper()
	return Run(t.Context(), Config{Places: places, Version: "test"})
}

func text(r *Report) string {
	short := *r
	short.Around = nil
	b, err := json.MarshalIndent(short, "", " ")
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// stateOf applies entries.
func stateOf(t tester, entries [][]byte) *fsm.State {
	s := fsm.New()
	for _, b := range entries {
		s, _ = applied(t, s, decoded(t, b))
	}
	return s
}

func applied(t tester, s *fsm.State, e *events.Entry) (*fsm.State, fsm.Outcome) {
	next, out, err := fsm.Apply(s, e)
	require.NoError(t, err)
	return next, out
}
