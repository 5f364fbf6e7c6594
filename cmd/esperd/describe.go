package main

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// describe says in words what an entry did.
func describe(e *api.Entry) string {
	var parts []string
	observed := 0
	for i := range e.Events {
		if e.Events[i].Observed != nil {
			observed++
			continue
		}
		rest := e.Events[i+1:]
		if g := e.Events[i].GateEvaluated; g != nil {
			parts = append(parts, describeGate(g, rest))
			continue
		}
		if text := describeEvent(&e.Events[i], e.Events[:i]); text != "" {
			parts = append(parts, text)
		}
	}
	if observed > 0 {
		parts = append(parts, fmt.Sprintf("%d observed", observed))
	}
	text := strings.Join(parts, "; ")
	if text == "" {
		text = describeReport(e.Events)
	}
	if e.Refused != "" {
		text = "REFUSED by every replica: " + e.Refused + " (it said: " + text + ")"
	}
	return text
}

// describeGate leads with the stage change that the gate allowed, if any did.
func describeGate(g *events.GateEvaluated, rest []events.Event) string {
	result, why := "passed", g.Verdict.Message
	if !g.Verdict.Passed {
		result, why = "failed", strings.Join(g.Verdict.ChecksFailed, ", ")
	}
	gate := fmt.Sprintf("%s %s", g.Verdict.Gate, result)
	if g.Own {
		gate += " (the trainer's own verdict)"
	}
	if why != "" {
		gate += ": " + why
	}
	for i := range rest {
		if s := rest[i].StageChanged; s != nil && s.Slot == g.Slot && s.To == g.Target {
			return stageText(s) + ", " + gate
		}
	}
	return seedText(g.Slot, g.Seed) + " " + gate
}

// describeEvent is for all events but gates and observations. before are the
// events of the same entry that came earlier.
func describeEvent(ev *events.Event, before []events.Event) string {
	switch {
	case ev.StageChanged != nil:
		s := ev.StageChanged
		for i := range before {
			if g := before[i].GateEvaluated; g != nil && g.Slot == s.Slot && g.Target == s.To {
				return "" // the gate told it
			}
		}
		return stageText(s)
	case ev.Germinated != nil:
		g := ev.Germinated
		return fmt.Sprintf("%s germinated: %s, blends %s over %d ticks to %s", seedText(g.Slot, g.Seed), g.Blueprint, g.Blend, g.Tempo, alphaText(g.Target))
	case ev.Decided != nil:
		d := ev.Decided
		return fmt.Sprintf("%s %s failed: %s", seedText(d.Slot, d.Seed), d.Verdict.Gate, strings.Join(d.Verdict.ChecksFailed, ", "))
	case ev.AmplitudeSet != nil:
		a := ev.AmplitudeSet
		text := fmt.Sprintf("%s alpha %s", seedText(a.Slot, a.Seed), alphaText(a.Amplitude.Alpha))
		if c := a.Amplitude.Controller; c.Mode != events.ModeHold {
			text += fmt.Sprintf(" (to %s, tick %d of %d)", alphaText(c.Target), c.Done, c.Total)
		}
		return text
	case ev.PruneScheduled != nil:
		p := ev.PruneScheduled
		return fmt.Sprintf("%s is to be pruned%s", seedText(p.Slot, p.Seed), reasonText(p.Reason, p.Initiator))
	case ev.Pruned != nil:
		p := ev.Pruned
		return fmt.Sprintf("%s pruned%s", seedText(p.Slot, p.Seed), reasonText(p.Reason, p.Initiator))
	case ev.Fossilized != nil:
		f := ev.Fossilized
		return fmt.Sprintf("%s fossilized: %s, accuracy %+.2f since it germinated", seedText(f.Slot, f.Seed), f.Blueprint, float64(f.Improvement))
	case ev.Dwelled != nil:
		d := ev.Dwelled
		return fmt.Sprintf("%s cools down, epoch %d", seedText(d.Slot, d.Seed), d.EpochsInStage)
	case ev.EpochStepped != nil:
		return fmt.Sprintf("epoch %d stepped", ev.EpochStepped.Epoch)
	case ev.Fenced != nil:
		return fmt.Sprintf("fence %d", ev.Fenced.N)
	case ev.Refused != nil:
		return fmt.Sprintf("refused, %s: %s", ev.Refused.Code, ev.Refused.Reason)
	case ev.Fact != nil:
		return factText(ev.Fact)
	default:
		return describeBookkeeping(ev)
	}
}

