package door

import (
	"cmp"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// answer computes the answer to a call from its entry and the state after it.
func (s *Server) answer(t *track, found *matched, c call, list []fsm.Observation) *answered {
	e, index := found.entry, found.index
	a := &answered{index: index}
	local := s.ownVerdict(t, found, c, list)
	m := found.after.Model(t.model)
	switch {
	case refused(e) != nil:
		a.problem = refusal(e, index)
	case e.Key.Op.Fence():
		f := &api.Fence{Epoch: m.Epoch, Generation: m.Generation, Index: index, Changes: changes(t.fenced, m)}
		s.fenceMemory(t, found, f)
		a.body, a.slots = f, &fenceSlots{t.fenced, t.fencedAt, m}
	case verdictOf(e) != nil:
		a.body = s.decision(m, e, index, c, local)
	default:
		slot := slotOf(m, c.slot)
		a.body = &api.Done{Slot: c.slot, Seed: slot.Germinations, Stage: slot.Stage, Alpha: slot.Alpha, Index: index}
	}
	return a
}

func slotOf(m *fsm.Model, name string) api.Slot {
	i, ok := m.Config.Slot(name)
	if !ok {
		return api.Slot{Name: name, Stage: events.StageDormant}
	}
	return api.SlotOf(m, i)
}

// decision answers advance and verdict, and has the log told where this rank's
// own verdict is another one.
func (s *Server) decision(m *fsm.Model, e *events.Entry, index uint64, c call, local *events.Verdict) *api.Decision {
	slot := slotOf(m, c.slot)
	d := &api.Decision{Verdict: listed(*verdictOf(e)), Slot: c.slot, Seed: slot.Germinations, Stage: slot.Stage, Index: index, Agreed: true}
	if s.rank == 0 {
		own := d.Verdict
		d.Local = &own
		return d
	}
	if local == nil {
		return d
	}
	own := listed(*local)
	d.Local, d.Agreed = &own, own.Passed == d.Passed
	s.disagree(e, index, c.Site, local)
	return d
}

// listed makes absent lists of checks empty ones: clients iterate over them.
func listed(v events.Verdict) events.Verdict {
	if v.ChecksPassed == nil {
		v.ChecksPassed = []string{}
	}
	if v.ChecksFailed == nil {
		v.ChecksFailed = []string{}
	}
	return v
}

func refused(e *events.Entry) *events.Refused {
	for i := range e.Events {
		if r := e.Events[i].Refused; r != nil {
			return r
		}
	}
	return nil
}

// refusal is the same problem for the same entry on every rank.
func refusal(e *events.Entry, index uint64) *api.Problem {
	r := refused(e)
	if r == nil {
		return problemf(events.CodeUnavailable, "entry %d left model %s without a configuration; this is a bug in esperd", index, e.Key.Model)
	}
	p := api.NewProblem(r.Code, r.Reason)
	p.Index = index
	return p
}

// fenceSlots are what a fence's list of slots is made of.
type fenceSlots struct {
	before   *fsm.Model // at the fence before it
	beforeAt uint64     // index of that fence's entry
	now      *fsm.Model
}

// list returns every slot and 0, or, for a client that has kept those of the fence
// before, at since, the ones that have changed, and since.
func (x *fenceSlots) list(since uint64) ([]api.Slot, uint64) {
	if since == 0 || since != x.beforeAt || x.before.Config != x.now.Config {
		return api.SlotsOf(x.now), 0
	}
	out := []api.Slot{}
	x.now.Changed(x.before, func(i int) { out = append(out, api.SlotOf(x.now, i)) })
	return out, since
}

// changes lists what is visibly different between two states of a model, at the
// cost of the slots that entries have touched.
func changes(from, to *fsm.Model) []api.Change {
	out := []api.Change{}
	one := func(i int) {
		now, before := api.SlotOf(to, i), api.Slot{Stage: events.StageDormant}
		if j, ok := from.Config.Slot(now.Name); ok {
			before = api.SlotOf(from, j)
		}
		replaced := now.Seed > 0 && before.Seed > 0 && (now.Seed != before.Seed || now.SeedID != before.SeedID || now.Blueprint != before.Blueprint)
		if !replaced && now.Germinations == before.Germinations && now.Stage == before.Stage && now.Alpha == before.Alpha && now.Frozen == before.Frozen {
			return
		}
		out = append(out, api.Change{Slot: now.Name, Seed: now.Germinations, Blueprint: cmp.Or(now.Blueprint, before.Blueprint), From: before.Stage, To: now.Stage,
			AlphaFrom: before.Alpha, Alpha: now.Alpha, Frozen: now.Frozen, Replaced: replaced})
	}
	if from.Config == to.Config {
		to.Changed(from, one)
		return out
	}
	for i := range to.Slots.Len() { // another generation, or one that was rebuilt
		one(i)
	}
	return out
}
