package api

import (
	"slices"
	"sync"
)

// Riders are the observations that wait for a model's next numbered call. Both
// ends of the trainer's door keep some: the client those that it was told, the
// server those that came by POST .../observe. They have a lock of their own:
// observations wait for nobody, not even for a call that waits. The zero value
// is ready.
type Riders struct {
	mu     sync.Mutex
	list   []Observation
	riding int  // how many of them go with the call under way
	aboard bool // one is under way
}

// Add appends an observation, unless max wait already. It returns how many wait
// now, and whether it was added.
func (r *Riders) Add(o Observation, max int) (int, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) >= max {
		return len(r.list), false
	}
	r.list = append(r.list, o)
	return len(r.list), true
}

// Board returns those that go with the next call: the same ones each time until
// it has landed, since a try whose outcome is unknown may have put them into
// the log. The result has no spare capacity.
func (r *Riders) Board() []Observation {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.aboard {
		r.riding, r.aboard = len(r.list), true
	}
	return r.list[:r.riding:r.riding]
}

// Land drops those that went with the call: it is in the log.
func (r *Riders) Land() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = slices.Clone(r.list[r.riding:])
	r.riding, r.aboard = 0, false
}

// Stay keeps those that went with the call: it is certainly not in the log.
func (r *Riders) Stay() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.riding, r.aboard = 0, false
}
