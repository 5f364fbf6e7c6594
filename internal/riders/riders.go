// Package riders keeps the observations that ride with a model's next numbered
// call. Both ends of the trainer's door keep some: the client those that it was
// told, the server those that came by POST .../observe.
package riders

import (
	"sync"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/fsm"
)

// Riders are at most one observation a slot for the call under way, and one for
// the call after it: a later reading of a field takes the earlier one's place,
// so that a trainer which observes every step needs no more memory. They have a
// lock of their own: observations wait for nobody, not even for a call that
// waits. The zero value is ready.
type Riders struct {
	mu      sync.Mutex
	under   bool // a call is under way
	aboard  []api.Observation
	waiting merged
}

// Add takes an observation along and returns how many there are now.
func (r *Riders) Add(o api.Observation) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting.add(o)
	return len(r.aboard) + len(r.waiting.list)
}

// Board returns those that go with the next call, in the order in which their
// slots were first observed: the same ones each time until it has landed, since
// a try whose outcome is unknown may have put them into the log. The caller
// does not change them.
func (r *Riders) Board() []api.Observation {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.under {
		r.under, r.aboard, r.waiting = true, r.waiting.list, merged{}
	}
	return r.aboard
}

// Land drops those that went with the call: it is in the log.
func (r *Riders) Land() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.under, r.aboard = false, nil
}

// Stay keeps those that went with the call: it is certainly not in the log.
func (r *Riders) Stay() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting = mergeLists(r.aboard, r.waiting.list)
	r.under, r.aboard = false, nil
}

// Merge makes one list of several, the oldest first, with one observation a
// slot.
func Merge(lists ...[]api.Observation) []api.Observation { return mergeLists(lists...).list }

func mergeLists(lists ...[]api.Observation) (m merged) {
	for _, list := range lists {
		for _, o := range list {
			m.add(o)
		}
	}
	return m
}

// merged has one observation a slot, in the order of the first ones.
type merged struct {
	list []api.Observation
	at   map[string]int // where a slot's is
}

func (m *merged) add(o api.Observation) {
	if i, ok := m.at[o.Slot]; ok {
		merge(&m.list[i].Readings, &o.Readings)
		return
	}
	if m.at == nil {
		m.at = map[string]int{}
	}
	m.at[o.Slot] = len(m.list)
	m.list = append(m.list, o)
}

// merge gives into the fields that a later observation has. "Not measured" takes
// no accuracy back, as it does not in the log.
func merge(into, later *api.Readings) {
	if a := later.Accuracy; a.Given && (a.Value != nil || !into.Accuracy.Given) {
		into.Accuracy = a
	}
	replace(&into.GradientRatio.Reading, later.GradientRatio.Reading)
	replace(&into.GradientNorm.Reading, later.GradientNorm.Reading)
	replace(&into.Health.Reading, later.Health.Reading)
	replace(&into.Exploding.Reading, later.Exploding.Reading)
	replace(&into.Vanishing.Reading, later.Vanishing.Reading)
	replace(&into.Contribution.Reading, later.Contribution.Reading)
	replace(&into.Healthy.Reading, later.Healthy.Reading)
}

func replace[T any](into *fsm.Reading[T], later fsm.Reading[T]) {
	if later.Given {
		*into = later
	}
}
