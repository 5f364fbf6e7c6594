package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"

	"github.com/esperd/esperd/audit"
)

// What people are shown; JSON has all.
const (
	findingsShown = 5
	fieldsShown   = 12
	groupsShown   = 8
)

// auditText writes a report for people: the verdict first, what it rests on last.
func auditText(w io.Writer, r *audit.Report) error {
	fmt.Fprintf(w, "%s\n", oneLine(verdictLine(r)))
	for i := range r.Findings {
		if i == findingsShown {
			fmt.Fprintf(w, "\n... and %s; --json has them\n", plural(len(r.Findings)-i+r.More, "more finding"))
			break
		}
		if err := findingText(w, &r.Findings[i]); err != nil {
			return err
		}
		if i == 0 && len(r.Around) > 0 {
			fmt.Fprintf(w, "\nThe entries around it:\n")
			entriesHeader(w)
			for j := range r.Around {
				if err := entryLine(w, &r.Around[j]); err != nil {
					return err
				}
			}
		}
	}
	fmt.Fprintln(w)
	return table(w, func(row func(...any)) {
		if r.Run != "" {
			row("run", fmt.Sprintf("%s (lineage %.12s)", r.Run, r.Lineage))
		}
		if r.Agreed.Index > 0 {
			row("agreed", fmt.Sprintf("up to entry %d, chain %s", r.Agreed.Index, r.Agreed.Chain.Short()))
		}
		for _, b := range r.Branches {
			row("branch", branchText(&b))
		}
		if len(r.Own) > 0 {
			row("own verdicts", ownText(r.Own))
		}
		if r.Skipped > 0 {
			row("before --since", fmt.Sprintf("%s that the log records", plural(int(r.Skipped), "finding")))
		}
		for i, c := range r.Coverage {
			label := "checked"
			if i < len(r.Places) && r.Places[i].Problem != "" {
				label = "NOT ALL CHECKED"
			}
			row(label, c)
		}
		for _, p := range r.Places {
			if p.Esperd != "" && p.Esperd != r.Build.Esperd {
				row("build", fmt.Sprintf("%s: esperd %s", p.Name(), p.Esperd))
			}
		}
		row("build", fmt.Sprintf("audited by esperd %s (%s; knows entries up to version %d)", r.Build.Esperd, r.Build.Go, r.Build.Entry))
		row("again", r.Reproduce)
	})
}

func verdictLine(r *audit.Report) string {
	switch r.Outcome {
	case audit.Consistent:
		if len(r.Places) == 1 {
			return fmt.Sprintf("CONSISTENT: the log is whole, and its states are those that its %d entries give.", r.Places[0].Replayed)
		}
		return fmt.Sprintf("CONSISTENT: %s hold the same log and reached the same states.", plural(len(r.Places), "place"))
	case audit.Incomplete:
		return incompleteLine(r)
	}
	f := &r.Findings[0]
	at := "beside the entries"
	if f.Index > 0 {
		at = fmt.Sprintf("at entry %d", f.Index)
	}
	line := fmt.Sprintf("DIVERGED %s: %s", at, f.Verdict)
	if who := partiesText(f.AtFault); who != "" {
		line += ", " + who
	}
	if f.Slot != "" {
		line += ", slot " + seedText(f.Slot, f.Seed)
	}
	if len(f.Differences) > 0 {
		line += ", field " + f.Differences[0].Field
	}
	return line
}

// incompleteLine says what the audit lacks.
func incompleteLine(r *audit.Report) string {
	read, compared, logs := 0, false, map[[2]string]bool{}
	for i := range r.Places {
		p := &r.Places[i]
		compared = compared || p.Compared > 0
		if max(p.Chained, p.Replayed, p.Compared) > 0 {
			read++
			logs[[2]string{p.Run, p.Lineage}] = true
		}
	}
	switch {
	case read == 0:
		return "INCOMPLETE: nothing could be checked."
	case len(logs) > 1 && !compared:
		return "INCOMPLETE: nothing was compared: the places hold different logs. Each was checked by itself, as said below."
	}
	return "INCOMPLETE: nothing differs in what could be checked, but not everything could be."
}

// partiesShown is how many of those at fault are named with their hosts.
const partiesShown = 4

func partiesText(list []audit.Party) string {
	var names []string
	var ranks []uint64
	for _, p := range list {
		if p.Rank != nil {
			ranks = append(ranks, *p.Rank)
		}
		switch {
		case p.Rank != nil && p.Host != "":
			names = append(names, fmt.Sprintf("rank %d on %s", *p.Rank, p.Host))
		case p.Rank != nil:
			names = append(names, fmt.Sprintf("rank %d", *p.Rank))
		case p.Place != "":
			names = append(names, p.Place)
		case p.Node != "":
			names = append(names, "node "+nodeText(p.Node))
		}
	}
	if len(list) > partiesShown && len(ranks) == len(list) {
		return rankList(ranks)
	}
	return strings.Join(names, ", ")
}

