package door

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/replica"
)

const (
	askOffer   = "offer"   // rank 0 asks: which mark has your trainer brought?
	askVerdict = "verdict" // the others ask rank 0: what became of this offer?

	// offerMax is how long one of these questions may take.
	offerMax = time.Second

	verdictsMax = 64 // that are remembered
)

// offer is the mark that one rank's trainer brings to a resume. It is asked for by
// rank 0, and stays until the trainer is answered; that of a mark which cannot be
// read, whose trainer is answered at once unless it is rank 0's, until its next
// call.
type offer struct {
	ID   string     `json:"id"` // random: of two tries of one trainer, each has its own
	Rank uint64     `json:"rank"`
	Key  events.Key `json:"key"`
	Site string     `json:"site,omitempty"`

	Sum     events.Digest `json:"sum"`
	Index   uint64        `json:"index,omitempty"`
	Epoch   int64         `json:"epoch"`
	Lineage string        `json:"lineage,omitempty"`
	Reason  string        `json:"reason,omitempty"` // why the mark is not readable
}

// offerOf returns the offer of a resume: the one that is there, for a client that
// repeats a call which was not answered.
func (t *track) offerOf(rank uint64, key events.Key, site string, m *events.Mark, sum events.Digest, why string) *offer {
	if o := t.offer.Load(); o != nil && o.Key == key && o.Sum == sum && o.Reason == "" {
		return o
	}
	o := &offer{ID: rand.Text(), Rank: rank, Key: key, Site: site, Sum: sum, Epoch: -1, Reason: why}
	if m != nil {
		o.Index, o.Epoch, o.Lineage = m.Index, m.Record.Epoch, m.Lineage
	}
	t.offer.Store(o)
	return o
}

// meets reports whether two ranks resume at the same place. Where calls are
// matched by number, the numbers are compared when rank 0's is an entry.
func (o *offer) meets(k events.Key) bool {
	return o.Key.Round == k.Round && o.Key.Model == k.Model && o.Key.Fence == k.Fence
}

// offerQuestion asks a rank about a resume; Key is rank 0's.
type offerQuestion struct {
	Key events.Key `json:"key"`
}

// offerAnswer says what a rank's trainer is at, in the model and round of the
// question.
type offerAnswer struct {
	Rank  uint64        `json:"rank"`
	Offer *offer        `json:"offer,omitempty"`
	Waits []api.Arrival `json:"waits,omitempty"`
}

func (s *Server) answerOffer(_ context.Context, question []byte) (any, error) {
	var q offerQuestion
	if err := fromPeer(question, &q); err != nil {
		return nil, err
	}
	a := offerAnswer{Rank: s.rank}
	if ses := s.sessions.served(); ses != nil {
		if t, p := ses.opened(q.Key.Model); p == nil && t.round == q.Key.Round {
			a.Offer = t.offer.Load()
		}
	}
	for _, w := range s.ledger.arrivals(s.rank) {
		if w.Key != nil && w.Key.Model == q.Key.Model && w.Key.Round == q.Key.Round {
			a.Waits = append(a.Waits, w)
		}
	}
	return json.Marshal(a)
}

// offers asks the other members of the round at once. Who does not answer has
// brought nothing yet.
func (s *Server) offers(ctx context.Context, members []events.Member, key events.Key) []offerAnswer {
	ctx, cancel := context.WithTimeout(ctx, offerMax)
	defer cancel()
	question, err := json.Marshal(offerQuestion{key})
	if err != nil {
		return nil
	}
	answers := make([]*offerAnswer, len(members))
	var all sync.WaitGroup
	for i, m := range members {
		if m.Rank == s.rank {
			continue
		}
		all.Go(func() {
			var a offerAnswer
			if err := readAnswer(s.replica.AskNode(ctx, m.Node, askOffer, question), &a); err != nil {
				s.log.Debug("a rank does not say which mark it has brought", "of_rank", m.Rank, "error", err)
			} else if a.Rank == m.Rank {
				answers[i] = &a
			}
		})
	}
	all.Wait()
	var out []offerAnswer
	for _, a := range answers {
		if a != nil {
			out = append(out, *a)
		}
	}
	return out
}

// disagreement is how a try to resume ended that became no entry.
type disagreement struct {
	offers  []string // ids
	problem *api.Problem
	told    map[string]bool
	changed chan struct{} // closed when everybody who waits for it was told
}

// verdicts are the last ones of this node, if it holds rank 0.
type verdicts struct {
	mu   sync.Mutex
	list []*disagreement
}

