package door

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/replica"
)

// What a trainer waits for.
const (
	waitRound    = "round"
	waitDecision = "decision"
	waitMarks    = "marks"
)

// askMax is how long the other nodes have to answer: they are asked for people,
// who rather see who did not answer.
const askMax = time.Second

const askLedger = "ledger"

// ledger is who waits in this node's calls, since when, and what was answered
// last. It is memory only: what is in the log is read from there.
type ledger struct {
	mu     sync.Mutex
	waits  map[*wait]struct{}
	last   map[string]*lastCalls // by model
	newest string                // the model that was called last
}

// lastCalls are the last calls of one model.
type lastCalls struct {
	ring [8]api.LastCall
	n    int // so far
}

func (l *lastCalls) add(c api.LastCall) {
	l.ring[l.n%len(l.ring)] = c
	l.n++
}

// list returns them, the newest first.
func (l *lastCalls) list() []api.LastCall {
	out := make([]api.LastCall, min(l.n, len(l.ring)))
	for i := range out {
		out[i] = l.ring[(l.n-1-i)%len(l.ring)]
	}
	return out
}

type wait struct {
	what  string
	key   *events.Key
	site  string
	since time.Time

	missing *atomic.Pointer[[]uint64] // ranks that it waits for, as they are known; nil: see arrivals
}

func (l *ledger) answered(c api.LastCall) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.last[c.Key.Model]
	if last == nil {
		last = &lastCalls{}
		l.last[c.Key.Model] = last
	}
	last.add(c)
	l.newest = c.Key.Model
}

// recent lists the last calls of a model, the newest first; "": of the model
// that was called last.
func (l *ledger) recent(model string) []api.LastCall {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.last[cmp.Or(model, l.newest)]
	if last == nil {
		return nil
	}
	return last.list()
}

func (l *ledger) add(w *wait) {
	l.mu.Lock()
	l.waits[w] = struct{}{}
	l.mu.Unlock()
}

func (l *ledger) remove(w *wait) {
	l.mu.Lock()
	delete(l.waits, w)
	l.mu.Unlock()
}

// arrivals lists the waits of this node's trainer, the longest first.
func (l *ledger) arrivals(rank uint64) []api.Arrival {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]api.Arrival, 0, len(l.waits))
	for w := range l.waits {
		a := api.Arrival{Rank: rank, What: w.what, Key: w.key, Site: w.site, Seconds: time.Since(w.since).Seconds()}
		if w.what == waitDecision && rank != 0 {
			a.Missing = []uint64{0}
		}
		if w.missing != nil && w.missing.Load() != nil {
			a.Missing = *w.missing.Load()
		}
		out = append(out, a)
	}
	sortArrivals(out)
	return out
}

func sortArrivals(list []api.Arrival) {
	slices.SortFunc(list, func(a, b api.Arrival) int {
		return cmp.Or(cmp.Compare(b.Seconds, a.Seconds), cmp.Compare(a.Rank, b.Rank))
	})
}

// waiting puts a wait into the ledger until the returned function is called. A
// long one is logged once.
func (s *Server) waiting(ctx context.Context, what string, key *events.Key, site string) func() {
	return s.waitingFor(ctx, what, key, site, nil)
}

// waitingFor is waiting where the ranks that are waited for become known.
func (s *Server) waitingFor(ctx context.Context, what string, key *events.Key, site string, missing *atomic.Pointer[[]uint64]) func() {
	w := &wait{what: what, key: key, site: site, since: time.Now(), missing: missing}
	s.ledger.add(w)
	warn := time.AfterFunc(s.warnAfter, func() {
		if ctx.Err() == nil {
			s.warn(w)
		}
	})
	return func() {
		warn.Stop()
		s.ledger.remove(w)
	}
}

