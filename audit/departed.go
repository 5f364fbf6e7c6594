package audit

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/esperd/esperd/events"
)

// roundFacts is the last round that a log opened.
type roundFacts struct {
	index, number uint64
	members       []events.Member
}

// membership is told of every event that says who takes part.
func (r *recorder) membership(index uint64, ev *events.Event) {
	switch {
	case ev.NodeJoined != nil:
		r.node(ev.NodeJoined.Node, func(f *nodeFacts) {
			f.left, f.why = 0, ""
			if ev.NodeJoined.Host != "" {
				f.host = ev.NodeJoined.Host
			}
		})
	case ev.NodeLeft != nil:
		r.node(ev.NodeLeft.Node, func(f *nodeFacts) { f.left, f.why = index, ev.NodeLeft.Reason })
	case ev.RoundOpened != nil:
		r.round = roundFacts{index, ev.RoundOpened.Round, ev.RoundOpened.Members}
		for _, m := range ev.RoundOpened.Members {
			rank := m.Rank
			r.node(m.Node, func(f *nodeFacts) { f.rank = &rank })
		}
	}
}

func (r *recorder) node(id events.NodeID, change func(*nodeFacts)) {
	if r.nodes == nil {
		r.nodes = map[events.NodeID]nodeFacts{}
	}
	f := r.nodes[id]
	change(&f)
	r.nodes[id] = f
}

// departed says how the log has a node leave the world for good, so that nobody
// expects in its history what others have after its end; empty: it does not.
func (r *recorder) departed(id events.NodeID, end uint64) string {
	f, known := r.nodes[id]
	switch {
	case !known:
		return ""
	case f.left > 0:
		text := fmt.Sprintf("it ends with entry %d: the log has its node leave the world with entry %d (%s), and what follows was not for it", end, f.left, f.why)
		if end+1 < f.left {
			text += fmt.Sprintf("; entries %d to %d, from before that, are not here either", end+1, f.left-1)
		}
		return text
	case r.round.index > end && !slices.ContainsFunc(r.round.members, func(m events.Member) bool { return m.Node == id }):
		return fmt.Sprintf("it ends with entry %d: round %d, which entry %d opens with %s, is without its node", end, r.round.number, r.round.index, ranks(len(r.round.members)))
	}
	return ""
}

// departed is asked about a history that ends earlier than others of its log. What
// those have after its end is read again where none of them was replayed from the
// beginning.
func (a *auditor) departed(ctx context.Context, h *history, one []*history) string {
	if h.about.Node == "" || len(one) == 0 {
		return ""
	}
	furthest := slices.MaxFunc(one, func(x, y *history) int { return cmp.Compare(x.limit(), y.limit()) })
	for _, o := range one {
		if o.replayed >= furthest.limit() && o.sameAs == "" && o.adopted == 0 {
			return o.recorded.departed(h.about.Node, h.limit())
		}
	}
	r := recorder{nodes: maps.Clone(h.recorded.nodes), round: h.recorded.round}
	err := furthest.place.Records(ctx, h.limit()+1, furthest.limit(), func(b *events.Batch) error {
		defer b.Release()
		for i := range b.Records {
			e, err := events.Decode(b.Records[i].Entry)
			if err != nil {
				return err
			}
			for k := 0; k < len(e.Events) && e.Kind != events.KindCall && e.Predecessor == b.Records[i].Index-1; k++ {
				r.membership(b.Records[i].Index, &e.Events[k])
			}
		}
		return nil
	})
	if err != nil {
		return "" // then it is not known
	}
	return r.departed(h.about.Node, h.limit())
}
