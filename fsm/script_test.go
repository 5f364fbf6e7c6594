package fsm

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/gates"
)

// TestScripts runs the golden scripts of testdata, from which the lifecycle can
// be learned by reading. -rewrite writes what the code does into them.
//
//	configure slots=(a,b) [residency] [permissive] [epochs=n] [auto=(G1,G2)] [blueprints=(x,y)]
//	observe SLOT accuracy=80 ratio=0.3 ...   rides with the next call
//	germinate | advance | verdict | prune | schedule_prune | alpha_target SLOT [argument=value ...]
//	step [epoch=n] [times=n] | fence n=... | reset
//	mark NAME | resume NAME                  a checkpoint, and back to it
//	lose                                     the log is gone: another one is founded for the same run
//	recover                                  its quorum is gone: it goes on under another lineage
//	vote SLOT rank=n [failed=why] [seed=n]   what a rank says about its room for a seed
//	request SLOT [seed=n] [number=n] [reason=...] [by=...]
//	round mode=keyed|observe [ranks=n]       opens the next round
//	outcome SLOT stage=... alpha=... [passed=true|false]    rides with the next call, likewise
//	show SLOT | pending
//
// Every call prints its events; a null reading is written as none. After every
// command the state goes through an image, as in a snapshot.
func TestScripts(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txt")
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			s := &script{log: newTestLog(t), marks: map[string][]byte{}}
			datadriven.RunTest(t, path, s.run)
		})
	}
}

type script struct {
	marks    map[string][]byte
	log      *testLog
	pending  []Observation
	outcomes []events.Outcome
}

func (s *script) run(t *testing.T, d *datadriven.TestData) string {
	defer func() { s.log.state = s.log.throughImage() }()
	switch d.Cmd {
	case "configure":
		return s.call("", configureArgs(t, d))
	case "observe":
		s.pending = append(s.pending, observationArgs(t, d))
		return "rides with the next call\n"
	case "step":
		return s.step(t, d)
	case "fence":
		return s.call("", Fence{N: intArg(t, d, "n", 0)})
	case "reset":
		return s.call("", Reset{})
	case "vote":
		return s.vote(t, d)
	case "mark":
		return s.mark(t, d.CmdArgs[0].Key)
	case "resume":
		return s.call("", s.log.resumes(s.marks[d.CmdArgs[0].Key]))
	case "lose":
		s.log = foundTestLog(t, "2")
		return "lineage 2 is founded\n"
	case "recover":
		s.log.recover("3")
		return fmt.Sprintf("lineage %s goes on at entry %d\n", s.log.state.Lineage, s.log.state.Index)
	case "request":
		return s.request(t, d)
	case "round":
		s.log.openRoundOf(stringArg(d, "mode", events.ModeKeyed), int(intArg(t, d, "ranks", 1)))
		return fmt.Sprintf("round %d, %s\n", s.log.state.Round.Number, s.log.state.Round.Mode())
	case "outcome":
		s.outcomes = append(s.outcomes, outcomeArgs(t, d))
		return "rides with the next call\n"
	case "pending":
		return showPending(s.log.state.RequestsOf("main"))
	case "show":
		return showSlot(d.CmdArgs[0].Key, s.log.slot(d.CmdArgs[0].Key))
	default:
		return s.call(d.CmdArgs[0].Key, callArgs(t, d))
	}
}

func (s *script) vote(t *testing.T, d *datadriven.TestData) string {
	name := d.CmdArgs[0].Key
	v := &events.Voted{Round: s.log.state.Round.Number, Rank: uint64(intArg(t, d, "rank", 0)), Model: "main", Generation: s.log.model().Generation,
		Slot: name, Seed: uint64(intArg(t, d, "seed", int64(s.log.slot(name).Germinations))), Failed: d.HasArg("failed"), Reason: stringArg(d, "failed", "")}
	require.Empty(t, BadVote(v))
	s.log.append(events.Entry{Kind: events.KindReport, Events: []events.Event{{Voted: v}}})
	var out strings.Builder
	for _, v := range s.log.state.Votes {
		fmt.Fprintf(&out, "%s: ready %v, failed %v\n", seedName(v.Slot, v.Seed), v.Ready, v.Failed)
	}
	return out.String()
}

