package audit

import (
	"sync"

	"github.com/esperd/esperd/events"
)

// ledgerMax is how many links are kept of a log. A place that is further behind
// is compared once it comes near: a link answers for all entries before it.
const ledgerMax = 1 << 16

// ledger compares the links of places that are followed, as they pass them.
type ledger struct {
	mu     sync.Mutex
	logs   map[string]*links // by lineage: what a recovery left is no difference
	parted *meeting          // the first that there was
}

// links are those of entries low, low+1, ...
type links struct {
	low  uint64
	list []meetingPoint
}

// meetingPoint is a link, and who came there first.
type meetingPoint struct {
	chain events.Digest
	place int
}

// meeting is an entry at which two places hold different logs.
type meeting struct {
	index      uint64
	first, odd meetingPoint
	before     events.Digest // the link before, if it is known
}

// put compares the link of a place after an entry with what others had there, and
// reports whether one was there that is the same.
func (l *ledger) put(lineage string, index uint64, chain events.Digest, place int) (same bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.logs[lineage]
	if x == nil {
		if l.logs == nil {
			l.logs = map[string]*links{}
		}
		x = &links{low: index}
		l.logs[lineage] = x
	}
	next := x.low + uint64(len(x.list))
	switch {
	case index < x.low:
		return false
	case index > next: // nobody was between
		x.low, x.list, next = index, nil, index
	}
	if index == next {
		if x.list = append(x.list, meetingPoint{chain, place}); len(x.list) >= 2*ledgerMax {
			x.list = append([]meetingPoint(nil), x.list[ledgerMax:]...)
			x.low += ledgerMax
		}
		return false
	}
	i := index - x.low
	was := x.list[i]
	if was.chain != chain && l.parted == nil {
		l.parted = &meeting{index: index, first: was, odd: meetingPoint{chain, place}}
		if i > 0 {
			l.parted.before = x.list[i-1].chain
		}
	}
	return was.chain == chain && was.place != place
}
