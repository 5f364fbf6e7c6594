package audit

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// FollowVersion is the version of a followed event's JSON, which changes as
// ReportVersion does.
const FollowVersion = 1

// FollowConfig says what to follow, and how. Times of 0 are the defaults.
type FollowConfig struct {
	Config
	Every     time.Duration // how often a place is looked at; 1 s
	Behind    time.Duration // how long a rank may take to have what another one has; 10 s
	EndAfter  time.Duration // to end when no esperd has been there for so long, once there is a log; 0: never
	SinceHead bool          // what the log itself records about entries that are there already is only counted

	Tell func(*Event) // in order, from one goroutine

	open func(ctx context.Context, name string, o Options) (Place, error) // nil: Open
}

// What an Event tells.
const (
	EventCaughtUp = "caught_up" // all places that can be read are verified up to where they end
	EventPlace    = "place"     // a place's State is another one
	EventDiverged = "diverged"  // the report follows
	EventReport   = "report"    // the last one
)

// The states of a place.
const (
	StateOK          = "ok"
	StateBehind      = "behind"      // it does not get what others have
	StateUnreachable = "unreachable" // it cannot be read
	StateOtherLog    = "other_log"   // it does not hold any more what was read from it
	StateStopped     = "stopped"     // no esperd has the directory open
	StateLeft        = "left"        // by the log, its node has left the world
)

// Event is one thing that was seen while following.
type Event struct {
	Version int       `json:"esperd_follow"` // FollowVersion
	Time    time.Time `json:"time"`
	Event   string    `json:"event"`
	State   string    `json:"state,omitempty"` // of a place
	Place   string    `json:"place,omitempty"`
	Rank    *uint64   `json:"rank,omitempty"`
	Index   uint64    `json:"index"`           // verified up to this entry: of the place, else of the one that has most
	Ranks   []uint64  `json:"ranks,omitempty"` // of diverged: at fault; of places that hold different entries, theirs
	What    string    `json:"what"`            // in a sentence
	Report  *Report   `json:"report,omitempty"`
}

// follower follows places, each by a watcher.
type follower struct {
	cfg      FollowConfig
	watchers []*watcher
	links    ledger
	woken    chan struct{} // of one: a watcher has seen something

	mu        sync.Mutex // guards what follows, and what watchers have seen
	reference *reference
	claimed   *watcher // replays from the first entry on, for the esperds to be compared with
	untried   int      // places that are no esperds, and were not opened yet
	since     uint64   // Config.Since, once known

	told     []string // state of each place, as it was told
	lags     []lag
	caughtUp bool
	busy     bool      // a place is being read
	live     time.Time // when an esperd was there last; zero: there is no log yet
}

// reference is a state that was reached by replaying a place, without a fault.
type reference struct {
	place string
	index uint64
	chain events.Digest
	state *fsm.State
}

// lag is what a place has yet to reach.
type lag struct {
	target uint64
	since  time.Time
}

// Follow verifies places, and what they get, until ctx ends, ranks differ, or as
// FollowConfig.EndAfter says. A place that cannot be read holds up no other one,
// and is tried again.
func Follow(ctx context.Context, cfg FollowConfig) *Report {
	cfg.Every, cfg.Behind = cmp.Or(cfg.Every, time.Second), cmp.Or(cfg.Behind, 10*time.Second)
	cfg.Options.Timeout = cmp.Or(cfg.Options.Timeout, defaultTimeout)
	if cfg.open == nil {
		cfg.open = Open
	}
	f := &follower{cfg: cfg, woken: make(chan struct{}, 1), since: cfg.Since}
	for i, name := range cfg.Places {
		f.watchers = append(f.watchers, newWatcher(f, i, name))
		if !isURL(name) {
			f.untried++
		}
	}
	f.told, f.lags = make([]string, len(f.watchers)), make([]lag, len(f.watchers))
	watching, stop := context.WithCancel(ctx)
	var all sync.WaitGroup
	for _, w := range f.watchers {
		all.Go(func() { w.run(watching) })
	}
	diverged := f.watch(ctx)
	stop()
	all.Wait()
	r := f.report(ctx, diverged)
	f.tell(&Event{Event: EventReport, Index: r.Agreed.Index, What: r.Outcome, Report: r})
	return r
}

