package door

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
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
)

// askMax is how long the other nodes have to answer: they are asked for people,
// who rather see who did not answer.
const askMax = time.Second

const askLedger = "ledger"

// ledger is who waits in this node's calls, since when, and what was answered
// last. It is memory only: what is in the log is read from there.
type ledger struct {
	mu    sync.Mutex
	waits map[*wait]struct{}
	last  *api.LastCall
}

type wait struct {
	what  string
	key   *events.Key
	site  string
	since time.Time
}

func (l *ledger) answered(c api.LastCall) {
	l.mu.Lock()
	l.last = &c
	l.mu.Unlock()
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
func (l *ledger) arrivals(rank uint64) ([]api.Arrival, *api.LastCall) {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]api.Arrival, 0, len(l.waits))
	for w := range l.waits {
		a := api.Arrival{Rank: rank, What: w.what, Key: w.key, Site: w.site, Seconds: time.Since(w.since).Seconds()}
		if w.what == waitDecision && rank != 0 {
			a.Missing = []uint64{0}
		}
		out = append(out, a)
	}
	sortArrivals(out)
	return out, l.last
}

func sortArrivals(list []api.Arrival) {
	slices.SortFunc(list, func(a, b api.Arrival) int {
		return cmp.Or(cmp.Compare(b.Seconds, a.Seconds), cmp.Compare(a.Rank, b.Rank))
	})
}

// waiting puts a wait into the ledger until the returned function is called. A
// long one is logged once.
func (s *Server) waiting(ctx context.Context, what string, key *events.Key, site string) func() {
	w := &wait{what: what, key: key, site: site, since: time.Now()}
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
	case s.rank == 0:
		st := s.replica.Status()
		log.Warn("rank 0's call is not in the log yet", "key", w.key.String(), "role", st.Role, "leader", st.Leader)
	default:
		log.Warn("waiting for rank 0's call", "key", w.key.String(), "missing_ranks", []uint64{0}, "rank_0", s.lastOfRank0Text(w.key.Model))
	}
}

// nodeReport is what a node tells the others about itself and its trainer. It
// travels as JSON, so that a newer node may say more.
type nodeReport struct {
	api.Rank
	Divergence *api.StateDivergence `json:"divergence,omitempty"`
}

func (s *Server) report() nodeReport {
	st, state := s.replica.Status(), s.replica.State()
	r := nodeReport{Rank: api.Rank{Rank: s.rank, Node: s.node, Address: st.Address, Host: st.Host, Version: s.version,
		Phase: string(st.Phase), Problem: st.Problem, Role: st.Role, Voter: st.Voter,
		Index: st.Index, Chain: st.Chain, Bookkeeping: state.Bookkeeping()}}
	r.Waiting, r.Last = s.ledger.arrivals(s.rank)
	if living := s.sessions.living(); living != "" && s.rank < uint64(len(state.Round.Members)) {
		r.Session = state.Round.Members[s.rank].Incarnation == living
	}
	if st.Phase == replica.PhaseDiverged {
		r.Divergence = s.divergence(state)
	}
	return r
}

// divergence looks again at the entry at which this replica's state froze.
func (s *Server) divergence(frozen *fsm.State) *api.StateDivergence {
	e, _, err := s.replica.Entry(frozen.Index + 1)
	if err != nil {
		return nil
	}
	var d *fsm.DivergedError
	if _, _, err = fsm.Apply(frozen, e); !errors.As(err, &d) {
		return nil
	}
	return &api.StateDivergence{Node: s.node, Index: d.Index, Which: d.Which, Model: d.Model, Want: d.Want, Got: d.Got}
}

func (s *Server) answerLedger(context.Context, []byte) (any, error) { return json.Marshal(s.report()) }

// gather asks every node, this one included.
func (s *Server) gather(ctx context.Context) ([]nodeReport, []api.Unreachable) {
	ctx, cancel := context.WithTimeout(ctx, askMax)
	defer cancel()
	reports, unreachable := []nodeReport{s.report()}, []api.Unreachable{}
	for _, a := range s.replica.Ask(ctx, askLedger, nil) {
		r, err := decodeReport(a)
		if err != nil {
			unreachable = append(unreachable, api.Unreachable{Node: a.Node, Address: a.Address, Reason: err.Error()})
			continue
		}
		reports = append(reports, r)
	}
	slices.SortFunc(reports, func(a, b nodeReport) int { return cmp.Compare(a.Rank.Rank, b.Rank.Rank) })
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
	reports, unreachable := s.gather(ctx)
	out := api.Arrivals{Waiting: []api.Arrival{}, Unreachable: unreachable}
	missing := missingOfRound(reports, s.world)
	for _, r := range reports {
		for _, a := range r.Waiting {
			if a.What == waitRound {
				a.Missing = missing
			}
			out.Waiting = append(out.Waiting, a)
		}
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
	reports, _ := s.gather(s.ctx)
	return missingOfRound(reports, s.world)
}

// lastCalls lists what each rank did last, as far as it can be known. Rank 0's
// call is in the log.
func (s *Server) lastCalls(ctx context.Context, model string) []api.LastCall {
	reports, _ := s.gather(ctx)
	out := []api.LastCall{}
	rank0 := s.lastOfRank0(model)
	if rank0 != nil {
		out = append(out, *rank0)
	}
	for _, r := range reports {
		if r.Last != nil && (r.Last.Rank != 0 || rank0 == nil) {
			out = append(out, *r.Last)
		}
	}
	return out
}

// ranks lists every rank of the world, those whose node did not answer with the
// reason.
func (s *Server) ranks(ctx context.Context) api.Ranks {
	reports, unreachable := s.gather(ctx)
	state := s.replica.State()
	out := api.Ranks{Ranks: make([]api.Rank, s.world)}
	for rank := range s.world {
		out.Ranks[rank] = silent(state, rank, unreachable)
	}
	for _, r := range reports {
		if r.Rank.Rank < s.world {
			out.Ranks[r.Rank.Rank] = r.Rank
		}
	}
	for i := range out.Ranks {
		if node := out.Ranks[i].Node; node != "" {
			out.Ranks[i].Disagreements = state.Source(node).Disagreements
		}
	}
	return out
}

// silent describes a rank of which nothing was heard.
func silent(state *fsm.State, rank uint64, unreachable []api.Unreachable) api.Rank {
	r := api.Rank{Rank: rank, Unreachable: "its node has not been part of the log yet"}
	if rank >= uint64(len(state.Round.Members)) {
		return r
	}
	r.Node = state.Round.Members[rank].Node
	node, _ := state.Node(r.Node)
	r.Host, r.Unreachable = node.Host, "it did not answer"
	for _, u := range unreachable {
		if u.Node == r.Node {
			r.Address, r.Unreachable = u.Address, u.Reason
		}
	}
	return r
}
