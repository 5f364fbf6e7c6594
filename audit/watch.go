package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/esperd/esperd/events"
)

// otherLogError says that a place does not hold any more what was read from it.
type otherLogError struct{ index uint64 }

func (e otherLogError) Error() string {
	return fmt.Sprintf("it does not hold entry %d any more as it was read before: its log is another one now, and is verified from its beginning", e.index)
}

// watcher follows one place: what it holds, and then what it gets, is read once,
// checked against the chain and replayed. All but sight is its goroutine's.
type watcher struct {
	f      *follower
	number int
	name   string

	place   Place     // nil: it cannot be read now
	h       *history  // what was read so far, also while it cannot be
	v       *verifier // nil: nothing was read yet
	tried   bool      // to open it
	began   bool      // it was looked at once
	doubted bool      // whether it still holds what was read is to be looked at
	stored  bool      // what a directory keeps beside the entries is checked
	done    bool      // it is damaged: nothing more can be read
	since   time.Time // when it could be read first, or again
	turned  string    // how it came to hold another log than was read before; empty: it did not
	shrunk  string    // ... to hold less, until it is known to be the same
	suspect time.Time // since when a digest does not fit, and no record says why

	sight sight // under f.mu
}

// sight is what a watcher has seen.
type sight struct {
	looked     bool // up to the end, or it could not be
	reading    bool // entries that are new
	state, why string
	live       bool
	good       uint64
	lineage    string
	rank       *uint64
	node       events.NodeID
	diverged   *divergence // nil: none was found
	members    *recorder   // who takes part, as far as it was replayed
}

// divergence is what is wrong, and who is at fault.
type divergence struct {
	index   uint64
	verdict Verdict
	ranks   []uint64 // none: not known
	what    string
}

// told is the divergence in a sentence, read at a place.
func (d *divergence) told(at string) string {
	var who string
	switch len(d.ranks) {
	case 0:
		who = "rank at fault not known"
	case 1:
		who = fmt.Sprintf("rank %d at fault", d.ranks[0])
	default:
		who = fmt.Sprintf("ranks %s at fault", strings.Trim(fmt.Sprint(d.ranks), "[]"))
	}
	return fmt.Sprintf("%s (%s): %s; read at %s", who, d.verdict, d.what, at)
}

func ranksAtFault(list []Party) []uint64 {
	var out []uint64
	for _, p := range list {
		if p.Rank != nil {
			out = append(out, *p.Rank)
		}
	}
	return out
}

// ranksOf is the rank of the node that a fault blames, else this place's.
func (w *watcher) ranksOf(f *fault) []uint64 {
	rank := w.h.about.Rank
	if f.node != "" && f.node != w.h.about.Node {
		rank = w.h.recorded.nodes[f.node].rank
	}
	return ranksAtFault([]Party{{Rank: rank}})
}

// title names the place.
func (s *sight) title(w *watcher) string {
	c := Checked{Place: w.name, Rank: s.rank}
	return c.Name()
}

func newWatcher(f *follower, number int, name string) *watcher {
	w := &watcher{f: f, number: number, name: name}
	w.forget()
	return w
}

// forget begins anew with what the place holds.
func (w *watcher) forget() {
	w.h, w.v, w.stored, w.doubted = &history{about: &About{Place: w.name}}, nil, false, false
}