func (s *Server) warn(w *wait) {
	log := s.log.With("seconds", time.Since(w.since).Seconds(), "site", w.site)
	switch {
	case w.what == waitRound:
		log.Warn("waiting for the other ranks' trainers to connect", "missing_ranks", s.roundMissing())
	case w.what == waitMarks:
		log.Warn("waiting for the other ranks to resume", "key", w.key.String(), "missing_ranks", *w.missing.Load())
	case s.rank == 0:
		st := s.replica.Status()
		log.Warn("rank 0's call is not in the log yet", "key", w.key.String(), "role", st.Role, "leader", st.Leader)
	default:
		reports, _ := s.gather(s.ctx, w.key.Model)
		missing := []uint64{0}
		if i := slices.IndexFunc(reports, func(r nodeReport) bool { return r.Rank.Rank == s.rank }); i >= 0 && w.key.Op == events.OpResume {
			for _, a := range reports[i].Waiting {
				if *a.Key == *w.key {
					missing = a.Missing
				}
			}
		}
		for _, b := range busyOf(reports, missing) {
			log = log.With("busy", b.Reason, "busy_seconds", b.Seconds)
		}
		log.Warn("waiting for rank 0's call", "key", w.key.String(), "missing_ranks", missing, "rank_0", s.lastOfRank0Text(w.key.Model))
	}
}

// nodeReport is what a node tells the others about itself and its trainer. It
// travels as JSON, so that a newer node may say more.
type nodeReport struct {
	api.Rank
	Divergence *api.StateDivergence     `json:"divergence,omitempty"`
	Lifecycles map[string]events.Digest `json:"lifecycles,omitempty"` // after Index, by model; nil: an older node, or one between two entries
	Unattested []api.Unattested         `json:"unattested,omitempty"` // of rank 0's node
}

func (s *Server) report(model string) nodeReport {
	st, state := s.replica.Status(), s.replica.State()
	r := nodeReport{Rank: api.Rank{Rank: s.rank, Node: s.node, Address: st.Address, Host: st.Host, Version: s.version,
		Phase: string(st.Phase), Problem: st.Problem, Role: st.Role, Voter: st.Voter,
		Index: st.Index, Chain: st.Chain, Bookkeeping: state.Bookkeeping()}}
	if ses := s.sessions.served(); ses != nil {
		r.Busy = ses.busyNow(s.rank)
	}
	r.Waiting, r.Recent = s.ledger.arrivals(s.rank), s.ledger.recent(model)
	if len(r.Recent) > 0 {
		r.Last = &r.Recent[0]
	}
	if ses := s.sessions.served(); ses != nil {
		r.Session = ses.is(incarnationOf(state, s.rank)) && !ses.closed.Load()
	}
	if d := st.Divergence; d != nil {
		r.Divergence = s.divergenceOf(d)
	}
	r.Unattested = s.gatherings.unattested(&state.Round)
	if st.Index == state.Index { // else they are of two entries, and not compared
		r.Lifecycles = map[string]events.Digest{}
		for _, m := range state.Models {
			r.Lifecycles[m.Name] = m.Digest()
		}
	}
	return r
}

// answerLedger is asked with the name of a model; older nodes ask with null.
func (s *Server) answerLedger(_ context.Context, question []byte) (any, error) {
	var model string
	if err := events.Unmarshal(question, &model); err != nil {
		return nil, problemf(events.CodeInvalidInput, "expected the name of a model as question, got %v; run the same version of esperd on all ranks", err)
	}
	return json.Marshal(s.report(model))
}

// gather asks every node, this one included, also for its last calls of a model
// ("": of the one that it called last).
func (s *Server) gather(ctx context.Context, model string) ([]nodeReport, []api.Unreachable) {
	ctx, cancel := context.WithTimeout(ctx, askMax)
	defer cancel()
	reports, unreachable := []nodeReport{s.report(model)}, []api.Unreachable{}
	for _, a := range s.replica.Ask(ctx, askLedger, model) {
		r, err := decodeReport(a)
		if err != nil {
			unreachable = append(unreachable, api.Unreachable{Node: a.Node, Address: a.Address, Reason: err.Error()})
			continue
		}
		reports = append(reports, r)
	}
	slices.SortFunc(reports, func(a, b nodeReport) int { return cmp.Compare(a.Rank.Rank, b.Rank.Rank) })
	nameMissing(reports)
	s.compareStates(reports)
	return reports, unreachable
}

func decodeReport(a replica.Answer) (r nodeReport, err error) {
	if a.Err != nil {
		return r, a.Err
	}
	var body []byte
	if err := events.Unmarshal(a.Body, &body); err != nil {
		return r, err
	}
	if err := json.Unmarshal(body, &r); err != nil {
		return r, fmt.Errorf("its answer is not readable: %w", err)
	}
	r.Node, r.Address = a.Node, cmp.Or(a.Address, r.Address) // as the log knows it, not as it says
	return r, nil
}