func (s *script) mark(t *testing.T, name string) string {
	m, state := s.log.model(), s.log.state
	mark := state.Mark(m, state.Index, s.log.chains[state.Index])
	b, _, err := events.EncodeMark(mark)
	require.NoError(t, err)
	s.marks[name] = b
	return fmt.Sprintf("entry %d of lineage %s: generation %d, epoch %d, %d slots in use\n", mark.Index, mark.Lineage, mark.Record.Generation, mark.Record.Epoch, len(mark.Record.Slots))
}

func (s *script) step(t *testing.T, d *datadriven.TestData) string {
	var out strings.Builder
	epoch := int64(0)
	if m := s.log.model(); m != nil {
		epoch = m.Epoch + 1
	}
	epoch = intArg(t, d, "epoch", epoch)
	for i := range intArg(t, d, "times", 1) {
		out.WriteString(s.call("", StepEpoch{Epoch: epoch + i}))
	}
	return out.String()
}

func (s *script) call(slot string, args Args) string {
	evs := s.log.do(Call{Key: NextKey(s.log.state, "main", slot, args), Args: args, Observations: s.pending, Outcomes: s.outcomes})
	s.pending, s.outcomes = nil, nil
	if len(evs) == 0 {
		return "nothing\n"
	}
	var out strings.Builder
	for i := range evs {
		out.WriteString(showEvent(&evs[i]) + "\n")
	}
	return out.String()
}

func (s *script) request(t *testing.T, d *datadriven.TestData) string {
	index, known, refused := s.log.request(events.Requested{Slot: d.CmdArgs[0].Key, Seed: uint64(intArg(t, d, "seed", 0)),
		Number: uint64(intArg(t, d, "number", 0)), Reason: stringArg(d, "reason", ""), Initiator: stringArg(d, "by", "operator")})
	switch {
	case refused != nil:
		return fmt.Sprintf("refused, %s: %s\n", refused.Code, refused.Reason)
	case known:
		return fmt.Sprintf("entry %d, as before\n", index)
	}
	return fmt.Sprintf("entry %d\n", index)
}

func showPending(list []Request) string {
	if len(list) == 0 {
		return "nothing\n"
	}
	var out strings.Builder
	for _, r := range list {
		fmt.Fprintf(&out, "entry %d: %s %s of generation %d: %q by %s\n",
			r.Index, r.Asked.Action, seedName(r.Asked.Slot, r.Asked.Seed), r.Asked.Generation, r.Asked.Reason, r.Asked.Initiator)
	}
	return out.String()
}

func outcomeArgs(t *testing.T, d *datadriven.TestData) events.Outcome {
	o := events.Outcome{Slot: d.CmdArgs[0].Key, Passed: boolReading(d, "passed").Value}
	parse(t, d, "stage", &o.Stage)
	if alpha := numReading(t, d, "alpha").Value; alpha != nil {
		o.Alpha = *alpha
	}
	return o
}

func configureArgs(t *testing.T, d *datadriven.TestData) Configure {
	if !d.HasArg("slots") {
		return Configure{Residency: d.HasArg("residency")}
	}
	cfg := gates.Defaults()
	cfg.Permissive = d.HasArg("permissive")
	cfg.MinBlendingEpochs = intArg(t, d, "epochs", cfg.MinBlendingEpochs)
	c := Configure{Slots: []events.SlotConfig{}, Residency: d.HasArg("residency")}
	for _, name := range listArg(d, "slots") {
		if name == "" {
			continue // slots=()
		}
		slot := events.SlotConfig{Name: name, Gates: cfg}
		for _, g := range listArg(d, "auto") {
			slot.AutoForward = append(slot.AutoForward, events.Gate(g))
		}
		for _, b := range listArg(d, "blueprints") {
			slot.Blueprints = append(slot.Blueprints, events.Blueprint{Name: b})
		}
		c.Slots = append(c.Slots, slot)
	}
	return c
}

