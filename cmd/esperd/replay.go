package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/audit"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

type replayCmd struct {
	Place   string        `arg:"" optional:"" help:"Data directory, exported log or admin URL."`
	To      *uint64       `placeholder:"INDEX" xor:"at" help:"The state after this entry; absent: after the last one."`
	Epoch   *int64        `placeholder:"E" xor:"at" help:"The state after the entry that steps this epoch."`
	Diff    string        `placeholder:"A:B" xor:"at,how" help:"What changed between the states after two entries."`
	Steps   bool          `xor:"how" help:"One line an entry, up to the state that is asked for."`
	Check   bool          `xor:"at,how" help:"Say whether this build reaches the digests that the log has, and at which entry it first does not."`
	Model   *string       `placeholder:"NAME" help:"Show this model alone; absent: all, and main for --epoch and --slot."`
	Slot    string        `placeholder:"NAME" help:"Show this slot alone."`
	JSON    bool          `name:"json" help:"Print JSON; with --steps an object a line."`
	Timeout time.Duration `default:"15s" help:"How long an esperd may take for one answer."`
}

// Help says more than the flags do.
func (*replayCmd) Help() string {
	return "With --check the status is 0 if all digests are reached, 1 if not, 2 if not every entry could be checked. Without, it is also 2 if the log is an export that was cut: the last whole entry need not be the last one."
}

// replayed is the state at an entry, and replay's --json.
type replayed struct {
	Index       uint64               `json:"index"`
	Chain       events.Digest        `json:"chain"`
	Run         string               `json:"run"`
	Lineage     string               `json:"lineage"`
	Bookkeeping events.Digest        `json:"bookkeeping"`
	Round       *api.Round           `json:"round,omitempty"`
	Models      []api.Model          `json:"models"`
	Requests    []api.PendingRequest `json:"requests"`
}

func (c *replayCmd) Run(a *app) error {
	if c.Place == "" {
		return usageError{errors.New("replay: expected a PLACE, as in `esperd replay DIR --epoch 12`; " + placeIs)}
	}
	if c.To != nil && *c.To == 0 {
		return usageError{errors.New("--to: expected the index of an entry, 1 or more, got 0: before entry 1 there is no state; without --to it is the one after the last entry")}
	}
	if c.Model != nil && c.Slot == "" && (c.Check || c.Steps && c.Epoch == nil) {
		return usageError{errors.New("--model: expected --slot with it, or --epoch with --steps; --check is of all models")}
	}
	ctx, cancel := a.stopped()
	defer cancel()
	fewerCollections()
	if c.Check {
		return c.check(ctx, a)
	}
	p, err := openPlace(ctx, a, c.Place, audit.Options{Timeout: c.Timeout})
	if err != nil {
		return err
	}
	defer p.Close()
	if c.Diff != "" {
		return c.diff(ctx, a, p)
	}
	to := p.About().Head
	switch {
	case c.Epoch != nil:
		if to, err = audit.EpochEnd(ctx, p, c.model(), *c.Epoch); err != nil {
			return err
		}
	case c.To != nil:
		to = *c.To
	}
	if err := c.showAt(ctx, a, p, to); err != nil || c.To != nil || c.Epoch != nil {
		return err
	}
	return endOfPlace(a, p)
}

// showAt shows the state after an entry, or the steps up to there.
func (c *replayCmd) showAt(ctx context.Context, a *app, p audit.Place, to uint64) error {
	if c.Steps {
		return c.steps(ctx, a, p, to)
	}
	s, err := audit.StateAt(ctx, p, to)
	if err != nil {
		return err
	}
	l, err := p.Link(ctx, to)
	if err != nil {
		return err
	}
	return c.show(a, s, l.Chain)
}

