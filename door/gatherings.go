package door

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

const (
	attestMax     = 5 * time.Second  // how long ranks are waited for; and the log
	gatheringsMax = 64               // at once, and done ones that are remembered
	lackingMax    = 16               // comparisons without some ranks that are remembered
	tensorMax     = nameMax + 1 + 64 // bytes of a tensor's name, in the arena slot/tensor
	differShown   = 48               // tensors, or slots, that are named in one comparison
	differAsked   = 16               // ranks that are asked for theirs
)

// gatherings are, on rank 0's node, what the ranks hand in until all have.
type gatherings struct {
	mu   sync.Mutex
	open map[attestedAt]*gathering
	done []attestedAt // the last ones

	lacking []lack // the last ones that ranks have left out

	// found is what the log's count will be when all that was found is in it.
	round, found uint64
}

// lack is a comparison that was made without some ranks.
type lack struct {
	attestedAt
	missing []uint64
	since   time.Time
}

type gathering struct {
	by    map[uint64]*attested
	since time.Time
	full  chan struct{} // closed when all ranks are in
	over  chan struct{} // closed when the comparison is on its way to the log
}

// answerAttested takes what another rank holds.
func (s *Server) answerAttested(_ context.Context, question []byte) (any, error) {
	var a attested
	if err := fromPeer(question, &a); err != nil {
		return nil, err
	}
	s.gatherings.take(s, &a)
	return json.Marshal(nil)
}

// take adds what one rank holds. What belongs to no open round or to no model, names
// a shard that no trainer can, or comes too late, is left: what no entry can hold
// would hold up all reports behind it.
func (g *gatherings) take(s *Server, a *attested) {
	head := s.replica.State()
	round := head.Round
	if round.Number != a.Round || a.Rank >= uint64(len(round.Members)) || head.Model(a.Model) == nil {
		return
	}
	for shard := range a.Shards {
		if len(shard) > nameMax {
			return
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if slices.Contains(g.done, a.attestedAt) {
		return
	}
	x := g.open[a.attestedAt]
	if x == nil {
		if len(g.open) == gatheringsMax {
			return
		}
		x = &gathering{by: map[uint64]*attested{}, since: time.Now(), full: make(chan struct{}), over: make(chan struct{})}
		if g.open == nil {
			g.open = map[attestedAt]*gathering{}
		}
		g.open[a.attestedAt] = x
		s.work.Go(func() { s.gatherAttested(a.attestedAt, x, round.Members) })
	}
	if x.by[a.Rank] == nil {
		if x.by[a.Rank] = a; len(x.by) == len(round.Members) {
			close(x.full)
		}
	}
}

// gatherAttested waits for all ranks, for a bounded time, and has the log told
// what came of the comparison.
func (s *Server) gatherAttested(at attestedAt, x *gathering, members []events.Member) {
	defer close(x.over)
	select {
	case <-x.full:
	case <-time.After(attestMax):
	case <-s.ctx.Done():
		return
	}
	g := &s.gatherings
	g.mu.Lock()
	by := maps.Clone(x.by)
	if len(g.done) == gatheringsMax {
		g.done = slices.Delete(g.done, 0, 1)
	}
	g.done = append(g.done, at)
	g.mu.Unlock()

	list := compareAttested(at, len(members), by)
	s.nameTensors(at, list, by, members)
	g.tellLog(s, list)
	g.mu.Lock()
	delete(g.open, at) // not before: a fence of rank 0 that does not find it waits for nothing
	g.mu.Unlock()
	if m := without(by, len(members)); len(m) > 0 {
		s.log.Warn("not all ranks have attested what their devices hold", "model", at.Model, "index", at.Index, "missing", fmt.Sprint(m[:min(len(m), 16)]))
		g.lacks(lack{at, m, x.since})
	}
}

func (g *gatherings) lacks(l lack) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.lacking) == lackingMax {
		g.lacking = slices.Delete(g.lacking, 0, 1)
	}
	g.lacking = append(g.lacking, l)
}

