package main

import (
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
		return fmt.Sprintf("round %d opens with %s, fingerprint %q", r.Round, plural(len(r.Members), "rank"), r.Fingerprint)
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
	name, _ := ev.Payload()
	if name == "" {
		return "an event that this esperd does not know: upgrade it"
	}
	return strings.ReplaceAll(name, "_", " ")
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
	if k.Model != api.DefaultModel && k.Model != "" {
		text += " of " + k.Model
	}
	return text
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
