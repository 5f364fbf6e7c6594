package fsm

import (
	"fmt"
	"strings"

	"github.com/esperd/esperd/events"
)

// KeyError says that a call must not become an entry: it is not the next call
// of the current round, or no call at all. What the trainer did wrong with a
// call that is the next one becomes an entry, a refusal.
type KeyError struct {
	Code   events.Code
	Want   events.Key // as Got, with what was expected in its place
	Got    events.Key
	Reason string
}

func (e *KeyError) Error() string { return e.Reason }

// NextKey returns the key of rank 0's next call of a model on state s. The slot
// is empty for calls that concern none.
func NextKey(s *State, model, slot string, args Args) events.Key {
	cursor := s.Cursor(model)
	key := events.Key{Round: s.Round.Number, Model: model, Call: cursor.Calls, Fence: cursor.Fence,
		Op: args.Op(), Slot: slot, Epoch: -1, Args: ArgsHash(args)}
	if m := s.Model(model); m != nil {
		key.Generation, key.Epoch = m.Generation, m.Epoch
		if i, ok := m.Config.Slot(slot); ok {
			key.Seed = m.Slots.At(i).Germinations
		}
	}
	if step, ok := args.(StepEpoch); ok {
		key.Epoch = step.Epoch
	}
	return key
}

// Decide turns a call of rank 0 into the events of its entry. It is pure, and
// the only place where the lifecycle is computed.
//
// A call that cannot be granted is an entry too: its observations, then one
// Refused. The error is a *KeyError, for a call that must not become an entry.
// The slices and pointers inside c are kept: the caller does not change them.
func Decide(s *State, c Call) ([]events.Event, error) {
	t, err := decide(s, c)
	if err != nil {
		return nil, err
	}
	return t.events, nil
}

func decide(s *State, c Call) (*turn, error) {
	if err := checkCall(s, c); err != nil {
		return nil, err
	}
	t := &turn{s: s, m: s.Model(c.Key.Model), requests: s.RequestsOf(c.Key.Model), resides: s.Cursor(c.Key.Model).Residency > 0}
	if t.m == nil {
		t.m = &Model{Name: c.Key.Model, Epoch: -1, FenceN: -1}
	}
	run := t.run
	if s.Round.Mode() == events.ModeObserve {
		run = t.runObserved
	}
	if r := run(c); r != nil {
		t.emit(events.Event{Refused: r})
	}
	if t.err != nil {
		return nil, fmt.Errorf("decide %s: %w; this is a bug in esperd", c.Key, t.err)
	}
	return t, nil
}

// turn is one call on its way to events. Every event is assigned to the working
// model at once, by the same code that Apply runs, so what Decide sees is what
// every replica will have.
type turn struct {
	s        *State // before the call
	m        *Model
	requests []Request // pending ones of the model
	resides  bool      // seeds need the votes of all ranks
	events   []events.Event
	err      error // sticky; an event that assign does not take
}

func (t *turn) emit(ev events.Event) {
	if t.err != nil {
		return
	}
	if ev.Refused == nil && ev.RequestDone == nil && ev.Residency == nil { // which are not the model's
		m, err := t.m.assign(&ev)
		if err != nil {
			t.err = err
			return
		}
		t.m = m
	}
	t.events = append(t.events, ev)
}

func (t *turn) slot(i int) *Slot { return t.m.Slots.At(i) }

// name returns the name of slot i.
func (t *turn) name(i int) string { return t.m.Config.Slots[i].Name }

func (t *turn) run(c Call) *events.Refused {
	if done, r := t.begin(c); done {
		return r
	}
	switch args := c.Args.(type) {
	case StepEpoch:
		return t.stepEpoch(args)
	case Fence:
		return t.fence(args)
	case Reset:
		t.reset()
		return nil
	case Resume:
		return t.resume(args)
	}
	i, ok := t.m.Config.Slot(c.Key.Slot)
	if !ok {
		return t.unknownSlot(string(c.Key.Op), c.Key.Slot)
	}
	return t.runSlot(i, c.Args)
}