func observationArgs(t *testing.T, d *datadriven.TestData) Observation {
	return Observation{Slot: d.CmdArgs[0].Key, Replace: !d.HasArg("count"),
		Accuracy: numReading(t, d, "accuracy"), GradientRatio: numReading(t, d, "ratio"),
		GradientNorm: numReading(t, d, "norm"), Health: numReading(t, d, "health"), Contribution: numReading(t, d, "contribution"),
		Exploding: boolReading(d, "exploding"), Vanishing: boolReading(d, "vanishing"), Healthy: boolReading(d, "healthy")}
}

func callArgs(t *testing.T, d *datadriven.TestData) Args {
	switch d.Cmd {
	case "germinate":
		g := Germinate{Blueprint: stringArg(d, "blueprint", "conv"), SeedID: stringArg(d, "seed", ""),
			Blend: stringArg(d, "blend", "sigmoid"), Tempo: intArg(t, d, "tempo", 5), Algorithm: events.AlgorithmAdd}
		parse(t, d, "algorithm", &g.Algorithm)
		if d.HasArg("target") {
			g.Target = numReading(t, d, "target").Value
		}
		return g
	case "advance":
		var a Advance
		if d.HasArg("target") {
			a.Target = new(events.Stage)
			parse(t, d, "target", a.Target)
		}
		return a
	case "verdict":
		return Verdict{events.Verdict{Gate: events.Gate(stringArg(d, "gate", "")), Passed: d.HasArg("passed"), Message: "as I see it"}}
	case "prune":
		return Prune{Reason: stringArg(d, "reason", ""), Initiator: stringArg(d, "initiator", "policy")}
	case "schedule_prune":
		return SchedulePrune{Ticks: intArg(t, d, "ticks", 0), Steepness: 12,
			Reason: stringArg(d, "reason", ""), Initiator: stringArg(d, "initiator", "policy")}
	case "alpha_target":
		a := AlphaTarget{Target: *numReading(t, d, "target").Value, Ticks: intArg(t, d, "ticks", 0), Steepness: 12}
		if d.HasArg("curve") {
			a.Curve = new(events.Curve)
			parse(t, d, "curve", a.Curve)
		}
		return a
	}
	d.Fatalf(t, "unknown command")
	return nil
}

func stringArg(d *datadriven.TestData, name, otherwise string) string {
	if list := listArg(d, name); len(list) == 1 {
		return list[0]
	}
	return otherwise
}

func listArg(d *datadriven.TestData, name string) []string {
	for _, arg := range d.CmdArgs {
		if arg.Key == name {
			return arg.Vals
		}
	}
	return nil
}

func intArg(t *testing.T, d *datadriven.TestData, name string, otherwise int64) int64 {
	if s := stringArg(d, name, ""); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			d.Fatalf(t, "%s: %v", name, err)
		}
		return n
	}
	return otherwise
}

func parse(t *testing.T, d *datadriven.TestData, name string, into interface{ UnmarshalText([]byte) error }) {
	if s := stringArg(d, name, ""); s != "" {
		if err := into.UnmarshalText([]byte(s)); err != nil {
			d.Fatalf(t, "%v", err)
		}
	}
}

func numReading(t *testing.T, d *datadriven.TestData, name string) Reading[events.Num] {
	switch s := stringArg(d, name, ""); s {
	case "":
		return Reading[events.Num]{}
	case "none":
		return null[events.Num]()
	default:
		f, err := strconv.ParseFloat(s, 64)
		if err != nil {
			d.Fatalf(t, "%s: %v", name, err)
		}
		return value(events.Num(f))
	}
}

func boolReading(d *datadriven.TestData, name string) Reading[bool] {
	switch stringArg(d, name, "") {
	case "":
		return Reading[bool]{}
	case "none":
		return null[bool]()
	default:
		return value(stringArg(d, name, "") == "true")
	}
}

func seedName(slot string, seed uint64) string { return fmt.Sprintf("%s#%d", slot, seed) }

