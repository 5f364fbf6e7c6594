package replica

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// registrations are the trainers that wait for the next round, in the leader's
// memory only: their nodes repeat them. Those of one rendezvous and world size
// belong together; while a job is started again, those of the start before may
// still be among them.
type registrations struct {
	mu     sync.Mutex
	byNode map[events.NodeID]registration // a node has one trainer
}

// settled is how long trainers that contradict each other are left alone before
// they are told: while all are being restarted, some of those before linger.
const settled = 3 * time.Second

// put notes one and returns the ranks that are missing, or all registrations in
// rank order once every rank of the same rendezvous is there. Two that contradict
// each other are an error to both.
func (rs *registrations) put(round fsm.Round, r registration) (missing []uint64, complete []registration, err error) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.byNode == nil {
		rs.byNode = map[events.NodeID]registration{}
	}
	if inRound(round, r) {
		return nil, nil, nil // its round is open
	}
	r.since = r.seen
	if before := rs.byNode[r.Node]; before.Incarnation == r.Incarnation {
		r.since = before.since
	}
	rs.byNode[r.Node] = r
	waiting := rs.waiting(round)
	if err := contested(waiting, r); err != nil {
		return nil, nil, err
	}
	var all []registration
	for rank := range r.World {
		var there []registration
		for _, o := range waiting {
			if o.Rank == rank && o.World == r.World && o.Fingerprint == r.Fingerprint {
				there = append(there, o)
			}
		}
		switch {
		case len(there) != 1: // of two, one may be about to end
			missing = append(missing, rank)
		case there[0].Mode != r.Mode:
			return nil, nil, errorf(events.CodeConfigMismatch, "mode: rank %d's trainer connects with mode=%q, rank %d's with mode=%q, expected one mode on all ranks; give every rank's connect the same",
				r.Rank, r.Mode, rank, there[0].Mode)
		default:
			all = append(all, there[0])
		}
	}
	if len(missing) > 0 {
		return missing, nil, nil
	}
	return nil, all, nil
}

// inRound reports whether a registration is of a trainer of the open round.
func inRound(round fsm.Round, r registration) bool {
	return r.Rank < uint64(len(round.Members)) && round.Members[r.Rank].Incarnation == r.Incarnation
}

// waiting lists who still repeats its registration, by rank, and forgets the
// others.
func (rs *registrations) waiting(round fsm.Round) []registration {
	var out []registration
	for node, r := range rs.byNode {
		switch {
		case time.Since(r.seen) > 3*registerEvery:
			delete(rs.byNode, node)
		case !inRound(round, r): // else still the trainer of the open round
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b registration) int { return cmp.Or(cmp.Compare(a.Rank, b.Rank), cmp.Compare(a.Node, b.Node)) })
	return out
}

// contested returns the error of a trainer that will not get its round, since
// others which persist contradict it.
func contested(waiting []registration, r registration) error {
	if time.Since(r.since) < settled {
		return nil
	}
	persistent := slices.DeleteFunc(slices.Clone(waiting), func(o registration) bool { return time.Since(o.since) < settled })
	for _, o := range persistent {
		switch {
		case o.Node == r.Node || o.Fingerprint != r.Fingerprint:
		case o.World != r.World:
			return errorf(events.CodeConfigMismatch, "world size: rank %d's trainer (node %s) connects in a world of %d, rank %d's (node %s) in one of %d, both with the rendezvous %q, expected one world size; give all ranks the same",
				r.Rank, r.Node, r.World, o.Rank, o.Node, o.World, r.Fingerprint)
		case o.Rank == r.Rank:
			return errorf(events.CodeConfigMismatch, "rank %d is registered by two trainers, on node %s at %s and on node %s at %s, expected one; end one of them, or correct its rank",
				r.Rank, r.Node, hostOf(r.Address), o.Node, hostOf(o.Address))
		}
	}
	return parted(persistent, r)
}

// parted returns the error of a trainer that waits for ranks which wait for
// others: all are there, and not for one round.
func parted(persistent []registration, r registration) error {
	var other *registration
	for rank := range r.World {
		var there *registration // of this rendezvous, if one is
		for i, o := range persistent {
			if o.Rank == rank && (there == nil || o.Fingerprint == r.Fingerprint) {
				there = &persistent[i]
			}
		}
		if there == nil {
			return nil // somebody is still to come
		}
		if there.Fingerprint != r.Fingerprint {
			other = there
		}
	}
	if other == nil {
		return nil
	}
	return errorf(events.CodeConfigMismatch, "rendezvous: rank %d's trainer belongs to %q and rank %d's to %q, so that no round can be opened: expected one start of all ranks; end the trainers of the older one (ESPERD_ROUND, or MASTER_ADDR, MASTER_PORT and the restart count tell starts apart)",
		r.Rank, r.Fingerprint, other.Rank, other.Fingerprint)
}
