package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// differencesShown is how many differences people are told; JSON has all.
const differencesShown = 10

// demoReport is what esperd demo found, and its --json.
type demoReport struct {
	Recording            string      `json:"recording"`
	Dataset              string      `json:"dataset"`
	Ranks                int         `json:"ranks"`
	Epochs               int         `json:"epochs"`
	Calls                int         `json:"calls"`     // of each rank
	Decisions            int         `json:"decisions"` // among them
	ShadowDisagreements  int         `json:"shadow_disagreements"`
	DisagreementsByRank  []int       `json:"shadow_disagreements_by_rank"`
	Disagreements        []place     `json:"disagreements"`
	DisagreementsMatch   bool        `json:"disagreements_match"` // the recording's, the answers' and the log's are the same calls
	RecordingMatches     bool        `json:"recording_matches"`
	DigestsEqual         bool        `json:"digests_equal"`
	Index                uint64      `json:"index"` // of the last entry
	Chain                string      `json:"chain"`
	Slots                []demoSlot  `json:"slots"`
	Durability           string      `json:"durability"`
	VisibleMS            quantilesMS `json:"decision_visible_ms"`
	Differences          []string    `json:"differences"`
	Kept                 []keptRank  `json:"kept,omitempty"`
	verdictsOfOtherRanks int         // on ranks other than 0
	took                 time.Duration
}

// demoSlot is a slot at the end, as each rank's trainer was told.
type demoSlot struct {
	Name  string     `json:"name"`
	Ranks []rankSlot `json:"ranks"`
}

type rankSlot struct {
	Rank  int          `json:"rank"`
	Stage events.Stage `json:"stage"`
	Alpha float64      `json:"alpha"`
}

type quantilesMS struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

// keptRank is a rank that runs on after the demo.
type keptRank struct {
	Rank   int    `json:"rank"`
	PID    int    `json:"pid"`
	Socket string `json:"socket"`
	Log    string `json:"log"`
}

func (r *demoReport) ok() bool { return r.RecordingMatches && r.DisagreementsMatch && r.DigestsEqual }

// evidence is what was gathered from the ranks.
type evidence struct {
	answers [][]answer
	states  []*api.State  // by rank, all after the same entry
	logs    [][]api.Entry // by rank
}