// begin does what every call begins with. It reports true where that was all.
func (t *turn) begin(c Call) (done bool, r *events.Refused) {
	if t.m.Config != nil {
		if r := t.observe(c.Observations); r != nil {
			return true, r
		}
	} // else there is no seed to observe yet
	if configure, ok := c.Args.(Configure); ok {
		return true, t.configure(configure)
	}
	if t.m.Config == nil {
		return true, refuse(events.CodeConfigMismatch,
			"model %q is not configured: expected configure as its call 0, got %s; name the model's slots when connecting", t.m.Name, c.Key.Op)
	}
	return false, nil
}

func (t *turn) runSlot(i int, args Args) *events.Refused {
	switch args := args.(type) {
	case Germinate:
		return t.germinate(i, args)
	case Advance:
		return t.advance(i, args)
	case Verdict:
		return t.verdict(i, args)
	case Prune:
		return t.prune(i, args)
	case SchedulePrune:
		return t.schedulePrune(i, args)
	case AlphaTarget:
		return t.alphaTarget(i, args)
	default:
		t.err = fmt.Errorf("no such operation: %T", args)
		return nil
	}
}

// refuse makes a refusal. Its reason says what was expected, what was got, and
// what to do next.
func refuse(code events.Code, format string, args ...any) *events.Refused {
	return &events.Refused{Code: code, Reason: fmt.Sprintf(format, args...)}
}

// illegal refuses what the seed's stage does not allow.
func illegal(format string, args ...any) *events.Refused {
	return refuse(events.CodeIllegalTransition, format, args...)
}

func (t *turn) unknownSlot(what, slot string) *events.Refused {
	const shown = 8
	var names []string
	for i := range min(shown, len(t.m.Config.Slots)) {
		names = append(names, t.name(i))
	}
	more := ""
	if n := len(t.m.Config.Slots); n > shown {
		more = fmt.Sprintf(" and %d more", n-shown)
	}
	return refuse(events.CodeUnknownSlot, "%s: model %s has no slot %.64q; its slots are %s%s",
		what, t.m.Name, slot, strings.Join(names, ", "), more)
}

// checkCall returns the error of a call that must not become an entry.
func checkCall(s *State, c Call) error {
	fail := func(code events.Code, want events.Key, format string, args ...any) error {
		return &KeyError{Code: code, Want: want, Got: c.Key, Reason: fmt.Sprintf(format, args...)}
	}
	if why := malformed(c); why != "" {
		return fail(events.CodeInvalidInput, c.Key, "%s", why)
	}
	want := c.Key
	if want.Round = s.Round.Number; want.Round != c.Key.Round || want.Round == 0 {
		return fail(events.CodeNotAuthority, want, "%s is of round %d, but the log is in round %d (0: none was opened yet); connect again on all ranks to open the next round",
			c.Key.Op, c.Key.Round, want.Round)
	}
	if f := s.Round.Fault; f != nil {
		return &KeyError{Code: events.CodeRoundFaulted, Want: f.Want, Got: f.Got, Reason: fmt.Sprintf(
			"round %d is over since entry %d: %s; fix the trainer and connect again on all ranks", f.Round, f.Index, f.What())}
	}
	cursor := s.Cursor(c.Key.Model)
	want.Call, want.Fence, want.Generation = cursor.Calls, cursor.Fence, 0
	if m := s.Model(c.Key.Model); m != nil {
		want.Generation = m.Generation
	}
	if want != c.Key {
		return fail(events.CodeOrderMismatch, want, "expected %s, got %s; a call below the expected number was decided already and is answered from the log",
			want, c.Key)
	}
	return nil
}

// malformed says why a call is none that a client library makes; empty if it
// is.
func malformed(c Call) string {
	switch c.Args.(type) {
	case Configure, Germinate, Advance, Verdict, Prune, SchedulePrune, AlphaTarget, StepEpoch, Fence, Reset, Resume:
	default:
		return fmt.Sprintf("expected the arguments of a call, got %T", c.Args)
	}
	if op := c.Args.Op(); c.Key.Op != op {
		return fmt.Sprintf("the key says %.64q, the arguments are those of %s", c.Key.Op, op)
	}
	if c.Key.Model == "" {
		return "the key names no model"
	}
	for _, s := range []string{c.Key.Model, c.Key.Slot} {
		if why := badString(s, maxName); why != "" {
			return fmt.Sprintf("a name in the key of %s: %s", c.Key.Op, why)
		}
	}
	return ""
}