// tellLog has comparisons of one fence recorded. The next fence of rank 0 waits
// until those are in the log in which ranks differ.
func (g *gatherings) tellLog(s *Server, list []events.Attested) {
	if len(list) == 0 {
		return
	}
	now, round := found(&s.replica.State().Round), list[0].Round
	g.mu.Lock()
	if g.round != round || g.found < now {
		g.round, g.found = round, now
	}
	for _, ev := range list {
		for _, o := range ev.Others {
			g.found += uint64(len(o.Ranks))
		}
	}
	g.mu.Unlock()
	for i := range list {
		s.replica.Report(events.Event{Attested: &list[i]})
	}
}

// unattested lists what ranks of the open round have not handed in, the oldest
// first.
func (g *gatherings) unattested(round *fsm.Round) []api.Unattested {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []api.Unattested
	add := func(l lack, over bool) {
		if l.Round == round.Number && len(l.missing) > 0 {
			out = append(out, api.Unattested{Model: l.Model, Index: l.Index, Missing: l.missing, Seconds: time.Since(l.since).Seconds(), Over: over})
		}
	}
	for _, l := range g.lacking {
		add(l, true)
	}
	for at, x := range g.open {
		add(lack{at, without(x.by, len(round.Members)), x.since}, false)
	}
	slices.SortFunc(out, func(a, b api.Unattested) int {
		return cmp.Or(cmp.Compare(a.Index, b.Index), cmp.Compare(a.Model, b.Model))
	})
	return out
}

func without(by map[uint64]*attested, world int) (out []uint64) {
	for r := range uint64(world) {
		if by[r] == nil {
			out = append(out, r)
		}
	}
	return out
}

// settleAttested has a fence of rank 0 wait until what its trainer has handed in
// since the last one is compared and in the log, so that this fence says who
// differs. It is bounded: a rank that hands in nothing is named as missing.
func (s *Server) settleAttested(ctx context.Context, t *track, op events.Op) {
	if s.rank != 0 || !op.Fence() {
		return
	}
	g := &s.gatherings
	g.mu.Lock()
	var mine *gathering
	for at, x := range g.open {
		if at.Model == t.model && at.Round == t.round && at.Index == t.fencedAt && x.by[0] != nil {
			mine = x
		}
	}
	g.mu.Unlock()
	if mine != nil {
		select {
		case <-mine.over:
		case <-ctx.Done():
			return
		}
	}
	ctx, done := context.WithTimeout(ctx, attestMax)
	defer done()
	for {
		changed := s.replica.Changed()
		g.mu.Lock()
		behind := g.round == t.round && found(&s.replica.State().Round) < g.found
		g.mu.Unlock()
		if !behind {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done(): // the log may never have it, as where an older node cannot read it
			g.mu.Lock()
			g.found = found(&s.replica.State().Round)
			g.mu.Unlock()
			return
		}
	}
}

// compareAttested compares among equal shards. Each one in which ranks differ is
// an event; all others are one, with the root of what they are. That one has no
// ranks where no shard is alike, and is left out if it would name none as missing
// either.
func compareAttested(at attestedAt, world int, by map[uint64]*attested) []events.Attested {
	base := events.Attested{Round: at.Round, Model: at.Model, Generation: at.Generation, Index: at.Index}
	ranks := slices.Sorted(maps.Keys(by))
	var out []events.Attested
	differing, alike := map[uint64]bool{}, false // ranks that are not of the whole, and whether there is one
	root := sha256.New()
	one := func(shard string, of func(*attested) (events.Digest, bool)) {
		ev := base
		ev.What, ev.Shard = "tensors", shard
		if !group(&ev, ranks, by, of) {
			return
		}
		if len(ev.Others) == 0 {
			alike = true
			root.Write(binary.BigEndian.AppendUint64(nil, uint64(len(shard))))
			root.Write([]byte(shard))
			root.Write(ev.Value[:])
			return
		}
		for _, o := range ev.Others {
			for _, r := range o.Ranks {
				differing[r] = true
			}
		}
		out = append(out, ev)
	}
	shards := map[string]bool{}
	for _, a := range by {
		for shard := range a.Shards {
			shards[shard] = true
		}
	}
	for _, shard := range slices.Sorted(maps.Keys(shards)) {
		one(shard, func(a *attested) (events.Digest, bool) {
			d, ok := a.Shards[shard]
			if shard == "" { // what all ranks hold, all have to hand in
				return d, !a.Partial
			}
			return d, ok
		})
	}
	for _, a := range by {
		if a.Partial {
			differing[a.Rank] = true // or not: it is not known
		}
	}
	whole := base
	whole.What, whole.Missing = "tensors", without(by, world)
	if alike {
		whole.Value, whole.Ranks = events.Digest(root.Sum(nil)), uint64(len(by)-len(differing))
	} else if len(whole.Missing) == 0 {
		return out
	}
	return append(out, whole)
}

