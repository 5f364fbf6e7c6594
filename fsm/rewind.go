package fsm

import (
	"fmt"
	"slices"
	"strings"

	"github.com/esperd/esperd/events"
)

// resume takes the model back to a mark. What was asked of its seeds is void.
func (t *turn) resume(a Resume) *events.Refused {
	if a.Mark == nil {
		return refuseMark("expected the bytes that checkpoint() returned, got none")
	}
	adopted, r := t.checkMark(a)
	if r != nil {
		return r
	}
	mark := a.Mark
	if diff := diffSlots(t.m.Config.Slots, canonicalSlots(mark.Slots)); diff != "" {
		return refuse(events.CodeConfigMismatch, "resume: model %s of the mark is configured differently (here: the mark): %s; connect with the configuration that the mark was made with", t.m.Name, diff)
	}
	ev := &events.Rewound{Run: mark.Run, Lineage: mark.Lineage, Index: mark.Index, Chain: mark.Chain, Lifecycle: mark.Lifecycle,
		Model: mark.Record, Adopted: adopted}
	if why := badRecord(&mark.Record); why != "" {
		return refuseMark("%s", why)
	}
	if _, err := t.m.rewound(ev); err != nil {
		return refuseMark("%v", err)
	}
	t.dropRequests("the model went back to a mark")
	t.emit(events.Event{Rewound: ev})
	return nil
}

func refuseMark(format string, args ...any) *events.Refused {
	return refuse(events.CodeMarkMismatch, "resume: "+format+"; nothing was changed", args...)
}

// checkMark says whether the mark may be resumed in this log, and whether it
// continues one that was lost. What the log holds itself needs no more: the
// chain says everything about how it came there.
func (t *turn) checkMark(a Resume) (adopted bool, r *events.Refused) {
	mark := a.Mark
	switch s := t.s; {
	case mark.Model != t.m.Name:
		return false, refuseMark("the mark is of model %.64q, expected one of model %q: resume each model with its own mark", mark.Model, t.m.Name)
	case a.Held:
		return false, nil
	case mark.Run != s.Run && !(madeRun(mark.Run) && madeRun(s.Run)):
		return false, refuseMark("the mark is of run %.64q, this log is run %q: expected a mark of the same run; pass the checkpoint of this run, or start the trainers with ESPERD_RUN_ID=%.64[1]q", mark.Run, s.Run)
	case mark.Lineage == s.Lineage && mark.Index > s.Index:
		return false, refuseMark("the mark is of entry %d, and this log ends at entry %d: expected an entry that the log has; the data directories are older than the checkpoint: see esperd recover, or move all of them aside, and the mark founds a new log", mark.Index, s.Index)
	case mark.Lineage == s.Lineage:
		return false, refuseMark("the mark has chain %s at entry %d, where this log has another: it was changed, or the data directories were exchanged; pass the checkpoint as it was saved", mark.Chain.Short(), mark.Index)
	case t.s.leftBefore(mark), t.m.pristine():
		return true, nil
	}
	return false, refuseMark("the mark is of log %.32s, which this log (%s) does not continue, and model %s has been trained here since: call reset() first, after which a mark of a lost log of this run can be resumed", mark.Lineage, t.s.Lineage, t.m.Name)
}

// leftBefore reports whether the mark is of the part of an ancestor that this
// log has lost.
func (s *State) leftBefore(mark *events.Mark) bool {
	return slices.ContainsFunc(s.Ancestors, func(a events.Ancestor) bool { return a.Lineage == mark.Lineage && mark.Index > a.Index })
} // up to a.Index it would be held

// pristine reports whether nothing has happened to the model, or nothing since it
// was reset.
func (m *Model) pristine() bool {
	return m.Epoch == -1 && m.FenceN == -1 && m.Tick == 0 && m.slotsSum == setSum{} && len(m.due) == 0
}

// madePrefix begins the run ids that were not given but made.
const madePrefix = "run-"

// MadeRun is the run id of a log that is founded without one.
func MadeRun(lineage string) string { return madePrefix + lineage[:min(8, len(lineage))] }

// madeRun reports whether a run id was made.
func madeRun(run string) bool {
	digits, ok := strings.CutPrefix(run, madePrefix)
	return ok && len(digits) == 8 && strings.Trim(digits, "0123456789abcdef") == ""
}

// badRecord says what no state machine can have counted to; empty if nothing.
func badRecord(r *events.ModelRecord) string {
	if r.Generation == 0 || r.Generation > maxOrdinal || r.Tick > maxOrdinal || !ordinal(r.Epoch) || !ordinal(r.FenceN) {
		return fmt.Sprintf("generation %d, epoch %d, fence %d, tick %d: expected numbers from 1, -1, -1 and 0 to %d", r.Generation, r.Epoch, r.FenceN, r.Tick, int64(maxOrdinal))
	}
	for i := range r.Slots {
		slot := &r.Slots[i]
		if slot.Germinations > maxOrdinal {
			return fmt.Sprintf("slot %d: expected at most %d germinations, got %d", slot.Slot, int64(maxOrdinal), slot.Germinations)
		}
		if seed := slot.Seed; seed != nil && (seed.Tempo < 0 || seed.Tempo > maxCount || seed.Amplitude.Controller.Total > maxCount ||
			!counter(seed.Metrics.Epochs) || !counter(seed.Metrics.EpochsInStage)) {
			return fmt.Sprintf("slot %d: its seed's counters are out of range", slot.Slot)
		}
	}
	return ""
}

func ordinal(n int64) bool { return n >= -1 && n <= maxOrdinal }
func counter(n int64) bool { return n >= 0 && n <= maxOrdinal }

// rewound assigns a mark's model.
func (m *Model) rewound(ev *events.Rewound) (*Model, error) {
	next, err := m.withRecord(&ev.Model)
	if err != nil {
		return nil, err
	}
	if got := next.Digest(); got != ev.Lifecycle {
		return nil, fmt.Errorf("model %s of the mark has lifecycle digest %s, expected %s", m.Name, got.Short(), ev.Lifecycle.Short())
	}
	return next, nil
}

// recovered gives the log another lineage. Its nodes of before are gone, and no
// call of the round can come any more: its authority is one of them.
func (s *State) recovered(ev *events.Recovered) error {
	if ev.From.Lineage != s.Lineage || ev.From.Index+1 != s.Index || ev.Lineage == "" {
		return fmt.Errorf("a log recovered from entry %d of lineage %s follows entry %d of lineage %s", ev.From.Index, ev.From.Lineage, s.Index-1, s.Lineage)
	}
	s.Lineage = ev.Lineage
	s.addAncestor(ev.From)
	s.Nodes, s.nodesSum = nil, setSum{}
	return nil
}

// addAncestor notes a log that is continued, once.
func (s *State) addAncestor(a events.Ancestor) {
	for i := range s.Ancestors {
		if s.Ancestors[i].Lineage == a.Lineage {
			return
		}
	}
	s.Ancestors = slices.Insert(slices.Clone(s.Ancestors), len(s.Ancestors), a)
}