func (c *replayCmd) show(a *app, s *fsm.State, chain events.Digest) error {
	r := replayed{Index: s.Index, Chain: chain, Run: s.Run, Lineage: s.Lineage, Bookkeeping: s.Bookkeeping(), Models: []api.Model{}, Requests: []api.PendingRequest{}}
	if s.Round.Number > 0 {
		r.Round = &api.Round{Number: s.Round.Number, Fingerprint: s.Round.Fingerprint, Members: s.Round.Members, Fault: s.Round.Fault}
	}
	for _, q := range s.Requests {
		r.Requests = append(r.Requests, api.PendingRequest{Index: q.Index, Requested: q.Asked})
	}
	for _, m := range s.Models {
		if c.all() || m.Name == c.model() {
			r.Models = append(r.Models, api.Model{Name: m.Name, Generation: m.Generation, Epoch: m.Epoch, Calls: s.Cursor(m.Name).Calls, Lifecycle: m.Digest(), Slots: api.SlotsOf(m)})
		}
	}
	if !c.all() && len(r.Models) == 0 {
		return fmt.Errorf("there is no model %q after entry %d: expected %s", c.model(), r.Index, namesOf(s))
	}
	if c.Slot != "" {
		if err := onlySlot(&r, c.Slot); err != nil {
			return err
		}
	}
	if c.JSON {
		return writeJSON(a.stdout, r)
	}
	err := table(a.stdout, func(row func(...any)) {
		row("entry", fmt.Sprintf("%d, chain %s", r.Index, r.Chain.Short()))
		row("run", fmt.Sprintf("%s (lineage %.12s)", r.Run, r.Lineage))
		row("round", roundText(r.Round))
		for i := range r.Models {
			row("model", modelText(&r.Models[i]))
		}
		requestRows(row, r.Requests)
	})
	for i := 0; err == nil && i < len(r.Models); i++ {
		fmt.Fprintf(a.stdout, "\nmodel %s\n", oneLine(r.Models[i].Name))
		err = slotsTable(a.stdout, r.Models[i].Slots)
	}
	return err
}

// model is the one that --epoch and --slot mean.
func (c *replayCmd) model() string {
	if c.Model == nil {
		return "main"
	}
	return *c.Model
}

// all reports whether the models are shown that nobody chose among.
func (c *replayCmd) all() bool { return c.Model == nil && c.Slot == "" }

// namesOf lists the models of a state, for people.
func namesOf(s *fsm.State) string {
	if len(s.Models) == 0 {
		return "none, since there is no model yet"
	}
	var names []string
	for _, m := range s.Models {
		names = append(names, strconv.Quote(m.Name))
	}
	return strings.Join(names, " or ")
}

func onlySlot(r *replayed, slot string) error {
	for _, s := range r.Models[0].Slots {
		if s.Name == slot {
			r.Models[0].Slots = []api.Slot{s}
			return nil
		}
	}
	return fmt.Errorf("model %s has no slot %q after entry %d", r.Models[0].Name, slot, r.Index)
}

// step is a line of --steps.
type step struct {
	api.Entry
	Slot *api.Slot `json:"slot,omitempty"` // after it, with --slot
}

func (c *replayCmd) steps(ctx context.Context, a *app, p audit.Place, to uint64) error {
	if !c.JSON {
		entriesHeader(a.stdout)
	}
	known, names := c.all(), ""
	err := audit.Replay(ctx, p, to, func(s *audit.Step) error {
		if !known {
			known, names = s.After.Model(c.model()) != nil, namesOf(s.After)
		}
		e := api.Entry{Index: s.Record.Index, Chain: s.Record.Chain, Refused: s.Refused, Entry: *s.Entry}
		if e.Events == nil {
			e.Events = []events.Event{}
		}
		var slot *api.Slot
		if c.Slot != "" {
			before, after := slotIn(s.Before, c.model(), c.Slot), slotIn(s.After, c.model(), c.Slot)
			if sameSlot(before, after) && !concerns(s.Entry, c.model(), c.Slot) {
				return nil
			}
			slot = after
		}
		if c.JSON {
			return json.NewEncoder(a.stdout).Encode(step{Entry: e, Slot: slot})
		}
		if c.Slot != "" {
			e.Events = withoutOthers(s.Entry, c.model(), c.Slot)
		}
		if err := entryLine(a.stdout, &e); err != nil {
			return err
		}
		if b := audit.BranchOf(e.Index, s.Entry); b != nil && s.Refused == "" {
			fmt.Fprintf(a.stdout, "%22s %s\n", "", oneLine(branchText(b)))
		}
		if slot != nil {
			fmt.Fprintf(a.stdout, "%22s %s: %s, alpha %s\n", "", oneLine(seedText(slot.Name, slot.Seed)), slot.Stage, alphaText(slot.Alpha))
		}
		return nil
	})
	if err == nil && !known {
		err = fmt.Errorf("there is no model %q up to entry %d: expected %s", c.model(), to, names)
	}
	return err
}