// describeBookkeeping is for the events that touch no slot.
func describeBookkeeping(ev *events.Event) string {
	switch {
	case ev.Founded != nil:
		text := fmt.Sprintf("log of run %s founded, lineage %.12s", ev.Founded.Run, ev.Founded.Lineage)
		if p := ev.Founded.Parent; p != nil {
			text += fmt.Sprintf(", continues run %s, lineage %.12s, from entry %d", p.Run, p.Lineage, p.Index)
		}
		return text
	case ev.NodeJoined != nil:
		return fmt.Sprintf("node %s joins from %s", nodeText(ev.NodeJoined.Node), orDash(ev.NodeJoined.Host))
	case ev.NodeLeft != nil:
		return fmt.Sprintf("node %s leaves: %s", nodeText(ev.NodeLeft.Node), ev.NodeLeft.Reason)
	case ev.RoundOpened != nil:
		r := ev.RoundOpened
		mode := ""
		if len(r.Members) > 0 && r.Members[0].Mode != events.ModeKeyed && r.Members[0].Mode != "" {
			mode = " in the mode " + r.Members[0].Mode
		}
		return fmt.Sprintf("round %d opens with %s%s, fingerprint %q", r.Round, plural(len(r.Members), "rank"), mode, r.Fingerprint)
	case ev.RoundFaulted != nil:
		return faultText(ev.RoundFaulted)
	case ev.Configured != nil:
		c := ev.Configured
		names := make([]string, 0, len(c.Slots))
		for _, s := range c.Slots {
			names = append(names, s.Name)
		}
		return fmt.Sprintf("generation %d starts with %s: %s", c.Generation, plural(len(names), "slot"), shortList(names))
	case ev.Reported != nil:
		return "" // the reports themselves say more
	case ev.ShadowVerdict != nil:
		v := ev.ShadowVerdict
		own, decided := "passed", "failed"
		if !v.Verdict.Passed {
			own, decided = decided, own
		}
		return fmt.Sprintf("rank %d alone: %s %s for %s, where rank 0 decided %s (entry %d)", v.Rank, v.Verdict.Gate, own, seedText(v.Key.Slot, v.Key.Seed), decided, v.Index)
	}
	if text := cmp.Or(describeSince2(ev), describeSince3(ev)); text != "" {
		return text
	}
	name, _ := ev.Payload()
	if name == "" {
		return "an event that this esperd does not know: upgrade it"
	}
	return strings.ReplaceAll(name, "_", " ")
}

// describeSince2 is for the bookkeeping events of version 2 of the log.
func describeSince2(ev *events.Event) string {
	switch {
	case ev.Requested != nil:
		r := ev.Requested
		return fmt.Sprintf("%s of %s%s asked for%s", r.Action, seedText(r.Slot, r.Seed), ofModel(r.Model), reasonText(r.Reason, r.Initiator))
	case ev.RequestDone != nil && ev.RequestDone.Skipped != "":
		return fmt.Sprintf("what entry %d asked for is not done: %s", ev.RequestDone.Request, ev.RequestDone.Skipped)
	case ev.RequestDone != nil:
		return fmt.Sprintf("as entry %d asked", ev.RequestDone.Request)
	case ev.Mismatched != nil:
		return mismatchText(ev.Mismatched)
	case ev.TrainerEnded != nil:
		return fmt.Sprintf("the trainer of rank %d has ended", ev.TrainerEnded.Rank)
	case ev.OutcomeDiffers != nil:
		d := ev.OutcomeDiffers
		return fmt.Sprintf("rank %d alone: %s after %s%s, where rank 0 has %s (entry %d)", d.Rank, outcomeText(&d.Got), keyText(&d.Key), siteText(d.Site), outcomeText(&d.Want), d.Index)
	}
	return ""
}

