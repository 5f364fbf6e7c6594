package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// table writes aligned columns; cells of a row are separated by tabs.
func table(w io.Writer, rows func(row func(cells ...any))) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	rows(func(cells ...any) {
		for i, c := range cells {
			if i > 0 {
				fmt.Fprint(t, "\t")
			}
			// A tab or newline that somebody put into a name must not shift columns.
			fmt.Fprint(t, oneLine(fmt.Sprint(c)))
		}
		fmt.Fprintln(t)
	})
	return t.Flush()
}

// oneLine keeps control characters, which a run id or a reason may bring, out
// of the terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// statusTable shows a node's state, and what the ranks' reports come to where it
// matters (observing); else ranks are nil.
func statusTable(w io.Writer, s *api.State, ranks []api.Rank) error {
	switch {
	case s.Phase == "joining":
		fmt.Fprintf(w, "JOINING: this node is not part of a log yet, so its trainer has to wait.\n%s\n\n", oneLine(joiningText(s)))
	case !s.Quorum:
		fmt.Fprintf(w, "NO QUORUM: this node knows no leader, so nothing can be decided now.\n"+
			"What follows is what this node knew last, at entry %d.\n\n", s.Index)
	}
	return table(w, func(row func(...any)) {
		row("node", fmt.Sprintf("%s, rank %d of %d, esperd %s", nodeText(s.Node), s.Rank, s.World, orDash(s.Version)))
		run := "run id not known yet"
		if s.Run != "" {
			run = s.Run
		}
		if s.Lineage != "" {
			run += fmt.Sprintf(" (lineage %.12s)", s.Lineage)
		}
		row("run", run)
		for _, a := range s.Ancestors {
			row("continues", ancestorText(&a))
		}
		row("phase", phaseText(s))
		row("leader", leaderText(s))
		log := fmt.Sprintf("entry %d, chain %s", s.Index, s.Chain.Short())
		if s.LogStore != "" {
			log += ", store " + s.LogStore
		}
		if s.CompleteFrom > 1 {
			log += fmt.Sprintf("; entries before %d are still being fetched", s.CompleteFrom)
		}
		row("log", log)
		if s.Durability == relaxed {
			row("durability", "RELAXED: "+relaxedMeans)
		}
		if d := s.Divergence; d != nil && d.Fault != "" {
			row("DIVERGED", divergenceText(d))
		}
		if s.Problem != "" && s.Phase != "joining" && s.Divergence == nil {
			row("problem", s.Problem)
		}
		if s.Rival != "" {
			row("ANOTHER LOG", s.Rival)
		}
		if s.Archive != nil {
			row("archive", archiveText(s.Archive))
		}
		for _, dir := range s.Evidence {
			row("evidence", "an earlier history of this rank is kept at "+dir)
		}
		row("round", roundText(s.Round))
		for _, m := range s.Models {
			row("model", modelText(&m))
		}
		requestRows(row, s.Requests)
		observedRows(row, ranks)
	})
}

func archiveText(a *api.Archive) string {
	text := "nothing yet"
	if a.Index > 0 {
		text = fmt.Sprintf("%s, to entry %d", a.File, a.Index)
	}
	if a.Problem != "" {
		text += "; FAILED: " + oneLine(a.Problem)
	}
	return text
}

// joiningText is what a node waits for that is not part of a log.
func joiningText(s *api.State) string {
	if s.Problem != "" {
		return s.Problem
	}
	return fmt.Sprintf("It waits until the esperds of all %s are up to found one, or for one that is part of it; esperd ranks shows who answers.", plural(int(s.World), "rank"))
}

func ancestorText(a *events.Ancestor) string {
	if a.Index == 0 {
		return fmt.Sprintf("lineage %.12s, which is lost but for a mark", a.Lineage)
	}
	return fmt.Sprintf("lineage %.12s, up to entry %d", a.Lineage, a.Index)
}

func phaseText(s *api.State) string {
	switch s.Phase {
	case "joining":
		return "joining: not part of a log yet"
	case "diverged":
		return "DIVERGED: its state is frozen; it goes on storing the log"
	case "failed":
		return "FAILED: it met an entry that it cannot read"
	}
	vote := "nonvoter"
	if s.Voter {
		vote = "voter"
	}
	return fmt.Sprintf("%s, %s, %s", s.Phase, s.Role, vote)
}

