package door

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/gpuexec"
)

const (
	askHeld = "held" // a rank tells rank 0's node what its device held at its last fences

	heldMax   = 256                    // fences that wait to be told, or for other ranks
	heldPace  = time.Millisecond       // between what one rank tells and what it tells next, for each rank there is
	heldAgain = 500 * time.Millisecond // after an attempt that failed
)

// held is what one rank's device had between two fences: of the active set, and
// in the table. Nobody asks for it and nobody waits for it.
type held struct {
	attestedAt
	Rank    uint64        `json:"rank"`
	Planned events.Digest `json:"planned"`           // what is active, as this rank has it from the log
	Value   events.Digest `json:"value"`             // what its device said: the same, or something else
	Altered []string      `json:"altered,omitempty"` // the slots of which it did
}

// heldOutbox is what other ranks' nodes have not told rank 0's yet, the oldest
// first.
type heldOutbox struct {
	mu      sync.Mutex
	list    []held
	sending bool
}

// tellHeld has what the device held compared, behind the trainer's back.
func (s *Server) tellHeld(t *track, found gpuexec.Held) {
	if found.Index == 0 {
		return
	}
	h := held{attestedAt{t.round, t.model, found.Generation, found.Index}, s.rank, found.Planned, found.Value, found.Altered}
	if len(h.Altered) > 0 {
		s.log.Error("somebody else wrote into the table of the arena, which trainer and kernels read; it is written anew", "model", t.model, "index", h.Index, "slots", fmt.Sprint(h.Altered[:min(len(h.Altered), 16)]))
		h.Altered = h.Altered[:min(len(h.Altered), differShown)]
	}
	if s.rank == 0 {
		s.holdings.take(s, h)
		return
	}
	o := &s.heldOutbox
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.list) == heldMax { // rank 0's node is away: what is as it should be matters least
		i := max(0, slices.IndexFunc(o.list, func(h held) bool { return h.Value == h.Planned }))
		o.list = slices.Delete(o.list, i, i+1)
	}
	o.list = append(o.list, h)
	if !o.sending {
		o.sending = true
		s.work.Go(s.sendHeld)
	}
}

// sendHeld tells rank 0's node all there is, as often as the size of the world
// bears, until nothing is left. Ranks pass fences at the same time, and tell of
// them one after the other.
func (s *Server) sendHeld() {
	o := &s.heldOutbox
	for pause := heldPace * time.Duration(s.rank); ; {
		select {
		case <-time.After(pause):
		case <-s.ctx.Done():
			return
		}
		round := s.replica.State().Round
		o.mu.Lock()
		o.list = slices.DeleteFunc(o.list, func(h held) bool { return h.Round != round.Number })
		list := slices.Clone(o.list)
		o.sending = len(list) > 0
		o.mu.Unlock()
		if len(list) == 0 {
			return
		}
		pause = heldPace * time.Duration(len(round.Members))
		if err := s.tellRank0(round.Members[0].Node, list); err == nil {
			o.mu.Lock()
			o.list = slices.DeleteFunc(o.list, func(h held) bool {
				return slices.ContainsFunc(list, func(sent held) bool { return sent.attestedAt == h.attestedAt })
			})
			o.mu.Unlock()
		} else {
			s.log.Debug("rank 0's esperd was not told what this rank's device held; trying again", "error", err)
			pause += heldAgain
		}
	}
}

func (s *Server) tellRank0(node events.NodeID, list []held) error {
	body, err := json.Marshal(list)
	if err != nil {
		return err
	}
	ctx, done := context.WithTimeout(s.ctx, attestMax)
	defer done()
	return s.replica.AskNode(ctx, node, askHeld, body).Err
}

// answerHeld takes what another rank's device held.
func (s *Server) answerHeld(_ context.Context, question []byte) (any, error) {
	var list []held
	if err := fromPeer(question, &list); err != nil {
		return nil, err
	}
	for _, h := range list[:min(len(list), heldMax)] {
		h.Altered = slices.DeleteFunc(h.Altered[:min(len(h.Altered), differShown)], func(slot string) bool { return len(slot) > nameMax })
		s.holdings.take(s, h)
	}
	return json.Marshal(nil)
}

// holdings are, on rank 0's node, what the ranks' devices held. Ranks that agree
// leave nothing behind: the log is told only of those that do not.
type holdings struct {
	mu   sync.Mutex
	open map[attestedAt]*holding
	ages []attestedAt // of open, the oldest first
}

// holding is one fence's.
type holding struct {
	seen    []bool                     // by rank
	in      int                        // how many are
	planned map[events.Digest][]uint64 // ranks, by what is active as they have it from the log
	altered map[events.Digest]*events.AttestedOther
	told    map[uint64]bool // ranks that the log was told of
	waits   bool            // for the others, with something to tell
}

