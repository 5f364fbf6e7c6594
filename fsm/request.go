package fsm

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/esperd/esperd/events"
)

const (
	maxRequests      = 1000    // that wait for one model's next fence
	maxRequestNumber = 1 << 62 // a node counts from boots x 2^32
)

// Request is one that waits for its model's next fence.
type Request struct {
	Index uint64           `cbor:"1,keyasint"` // of its entry
	Asked events.Requested `cbor:"2,keyasint"`
}

// RequestsOf returns the pending requests of a model, in log order.
func (s *State) RequestsOf(model string) []Request {
	var out []Request
	for _, r := range s.Requests {
		if r.Asked.Model == model {
			out = append(out, r)
		}
	}
	return out
}

// DecideRequest turns a request into the event of its entry, or returns the one
// that is in the log in its place, so that asking twice is asking once: of the
// same number, whatever became of it, or pending for the same action on the same
// seed. Number 0 is the node's next one, seed 0 the seed that is there now,
// generation 0 the model's. It is pure, and the leader's; a refusal is no entry.
func DecideRequest(s *State, r events.Requested) (*events.Requested, *Request, *events.Refused) {
	src := s.Source(r.Node)
	switch {
	case r.Number == 0:
		r.Number = src.Requests + 1
	case r.Number == src.Requests:
		return nil, &Request{Index: src.RequestIndex, Asked: r}, nil
	case r.Number < src.Requests:
		return nil, nil, refuse(events.CodeUnavailable, "request %d of node %s comes after its request %d: ask again", r.Number, r.Node, src.Requests)
	}
	if why := badRequest(&r); why != "" {
		return nil, nil, refuse(events.CodeInvalidInput, "request: %s", why)
	}
	m := s.Model(r.Model)
	switch {
	case m == nil:
		return nil, nil, refuse(events.CodeConfigMismatch, "request: expected a model of the log, got %q; see esperd status for its models", r.Model)
	case s.Round.Mode() == events.ModeObserve:
		return nil, nil, refuse(events.CodeNotAuthority, "request: round %d is only observed, so esperd decides nothing in it: ask the trainers' own governor", s.Round.Number)
	}
	i, ok := m.Config.Slot(r.Slot)
	if !ok {
		return nil, nil, (&turn{m: m}).unknownSlot("request", r.Slot)
	}
	slot := m.Slots.At(i)
	if r.Generation != 0 && r.Generation != m.Generation {
		return nil, nil, illegal("request to %s %s: expected generation %d of model %s, got %d: the model was reset meanwhile; nothing to do", r.Action, r.Slot, m.Generation, m.Name, r.Generation)
	}
	r.Generation = m.Generation
	if r.Seed == 0 {
		r.Seed = slot.Germinations
	}
	if why := unrequestable(slot, r.Seed); why != "" {
		return nil, nil, illegal("request to %s %s: expected a living seed that is not fossilized, but %s; nothing to do", r.Action, r.Slot, why)
	}
	pending := s.RequestsOf(r.Model)
	for _, p := range pending {
		if a := p.Asked; a.Slot == r.Slot && a.Seed == r.Seed && a.Action == r.Action && a.Generation == r.Generation {
			return nil, &p, nil
		}
	}
	if len(pending) >= maxRequests {
		return nil, nil, refuse(events.CodeUnavailable, "request: %d wait for the next fence of model %s already, expected fewer: see whether its trainers still fence", len(pending), r.Model)
	}
	return &r, nil, nil
}

func badRequest(r *events.Requested) string {
	if r.Action != events.ActionPrune {
		return fmt.Sprintf("action: expected %q, got %.64q", events.ActionPrune, r.Action)
	}
	if r.Number > maxRequestNumber {
		return fmt.Sprintf("number: expected at most %d, got %d", uint64(maxRequestNumber), r.Number)
	}
	for _, name := range []string{r.Model, r.Slot} {
		if why := badString(name, maxName); why != "" {
			return "name: " + why
		}
	}
	return badReason(r.Reason, r.Initiator)
}

// unrequestable says why nothing can be asked of a seed; empty if it can.
func unrequestable(slot *Slot, seed uint64) string {
	switch {
	case slot.Seed == nil:
		return "the slot is empty"
	case slot.Seed.Count != seed:
		return fmt.Sprintf("seed %d is in the slot, not seed %d", slot.Seed.Count, seed)
	case slot.Seed.Stage == events.StageFossilized:
		return "the seed is fossilized, for good"
	case slot.Seed.Stage.Cooldown():
		return fmt.Sprintf("the seed was pruned already and is %s", slot.Seed.Stage)
	}
	return ""
}

// executeRequests does at a fence what was asked for, in log order. What cannot
// be done any more is recorded as such.
func (t *turn) executeRequests() {
	for _, r := range t.requests {
		skipped := wasReset // which would have dropped it, so this is never so
		if i, ok := t.m.Config.Slot(r.Asked.Slot); ok && r.Asked.Generation == t.m.Generation {
			if skipped = unrequestable(t.slot(i), r.Asked.Seed); skipped == "" {
				t.remove(i, r.Asked.Reason, r.Asked.Initiator)
			}
		}
		t.requestDone(r, skipped)
	}
}

// wasReset is why what was asked of an older generation is not done.
const wasReset = "the model was reset"

// dropRequests ends all of them without an effect, by name.
func (t *turn) dropRequests(why string) {
	for _, r := range t.requests {
		t.requestDone(r, why)
	}
}

func (t *turn) requestDone(r Request, skipped string) {
	t.emit(events.Event{RequestDone: &events.RequestDone{Request: r.Index, Skipped: skipped}})
}

// addRequest assigns a request to the pending ones.
func (s *State) addRequest(ev *events.Requested) error {
	src := s.Source(ev.Node)
	if ev.Number <= src.Requests {
		return fmt.Errorf("request %d of node %s follows its request %d", ev.Number, ev.Node, src.Requests)
	}
	src.Requests, src.RequestIndex = ev.Number, s.Index
	s.setSource(src)
	s.setRequest(Request{Index: s.Index, Asked: *ev})
	return nil
}

// setRequest adds a pending request.
func (s *State) setRequest(r Request) {
	s.Requests = upsert(s.Requests, r, func(a, b Request) int { return cmp.Compare(a.Index, b.Index) },
		func(old *Request) {
			if old != nil {
				s.requestsSum = s.requestsSum.sub(requestLeaf(*old))
			}
			s.requestsSum = s.requestsSum.add(requestLeaf(r))
		})
}

func (s *State) removeRequest(index uint64) error {
	i, ok := slices.BinarySearchFunc(s.Requests, index, func(r Request, index uint64) int { return cmp.Compare(r.Index, index) })
	if !ok {
		return fmt.Errorf("request of entry %d is done, but it is not pending", index)
	}
	s.requestsSum = s.requestsSum.sub(requestLeaf(s.Requests[i]))
	s.Requests = slices.Delete(slices.Clone(s.Requests), i, i+1)
	return nil
}
