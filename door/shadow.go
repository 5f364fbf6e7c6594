package door

import (
	"fmt"
	"log/slog"
	"slices"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// shadow is what the log would be like if this rank's measurements counted
// instead of rank 0's: the stages, controllers and everything else of the
// replicated state, with own metrics. It is a State like any other and moves by
// the log's own entries, in which only the observations are exchanged, so that
// package fsm's rules hold for it without being written a second time.
type shadow struct {
	state *fsm.State // nil: an entry could not be followed, which is a bug
	model string
	// own holds, by slot, the seed whose metrics are all this rank's: one that
	// germinated while the trainer was connected. Of an older one the
	// measurements before are gone.
	own  map[string]uint64
	at   uint64            // index of the last entry that was followed
	late []fsm.Observation // made with calls whose entries were passed already
	log  *slog.Logger
}

func newShadow(at *fsm.State, model string, log *slog.Logger) *shadow {
	return &shadow{state: at, at: at.Index, model: model, own: map[string]uint64{}, log: log}
}

// follow moves the shadow over the entry of a call and returns what this rank
// would have decided; nil where that cannot be known, or nothing was to decide.
func (sh *shadow) follow(e *events.Entry, index uint64, list []fsm.Observation, args fsm.Args) *events.Verdict {
	sh.at = index
	if sh.state == nil {
		return nil
	}
	decided, local := sh.decide(e, list, args)
	copied := *e
	copied.Predecessor = sh.state.Index
	copied.Lifecycle, copied.Bookkeeping = sh.state.Lifecycle(sh.model), sh.state.Bookkeeping()
	copied.Events = nil
	for _, ev := range decided {
		if ev.Observed != nil {
			copied.Events = append(copied.Events, ev)
		}
	}
	for _, ev := range e.Events {
		if ev.Observed == nil && ev.RequestDone == nil { // requests are not followed
			copied.Events = append(copied.Events, ev)
		}
		if ev.Configured != nil {
			clear(sh.own)
		}
		if ev.Germinated != nil {
			sh.own[ev.Germinated.Slot] = ev.Germinated.Seed
		}
	}
	next, out, err := fsm.Apply(sh.state, &copied)
	if err == nil && out.Refused != "" {
		err = fmt.Errorf("refused: %s", out.Refused)
	}
	if err != nil {
		sh.log.Error("this rank's own verdicts are not known any more until its trainer connects anew; this is a bug in esperd", "model", sh.model, "error", err)
		sh.state = nil
		return nil
	}
	sh.state = next
	return local
}

// decide asks the state machine what this rank would have decided, with what it
// observed. A call without a verdict is asked as a fence: it records the
// observations and does nothing else.
func (sh *shadow) decide(e *events.Entry, list []fsm.Observation, args fsm.Args) ([]events.Event, *events.Verdict) {
	m := sh.state.Model(sh.model)
	list = slices.DeleteFunc(slices.Clone(list), func(o fsm.Observation) bool { return m.Slot(o.Slot) == nil })
	asked := verdictOf(e) != nil && sh.knows(e.Key, args)
	if !asked {
		if len(list) == 0 {
			return nil, nil
		}
		args = fsm.Fence{N: m.FenceN + 1}
	}
	slot := e.Key.Slot
	if !asked {
		slot = ""
	}
	evs, err := fsm.Decide(sh.state, fsm.Call{Key: fsm.NextKey(sh.state, sh.model, slot, args), Observations: list, Args: args})
	if err != nil {
		sh.log.Error("this rank's own verdict could not be computed; this is a bug in esperd", "model", sh.model, "error", err)
		return nil, nil
	}
	if !asked {
		return evs, nil
	}
	return evs, verdictOf(&events.Entry{Events: evs})
}

// knows reports whether the own verdict of a call can be known: a trainer's
// always, a gate's when all that was measured of the seed is here.
func (sh *shadow) knows(k *events.Key, args fsm.Args) bool {
	switch args.(type) {
	case fsm.Verdict:
		return true
	case fsm.Advance:
		return sh.own[k.Slot] == k.Seed
	default:
		return false
	}
}

// verdictOf returns the answer to advance or verdict that an entry holds: what
// the gate said, or what became of it. Nil for a refused or another call.
func verdictOf(e *events.Entry) *events.Verdict {
	var v *events.Verdict
	for i := range e.Events {
		switch ev := &e.Events[i]; {
		case ev.GateEvaluated != nil:
			v = &ev.GateEvaluated.Verdict
		case ev.Decided != nil:
			v = &ev.Decided.Verdict
		case ev.Refused != nil:
			return nil
		}
	}
	return v
}