func (w *watcher) run(ctx context.Context) {
	tick := time.NewTicker(w.f.cfg.Every)
	defer tick.Stop()
	for {
		again, err := w.look(ctx)
		w.began = true
		if ctx.Err() != nil {
			return
		}
		w.publish(err, again)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look reads what is new. waits: for a reference, or for entries of before.
func (w *watcher) look(ctx context.Context) (waits bool, err error) {
	if w.done {
		return false, nil
	}
	if err := w.open(ctx); err != nil {
		return false, err
	}
	about := w.place.About()
	if about.Head == 0 {
		return false, errors.New("it holds no entry yet")
	}
	if w.v == nil {
		if about.From > 1 && !w.hasImage() {
			return false, fmt.Errorf("it has entries from %d on: those before are still being fetched", about.From)
		}
		if began, err := w.begin(ctx); err != nil || !began {
			return true, err
		}
	}
	if about.Head < w.h.good {
		w.doubted, w.shrunk = true, fmt.Sprintf("it has entries to %d, and had %d", about.Head, w.h.good)
		return false, errors.New(w.shrunk)
	}
	if w.doubted || about.Head > w.h.good && w.h.good >= about.From {
		l, err := w.place.Link(ctx, w.h.good)
		if err != nil {
			w.lose()
			return false, err
		}
		if l.Chain != w.h.chain {
			other := otherLogError{w.h.good}
			w.forget()
			w.turned, w.shrunk = fmt.Sprintf("it did not hold entry %d any more as it was read before", other.index), ""
			w.h.place, w.h.about = w.place, w.place.About()
			return true, other
		}
		w.doubted, w.shrunk = false, ""
	}
	return false, w.advance(ctx, about.Head)
}

// open opens the place if it has to be, and looks where it ends.
func (w *watcher) open(ctx context.Context) (err error) {
	if w.place != nil {
		if g, ok := w.place.(grower); ok {
			err = g.Refresh(ctx)
		}
		if err == nil {
			return nil
		}
		w.lose()
		if w.h.about.Kind == "esperd" {
			return err
		}
	}
	p, err := w.f.cfg.open(ctx, w.name, w.f.cfg.Options)
	if !w.tried && !isURL(w.name) {
		w.tried = true
		w.f.mu.Lock()
		w.f.untried--
		w.f.mu.Unlock()
	}
	if err != nil {
		return err
	}
	w.place, w.since, w.doubted = p, time.Now(), w.h.good > 0
	rank, run, lineage := w.h.about.Rank, w.h.about.Run, w.h.about.Lineage
	w.h.place, w.h.about = p, p.About()
	if w.v != nil { // what its entries say
		w.h.about.Run, w.h.about.Lineage = run, lineage
	}
	if w.h.about.Rank == nil {
		w.h.about.Rank = rank
	}
	return nil
}

// lose gives the place up until the next look.
func (w *watcher) lose() {
	if w.place != nil {
		_ = w.place.Close() // it was only read
		about := *w.h.about
		about.Live = false
		w.h.about, w.place = &about, nil
	}
	w.h.place = lostPlace{w.h.about}
	w.f.mu.Lock()
	if w.f.claimed == w && w.f.reference == nil {
		w.f.claimed = nil
	}
	w.f.mu.Unlock()
}

func (w *watcher) hasImage() bool {
	return newImageCheck(w.place).stateAt(w.place.About().From-1) != nil
}

// begin decides from where on the place is replayed: from its first entry, or, of
// an esperd, from a state that another place led to, if this one says to hold the
// same entries with the same digests. false: it waits for that.
func (w *watcher) begin(ctx context.Context) (bool, error) {
	f, about := w.f, w.place.About()
	f.mu.Lock()
	if f.cfg.SinceHead && !w.began { // at once, so all that it has was there
		f.since = max(f.since, about.Head+1)
	}
	ref, wait := f.reference, false
	if about.Kind == "esperd" && !f.cfg.Full {
		wait = ref == nil && (f.untried > 0 || f.claimed != nil) || ref != nil && about.Head < ref.index && time.Since(w.since) < f.cfg.Behind
	}
	if !wait && ref == nil && f.claimed == nil {
		f.claimed = w
	}
	f.mu.Unlock()
	switch {
	case wait:
		return false, nil
	case ref != nil && about.Kind == "esperd" && !f.cfg.Full && about.Head >= ref.index && about.From == 1:
		same, err := w.adopt(ctx, ref)
		if err != nil {
			w.lose()
		}
		if err != nil || same {
			return same, err
		}
	}
	w.v = newVerifier(w.h)
	w.v.passed = w.passed
	return true, nil
}

// adopt compares the place with one that was replayed, as far as that goes.
func (w *watcher) adopt(ctx context.Context, ref *reference) (same bool, err error) {
	l, err := w.place.Link(ctx, ref.index)
	if err != nil || l.Chain != ref.chain {
		return false, err
	}
	p, err := w.f.cfg.open(ctx, ref.place, w.f.cfg.Options) // places are for one goroutine
	if err != nil {
		return false, nil // then it is replayed itself
	}
	defer p.Close()
	h := w.h
	at, err := firstOtherDigest(ctx, h, &history{place: p, about: p.About()}, 1, ref.index)
	if odd, ok := errors.AsType[*placeError](err); ok && odd.history == h {
		return false, odd.error
	}
	if err != nil || at > 0 {
		return false, nil
	}
	h.good, h.chain, h.state, h.replayed, h.adopted, h.compared = ref.index, ref.chain, ref.state, ref.index, ref.index, ref.index
	h.identify()
	w.v = &verifier{h: h, replay: true, images: new(imageCheck), passed: w.passed}
	w.f.links.put(w.lineage(), h.good, h.chain, w.number)
	return true, nil
}

func (w *watcher) lineage() string {
	if w.v != nil && w.v.replay && w.h.state.Lineage != "" {
		return w.h.state.Lineage
	}
	return w.h.about.Lineage
}

// passed compares an entry with the other places.
func (w *watcher) passed(r *events.Record) {
	if w.f.links.put(w.lineage(), r.Index, r.Chain, w.number) {
		w.h.compared = r.Index
	}
}

func (w *watcher) advance(ctx context.Context, to uint64) error {
	var err error
	if to > w.h.good {
		w.f.mu.Lock()
		w.sight.reading, w.h.recorded.before = true, w.f.since
		w.f.mu.Unlock()
		err = w.v.advance(ctx, to)
		w.h.identify()
	}
	if _, damaged := damageAt(err); damaged {
		w.v.conclude()
		w.v.ended(err)
		w.done = true
		return nil
	}
	if err != nil {
		w.lose()
		return err
	}
	if p, ok := w.place.(*dirPlace); ok && !w.stored {
		w.v.checkStore(p)
		w.stored = true
	}
	switch {
	case w.v.suspect == nil:
		w.suspect = time.Time{}
	case w.suspect.IsZero():
		w.suspect = time.Now()
	case time.Since(w.suspect) >= w.f.cfg.Behind: // no record comes that says why
		w.v.conclude()
	}
	return nil
}

// publish shows what was seen.
func (w *watcher) publish(err error, waits bool) {
	h := w.h
	s := sight{state: StateOK, live: h.about.Live, good: h.good, lineage: w.lineage(), rank: h.about.Rank, node: h.about.Node}
	if facts := h.recorded.nodes[h.about.Node]; s.rank == nil {
		s.rank = facts.rank
		h.about.Rank = facts.rank
	}
	switch {
	case err != nil:
		s.state, s.why, s.live = StateUnreachable, err.Error(), false
		if _, other := errors.AsType[otherLogError](err); other {
			s.state = StateOtherLog
		}
	case h.about.Kind == "directory" && !h.about.Live:
		s.state = StateStopped
	}
	s.looked = !waits
	switch {
	case len(h.faults) > 0:
		f := &h.faults[0]
		s.diverged = &divergence{f.index, f.verdict, w.ranksOf(f), f.what}
	case len(h.recorded.findings) > 0:
		f := &h.recorded.findings[0]
		s.diverged = &divergence{f.Index, f.Verdict, ranksAtFault(f.AtFault), f.What}
	}
	s.members = w.sight.members // which only this goroutine changes
	if r := &h.recorded; w.v != nil && w.v.replay && h.adopted == 0 && (s.good != w.sight.good || s.members == nil) {
		s.members = &recorder{nodes: maps.Clone(r.nodes), round: r.round}
	}
	f := w.f
	f.mu.Lock()
	s.looked = s.looked || w.sight.looked
	w.sight = s
	if err == nil && !waits && w.v.replay && h.faultsNone() && w.v.suspect == nil && h.replayed == h.good && (f.reference == nil || f.reference.index < h.good) {
		own := *h.state // this verifier may use the memory of its state again
		f.reference = &reference{w.name, h.good, h.chain, &own}
	}
	if err == nil && !waits && f.claimed == w && f.reference == nil {
		f.claimed = nil // it leads to no state
	}
	f.mu.Unlock()
	f.wake()
}

func (h *history) faultsNone() bool { return len(h.faults) == 0 && h.stopped == nil }

// result is the history when following has ended.
func (w *watcher) result() *history {
	h := w.h
	why := cmp.Or(w.sight.why, "it was not read yet when the audit ended")
	switch {
	case w.v == nil:
		h.opened = errors.New(why)
		if w.place == nil {
			h.about = &About{Place: w.name, Rank: h.about.Rank}
		}
	case w.place == nil && !w.done:
		w.v.conclude()
		h.notes = append(h.notes, fmt.Sprintf("when the audit ended it could not be read any more, after entry %d: %s", h.good, why))
	default:
		w.v.conclude()
	}
	if w.v != nil && w.shrunk != "" {
		h.stop(fmt.Errorf("what was read from it is not there any more: %s", w.shrunk))
	} else if w.v != nil && w.place == nil && w.turned != "" {
		h.stop(fmt.Errorf("its log became another one, and then could not be read: %s", w.turned))
	}
	h.followed = true
	return h
}

// lostPlace stands for one that cannot be read any more.
type lostPlace struct{ about *About }

var errLost = errors.New("it cannot be read any more")

func (p lostPlace) About() *About { return p.about }
func (p lostPlace) Close() error  { return nil }

func (p lostPlace) Records(context.Context, uint64, uint64, func(*events.Batch) error) error {
	return errLost
}
func (p lostPlace) Link(context.Context, uint64) (Link, error) { return Link{}, errLost }
