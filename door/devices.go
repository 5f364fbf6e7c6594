package door

import (
	"slices"
	"sync"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

const (
	minoritiesMax  = 100     // attestations of one answer, the last ones
	minoritiesFrom = 1 << 17 // entries that are read for them at most
)

// minorities are the attestations of the open round that name ranks, as they
// stand in the history. The state only counts those ranks, so the history is read
// backwards until as many are found: once, and then what is new.
type minorities struct {
	mu           sync.Mutex
	round, found uint64 // what list is of
	list         []api.Attested
}

func (m *minorities) of(r Replica, head *fsm.State) []api.Attested {
	m.mu.Lock()
	defer m.mu.Unlock()
	round, total := head.Round.Number, found(&head.Round)
	if m.round != round || m.found > total {
		m.round, m.found, m.list = round, 0, nil
	}
	var newer []api.Attested // the latest first
	left := total - m.found
	for i := head.Index; left > 0 && i > 0 && head.Index-i < minoritiesFrom && len(newer) < minoritiesMax; i-- {
		e, _, err := r.Entry(i)
		if err != nil {
			break // where this node's history begins
		}
		if e.Predecessor != i-1 {
			continue // every replica refused it
		}
		for k := len(e.Events) - 1; k >= 0; k-- {
			a := e.Events[k].Attested
			if a == nil || a.Round != round || len(a.Others) == 0 {
				continue
			}
			newer = append(newer, api.Attested{Entry: i, Attested: *a})
			left -= min(left, ranksOf(a))
		}
	}
	slices.Reverse(newer)
	m.list = append(m.list, newer...)
	m.list, m.found = m.list[max(0, len(m.list)-minoritiesMax):], total
	return slices.Clone(m.list)
}

// ranksOf is how many ranks an attestation names.
func ranksOf(a *events.Attested) (n uint64) {
	for i := range a.Others {
		n += uint64(len(a.Others[i].Ranks))
	}
	return n
}