// take enters what one rank's device held. What belongs to no open round, or to no
// model, is left.
func (g *holdings) take(s *Server, h held) {
	head := s.replica.State()
	round := head.Round
	if round.Number != h.Round || h.Rank >= uint64(len(round.Members)) || head.Model(h.Model) == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	x := g.open[h.attestedAt]
	if x == nil {
		x = g.begin(s, h.attestedAt, len(round.Members))
	}
	if x.seen[h.Rank] {
		return
	}
	x.add(h)
	switch {
	case x.in == len(x.seen):
		g.end(s, h.attestedAt)
	case !x.waits && (len(x.planned) > 1 || len(x.altered) > 0):
		x.waits = true
		s.work.Go(func() { s.lateHeld(h.attestedAt, x) })
	}
}

// begin makes room for a fence. Of one for which ranks are still missing, though
// this many have come after it, it is said what can be said.
func (g *holdings) begin(s *Server, at attestedAt, world int) *holding {
	if len(g.ages) == heldMax {
		g.end(s, g.ages[0])
	}
	x := newHolding(world)
	if g.open == nil {
		g.open = map[attestedAt]*holding{}
	}
	g.open[at] = x
	g.ages = append(g.ages, at)
	return x
}

// end compares a fence for the last time.
func (g *holdings) end(s *Server, at attestedAt) {
	s.tellDifferent(g.open[at].compare(at))
	delete(g.open, at)
	g.ages = slices.DeleteFunc(g.ages, func(a attestedAt) bool { return a == at })
}

// lateHeld tells the log what differs though not all ranks are in. Those that come
// later are told of later.
func (s *Server) lateHeld(at attestedAt, x *holding) {
	select {
	case <-time.After(attestMax):
	case <-s.ctx.Done():
		return
	}
	g := &s.holdings
	g.mu.Lock()
	defer g.mu.Unlock()
	x.waits = false
	s.tellDifferent(x.compare(at))
}

func (s *Server) tellDifferent(ev *events.Attested) {
	if ev != nil {
		s.gatherings.tellLog(s, []events.Attested{*ev})
	}
}

func newHolding(world int) *holding {
	return &holding{seen: make([]bool, world), planned: map[events.Digest][]uint64{}, altered: map[events.Digest]*events.AttestedOther{}, told: map[uint64]bool{}}
}

func (x *holding) add(h held) {
	x.seen[h.Rank] = true
	x.in++
	if h.Value == h.Planned {
		x.planned[h.Planned] = append(x.planned[h.Planned], h.Rank)
		return
	}
	o := x.altered[h.Value]
	if o == nil {
		o = &events.AttestedOther{Value: h.Value, Tensors: h.Altered}
		x.altered[h.Value] = o
		if _, ok := x.planned[h.Planned]; !ok {
			x.planned[h.Planned] = nil // the log says so, though no device does
		}
	}
	o.Ranks = append(o.Ranks, h.Rank)
}

// compare returns what the log has not been told yet; nil: nothing. A device that
// is not what its own rank has from the log is never one of the most.
func (x *holding) compare(at attestedAt) *events.Attested {
	ev := &events.Attested{Round: at.Round, Model: at.Model, Generation: at.Generation, Index: at.Index, What: "active"}
	for _, ranks := range x.planned {
		slices.Sort(ranks)
	}
	values := slices.SortedFunc(maps.Keys(x.planned), func(a, b events.Digest) int {
		p, q := x.planned[a], x.planned[b]
		return cmp.Or(cmp.Compare(len(q), len(p)), slices.Compare(p, q), bytes.Compare(a[:], b[:]))
	})
	ev.Value, ev.Ranks = values[0], uint64(len(x.planned[values[0]]))
	for _, v := range values[1:] {
		ev.Others = append(ev.Others, events.AttestedOther{Value: v, Ranks: x.planned[v]})
	}
	left := differShown
	for _, v := range slices.SortedFunc(maps.Keys(x.altered), func(a, b events.Digest) int { return bytes.Compare(a[:], b[:]) }) {
		o := *x.altered[v]
		o.Tensors = o.Tensors[:min(len(o.Tensors), left)]
		left -= len(o.Tensors)
		ev.Others = append(ev.Others, o)
	}
	for i := range ev.Others {
		ev.Others[i].Ranks = slices.DeleteFunc(slices.Clone(ev.Others[i].Ranks), func(r uint64) bool { return x.told[r] })
		slices.Sort(ev.Others[i].Ranks)
	}
	ev.Others = slices.DeleteFunc(ev.Others, func(o events.AttestedOther) bool { return len(o.Ranks) == 0 })
	if len(ev.Others) == 0 {
		return nil
	}
	slices.SortFunc(ev.Others, func(a, b events.AttestedOther) int { return bytes.Compare(a.Value[:], b.Value[:]) })
	for _, o := range ev.Others {
		for _, r := range o.Ranks {
			x.told[r] = true
		}
	}
	for r, seen := range x.seen {
		if !seen {
			ev.Missing = append(ev.Missing, uint64(r))
		}
	}
	return ev
}