func isURL(name string) bool {
	return strings.HasPrefix(name, "http://") || strings.HasPrefix(name, "https://")
}

func (f *follower) tell(e *Event) {
	e.Version, e.Time = FollowVersion, time.Now().UTC()
	if f.cfg.Tell != nil {
		f.cfg.Tell(e)
	}
}

// wake has the follower look at what the watchers have seen.
func (f *follower) wake() {
	select {
	case f.woken <- struct{}{}:
	default:
	}
}

// watch tells what changes until it is over, and whether ranks differ.
func (f *follower) watch(ctx context.Context) (diverged bool) {
	tick := time.NewTicker(f.cfg.Every)
	defer tick.Stop()
	for {
		if e := f.look(); e != nil {
			f.tell(e)
			select { // what the other ranks make of it, and evidence on its way to the disk
			case <-time.After(2 * f.cfg.Every):
			case <-ctx.Done():
			}
			return true
		}
		if f.cfg.EndAfter > 0 && !f.busy && !f.live.IsZero() && time.Since(f.live) >= f.cfg.EndAfter {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-f.woken:
		case <-tick.C:
		}
	}
}

// look compares what the watchers have seen with what was told, and returns what
// ranks differ in; nil: nothing.
func (f *follower) look() (diverged *Event) {
	f.mu.Lock()
	seen := make([]sight, len(f.watchers))
	for i, w := range f.watchers {
		seen[i] = w.sight
	}
	f.mu.Unlock()
	now, furthest, looked := time.Now(), uint64(0), true
	f.busy = false
	ends := map[string]uint64{} // by lineage
	for i := range seen {
		s := &seen[i]
		f.busy = f.busy || s.reading || !s.looked
		furthest, looked = max(furthest, s.good), looked && s.looked
		ends[s.lineage] = max(ends[s.lineage], s.good)
		if s.state == StateOK && s.live || s.state == StateStopped && f.live.IsZero() { // whose run may be over already
			f.live = now
		}
	}
	for i := range seen {
		f.place(i, seen, ends[seen[i].lineage], now)
	}
	if p := f.links.meeting(); p != nil {
		a, b := f.watchers[p.first.place], f.watchers[p.odd.place]
		return &Event{Event: EventDiverged, Index: p.index, Ranks: ranksAtFault([]Party{{Rank: seen[p.first.place].rank}, {Rank: seen[p.odd.place].rank}}),
			What: fmt.Sprintf("%s and %s hold different entries %d (chain %s and %s); the report says which is at fault", seen[p.first.place].title(a), seen[p.odd.place].title(b), p.index, p.first.chain.Short(), p.odd.chain.Short())}
	}
	for i := range seen {
		if s := &seen[i]; s.diverged != nil {
			d := s.diverged
			return &Event{Event: EventDiverged, Index: d.index, Ranks: d.ranks, What: d.told(s.title(f.watchers[i]))}
		}
	}
	if looked && !f.caughtUp {
		f.caughtUp = true
		f.tell(&Event{Event: EventCaughtUp, Index: furthest, What: caughtUpText(f.told, furthest)})
	}
	return nil
}

func caughtUpText(states []string, index uint64) string {
	n := 0
	for _, s := range states {
		if s == StateOK || s == StateStopped || s == StateLeft {
			n++
		}
	}
	places := fmt.Sprintf("%d of %d places", n, len(states))
	if n == len(states) {
		places = fmt.Sprintf("all %d places", n)
		if n == 1 {
			places = "the place"
		}
	}
	return fmt.Sprintf("caught up: %s verified, up to entry %d; following", places, index)
}