// divergenceText says what a node found out about its state, and what to do.
func divergenceText(d *api.StateDivergence) string {
	who := "it is not decided whose state is wrong"
	if d.AtFaultRank != nil {
		who = fmt.Sprintf("rank %d is at fault", *d.AtFaultRank)
	} else if d.AtFault != "" {
		who = fmt.Sprintf("node %s is at fault", nodeText(d.AtFault))
	}
	text := fmt.Sprintf("at entry %d, %s: %s; since %s (%s expected %s, got %s, replay %s)", d.Index, who, d.Reason,
		d.Since.Local().Format(time.DateTime), d.Which, d.Want.Short(), d.Got.Short(), d.Replay.Short())
	if d.Fault == "self" && d.AtFaultRank != nil && d.Writer != d.Node {
		text += fmt.Sprintf("; restart the esperd of rank %d: it takes its state from its history", *d.AtFaultRank)
	}
	return text
}

func leaderText(s *api.State) string {
	switch {
	case !s.Quorum || s.Leader == "":
		return "none known here"
	case s.Leader == s.Node:
		return "this node"
	}
	if s.Round != nil {
		for _, m := range s.Round.Members {
			if m.Node == s.Leader {
				return fmt.Sprintf("%s (rank %d)", nodeText(s.Leader), m.Rank)
			}
		}
	}
	return nodeText(s.Leader)
}

func roundText(r *api.Round) string {
	if r == nil {
		return "none: not every rank's trainer has connected yet"
	}
	if r.Fault != nil {
		return "FAULTED: " + faultText(r.Fault)
	}
	return fmt.Sprintf("%d, %s, mode %s, fingerprint %q", r.Number, plural(len(r.Members), "rank"), modeOf(r), r.Fingerprint)
}

func modelText(m *api.Model) string {
	epoch := "no epoch stepped"
	if m.Epoch >= 0 {
		epoch = fmt.Sprintf("epoch %d stepped", m.Epoch)
	}
	return fmt.Sprintf("%s, generation %d, %s, %s, %s", m.Name, m.Generation, plural(len(m.Slots), "slot"), epoch, plural(int(m.Calls), "call"))
}

func slotsTable(w io.Writer, slots []api.Slot) error {
	return table(w, func(row func(...any)) {
		row("SLOT", "SEED", "STAGE", "ALPHA", "BLUEPRINT", "EPOCHS", "IN STAGE", "ACCURACY", "CONTRIBUTION", "RAMP")
		for i := range slots {
			s := &slots[i]
			seed := "-"
			if s.Seed > 0 {
				seed = fmt.Sprintf("#%d", s.Seed)
			}
			cells := []any{s.Name, seed, s.Stage, alphaText(s.Alpha), orDash(s.Blueprint)}
			row(append(append(cells, metricsCells(s.Metrics)...), rampText(s))...)
		}
	})
}

func metricsCells(m *events.Metrics) []any {
	if m == nil {
		return []any{"-", "-", "-", "-"}
	}
	accuracy, contribution := "-", "-"
	if m.Epochs > 0 {
		accuracy = fmt.Sprintf("%.2f", float64(m.Accuracy))
	}
	if m.Contribution != nil {
		contribution = fmt.Sprintf("%+.2f", float64(*m.Contribution))
	}
	return []any{m.Epochs, m.EpochsInStage, accuracy, contribution}
}

func rampText(s *api.Slot) string {
	c := s.Controller
	if c == nil || c.Mode == events.ModeHold {
		return "-"
	}
	return fmt.Sprintf("%s to %s, %d of %d ticks", c.Mode, alphaText(c.Target), c.Done, c.Total)
}

const entryFormat = "%6v  %-12s  %-10s  %5v  %-24s  %s  %s\n"

func entriesHeader(w io.Writer) {
	fmt.Fprintf(w, entryFormat, "INDEX", "TIME", "KIND", "ROUND", "CALL", "WHAT HAPPENED", "[CHAIN]")
}

// entryLine has fixed widths, because those that follow are not known yet.
func entryLine(w io.Writer, e *api.Entry) error {
	at := time.Unix(0, e.Time).Format("15:04:05.000")
	_, err := fmt.Fprintf(w, entryFormat, e.Index, at, e.Kind, e.Round, oneLine(keyText(e.Key)), oneLine(describe(e)), "["+e.Chain.Short()+"]")
	return err
}