func slotIn(s *fsm.State, model, slot string) *api.Slot {
	m := s.Model(model)
	if m == nil || m.Config == nil {
		return nil
	}
	i, ok := m.Config.Slot(slot)
	if !ok {
		return nil
	}
	out := api.SlotOf(m, i)
	return &out
}

// sameSlot compares what a slot's life is told by. Measurements, which ride with
// any call of the model, are not part of it.
func sameSlot(a, b *api.Slot) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Stage == b.Stage && a.Alpha == b.Alpha && a.Seed == b.Seed && a.Germinations == b.Germinations
}

// concerns reports whether an entry is a call about the slot, or says something
// about it other than what was measured.
func concerns(e *events.Entry, model, slot string) bool {
	if e.Key != nil && e.Key.Model == model && e.Key.Slot == slot {
		return true
	}
	for i := range e.Events {
		if _, this := audit.NamesSlot(e, &e.Events[i], model, slot); this && e.Events[i].Observed == nil {
			return true
		}
	}
	return false
}

// withoutOthers are the events of an entry without those about other slots.
func withoutOthers(e *events.Entry, model, slot string) []events.Event {
	out := []events.Event{}
	for i := range e.Events {
		if names, this := audit.NamesSlot(e, &e.Events[i], model, slot); this || !names {
			out = append(out, e.Events[i])
		}
	}
	return out
}

func (c *replayCmd) diff(ctx context.Context, a *app, p audit.Place) error {
	from, to, ok := strings.Cut(c.Diff, ":")
	x, errX := strconv.ParseUint(from, 10, 64)
	y, errY := strconv.ParseUint(to, 10, 64)
	if err := errors.Join(errX, errY); !ok || err != nil {
		return usageError{fmt.Errorf("--diff: expected two entries as in 100:120, got %q", c.Diff)}
	}
	before, err := audit.StateAt(ctx, p, x)
	if err != nil {
		return err
	}
	after, err := audit.StateAt(ctx, p, y)
	if err != nil {
		return err
	}
	list := audit.DiffStates(before, after)
	if !c.all() && before.Model(c.model()) == nil && after.Model(c.model()) == nil {
		return fmt.Errorf("there is no model %q after entry %d: expected %s", c.model(), y, namesOf(after))
	}
	if c.Slot != "" {
		list = under(list, c.model()+"."+c.Slot+".")
	} else if c.Model != nil {
		list = under(list, c.model()+".")
	}
	if c.JSON {
		return writeJSON(a.stdout, struct {
			From    uint64             `json:"from"`
			To      uint64             `json:"to"`
			Changes []audit.Difference `json:"changes"` // expected: at from, got: at to
		}{x, y, append([]audit.Difference{}, list...)})
	}
	return table(a.stdout, func(row func(...any)) {
		row("FIELD", fmt.Sprintf("AFTER %d", x), fmt.Sprintf("AFTER %d", y))
		for _, d := range list {
			row(d.Field, orDash(d.Expected), orDash(d.Got))
		}
	})
}

func under(list []audit.Difference, prefix string) []audit.Difference {
	var out []audit.Difference
	for _, d := range list {
		if strings.HasPrefix(d.Field, prefix) {
			out = append(out, d)
		}
	}
	return out
}

// check is the replay gate: an audit of one place, for which only its replay
// counts and not what its log tells about trainers.
func (c *replayCmd) check(ctx context.Context, a *app) error {
	bar := newAuditProgress(a.stderr)
	r := audit.Run(ctx, audit.Config{Places: []string{a.placeName(c.Place)}, Options: audit.Options{Timeout: c.Timeout}, Full: true,
		Since: ^uint64(0), Version: thisVersion().Esperd, Progress: bar.did})
	bar.end()
	r.Reproduce = c.again(a)
	var err error
	switch {
	case c.JSON:
		err = writeJSON(a.stdout, r)
	case r.Status == exitOK:
		_, err = fmt.Fprintf(a.stdout, "esperd %s reaches all digests of %s: %d entries, chain %s.\n", r.Build.Esperd, r.Places[0].Name(), r.Places[0].Replayed, r.Places[0].Chain.Short())
	default:
		err = auditText(a.stdout, r)
	}
	if err == nil && r.Status != exitOK {
		err = exitError(r.Status)
	}
	return err
}

// again is the command that checks the same.
func (c *replayCmd) again(a *app) string {
	return "esperd replay --check " + shellWord(a.placeName(c.Place))
}