// arrivals merges the waits of all nodes. A round waits for the ranks that do
// not wait for it.
func (s *Server) arrivals(ctx context.Context) api.Arrivals {
	reports, unreachable := s.gather(ctx, "")
	out := api.Arrivals{Waiting: []api.Arrival{}, Unreachable: unreachable}
	missing := missingOfRound(reports, s.world)
	for _, r := range reports {
		for _, a := range r.Waiting {
			if a.What == waitRound {
				a.Missing = missing
			}
			a.Busy = busyOf(reports, a.Missing)
			out.Waiting = append(out.Waiting, a)
		}
		out.Unattested = append(out.Unattested, r.Unattested...)
	}
	sortArrivals(out.Waiting)
	return out
}

func missingOfRound(reports []nodeReport, world uint64) []uint64 {
	there := map[uint64]bool{}
	for _, r := range reports {
		there[r.Rank.Rank] = slices.ContainsFunc(r.Waiting, func(a api.Arrival) bool { return a.What == waitRound })
	}
	missing := []uint64{}
	for rank := range world {
		if !there[rank] {
			missing = append(missing, rank)
		}
	}
	return missing
}

func (s *Server) roundMissing() []uint64 {
	reports, _ := s.gather(s.ctx, "")
	return missingOfRound(reports, s.world)
}

// lastOfRanks lists what each rank did last of a model, as far as it can be
// known. Rank 0's call is in the log.
func (s *Server) lastOfRanks(ctx context.Context, model string) []api.LastCall {
	reports, _ := s.gather(ctx, model)
	out := []api.LastCall{}
	rank0 := s.lastOfRank0(model)
	if rank0 != nil {
		out = append(out, *rank0)
	}
	for _, r := range reports {
		if r.Last != nil && r.Last.Key.Model == model && (r.Last.Rank != 0 || rank0 == nil) { // an older node tells of any model
			out = append(out, *r.Last)
		}
	}
	return out
}

// ranks lists every rank of the world, those whose node did not answer with the
// reason, with its last calls of a model.
func (s *Server) ranks(ctx context.Context, model string) api.Ranks {
	reports, unreachable := s.gather(ctx, model)
	state := s.replica.State()
	out := api.Ranks{Ranks: make([]api.Rank, s.world)}
	silent := int(s.world) - len(reports)
	for rank := range s.world {
		out.Ranks[rank] = unheard(state, rank, silent, unreachable)
	}
	for _, r := range reports {
		if r.Rank.Rank < s.world {
			out.Ranks[r.Rank.Rank] = r.Rank
		}
	}
	for i := range out.Ranks {
		if node := out.Ranks[i].Node; node != "" {
			tally := state.Round.Tally(uint64(i))
			out.Ranks[i].Disagreements, out.Ranks[i].Misplaced = tally.Disagreements, tally.Misplaced
			out.Ranks[i].MissingCalls, out.Ranks[i].Differing = tally.Missing, tally.Differing
			out.Ranks[i].Attesting = tally.Attesting
		}
	}
	return out
}

// unheard describes one of the silent ranks, of which nothing was heard.
func unheard(state *fsm.State, rank uint64, silent int, unreachable []api.Unreachable) api.Rank {
	r := api.Rank{Rank: rank}
	if rank < uint64(len(state.Round.Members)) {
		r.Node = state.Round.Members[rank].Node
	} else if silent == 1 && len(unreachable) == 1 { // every other node has said its rank
		r.Node = unreachable[0].Node
	} else {
		r.Unreachable = unheardOf(silent, unreachable)
		return r
	}
	node, _ := state.Node(r.Node)
	r.Host, r.Unreachable = node.Host, "its node does not answer"
	for _, u := range unreachable {
		if u.Node == r.Node {
			r.Address, r.Unreachable = u.Address, u.Reason
		}
	}
	return r
}

// unheardOf says why nothing is known of a rank. Before the first round the log
// does not say whose node is whose.
func unheardOf(silent int, unreachable []api.Unreachable) string {
	const shown = 8
	if len(unreachable) == 0 {
		return "its node has not been part of the log yet"
	}
	why := "its node does not answer"
	if len(unreachable) < silent {
		why += ", or has not been part of the log yet"
	}
	why += "; no answer came from"
	for _, u := range unreachable[:min(shown, len(unreachable))] {
		why += fmt.Sprintf(" %s (%s)", u.Address, u.Reason)
	}
	return why
}