func findingText(w io.Writer, f *audit.Finding) error {
	at := "-"
	if f.Index > 0 {
		at = fmt.Sprint(f.Index)
	}
	fmt.Fprintf(w, "\nentry %s  %s: %s\n", at, strings.ToUpper(string(f.Verdict)), oneLine(f.What))
	return table(w, func(row func(...any)) {
		if who := partiesText(f.AtFault); who != "" {
			row("  at fault", who)
		}
		if f.Agreed.Index > 0 {
			label := "  last agreed"
			if f.Source == audit.SourceRecorded { // the logs go on alike
				label = "  before it"
			}
			row(label, fmt.Sprintf("entry %d, chain %s", f.Agreed.Index, f.Agreed.Chain.Short()))
		}
		if where := whereText(f); where != "" {
			row("  where", where)
		}
		for i, d := range f.Differences {
			if i == fieldsShown {
				row("  field", fmt.Sprintf("... and %d more; --json has them", len(f.Differences)-i+f.More))
				break
			}
			row("  field", fmt.Sprintf("%s: expected %s, got %s", d.Field, cmp.Or(d.Expected, "nothing"), cmp.Or(d.Got, "nothing")))
		}
		for i, g := range f.Groups {
			if i == groupsShown {
				row("  got", fmt.Sprintf("... and %d values more; --json has them", len(f.Groups)-i))
				break
			}
			what := "got"
			if g.Expected {
				what = "expected"
			}
			row("  "+what, fmt.Sprintf("%s: %s", g.Value, groupText(&g)))
		}
		for _, s := range f.Sites {
			row("  call", fmt.Sprintf("rank %d: %s", s.Rank, siteLine(&s)))
		}
	})
}

func whereText(f *audit.Finding) string {
	var parts []string
	if f.Round > 0 {
		parts = append(parts, fmt.Sprintf("round %d", f.Round))
	}
	if f.Epoch != nil && *f.Epoch >= 0 {
		parts = append(parts, fmt.Sprintf("epoch %d", *f.Epoch))
	}
	if f.Model != "" {
		parts = append(parts, fmt.Sprintf("model %s.%d", f.Model, f.Generation))
	}
	if f.Shard != "" {
		parts = append(parts, "shard "+f.Shard)
	}
	if f.Slot != "" {
		text := "slot " + seedText(f.Slot, f.Seed)
		if f.StageBefore != "" {
			text += ", " + f.StageBefore
		}
		if f.StageAfter != "" && f.StageAfter != f.StageBefore {
			text += " -> " + f.StageAfter
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, ", ")
}

func groupText(g *audit.Group) string {
	text := strings.Join(g.Places, ", ")
	switch {
	case len(g.Ranks) == 0 && len(g.Places) == 0:
		return "it is not known which" // of an attestation, where some hold another shard
	case len(g.Places) == 0 || len(g.Ranks) == len(g.Places):
		text = rankList(g.Ranks)
	}
	if len(g.Tensors) > 0 {
		text += ": " + shortList(g.Tensors)
	}
	return text
}

func siteLine(s *audit.Site) string {
	var parts []string
	if s.Call != nil {
		parts = append(parts, keyText(s.Call)+siteText(s.Site))
	}
	if v := s.Verdict; v != nil {
		result := "failed"
		if v.Passed {
			result = "passed"
		}
		parts = append(parts, fmt.Sprintf("own verdict %s %s", v.Gate, result))
	}
	if o := s.Outcome; o != nil {
		parts = append(parts, outcomeText(o))
	}
	return strings.Join(parts, "; ")
}

func branchText(b *audit.Branch) string {
	switch b.Kind {
	case audit.BranchRewound:
		text := fmt.Sprintf("entry %d takes model %s back to entry %d (chain %s)", b.Index, b.Model, b.From.Index, b.From.Chain.Short())
		if b.LeftFrom > 0 {
			text += fmt.Sprintf("; what entries %d to %d did to it is a branch that was left", b.LeftFrom, b.LeftTo)
		}
		return text
	case audit.BranchAdopted:
		return fmt.Sprintf("entry %d takes model %s over from a mark of lineage %.12s, entry %d (chain %s), a log that is lost", b.Index, b.Model, b.Lineage, b.From.Index, b.From.Chain.Short())
	case audit.BranchRecovered:
		return fmt.Sprintf("entry %d goes on under a new lineage from entry %d (chain %s) of lineage %.12s, whose quorum was lost", b.Index, b.From.Index, b.From.Chain.Short(), b.Lineage)
	}
	return fmt.Sprintf("entry %d continues run %s, lineage %.12s, from its entry %d (chain %s)", b.Index, b.Run, b.Lineage, b.From.Index, b.From.Chain.Short())
}

func ownText(list []audit.OwnCount) string {
	total := uint64(0)
	var parts []string
	for _, c := range list {
		total += c.Count
		parts = append(parts, fmt.Sprintf("rank %d: %d", c.Rank, c.Count))
	}
	return fmt.Sprintf("%d of other ranks were not rank 0's (%s); rank 0's were applied", total, strings.Join(parts, ", "))
}
