package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	// durableRanks is the smallest world size at which a durable verdict has a
	// target.
	durableRanks = 4
	checkTarget  = time.Microsecond
	slotsTarget  = float64(manySlots) / fewSlots // what as many epochs of one slot would cost
)

const pythonLegend = `What trainers in Python see: torch's ranks over gloo on loopback, and beside each an esperd in a process of its own, durable
unless the row says *relaxed*, TLS between them. *broadcast* is ` + "`broadcast_object_list`" + ` of the same gate result from rank 0.
The same rank processes take turns at all systems of one size, in an order that is drawn for each turn.

The ranks agree on a moment %d ms ahead and sleep until then. *verdict* (` + "`client.sync_gate`" + `, the line that takes the
broadcast's place) and *advance* (a gate of esperd's own, and four readings) run from the first rank's call until the last
rank has its answer; *late* is a verdict from the last rank's call on, *rank 0* is rank 0's own call. The first one is
compared: ranks and esperds share the processors, so what is under test delays the last rank's call, and a time from there
leaves out its work. *Processor* is the processor time of all esperds for one verdict, the pauses between them included. All
in ms.
`

func (r *pythonResults) markdown() string {
	var out strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&out, format, args...) }
	p("%s, `%s`\n\n%s%s; gloo.\n\n", r.began.UTC().Format("2006-01-02 15:04 UTC"), command(), r.machine, r.versions)
	p(pythonLegend, ahead.Milliseconds())
	p("\n%d operations of each kind and system, in %d turns of %d.", r.settings.rounds*r.settings.ops, r.settings.rounds, r.settings.ops)
	if !r.relaxed {
		p(" This esperd has no `--durability`: its relaxed rows are missing.")
	}
	p("\n\n| system | ranks | verdict p50 | p99 | late p50 | p99 | rank 0 p50 | advance p50 | p99 | processor |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for _, w := range r.rows {
		q := func(what, how string, q float64) string {
			if list := w.all(key(what, how)); len(list) > 0 {
				return ms(quantile(list, q))
			}
			return "-"
		}
		p("| %s | %d | %s | %s | %s | %s | %s | %s | %s | %s |\n", w.setup.name(), w.setup.Ranks, q(verdict, allRanks, .5), q(verdict, allRanks, .99),
			q(verdict, lateRank, .5), q(verdict, lateRank, .99), q(verdict, rankZero, .5), q(advance, allRanks, .5), q(advance, allRanks, .99), w.processorTime())
	}
	p("\nRatios of the p50s of esperd's verdict and the broadcast, turn by turn: median (and the middle half of the turns).\n\n")
	p("| | ranks | verdict | late | target |\n|---|---|---|---|---|\n")
	for _, w := range r.rows {
		if w.setup.System == broadcast {
			continue
		}
		p("| %s / broadcast | %d | %s | %s | %s |\n", w.setup.name(), w.setup.Ranks, spread(r.overBroadcast(w, allRanks)), spread(r.overBroadcast(w, lateRank)), r.target(w))
	}
	p("\n%s\n%s", r.checkText(), r.slotsText())
	return out.String()
}

// processorTime is the mean: the kernel counts in ticks longer than a verdict.
func (w *row) processorTime() string {
	list := w.all(key(verdict, ofProcessor))
	if w.setup.System == broadcast || len(list) == 0 {
		return "-"
	}
	var sum time.Duration
	for _, d := range list {
		sum += d
	}
	return ms(sum / time.Duration(len(list)))
}

// overBroadcast compares a row with the broadcast of its size, turn by turn, as
// sorted ratios.
func (r *pythonResults) overBroadcast(w *row, how string) []float64 {
	today := r.row(setup{System: broadcast, Ranks: w.setup.Ranks})
	return ratios(len(w.rounds), func(turn int) (over, under []time.Duration) {
		return w.rounds[turn][key(verdict, how)], today.rounds[turn][key(verdict, how)]
	})
}

// target says whether a row has one, and whether it is reached.
func (r *pythonResults) target(w *row) string {
	if w.setup.Ranks < durableRanks || w.setup.Durability == relaxed {
		return "none"
	}
	return fmt.Sprintf("%s (at most %.2f)", metOrMiss(middle(r.overBroadcast(w, allRanks)) <= r.settings.target), r.settings.target)
}

func (r *pythonResults) checkText() string {
	if r.check == nil {
		return "The step check is not measured: this client has no `check()`.\n"
	}
	cost, empty := r.check[key(check, allRanks)][0], r.check[key(check, emptyCall)][0]
	return fmt.Sprintf("%s: `check()`, with nothing pending, takes %d ns above a call of an empty function, which takes %d ns\n(each the best of %d times %d calls in a loop); the target is below %d ns.\n",
		metOrMiss(cost < checkTarget), cost.Nanoseconds(), empty.Nanoseconds(), checkRepeats, checkLoops, checkTarget.Nanoseconds())
}

func (r *pythonResults) slotsText() string {
	i := slices.IndexFunc(r.rows, func(w *row) bool { return len(w.all(key(steps(manySlots), allRanks))) > 0 })
	if i < 0 {
		return "Steps of many slots are not measured.\n"
	}
	w := r.rows[i]
	list := ratios(len(w.rounds), func(turn int) (over, under []time.Duration) {
		return w.rounds[turn][key(steps(manySlots), allRanks)], w.rounds[turn][key(steps(fewSlots), allRanks)]
	})
	q := func(slots int, q float64) string { return ms(quantile(w.all(key(steps(slots), allRanks)), q)) }
	return fmt.Sprintf("%s: `step_epoch` with %d blending seeds, whose alpha changes each time, takes %s times that with %d (%s, %d ranks): p50 %s ms\n"+
		"and %s ms, p99 %s ms and %s ms. %d would be a decision for each slot; the target is below that.\n",
		metOrMiss(middle(list) < slotsTarget), manySlots, spread(list), fewSlots, w.setup.name(), w.setup.Ranks, q(manySlots, .5), q(fewSlots, .5),
		q(manySlots, .99), q(fewSlots, .99), manySlots/fewSlots)
}

func metOrMiss(met bool) string {
	if met {
		return "**met**"
	}
	return "**MISS**"
}
