package conformance

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// stopSet marks the behaviours that esperd refuses: a slot is compared up to
// its first operation with one of them (section 9).
var stopSet = map[string]bool{
	"germ_clobber_effect": true, "bad_blend_accepted": true, "blend_start_raise": true, "hold_at_zero_prune": true,
	"tempo_nonpos": true, "tiny_target": true, "tiny_target_prune": true, "near_one_hold": true, "stuck_ramp": true,
	"nonfinite_input": true, "cooldown_record": true,
}

// blueprints are those of the reference's CNN topology.
var blueprints = []string{"noop", "norm", "attention", "conv_small", "bottleneck", "depthwise", "conv_light", "conv_heavy"}

type slotSetup struct {
	SlotID      string        `json:"slot_id"`
	Channels    int           `json:"channels"`
	Topology    string        `json:"topology"`
	Gates       gateConfig    `json:"gates"`
	AutoForward []events.Gate `json:"auto_forward"`
}

func (s slotSetup) config() events.SlotConfig {
	c := events.SlotConfig{Name: s.SlotID, Gates: s.Gates.config(), AutoForward: s.AutoForward}
	for _, b := range blueprints {
		c.Blueprints = append(c.Blueprints, events.Blueprint{Name: b})
	}
	return c
}

type snapshot struct {
	Obs map[string]any `json:"obs"`
	X   map[string]any `json:"x"`
}

type episodeOp struct {
	Slot string           `json:"slot"`
	Op   string           `json:"op"`
	Args json.RawMessage  `json:"args"`
	Res  map[string]any   `json:"res"`
	Obs  map[string]any   `json:"obs"`
	X    map[string]any   `json:"x"`
	Ev   []map[string]any `json:"ev"`
	Q    []string         `json:"q"`
}

func (op *episodeOp) marked(mark string) bool { return slices.Contains(op.Q, mark) }

// episode is one record of lifecycle or multi, while it is replayed.
type episode struct {
	run   *run
	cmp   *comparer
	slots map[string]*slotState
}

// slotState is what the replay knows of one slot beside the state.
type slotState struct {
	x       map[string]any // the recorded bookkeeping keys so far
	stopped bool
	past    past
}

