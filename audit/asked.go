package audit

import (
	"context"
	"errors"
	"fmt"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// asked is what an esperd tells of what its log records.
type asked struct {
	state *api.State
	found *api.Divergences
}

// askRecorded asks one of the esperds whose entries were not downloaded what
// their log records: they hold the same one. What is not told of it, since no
// esperd answers or in parts, keeps the audit from being complete.
func (a *auditor) askRecorded(ctx context.Context, r *Report, best []*history) {
	var failed *history
	var why error
	for _, h := range best {
		p, ok := h.place.(*remotePlace)
		if !ok || !h.asked || h.stopped != nil {
			continue
		}
		told, unread, err := askOne(ctx, p)
		if err != nil {
			if failed == nil {
				failed, why = h, err
			}
			continue
		}
		a.addAsked(ctx, r, h, told)
		if unread != "" {
			h.stop(fmt.Errorf("not all that the log records was read: %s; --full reads it", unread))
		} else {
			h.notes = append(h.notes, "its esperd was asked what the log records of ranks that differed")
		}
		return
	}
	if failed != nil {
		failed.stop(fmt.Errorf("what the log records was not read (--full does): %w", why))
	}
}

// askOne asks one esperd, which tells of the open round alone: unread is what the
// log has beside that.
func askOne(ctx context.Context, p *remotePlace) (told asked, unread string, err error) {
	if told.state, err = ask(ctx, p, p.admin.State); err != nil {
		return told, "", err
	}
	if told.found, err = ask(ctx, p, p.admin.Divergences); err != nil {
		return told, "", err
	}
	ranks, err := ask(ctx, p, p.admin.Ranks)
	if err != nil {
		return told, "", err
	}
	calls := uint64(0)
	for i := range ranks.Ranks {
		calls += ranks.Ranks[i].Misplaced + ranks.Ranks[i].MissingCalls + ranks.Ranks[i].Differing
	}
	switch round := told.state.Round; {
	case round != nil && round.Number > 1:
		unread = fmt.Sprintf("an esperd tells of the open round, %d, and not of those before", round.Number)
	case calls > 0:
		unread = fmt.Sprintf("%d calls or outcomes of other ranks were not rank 0's", calls)
	case len(told.found.Devices) > 0 && len(told.found.Attested) == 0:
		err = errors.New("it counts ranks whose devices differed, and does not list them")
	}
	return told, unread, err
}

// addAsked makes findings of an answer, and counts those before Config.Since.
func (a *auditor) addAsked(ctx context.Context, r *Report, h *history, told asked) {
	rec, s := recorder{before: a.cfg.Since, nodes: a.nodes}, fsm.New()
	if told.state.Round != nil {
		s.Round.Number, s.Round.Members = told.state.Round.Number, told.state.Round.Members
	}
	for i := range told.found.Attested {
		at := &told.found.Attested[i]
		var together []events.Event // who said nothing
		if list := h.entriesAt(ctx, at.Entry, 1); len(list) > 0 {
			together = list[0].entry.Events
		}
		if f := rec.device(&at.Attested, together, s); f != nil {
			rec.add(f, at.Entry, at.Round, s)
		}
	}
	if fault := told.found.Fault; fault != nil {
		f := recordedFinding(&events.Event{RoundFaulted: fault})
		switch { // it is not told which entry records it
		case f == nil:
		case f.Index < a.cfg.Since:
			rec.skipped++
		default:
			f.Source, f.Round = SourceRecorded, fault.Round
			rec.findings = append(rec.findings, *f)
		}
	}
	r.Skipped += rec.skipped
	for _, f := range rec.findings {
		if f.Verdict == VerdictDevice {
			f.fenceOf(ctx, h)
		}
		r.Findings = append(r.Findings, f)
	}
}