// showEvent writes an event as the scripts have it, doubles with four digits.
func showEvent(ev *events.Event) string {
	switch {
	case ev.Configured != nil:
		return fmt.Sprintf("configured generation %d, %d slots", ev.Configured.Generation, len(ev.Configured.Slots))
	case ev.Observed != nil:
		return seedName(ev.Observed.Slot, ev.Observed.Seed) + " observed: " + showMetrics(&ev.Observed.Metrics)
	case ev.Germinated != nil:
		g := ev.Germinated
		return fmt.Sprintf("%s germinated: %s, blueprint %s, to alpha %.4g by %s in %d ticks, %s",
			seedName(g.Slot, g.Seed), g.ID, g.Blueprint, g.Target, g.Blend, g.Tempo, g.Algorithm)
	case ev.GateEvaluated != nil:
		own := ""
		if ev.GateEvaluated.Own {
			own = "own "
		}
		return fmt.Sprintf("%s %sgate to %s: %s", seedName(ev.GateEvaluated.Slot, ev.GateEvaluated.Seed), own,
			ev.GateEvaluated.Target, showVerdict(&ev.GateEvaluated.Verdict))
	case ev.Decided != nil:
		return fmt.Sprintf("%s decided: %s", seedName(ev.Decided.Slot, ev.Decided.Seed), showVerdict(&ev.Decided.Verdict))
	case ev.StageChanged != nil:
		c := ev.StageChanged
		return fmt.Sprintf("%s %s -> %s after %d epochs, alpha %.4g, accuracy %+.4g",
			seedName(c.Slot, c.Seed), c.From, c.To, c.EpochsInStage, c.Alpha, float64(c.AccuracyDelta))
	case ev.AmplitudeSet != nil:
		return fmt.Sprintf("%s %s", seedName(ev.AmplitudeSet.Slot, ev.AmplitudeSet.Seed), showAmplitude(&ev.AmplitudeSet.Amplitude))
	default:
		return showRareEvent(ev)
	}
}

func showRareEvent(ev *events.Event) string {
	switch {
	case ev.PruneScheduled != nil:
		p := ev.PruneScheduled
		return fmt.Sprintf("%s prune scheduled: %q by %s", seedName(p.Slot, p.Seed), p.Reason, p.Initiator)
	case ev.Pruned != nil:
		p := ev.Pruned
		return fmt.Sprintf("%s pruned: %q by %s, automatic %t, improvement %.4g, since blending %.4g, %d epochs",
			seedName(p.Slot, p.Seed), p.Reason, p.Initiator, p.Auto, float64(p.Improvement), float64(p.BlendDelta), p.Epochs)
	case ev.Fossilized != nil:
		f := ev.Fossilized
		return fmt.Sprintf("%s fossilized: improvement %.4g, since blending %.4g, %d epochs",
			seedName(f.Slot, f.Seed), float64(f.Improvement), float64(f.BlendDelta), f.Epochs)
	case ev.Dwelled != nil:
		return fmt.Sprintf("%s dwelled %d ticks", seedName(ev.Dwelled.Slot, ev.Dwelled.Seed), ev.Dwelled.EpochsInStage)
	case ev.EpochStepped != nil:
		return fmt.Sprintf("epoch %d stepped, tick %d", ev.EpochStepped.Epoch, ev.EpochStepped.Tick)
	case ev.Fenced != nil:
		return fmt.Sprintf("fence %d", ev.Fenced.N)
	case ev.Refused != nil:
		return fmt.Sprintf("refused, %s: %s", ev.Refused.Code, ev.Refused.Reason)
	case ev.RequestDone != nil && ev.RequestDone.Skipped != "":
		return fmt.Sprintf("request of entry %d: nothing done, %s", ev.RequestDone.Request, ev.RequestDone.Skipped)
	case ev.RequestDone != nil:
		return fmt.Sprintf("request of entry %d: done", ev.RequestDone.Request)
	case ev.Fact != nil:
		return showFact(ev.Fact)
	case ev.Residency != nil:
		return fmt.Sprintf("seeds wait for the votes of %d ranks", ev.Residency.Ranks)
	case ev.Resided != nil:
		return fmt.Sprintf("%s has room on all ranks", seedName(ev.Resided.Slot, ev.Resided.Seed))
	case ev.Rewound != nil:
		r := ev.Rewound
		return fmt.Sprintf("back to entry %d of lineage %s: generation %d, epoch %d, adopted %t", r.Index, r.Lineage, r.Model.Generation, r.Model.Epoch, r.Adopted)
	default:
		return fmt.Sprintf("%+v", ev)
	}
}

