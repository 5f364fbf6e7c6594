package conformance

import (
	"fmt"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

const (
	node  = events.NodeID("00000000000000000000000000000000")
	model = "main"
)

// run is a log of one node with rank 0 on it: every call is decided, encoded,
// decoded and applied, as on a replica.
type run struct {
	state *fsm.State
}

func newRun(slots []events.SlotConfig) (*run, error) {
	r := &run{state: fsm.New()}
	err := r.append(&events.Entry{Kind: events.KindFound, Events: []events.Event{
		{Founded: &events.Founded{Run: "conformance", Lineage: "1"}},
		{NodeJoined: &events.NodeJoined{Node: node, Version: events.Version}}}})
	if err != nil {
		return nil, err
	}
	err = r.append(&events.Entry{Kind: events.KindRound, Events: []events.Event{{RoundOpened: &events.RoundOpened{
		Round: 1, Members: []events.Member{{Rank: 0, Node: node, Incarnation: "1", Mode: "keyed"}}}}}})
	if err != nil {
		return nil, err
	}
	if _, err := r.call("", fsm.Configure{Slots: slots}); err != nil {
		return nil, err
	}
	if r.model() == nil {
		return nil, fmt.Errorf("the configuration was refused: %+v", slots)
	}
	return r, nil
}

func (r *run) model() *fsm.Model { return r.state.Model(model) }

// append fills in what an entry says of the state, sends it through its
// encoding and applies it.
func (r *run) append(e *events.Entry) error {
	e.Version, e.Node, e.Round, e.Predecessor = events.Version, node, r.state.Round.Number, r.state.Index
	e.Lifecycle, e.Bookkeeping = r.state.Lifecycle(model), r.state.Bookkeeping()
	b, err := events.Encode(e)
	if err != nil {
		return err
	}
	decoded, err := events.Decode(b)
	if err != nil {
		return err
	}
	next, outcome, err := fsm.Apply(r.state, decoded)
	if err != nil {
		return err
	}
	if outcome.Refused != "" {
		return fmt.Errorf("entry %d refused: %s", next.Index, outcome.Refused)
	}
	r.state = next
	return nil
}

// call decides rank 0's next call and applies it.
func (r *run) call(slot string, args fsm.Args, observations ...fsm.Observation) ([]events.Event, error) {
	key := fsm.NextKey(r.state, model, slot, args)
	evs, err := fsm.Decide(r.state, fsm.Call{Key: key, Observations: observations, Args: args})
	if err != nil {
		return nil, err
	}
	return evs, r.append(&events.Entry{Kind: events.KindCall, Key: &key, Events: evs})
}

// observe records readings without doing anything else: they ride with a fence.
func (r *run) observe(o fsm.Observation) ([]events.Event, error) {
	return r.call("", fsm.Fence{N: r.model().FenceN + 1}, o)
}

// step ticks all slots.
func (r *run) step() ([]events.Event, error) {
	return r.call("", fsm.StepEpoch{Epoch: r.model().Epoch + 1})
}

// tick ticks one slot only, as the vectors of several slots do: an entry of
// step_epoch that lacks the other slots' events.
func (r *run) tick(slot string) ([]events.Event, error) {
	m := r.model()
	evs, err := fsm.TickSlot(m, slot)
	if err != nil {
		return nil, err
	}
	evs = append(evs, events.Event{EpochStepped: &events.EpochStepped{Epoch: m.Epoch + 1, Tick: m.Tick + 1}})
	key := fsm.NextKey(r.state, model, "", fsm.StepEpoch{Epoch: m.Epoch + 1})
	return evs, r.append(&events.Entry{Kind: events.KindCall, Key: &key, Events: evs})
}

// refusal returns the refusal among the events of a call, nil if it was
// granted.
func refusal(evs []events.Event) *events.Refused {
	for i := range evs {
		if evs[i].Refused != nil {
			return evs[i].Refused
		}
	}
	return nil
}