func newEpisode(id string, setups []slotSetup, start map[string]snapshot, numbers *[]place) (*episode, error) {
	e := &episode{cmp: &comparer{record: id, op: -1, name: "start", numbers: numbers}, slots: map[string]*slotState{}}
	var cfg []events.SlotConfig
	for _, s := range setups {
		cfg = append(cfg, s.config())
	}
	var err error
	if e.run, err = newRun(cfg); err != nil {
		return nil, fmt.Errorf("record %s: %w", id, err)
	}
	for _, s := range setups {
		st := &slotState{x: maps.Clone(start[s.SlotID].X)}
		e.slots[s.SlotID] = st
		path := "start"
		if len(setups) > 1 {
			path += "." + s.SlotID
		}
		if err := e.compareSlot(path, s.SlotID, start[s.SlotID].Obs); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// compareSlot compares primary observables and bookkeeping of one slot.
func (e *episode) compareSlot(path, slot string, obs map[string]any) error {
	if path != "" {
		path += "."
	}
	st, s := e.slots[slot], e.run.model().Slot(slot)
	if err := e.cmp.value(path+"obs", obs, obsValue(s)); err != nil {
		return err
	}
	return e.cmp.value(path+"x", st.x, xValue(s, &st.past))
}

// replayOp runs one operation on its slot and compares all that was recorded of
// it.
func (e *episode) replayOp(slot string, op *episodeOp) error {
	st, before := e.slots[slot], e.run.model()
	e.cmp.loose = op.marked("fmt_tie")
	maps.Copy(st.x, op.X)

	evs, res, err := e.perform(slot, op)
	if err != nil {
		return fmt.Errorf("record %s, op %d (%s): %w", e.cmp.record, e.cmp.op, op.Op, err)
	}
	s := e.run.model().Slot(slot)
	st.past.note(op, before.Slot(slot), s, evs)
	if err := e.compareResult(op, res, evs); err != nil {
		return err
	}
	if err := e.compareSlot("", slot, op.Obs); err != nil {
		return err
	}
	ev := make([]any, len(op.Ev))
	for i := range op.Ev {
		ev[i] = op.Ev[i]
	}
	if err := e.cmp.value("ev", ev, eventValues(evs)); err != nil {
		return err
	}
	return e.compareOthers(slot, before)
}

// compareOthers asserts that an operation on one slot leaves the others as they
// are: states share what did not change.
func (e *episode) compareOthers(slot string, before *fsm.Model) error {
	after := e.run.model()
	for i := range before.Slots.Len() {
		if name := before.Config.Slots[i].Name; name != slot && before.Slots.At(i) != after.Slots.At(i) {
			return e.cmp.fail("other slot "+name, "unchanged", "changed")
		}
	}
	return nil
}

// compareResult compares what the call answered. Of a refused germinate only
// the refusal counts; of other refusals the reason contains the reference's.
func (e *episode) compareResult(op *episodeOp, res map[string]any, evs []events.Event) error {
	r := refusal(evs)
	if r == nil || res != nil {
		return e.cmp.value("res", op.Res, res)
	}
	if _, ok := op.Res["exc"].(string); !ok {
		return e.cmp.fail("res", op.Res, "refused: "+r.Reason)
	}
	if op.Op == "germinate" {
		return nil
	}
	if msg, _ := op.Res["msg"].(string); msg == "" || !contains(r.Reason, msg) {
		return e.cmp.fail("res.msg", op.Res["msg"], r.Reason)
	}
	return nil
}

type lifecycleRecord struct {
	ID      string      `json:"id"`
	Profile string      `json:"profile"`
	Cfg     slotSetup   `json:"cfg"`
	Quirks  []string    `json:"quirks"`
	Start   snapshot    `json:"start"`
	Ops     []episodeOp `json:"ops"`
}

// replayLifecycle replays one episode on one slot (section 2.3).
func replayLifecycle(line []byte, numbers *[]place) (tally, error) {
	var r lifecycleRecord
	if err := decodeRecord(line, &r); err != nil {
		return tally{}, err
	}
	slot := r.Cfg.SlotID
	e, err := newEpisode(r.ID, []slotSetup{r.Cfg}, map[string]snapshot{slot: r.Start}, numbers)
	if err != nil {
		return tally{Records: 1}, err
	}
	for i := range r.Ops {
		r.Ops[i].Slot = slot
	}
	return e.replay(r.Ops)
}

type multiRecord struct {
	ID        string                    `json:"id"`
	Profile   string                    `json:"profile"`
	Container string                    `json:"container"`
	Cfg       map[string]slotSetup      `json:"cfg"`
	Quirks    []string                  `json:"quirks"`
	Start     map[string]snapshot       `json:"start"`
	Ops       []episodeOp               `json:"ops"`
	End       map[string]map[string]any `json:"end"`
}

// replayMulti replays one episode on several slots (section 2.4).
func replayMulti(line []byte, numbers *[]place) (tally, error) {
	var r multiRecord
	if err := decodeRecord(line, &r); err != nil {
		return tally{}, err
	}
	var setups []slotSetup
	for _, name := range slices.Sorted(maps.Keys(r.Cfg)) {
		setups = append(setups, r.Cfg[name])
	}
	e, err := newEpisode(r.ID, setups, r.Start, numbers)
	if err != nil {
		return tally{Records: 1}, err
	}
	sum, err := e.replay(r.Ops)
	if err != nil {
		return sum, err
	}
	e.cmp.op, e.cmp.name = len(r.Ops), "end"
	for _, s := range setups {
		if e.slots[s.SlotID].stopped {
			continue
		}
		if err := e.cmp.value("end."+s.SlotID, r.End[s.SlotID], obsValue(e.run.model().Slot(s.SlotID))); err != nil {
			return sum, err
		}
	}
	return sum, nil
}

func (e *episode) replay(ops []episodeOp) (tally, error) {
	sum := tally{Records: 1, Complete: 1}
	for i := range ops {
		op := &ops[i]
		st := e.slots[op.Slot]
		if st == nil {
			return sum, fmt.Errorf("record %s, op %d: no such slot %q", e.cmp.record, i, op.Slot)
		}
		if slices.ContainsFunc(op.Q, func(mark string) bool { return stopSet[mark] }) {
			st.stopped, sum.Complete = true, 0
		}
		if st.stopped {
			sum.Skipped++
			continue
		}
		e.cmp.op, e.cmp.name = i, op.Op
		if err := e.replayOp(op.Slot, op); err != nil {
			sum.Complete = 0
			return sum, err
		}
		sum.Ops++
	}
	return sum, nil
}