func showFact(f *events.Fact) string {
	s := fmt.Sprintf("%s is %s, alpha %.4g", seedName(f.Slot, f.Seed), f.Stage, f.Amplitude.Alpha)
	if f.ID != "" {
		s += fmt.Sprintf(", %s of blueprint %s", f.ID, f.Blueprint)
	}
	if f.Passed != nil {
		s += fmt.Sprintf(", gate passed %t", *f.Passed)
	}
	if f.Reason != "" {
		s += fmt.Sprintf(", because %q", f.Reason)
	}
	if f.Unexpected != "" {
		s += "; UNEXPECTED: " + f.Unexpected
	}
	return s
}

func showVerdict(v *events.Verdict) string {
	word := "failed"
	if v.Passed {
		word = "passed"
	}
	return fmt.Sprintf("%s %s, score %.4g, + %v, - %v, %q", v.Gate, word, v.Score, v.ChecksPassed, v.ChecksFailed, v.Message)
}

func showMetrics(m *events.Metrics) string {
	s := fmt.Sprintf("epochs %d, %d in stage; accuracy %.4g, %.4g at stage start", m.Epochs, m.EpochsInStage, float64(m.Accuracy), float64(m.AccuracyStage))
	for _, r := range []struct {
		name  string
		value *events.Num
	}{{"ratio", m.GradientRatio}, {"norm", m.GradientNorm}, {"health", m.Health}, {"contribution", m.Contribution}} {
		if r.value != nil {
			s += fmt.Sprintf("; %s %.4g", r.name, float64(*r.value))
		}
	}
	if m.Exploding != nil {
		s += fmt.Sprintf("; exploding %t", *m.Exploding)
	}
	if m.Vanishing != nil {
		s += fmt.Sprintf("; vanishing %t", *m.Vanishing)
	}
	if m.Unhealthy {
		s += "; unhealthy"
	}
	return s
}

func showAmplitude(a *events.Amplitude) string {
	c := &a.Controller
	s := fmt.Sprintf("alpha %.4g", a.Alpha)
	if a.Alpha != c.Alpha {
		s += fmt.Sprintf(" (controller %.4g)", c.Alpha)
	}
	return s + fmt.Sprintf(", %s %.4g -> %.4g, tick %d of %d, %s", c.Mode, c.Start, c.Target, c.Done, c.Total, c.Curve)
}

func showSlot(name string, s *Slot) string {
	if s.Seed == nil {
		return fmt.Sprintf("%s: DORMANT, %d seeds so far\n", name, s.Germinations)
	}
	d := s.Seed
	out := fmt.Sprintf("%s: %s, before %s\n  %s\n  %s\n", seedName(name, d.Count), d.Stage, d.Previous, showAmplitude(&d.Amplitude), showMetrics(&d.Metrics))
	var flags []string
	for _, f := range []struct {
		set  bool
		name string
	}{{d.Isolated(), "isolated"}, {d.Frozen(), "frozen"}, {d.Gated(), "gated"}} {
		if f.set {
			flags = append(flags, f.name)
		}
	}
	if d.Pending != nil {
		flags = append(flags, fmt.Sprintf("prune pending: %q by %s", d.Pending.Reason, d.Pending.Initiator))
	}
	if d.Pruned != nil {
		flags = append(flags, fmt.Sprintf("pruned: %q by %s", d.Pruned.Reason, d.Pruned.Initiator))
	}
	if d.Absent {
		flags = append(flags, "absent")
	}
	if len(flags) > 0 {
		out += "  " + strings.Join(flags, ", ") + "\n"
	}
	return out
}
