package replica

import (
	"sync"
	"time"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// registrations are the trainers that wait for the next round, in the leader's
// memory only: their nodes repeat them.
type registrations struct {
	mu     sync.Mutex
	byRank map[uint64]registration
}

// put notes one and returns the ranks that are missing, or all registrations in
// rank order once every rank of the same rendezvous is there. Two of one
// rendezvous that want different modes are an error to both.
func (rs *registrations) put(round fsm.Round, r registration) (missing []uint64, complete []registration, err error) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.byRank == nil {
		rs.byRank = map[uint64]registration{}
	}
	if r.Rank < uint64(len(round.Members)) && round.Members[r.Rank].Incarnation == r.Incarnation {
		return nil, nil, nil // its round is open
	}
	r.since = r.seen
	if before := rs.byRank[r.Rank]; before.Incarnation == r.Incarnation {
		r.since = before.since
	}
	rs.byRank[r.Rank] = r
	if err := rs.parted(r); err != nil {
		return nil, nil, err
	}
	all := make([]registration, 0, r.World)
	for rank := range r.World {
		other, ok := rs.byRank[rank]
		switch {
		case !ok || time.Since(other.seen) > 3*registerEvery || other.Fingerprint != r.Fingerprint:
			missing = append(missing, rank)
		case rank < uint64(len(round.Members)) && round.Members[rank].Incarnation == other.Incarnation:
			missing = append(missing, rank) // still the trainer of the open round
		case other.Mode != r.Mode:
			return nil, nil, errorf(events.CodeConfigMismatch, "mode: rank %d's trainer connects with mode=%q, rank %d's with mode=%q, expected one mode on all ranks; give every rank's connect the same",
				r.Rank, r.Mode, other.Rank, other.Mode)
		default:
			all = append(all, other)
		}
	}
	if len(missing) > 0 {
		return missing, nil, nil
	}
	return nil, all, nil
}

// settled is how long trainers of different starts wait for each other before
// they are told: while all are being restarted, some are late.
const settled = 3 * time.Second

// parted returns the error of a trainer that waits for ranks which wait for
// others: all are there, and not for one round.
func (rs *registrations) parted(r registration) error {
	var other *registration
	for rank := range r.World {
		o, ok := rs.byRank[rank]
		if !ok || time.Since(o.seen) > 3*registerEvery || time.Since(o.since) < settled {
			return nil
		}
		if o.Fingerprint != r.Fingerprint {
			other = &o
		}
	}
	if other == nil {
		return nil
	}
	return errorf(events.CodeConfigMismatch, "rendezvous: rank %d's trainer belongs to %q and rank %d's to %q, so that no round can be opened: expected one start of all ranks; end the trainers of the older one (ESPERD_ROUND, or MASTER_ADDR, MASTER_PORT and the restart count tell starts apart)",
		r.Rank, r.Fingerprint, other.Rank, other.Fingerprint)
}