// pass remembers a verdict about offers. Those of ranks whose trainer has been
// answered already are not waited for.
func (v *verdicts) pass(p *api.Problem, offers []*offer, own *offer) *disagreement {
	v.mu.Lock()
	defer v.mu.Unlock()
	d := &disagreement{problem: p, told: map[string]bool{}, changed: make(chan struct{})}
	for _, o := range offers {
		d.offers = append(d.offers, o.ID)
		if o == own || o.Reason != "" {
			d.told[o.ID] = true
		}
	}
	if len(v.list) == verdictsMax {
		v.list = slices.Delete(v.list, 0, 1)
	}
	v.list = append(v.list, d)
	d.tell("")
	return d
}

// tell is called with mu held.
func (d *disagreement) tell(id string) {
	if id != "" {
		d.told[id] = true
	}
	select {
	case <-d.changed:
	default:
		if len(d.told) >= len(d.offers) {
			close(d.changed)
		}
	}
}

// about returns the verdict about an offer; nil: there is none.
func (v *verdicts) about(id string, telling bool) *api.Problem {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, d := range v.list {
		if slices.Contains(d.offers, id) {
			if telling {
				d.tell(id)
			}
			return d.problem
		}
	}
	return nil
}

// answerVerdict tells another rank what became of its offer.
func (s *Server) answerVerdict(_ context.Context, question []byte) (any, error) {
	var theirs offer
	if err := fromPeer(question, &theirs); err != nil {
		return nil, err
	}
	return json.Marshal(s.verdicts.about(theirs.ID, true))
}

// verdictOn asks rank 0's node what became of an offer; nil: nothing yet.
func (s *Server) verdictOn(ctx context.Context, o *offer, rank0 events.NodeID) *api.Problem {
	ctx, cancel := context.WithTimeout(ctx, offerMax)
	defer cancel()
	question, err := json.Marshal(o)
	if err != nil {
		return nil
	}
	var p *api.Problem
	if err := readAnswer(s.replica.AskNode(ctx, rank0, askVerdict, question), &p); err != nil {
		s.log.Debug("rank 0's node does not say what became of this rank's mark", "error", err)
		return nil
	}
	return p
}

// fromPeer reads a question, which is JSON, so that a newer node may say more.
func fromPeer(question []byte, out any) error {
	var body []byte
	err := events.Unmarshal(question, &body)
	if err == nil {
		err = json.Unmarshal(body, out)
	}
	if err != nil {
		return problemf(events.CodeInvalidInput, "a question about a resume that is not readable: %v; run the same version of esperd on all ranks", err)
	}
	return nil
}

func readAnswer(a replica.Answer, out any) error {
	if a.Err != nil {
		return a.Err
	}
	return fromPeer(a.Body, out)
}

// disagreeing says which ranks brought which mark; nil: all brought the same one,
// which can be read.
func disagreeing(offers []*offer) *api.Problem {
	type mark struct {
		sum    events.Digest
		reason string
	}
	at := map[mark]int{}
	var groups []api.OfferedMark
	for _, o := range offers {
		k := mark{o.Sum, o.Reason}
		i, ok := at[k]
		if !ok {
			i, at[k] = len(groups), len(groups)
			groups = append(groups, api.OfferedMark{Index: o.Index, Epoch: o.Epoch, Lineage: o.Lineage, Sum: &o.Sum, Reason: o.Reason})
		}
		groups[i].Ranks = append(groups[i].Ranks, o.Rank)
	}
	if len(groups) == 1 && groups[0].Reason == "" {
		return nil
	}
	slices.SortFunc(groups, func(a, b api.OfferedMark) int { return cmp.Compare(a.Ranks[0], b.Ranks[0]) })
	texts := make([]string, len(groups))
	for i, g := range groups {
		what := fmt.Sprintf("brought the mark of epoch %d (entry %d of lineage %.12s, sum %s)", g.Epoch, g.Index, g.Lineage, g.Sum.Short())
		if g.Reason != "" {
			what = "brought " + g.Reason
		}
		texts[i] = fmt.Sprintf("%s %s", ranksText(g.Ranks), what)
	}
	p := problemf(events.CodeMarkMismatch, "resume: expected the same mark of every rank, got %d: %s; nothing was changed: load the same checkpoint on every rank, and resume again", len(groups), strings.Join(texts, "; "))
	p.Marks = groups
	return p
}

// ranksText names ranks, of which there may be many.
func ranksText(ranks []uint64) string {
	const shown = 8
	slices.Sort(ranks)
	noun := "rank"
	if len(ranks) > 1 {
		noun = "ranks"
	}
	text := strings.Trim(fmt.Sprint(ranks[:min(shown, len(ranks))]), "[]")
	if more := len(ranks) - shown; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return noun + " " + text
}