// describeSince3 is for the events of version 3.
func describeSince3(ev *events.Event) string {
	switch {
	case ev.Rewound != nil:
		r := ev.Rewound
		text := fmt.Sprintf("BACK to entry %d: generation %d, epoch %d", r.Index, r.Model.Generation, r.Model.Epoch)
		if r.Adopted {
			text += fmt.Sprintf(", of the lost log %.12s", r.Lineage)
		}
		return text
	case ev.Residency != nil:
		return fmt.Sprintf("seeds wait for room on %s", plural(int(ev.Residency.Ranks), "rank"))
	case ev.Voted != nil:
		v := ev.Voted
		if v.Failed {
			return fmt.Sprintf("rank %d has no room for %s%s%s", v.Rank, seedText(v.Slot, v.Seed), ofModel(v.Model), reasonText(v.Reason, ""))
		}
		return fmt.Sprintf("rank %d has room for %s%s", v.Rank, seedText(v.Slot, v.Seed), ofModel(v.Model))
	case ev.Resided != nil:
		return fmt.Sprintf("%s has room on all ranks", seedText(ev.Resided.Slot, ev.Resided.Seed))
	case ev.Attested != nil:
		return attestedText(ev.Attested)
	case ev.Recovered != nil:
		return fmt.Sprintf("RECOVERED from a copy that ends at entry %d, as lineage %.12s", ev.Recovered.From.Index, ev.Recovered.Lineage)
	}
	return ""
}

func attestedText(a *events.Attested) string {
	what := map[string]string{"active": "active set", "tensors": "parameters"}[a.What]
	if a.Shard != "" {
		what += " of shard " + a.Shard
	}
	who := plural(int(a.Ranks), "rank") + " agree"
	switch a.Ranks {
	case 0:
		who = "no rank agrees"
	case 1:
		who = "1 rank agrees"
	}
	text := fmt.Sprintf("at entry %d %s on the %s%s", a.Index, who, what, ofModel(a.Model))
	if len(a.Others) > 0 {
		text += fmt.Sprintf(" (%s)", a.Value.Short())
	}
	for i, o := range a.Others {
		if i == othersShown {
			text += fmt.Sprintf("; and %d more values; --json has them", len(a.Others)-i)
			break
		}
		text += fmt.Sprintf("; DIFFERENT (%s) on %s", o.Value.Short(), rankList(o.Ranks))
		if len(o.Tensors) > 0 {
			text += ": " + shortList(o.Tensors)
		}
	}
	if len(a.Missing) > 0 {
		text += "; nothing from " + rankList(a.Missing)
	}
	return text
}

// othersShown is how many values of devices are shown beside the expected one.
const othersShown = 4

// mismatchText is for a round that goes on; faultText is for one that does not.
func mismatchText(m *events.Mismatched) string {
	got, want := keyText(&m.Got)+siteText(m.GotSite), keyText(&m.Want)+siteText(m.WantSite)
	switch {
	case m.Code != events.CodeMissingCall:
		return fmt.Sprintf("rank %d called %s, where rank 0 called %s (entry %d)", m.Rank, got, want, m.Index)
	case m.Got.Op.Fence():
		return fmt.Sprintf("rank %d never called %s, as rank 0 did, before %s (entry %d)", m.Rank, want, got, m.Index)
	default:
		return fmt.Sprintf("rank %d alone called %s, before rank 0's %s (entry %d)", m.Rank, got, want, m.Index)
	}
}

func factText(f *events.Fact) string {
	text := fmt.Sprintf("%s is %s", seedText(f.Slot, f.Seed), stageAndGate(f.Stage, events.Num(f.Amplitude.Alpha), f.Passed))
	if f.Blueprint != "" {
		text += ": " + f.Blueprint
	}
	if f.Reason != "" {
		text += ": " + f.Reason
	}
	if f.Unexpected != "" {
		text += "; UNEXPECTED: " + f.Unexpected
	}
	return text
}

