package door

import (
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/replica"
)

// metrics are what is counted as it happens; the rest is read from the node
// when somebody scrapes.
type metrics struct {
	registry      *prometheus.Registry
	decisions     *prometheus.CounterVec
	decide, wait  prometheus.Histogram
	disagreements prometheus.Counter
	mismatches    *prometheus.CounterVec
	diverged      prometheus.Gauge
}

func newMetrics(s *Server) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "esperd_decisions_total",
			Help: "Numbered calls answered on this rank, by operation and outcome: passed, failed, done, or the code of the problem."}, []string{"op", "outcome"}),
		decide: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "esperd_decide_seconds",
			Help: "Rank 0: time until a call was in the log and applied here.", Buckets: prometheus.ExponentialBuckets(0.0001, 2, 18)}),
		wait: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "esperd_wait_seconds",
			Help: "Other ranks: time that a call waited for rank 0's.", Buckets: prometheus.ExponentialBuckets(0.0001, 4, 12)}),
		mismatches: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "esperd_mismatches_total",
			Help: "Calls of this rank that were not rank 0's, in a round that went on all the same, by code."}, []string{"code"}),
		diverged: prometheus.NewGauge(prometheus.GaugeOpts{Name: "esperd_diverged_index",
			Help: "Index of the entry at which this replica found that it, or the entry's writer, has diverged; 0: none."}),
		disagreements: prometheus.NewCounter(prometheus.CounterOpts{Name: "esperd_shadow_disagreements_total",
			Help: "Own verdicts of this rank that were not rank 0's."}),
	}
	m.registry.MustRegister(m.decisions, m.decide, m.wait, m.disagreements, m.mismatches, m.diverged, nodeCollector{s},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

func (m *metrics) answered(op events.Op, body any, p *api.Problem) {
	outcome := "done"
	switch d, ok := body.(*api.Decision); {
	case p != nil:
		outcome = string(p.Code())
	case ok && d.Passed:
		outcome = "passed"
	case ok:
		outcome = "failed"
	}
	m.decisions.WithLabelValues(string(op), outcome).Inc()
}

// nodeCollector reads the node at each scrape.
type nodeCollector struct{ s *Server }

func gauge(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("esperd_"+name, help, labels, nil)
}

var (
	infoDesc       = gauge("info", "Which node this is.", "version", "node", "rank", "run_id")
	indexDesc      = gauge("index", "Index of the last applied entry.")
	roleDesc       = gauge("role", "1 for the node's part in raft.", "role")
	roundDesc      = gauge("round", "Number of the current round.")
	faultedDesc    = gauge("round_faulted", "1 if the round is over because ranks did not make the same calls.")
	divergedDesc   = gauge("diverged", "1 if this replica has diverged from the log and answers no calls.")
	waitingDesc    = gauge("waiting_seconds", "How long the call that waits longest has waited.", "rank", "what")
	attestingDesc  = gauge("attested_differences", "Fences of the round at which a rank's device held something else than most ranks' did.", "rank")
	historyLagDesc = gauge("history_lag_entries", "Entries that are not in the history's file yet.")
	archiveDesc    = gauge("archive_index", "Index of the last entry that the archive has.")
	archiveBadDesc = gauge("archive_failures_total", "How often the archive could not be written.")
	termDesc       = gauge("raft_term", "Raft's current term.")
	lastLogDesc    = gauge("raft_last_log_index", "Index of the last entry of raft's log.")
	stageDesc      = gauge("slot_stage", "Stage of the slot's seed: 1 DORMANT, 2 GERMINATED, 3 TRAINING, 4 BLENDING, 6 HOLDING, 7 FOSSILIZED, 8 PRUNED, 9 EMBARGOED, 10 RESETTING.", "model", "slot")
	alphaDesc      = gauge("slot_alpha", "Alpha of the slot's seed.", "model", "slot")
)

// Describe sends nothing: which slots there are is known when they are asked
// for.
func (c nodeCollector) Describe(chan<- *prometheus.Desc) {}

// Collect reads status, state and ledger once.
func (c nodeCollector) Collect(out chan<- prometheus.Metric) {
	set := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	st, head := c.s.replica.Status(), c.s.replica.State()
	rank := strconv.FormatUint(c.s.rank, 10)
	set(infoDesc, 1, c.s.version, string(c.s.node), rank, st.Run)
	set(indexDesc, float64(head.Index))
	for _, role := range []string{"leader", "follower", "candidate", "none"} {
		set(roleDesc, boolFloat(st.Role == role), role)
	}
	set(roundDesc, float64(head.Round.Number))
	set(faultedDesc, boolFloat(head.Round.Fault != nil))
	set(divergedDesc, boolFloat(st.Phase == replica.PhaseDiverged))
	set(historyLagDesc, float64(st.HistoryLag))
	if c.s.archive != nil {
		a := c.s.archive.State()
		set(archiveDesc, float64(a.Index))
		out <- prometheus.MustNewConstMetric(archiveBadDesc, prometheus.CounterValue, float64(a.Failures))
	}
	for _, m := range head.Round.Members {
		if n := head.Round.Tally(m.Rank).Attesting; n > 0 {
			set(attestingDesc, float64(n), strconv.FormatUint(m.Rank, 10))
		}
	}
	for key, d := range map[string]*prometheus.Desc{"term": termDesc, "last_log_index": lastLogDesc} {
		if v, err := strconv.ParseFloat(st.RaftStats[key], 64); err == nil {
			set(d, v)
		}
	}
	longest := map[string]float64{waitRound: 0, waitDecision: 0}
	for _, w := range c.s.ledger.arrivals(c.s.rank) {
		longest[w.What] = max(longest[w.What], w.Seconds)
	}
	for what, seconds := range longest {
		set(waitingDesc, seconds, rank, what)
	}
	for _, m := range head.Models {
		for i := range m.Slots.Len() {
			slot := api.SlotOf(m, i)
			set(stageDesc, float64(slot.Stage), m.Name, slot.Name)
			set(alphaDesc, slot.Alpha, m.Name, slot.Name)
		}
	}
}

func boolFloat(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