// place tells if the state of a place is another one. Some place of its log has
// furthest entries.
func (f *follower) place(i int, seen []sight, furthest uint64, now time.Time) {
	s, w := &seen[i], f.watchers[i]
	if !s.looked && s.why == "" {
		return // it is being read for the first time
	}
	l := &f.lags[i]
	if s.good >= l.target {
		*l = lag{}
	}
	if l.target == 0 && s.good < furthest {
		*l = lag{furthest, now}
	}
	state, what := s.state, s.why
	switch {
	case state == StateOK && l.target > 0 && now.Sub(l.since) >= f.cfg.Behind:
		state, what = StateBehind, fmt.Sprintf("it has entries to %d, and did not get entry %d, which others have, within %s", s.good, l.target, f.cfg.Behind)
	case state == StateStopped:
		what = fmt.Sprintf("no esperd has it open; it ends with entry %d", s.good)
	case state == StateOK:
		what = fmt.Sprintf("%s, and is verified up to entry %d", backText(f.told[i]), s.good)
	}
	if state != StateOK && s.good > 0 {
		for k := range seen {
			if r := seen[k].members; r != nil && seen[k].good >= furthest && s.node != "" {
				if left := r.departed(s.node, s.good); left != "" {
					state, what = StateLeft, left
				}
			}
		}
	}
	was := f.told[i]
	f.told[i] = state
	if state == was || was == "" && state == StateOK {
		return
	}
	f.tell(&Event{Event: EventPlace, State: state, Place: w.name, Rank: s.rank, Index: s.good, What: what})
}

// backText says what has ended that was told of a place.
func backText(was string) string {
	switch was {
	case StateBehind:
		return "it has got what others had"
	case StateStopped, StateLeft:
		return "an esperd has it open"
	}
	return "it can be read"
}

func (l *ledger) meeting() *meeting {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.parted
}

// report is what an audit says: of the places as they are now if ranks differ,
// which tells most, and else, or if that finds nothing any more, of what was
// followed.
func (f *follower) report(ctx context.Context, diverged bool) *Report {
	cfg := f.cfg.Config
	cfg.Since = f.since
	defer func() {
		for _, w := range f.watchers {
			w.lose()
		}
	}()
	if diverged && ctx.Err() == nil {
		if r := Run(ctx, cfg); r.Status == 1 {
			r.Reproduce = f.reproduce(cfg)
			return r
		}
	}
	if ctx.Err() != nil { // it was told to end, which is no reason to say less
		var done context.CancelFunc
		ctx, done = context.WithTimeout(context.WithoutCancel(ctx), f.cfg.Options.Timeout)
		defer done()
	}
	a := &auditor{cfg: cfg}
	for _, w := range f.watchers {
		a.hs = append(a.hs, w.result())
	}
	a.knowNodes()
	r := a.report(ctx, func(_ context.Context, one []*history) comparison { return f.compared(a.hs, one) })
	r.Reproduce = f.reproduce(cfg)
	return r
}

// reproduce is the audit that reads as much: entries of a place were replayed, and
// of esperds alone it would download none.
func (f *follower) reproduce(cfg Config) string {
	cfg.Full = cfg.Full || len(cfg.Places) > 1 && !slices.ContainsFunc(cfg.Places, func(name string) bool { return !isURL(name) })
	return reproduce(cfg)
}

// compared is what comparing while following gave.
func (f *follower) compared(all, one []*history) comparison {
	out := comparison{best: slices.Clone(one)}
	for _, h := range one { // whoever came first was compared by those who came then
		for _, o := range one {
			if o != h && o.about.Lineage == h.about.Lineage {
				h.compared = max(h.compared, min(o.compared, h.good))
			}
		}
	}
	least := slices.MinFunc(one, func(x, y *history) int { return cmp.Compare(x.limit(), y.limit()) })
	out.agreed = Point{least.good, least.chain}
	p := f.links.meeting()
	if p == nil {
		return out
	}
	first, odd := all[p.first.place], all[p.odd.place]
	out.agreed = Point{p.index - 1, p.before}
	out.partings = []parting{{index: p.index, agreed: out.agreed,
		groups: []sameGroup{{value: p.first.chain, members: []*history{first}}, {value: p.odd.chain, members: []*history{odd}}}}}
	slices.SortStableFunc(out.partings[0].groups, func(a, b sameGroup) int {
		x, y := a.standing(), b.standing()
		return slices.Compare(x[:], y[:])
	})
	out.best = slices.DeleteFunc(out.best, func(h *history) bool { return h == out.partings[0].groups[1].members[0] })
	return out
}