func outcomeText(o *events.Outcome) string {
	return o.Slot + " " + stageAndGate(o.Stage, o.Alpha, o.Passed)
}

func stageAndGate(s events.Stage, alpha events.Num, passed *bool) string {
	text := s.String()
	if s != events.StageDormant {
		text += ", alpha " + alphaText(float64(alpha))
	}
	if passed != nil {
		text += map[bool]string{true: ", gate passed", false: ", gate failed"}[*passed]
	}
	return text
}

// describeReport is for an entry that only acknowledges reports.
func describeReport(list []events.Event) string {
	var nodes []string
	for i := range list {
		if r := list[i].Reported; r != nil {
			nodes = append(nodes, nodeText(r.Node))
		}
	}
	if len(nodes) == 0 {
		return "nothing"
	}
	return "reports of node " + strings.Join(nodes, ", ") + " acknowledged"
}

func faultText(f *events.RoundFaulted) string {
	if f.Code == events.CodeUnavailable {
		return fmt.Sprintf("round %d is over, %s: the trainer of rank %d is gone: %s; its last call was %s%s (entry %d)",
			f.Round, f.Code, f.Rank, cmp.Or(f.Reason, "it is not known why"), keyText(&f.Got), siteText(f.GotSite), f.Index)
	}
	if f.Code == events.CodeDiverged {
		return fmt.Sprintf("round %d is over, %s: %s (entry %d)", f.Round, f.Code, f.What(), f.Index)
	}
	return fmt.Sprintf("round %d is over, %s: rank %d called %s%s, where rank 0 called %s%s (entry %d)",
		f.Round, f.Code, f.Rank, keyText(&f.Got), siteText(f.GotSite), keyText(&f.Want), siteText(f.WantSite), f.Index)
}

// keyText is a call as people say it; the model only where it is not the
// default.
func keyText(k *events.Key) string {
	if k == nil {
		return "-"
	}
	text := string(k.Op)
	if k.Slot != "" {
		text += " " + seedText(k.Slot, k.Seed)
	}
	if k.Op == events.OpStepEpoch {
		text += " " + strconv.FormatInt(k.Epoch, 10)
	}
	return text + ofModel(k.Model)
}

func ofModel(model string) string {
	if model == api.DefaultModel || model == "" {
		return ""
	}
	return " of " + model
}

func siteText(site string) string {
	if site == "" {
		return ""
	}
	return " at " + site
}

func stageText(s *events.StageChanged) string {
	return fmt.Sprintf("%s %s -> %s", seedText(s.Slot, s.Seed), s.From, s.To)
}

func seedText(slot string, seed uint64) string {
	if seed == 0 {
		return slot
	}
	return slot + "#" + strconv.FormatUint(seed, 10)
}

func reasonText(reason, initiator string) string {
	if initiator != "" {
		initiator = " by " + initiator
	}
	if reason != "" {
		reason = ": " + reason
	}
	return initiator + reason
}

// alphaText shows 0 and 1 as such only where they are exact.
func alphaText(a float64) string {
	switch text := strconv.FormatFloat(a, 'f', 3, 64); {
	case a == 0 || a == 1:
		return strconv.FormatFloat(a, 'f', -1, 64)
	case text == "0.000" || text == "1.000":
		return strconv.FormatFloat(a, 'g', -1, 64)
	default:
		return text
	}
}

// nodeText is enough of a node's id for people.
func nodeText(n events.NodeID) string {
	if len(n) > 8 {
		return string(n[:8])
	}
	return orDash(string(n))
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}

// shortList names the first few.
func shortList(names []string) string {
	const shown = 8
	if len(names) <= shown {
		return strings.Join(names, " ")
	}
	return fmt.Sprintf("%s ... %s", strings.Join(names[:shown-1], " "), names[len(names)-1])
}
