package replica

import (
	"sync"
	"time"

	"github.com/esperd/esperd/fsm"
)

// registrations are the trainers that wait for the next round, in the leader's
// memory only: their nodes repeat them.
type registrations struct {
	mu     sync.Mutex
	byRank map[uint64]registration
}

// put notes one and returns the ranks that are missing, or all registrations in
// rank order once every rank of the same rendezvous is there.
func (rs *registrations) put(round fsm.Round, r registration) (missing []uint64, complete []registration) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.byRank == nil {
		rs.byRank = map[uint64]registration{}
	}
	if r.Rank < uint64(len(round.Members)) && round.Members[r.Rank].Incarnation == r.Incarnation {
		return nil, nil // its round is open
	}
	rs.byRank[r.Rank] = r
	all := make([]registration, 0, r.World)
	for rank := range r.World {
		other, ok := rs.byRank[rank]
		switch {
		case !ok || time.Since(other.seen) > 3*registerEvery || other.Fingerprint != r.Fingerprint:
			missing = append(missing, rank)
		case rank < uint64(len(round.Members)) && round.Members[rank].Incarnation == other.Incarnation:
			missing = append(missing, rank) // still the trainer of the open round
		default:
			all = append(all, other)
		}
	}
	if len(missing) > 0 {
		return missing, nil
	}
	return nil, all
}
