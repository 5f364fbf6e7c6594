package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

func ranksTable(w io.Writer, ranks []api.Rank) error {
	return table(w, func(row func(...any)) {
		counters := countersOf(ranks)
		header := []any{"RANK", "NODE", "HOST", "ADDRESS", "ROLE", "ENTRY", "CHAIN", "TRAINER", "DISAGREED"}
		for _, c := range counters {
			header = append(header, c.title)
		}
		row(append(header, "LAST CALL", "NOW")...)
		for i := range ranks {
			r := &ranks[i]
			if r.Unreachable != "" {
				cells := []any{r.Rank, nodeText(r.Node), orDash(r.Host), orDash(r.Address), "-", "-", "-", "-", "-"}
				for _, c := range counters {
					cells = append(cells, c.of(r))
				}
				row(append(cells, "-", "UNREACHABLE: "+r.Unreachable)...)
				continue
			}
			role := orDash(r.Role)
			if !r.Voter && r.Role != "" {
				role += " (nonvoter)"
			}
			trainer := "no"
			if r.Session {
				trainer = "connected"
			}
			last := "-"
			if r.Last != nil {
				last = fmt.Sprintf("%d: %s%s", r.Last.Key.Call, keyText(&r.Last.Key), siteText(r.Last.Site))
			}
			cells := []any{r.Rank, nodeText(r.Node), orDash(r.Host), orDash(r.Address), role, r.Index, r.Chain.Short(), trainer, r.Disagreements}
			for _, c := range counters {
				cells = append(cells, c.of(r))
			}
			row(append(cells, last, nowText(r, ranks))...)
		}
	})
}

// counter is one way in which ranks have differed from rank 0 in a round that
// went on.
type counter struct {
	title      string
	what, rest string // one of them, in words
	means      string // what a trainer without esperd would have made of it
	of         func(*api.Rank) uint64
}

var counters = []counter{
	{"MISPLACED", "call", " in another order than rank 0's", "a broadcast would have given one call's verdict to another",
		func(r *api.Rank) uint64 { return r.Misplaced }},
	{"MISSING", "call", " made by it or by rank 0 alone", "a collective would have hung",
		func(r *api.Rank) uint64 { return r.MissingCalls }},
	{"DIFFERING", "outcome", " other than rank 0's", "the ranks have parted",
		func(r *api.Rank) uint64 { return r.Differing }},
	{"DEVICE", "fence", " at which its device held something else than most", "the ranks' parameters have parted",
		func(r *api.Rank) uint64 { return r.Attesting }},
}

// countersOf returns those that count something.
func countersOf(ranks []api.Rank) []counter {
	var out []counter
	for _, c := range counters {
		if slices.ContainsFunc(ranks, func(r api.Rank) bool { return c.of(&r) > 0 }) {
			out = append(out, c)
		}
	}
	return out
}

// nowText is what a rank does, and what is wrong with its node. The other ranks
// say what those do that it waits for.
func nowText(r *api.Rank, ranks []api.Rank) string {
	var texts []string
	if text := healthText(r); text != "" {
		texts = append(texts, text)
	}
	if r.Busy != nil {
		texts = append(texts, busyText(r.Busy))
	}
	for i := range r.Waiting {
		texts = append(texts, waitingText(&r.Waiting[i], ranks))
	}
	return orDash(strings.Join(texts, "; "))
}

func healthText(r *api.Rank) string {
	if r.Phase == "" || r.Phase == "member" {
		return r.Problem
	}
	if r.Problem == "" {
		return strings.ToUpper(r.Phase)
	}
	return strings.ToUpper(r.Phase) + ": " + r.Problem
}

func busyText(b *api.Busy) string {
	return fmt.Sprintf("busy: %s, %.0f s left", orDash(b.Reason), b.Seconds)
}

func waitingText(a *api.Arrival, ranks []api.Rank) string {
	what := "the other trainers"
	switch a.What {
	case "decision":
		what = keyText(a.Key) + siteText(a.Site)
	case "marks":
		what = "the other ranks' marks, in " + keyText(a.Key) + siteText(a.Site)
	}
	text := fmt.Sprintf("waits %.1f s for %s", a.Seconds, what)
	if len(a.Missing) > 0 {
		text += fmt.Sprintf(", missing %s", rankList(a.Missing))
	}
	for i := range ranks {
		if b := ranks[i].Busy; b != nil && slices.Contains(a.Missing, ranks[i].Rank) {
			text += fmt.Sprintf(" (rank %d is %s)", ranks[i].Rank, busyText(b))
		}
	}
	return text
}

// rankList names ranks, in ascending order; three and more in a row as 4-6.
func rankList(ranks []uint64) string {
	noun := "rank "
	if len(ranks) > 1 {
		noun = "ranks "
	}
	var words []string
	for i := 0; i < len(ranks); {
		last := i
		for last+1 < len(ranks) && ranks[last+1] == ranks[last]+1 {
			last++
		}
		if last-i < 2 {
			last = i
			words = append(words, fmt.Sprint(ranks[i]))
		} else {
			words = append(words, fmt.Sprintf("%d-%d", ranks[i], ranks[last]))
		}
		i = last + 1
	}
	return noun + strings.Join(words, " ")
}

// rowsShown is how many rows of one kind status shows.
const rowsShown = 8

// requestRows are what waits for its model's next fence.
func requestRows(row func(...any), list []api.PendingRequest) {
	for i, r := range list {
		if i == rowsShown {
			row("request", fmt.Sprintf("and %d more", len(list)-i))
			return
		}
		row("request", fmt.Sprintf("%s of %s (model %s)%s; entry %d, executed at the model's next fence",
			r.Action, seedText(r.Slot, r.Seed), r.Model, reasonText(r.Reason, r.Initiator), r.Index))
	}
}

// modeOf is the mode of a round's trainers, which is rank 0's.
func modeOf(r *api.Round) events.TrainerMode {
	if r == nil || len(r.Members) == 0 {
		return ""
	}
	return cmp.Or(r.Members[0].Mode, events.ModeKeyed)
}

// observedRows say, of a round that is only observed, by rank what would have
// come of the calls that were not rank 0's.
func observedRows(row func(...any), ranks []api.Rank) {
	if ranks == nil {
		return
	}
	shown := 0
	for i := range ranks {
		var found []string
		for _, c := range counters {
			if n := c.of(&ranks[i]); n > 0 {
				found = append(found, fmt.Sprintf("%s%s: %s", plural(int(n), c.what), c.rest, c.means))
			}
		}
		if len(found) == 0 {
			continue
		}
		if shown++; shown > rowsShown {
			row("observed", "more ranks: see esperd ranks")
			return
		}
		row("observed", fmt.Sprintf("rank %d: %s", ranks[i].Rank, strings.Join(found, "; ")))
	}
	if shown == 0 {
		row("observed", "no rank has done otherwise than rank 0 so far")
	}
}