// group sorts ranks by value: that of most, of equally many that of the lowest
// rank, and the others. It reports whether any rank has one.
func group(ev *events.Attested, ranks []uint64, by map[uint64]*attested, of func(*attested) (events.Digest, bool)) bool {
	groups := map[events.Digest][]uint64{}
	for _, r := range ranks {
		if d, ok := of(by[r]); ok {
			groups[d] = append(groups[d], r)
		}
	}
	if len(groups) == 0 {
		return false
	}
	values := slices.SortedFunc(maps.Keys(groups), func(a, b events.Digest) int {
		return cmp.Or(cmp.Compare(len(groups[b]), len(groups[a])), cmp.Compare(groups[a][0], groups[b][0]))
	})
	ev.Value, ev.Ranks = values[0], uint64(len(groups[values[0]]))
	others := values[1:]
	slices.SortFunc(others, func(a, b events.Digest) int { return bytes.Compare(a[:], b[:]) })
	for _, v := range others {
		ev.Others = append(ev.Others, events.AttestedOther{Value: v, Ranks: groups[v]})
	}
	return true
}

// nameTensors asks for the tensors where ranks differ, one of each side, and
// names those that are not the same: a bounded number, for the entry's sake.
func (s *Server) nameTensors(at attestedAt, list []events.Attested, by map[uint64]*attested, members []events.Member) {
	left, asked := differShown, 0
	for i := range list {
		ev := &list[i]
		if len(ev.Others) == 0 || left == 0 || asked >= differAsked {
			continue
		}
		most := slices.IndexFunc(members, func(m events.Member) bool {
			a := by[m.Rank]
			return a != nil && a.Shards[ev.Shard] == ev.Value && !(a.Partial && ev.Shard == "")
		})
		want, ok := s.tensorsAt(at, ev.Shard, members[most])
		asked++
		for k := range ev.Others {
			if !ok || left == 0 || asked >= differAsked {
				break
			}
			o := &ev.Others[k]
			got, ok := s.tensorsAt(at, ev.Shard, members[o.Ranks[0]])
			asked++
			if !ok {
				continue
			}
			names := differing(want, got)
			o.Tensors = names[:min(len(names), left)]
			left -= len(o.Tensors)
		}
	}
}

func (s *Server) tensorsAt(at attestedAt, shard string, m events.Member) ([]tensorPrint, bool) {
	q := &tensorsQuestion{at, shard}
	if m.Rank == s.rank {
		list := s.tensorsOf(q)
		return list, list != nil
	}
	ctx, done := context.WithTimeout(s.ctx, attestMax)
	defer done()
	body, err := json.Marshal(q)
	var list []tensorPrint
	if err == nil {
		err = readAnswer(s.replica.AskNode(ctx, m.Node, askTensors, body), &list)
	}
	if err != nil {
		s.log.Warn("a rank does not say which tensors it holds", "of_rank", m.Rank, "error", err)
	}
	return list, err == nil
}

// differing names the tensors of two lists, by name, that are not in both alike;
// no name that is longer than any can be.
func differing(want, got []tensorPrint) []string {
	var out []string
	for len(want) > 0 || len(got) > 0 {
		switch {
		case len(got) == 0 || len(want) > 0 && want[0].Name < got[0].Name:
			out, want = append(out, want[0].Name), want[1:]
		case len(want) == 0 || got[0].Name < want[0].Name:
			out, got = append(out, got[0].Name), got[1:]
		default:
			if want[0].Print != got[0].Print {
				out = append(out, got[0].Name)
			}
			want, got = want[1:], got[1:]
		}
	}
	return slices.DeleteFunc(out, func(name string) bool { return len(name) > tensorMax })
}