// report compares the evidence with the recording.
func report(rec *Recording, name string, ev *evidence) *demoReport {
	r := &demoReport{Recording: name, Dataset: rec.Dataset, Ranks: rec.World, Epochs: rec.Epochs(),
		Slots: finalSlots(rec, ev.answers), DisagreementsByRank: make([]int, rec.World), Differences: []string{}}
	rec.forCalls(func(rank, i int, _ place) {
		advance := rec.Steps[rank][i].Kind == "advance"
		switch {
		case rank == 0:
			r.Calls++
			if advance {
				r.Decisions++
			}
		case advance:
			r.verdictsOfOtherRanks++
		}
	})
	recorded, answered, logged := rec.recordedDisagreements(), rec.answeredDisagreements(ev.answers), rec.loggedDisagreements(ev.logs[0])
	r.Disagreements, r.ShadowDisagreements = logged, len(logged)
	for _, p := range logged {
		if p.Rank < rec.World {
			r.DisagreementsByRank[p.Rank]++
		}
	}
	differ := rec.differences(ev.answers)
	r.RecordingMatches = len(differ) == 0
	places := append(comparePlaces("the answers", answered, recorded), comparePlaces("the log", logged, recorded)...)
	r.DisagreementsMatch = len(places) == 0
	replicas := compareReplicas(ev.states, ev.logs)
	r.DigestsEqual = len(replicas) == 0
	r.Index, r.Chain = ev.states[0].Index, ev.states[0].Chain.String()
	r.Differences = append(append(append(r.Differences, differ...), places...), replicas...)
	times := rec.visible(ev.answers)
	r.VisibleMS = quantilesMS{milliseconds(quantile(times, 0.5)), milliseconds(quantile(times, 0.99))}
	return r
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// finalSlots is what the last step told each rank.
func finalSlots(rec *Recording, answers [][]answer) []demoSlot {
	out := make([]demoSlot, len(rec.Slots))
	for i, name := range rec.Slots {
		out[i].Name = name
		for rank := range answers {
			s := rankSlot{Rank: rank, Stage: events.StageUnknown}
			if last := answers[rank][len(answers[rank])-1].slots; i < len(last) {
				s.Stage, s.Alpha = last[i].Stage, last[i].Alpha
			}
			out[i].Ranks = append(out[i].Ranks, s)
		}
	}
	return out
}

func (r *demoReport) write(w io.Writer) error {
	fmt.Fprintf(w, "%s\n%s, %s, an esperd beside each: replayed in %.1f s.\n\n", oneLine(r.Dataset),
		plural(r.Epochs, "epoch"), plural(r.Ranks, "rank"), r.took.Seconds())
	if err := table(w, func(row func(...any)) {
		cells := []any{"SLOT"}
		for rank := range r.Ranks {
			cells = append(cells, fmt.Sprintf("RANK %d", rank))
		}
		row(cells...)
		for _, s := range r.Slots {
			cells := []any{s.Name}
			for _, k := range s.Ranks {
				cells = append(cells, fmt.Sprintf("%s %s", k.Stage, alphaText(k.Alpha)))
			}
			row(cells...)
		}
	}); err != nil {
		return err
	}
	fmt.Fprintln(w)
	err := table(w, func(row func(...any)) {
		row("decisions", fmt.Sprintf("%d, each answered to every rank", r.Decisions))
		row("own verdicts", r.disagreementsText())
		row("recording", yesNo(r.RecordingMatches, "every stage, alpha and decision of every rank and epoch is as recorded", "NOT as recorded"))
		row("replicas", yesNo(r.DigestsEqual, fmt.Sprintf("the same %d entries and the same state on every rank (chain %.12s)", r.Index, r.Chain), "NOT the same on every rank"))
		row("decision time", fmt.Sprintf("p50 %.1f ms, p99 %.1f ms from rank 0's request until the slowest rank had the answer", r.VisibleMS.P50, r.VisibleMS.P99))
		if r.Durability == relaxed {
			row("durability", "RELAXED: "+relaxedMeans)
		}
	})
	for i, d := range r.Differences {
		if i == differencesShown {
			fmt.Fprintf(w, "and %d more differences (--json has them all)\n", len(r.Differences)-i)
			break
		}
		if i == 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintln(w, "difference:", oneLine(d))
	}
	return err
}

func yesNo(yes bool, ifYes, ifNo string) string {
	if yes {
		return ifYes
	}
	return ifNo
}

func (r *demoReport) disagreementsText() string {
	if r.Ranks == 1 {
		return "one rank, nobody to disagree"
	}
	var ranks []string
	for rank := 1; rank < r.Ranks; rank++ {
		ranks = append(ranks, fmt.Sprintf("rank %d: %d", rank, r.DisagreementsByRank[rank]))
	}
	text := fmt.Sprintf("%d of %d on the other ranks were not rank 0's (%s)", r.ShadowDisagreements, r.verdictsOfOtherRanks, strings.Join(ranks, ", "))
	return text + yesNo(r.DisagreementsMatch, ", exactly those recorded", ", NOT those recorded")
}

// writeKept says what to do with ranks that run on.
func writeKept(w io.Writer, command, dir string, kept []keptRank) {
	var pids []string
	for _, k := range kept {
		pids = append(pids, fmt.Sprint(k.PID))
	}
	fmt.Fprintf(w, "\nThe ranks run on. Look at them:\n  export ESPERD_SOCKET=%s\n", kept[0].Socket)
	for _, c := range []string{"status", "slots", "ranks", "events --limit 20"} {
		fmt.Fprintf(w, "  %s %s\n", command, c)
	}
	fmt.Fprintf(w, "  %s audit --follow %s/rank?\n", command, dir)
	fmt.Fprintf(w, "Rank N's socket is %s/rankN/%s. Stop them:\n  kill %s && sleep 2 && rm -rf %s\n", dir, socketName, strings.Join(pids, " "), dir)
}
