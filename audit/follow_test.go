package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
)

// A fakeNode is a rank's log as a place shows it: so much of it, or not at all.
type fakeNode struct {
	kind string
	rank int
	log  *testLog

	mu      sync.Mutex
	records []events.Record
	shown   uint64
	hangs   bool
	fails   error
	ended   bool
	read    map[uint64]int // how often each entry was
}

func (n *fakeNode) set(change func(*fakeNode)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change(n)
}

// fakePlace is one opening of it.
type fakePlace struct {
	n     *fakeNode
	about About
	opts  Options
}

func (p *fakePlace) About() *About { return &p.about }
func (p *fakePlace) Close() error  { return nil }

func (p *fakePlace) Refresh(ctx context.Context) error {
	p.n.mu.Lock()
	hangs := p.n.hangs
	p.n.mu.Unlock()
	if hangs {
		ctx, cancel := context.WithTimeout(ctx, p.opts.Timeout)
		defer cancel()
		<-ctx.Done()
		return ctx.Err()
	}
	p.n.mu.Lock()
	defer p.n.mu.Unlock()
	p.about.Head, p.about.Live = p.n.shown, !p.n.ended
	return p.n.fails
}

func (p *fakePlace) Records(ctx context.Context, from, to uint64, fn func(*events.Batch) error) error {
	b := new(events.Batch)
	p.n.mu.Lock()
	for i := from; i <= to; i++ {
		p.n.read[i]++
		b.Records = append(b.Records, p.n.records[i-1])
	}
	p.n.mu.Unlock()
	return fn(b)
}

func (p *fakePlace) Link(_ context.Context, index uint64) (Link, error) {
	p.n.mu.Lock()
	defer p.n.mu.Unlock()
	if index == 0 {
		return Link{}, nil
	}
	return linkOf(&p.n.records[index-1]), nil
}

// followed is a world that is followed in simulated time.
type followed struct {
	t      *testing.T
	nodes  []*fakeNode
	cancel context.CancelFunc
	mu     sync.Mutex
	events []Event
	report chan *Report
}

// follow shows the first entries of each rank.
func follow(t *testing.T, l *testLog, shown uint64, replicas []*replica, change ...func(*FollowConfig, []*fakeNode)) *followed {
	w := &followed{t: t, report: make(chan *Report, 1)}
	cfg := FollowConfig{Tell: func(e *Event) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.events = append(w.events, *e)
	}}
	for i, r := range replicas {
		n := &fakeNode{kind: "directory", rank: i, log: l, shown: shown, read: map[uint64]int{}}
		n.records, _, _ = r.rows(t)
		w.nodes = append(w.nodes, n)
		cfg.Places = append(cfg.Places, fmt.Sprint(i))
	}
	cfg.open = func(ctx context.Context, name string, o Options) (Place, error) {
		var i int
		_, err := fmt.Sscan(name[len(name)-1:], &i)
		n := w.nodes[i]
		rank := uint64(n.rank)
		p := &fakePlace{n, About{Place: name, Kind: n.kind, Rank: &rank, Node: nodeOf(n.rank), Run: l.state.Run, Lineage: l.state.Lineage, From: 1}, o}
		return p, errors.Join(err, p.Refresh(ctx))
	}
	for _, c := range change {
		c(&cfg, w.nodes)
	}
	ctx, cancel := context.WithCancel(t.Context())
	w.cancel = cancel
	go func() { w.report <- Follow(ctx, cfg) }()
	return w
}

// after lets time pass and returns what was told meanwhile, in short.
func (w *followed) after(d time.Duration) []string {
	time.Sleep(d)
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, e := range w.events {
		text := e.Event
		if e.Rank != nil {
			text = fmt.Sprintf("rank %d %s", *e.Rank, e.State)
		}
		out = append(out, fmt.Sprintf("%s at %d", text, e.Index))
	}
	w.events = nil
	return out
}

// show lets ranks have more entries.
func (w *followed) show(n uint64, ranks ...int) {
	for _, rank := range ranks {
		w.nodes[rank].set(func(f *fakeNode) { f.shown = n })
	}
}

func (w *followed) end() *Report {
	w.cancel()
	return <-w.report
}

func sameReplicas(l *testLog, n int) []*replica {
	var out []*replica
	for rank := range n {
		out = append(out, &replica{rank: rank, entries: l.entries})
	}
	return out
}

// What comes is verified as it comes, each entry once, and only what changes is
// told. Who is behind, hangs or is gone holds up nobody.
func TestFollow(t *testing.T) {
	l := newLog(t, 51, "run", 3)
	l.train(200)
	for _, kind := range []string{"directory", "esperd"} {
		synctest.Test(t, func(t *testing.T) {
			w := follow(t, l, 50, sameReplicas(l, 3), func(cfg *FollowConfig, nodes []*fakeNode) {
				for i, n := range nodes {
					if n.kind = kind; kind == "esperd" {
						cfg.Places[i] = fmt.Sprint("http://", i)
					}
				}
			})
			require.Equal(t, []string{"caught_up at 50"}, w.after(5*time.Second))
			w.show(80, 0, 1, 2)
			require.Empty(t, w.after(time.Minute))
			w.show(100, 0, 1)
			require.Empty(t, w.after(5*time.Second))
			require.Equal(t, []string{"rank 2 behind at 80"}, w.after(20*time.Second))
			w.show(100, 2)
			require.Equal(t, []string{"rank 2 ok at 100"}, w.after(2*time.Second))

			w.nodes[1].set(func(n *fakeNode) { n.hangs = true })
			w.show(150, 0, 1, 2)
			require.Equal(t, []string{"rank 1 behind at 100", "rank 1 unreachable at 100"}, w.after(40*time.Second))
			w.nodes[0].set(func(n *fakeNode) { require.Equal(t, 1, n.read[150], "the others go on") })
			w.nodes[1].set(func(n *fakeNode) { n.hangs = false })
			require.Equal(t, []string{"rank 1 ok at 150"}, w.after(40*time.Second))

			w.nodes[2].set(func(n *fakeNode) { n.fails = errors.New("gone") })
			require.Equal(t, []string{"rank 2 unreachable at 150"}, w.after(2*time.Second))
			r := w.end()
			require.Equal(t, Consistent, r.Outcome, text(r))
			require.EqualValues(t, 150, r.Agreed.Index)
			for rank, p := range r.Places {
				require.EqualValues(t, 150, p.Replayed)
				require.EqualValues(t, 150, p.Compared)
				require.EqualValues(t, rank, *p.Rank)
				if kind == "esperd" && rank > 0 {
					require.LessOrEqual(t, p.ReplayedFrom, uint64(51))
				}
				for i := uint64(1); i <= 150; i++ {
					most := 1
					if kind == "esperd" && i <= 50 { // for what it comes to
						most = 3
					}
					require.LessOrEqual(t, w.nodes[rank].read[i], most, "entry %d of rank %d", i, rank)
				}
			}
			require.Contains(t, r.Coverage[2], "could not be read any more, after entry 150: gone")
			require.Equal(t, []string{"report at 150"}, w.after(0))
		})
	}
}

// A difference ends it: with the report, and status 1.
func TestFollowFindsWhoDiffers(t *testing.T) {
	l := newLog(t, 52, "run", 3)
	l.train(100)
	at := uint64(70)
	for ; ; at++ {
		if e := decoded(t, l.entries[at-1]); e.Key != nil && e.Key.Slot != "" && e.Events[0].Observed != nil {
			break
		}
	}
	wrong := decoded(t, l.entries[at-1])
	wrong.Events[0].Observed.Metrics.Accuracy++
	changed, err := events.Encode(wrong)
	require.NoError(t, err)
	other := slices.Clone(l.entries)
	other[at-1] = changed
	for name, c := range map[string]struct {
		odd     *replica
		verdict Verdict
		lost    bool // its place cannot be read any more when the report is made
	}{
		"apply":             {&replica{entries: l.entries, applied: map[uint64]*events.Entry{at: wrong}}, VerdictApply, false},
		"payload":           {&replica{entries: other}, VerdictPayload, false},
		"payload, and gone": {&replica{entries: other}, VerdictPayload, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				replicas := sameReplicas(l, 3)
				replicas[1] = c.odd
				w := follow(t, l, 50, replicas)
				require.Equal(t, []string{"caught_up at 50"}, w.after(5*time.Second))
				w.show(at-1, 0, 1, 2)
				require.Empty(t, w.after(5*time.Second))
				w.show(at+10, 0, 1, 2)
				time.Sleep(1500 * time.Millisecond)
				if c.lost {
					w.nodes[1].set(func(n *fakeNode) { n.fails = errors.New("gone") })
				}
				r := <-w.report
				require.Equal(t, 1, r.Status, text(r))
				require.NotEmpty(t, r.Findings)
				f := r.Findings[0]
				require.Equal(t, c.verdict, f.Verdict, text(r))
				require.Equal(t, at, f.Index)
				require.Equal(t, at-1, f.Agreed.Index)
				require.Len(t, f.AtFault, 1)
				require.EqualValues(t, 1, *f.AtFault[0].Rank)
				told := w.after(0)
				require.Contains(t, told[0], "diverged at")
				require.Contains(t, told[len(told)-1], "report at")
			})
		})
	}
}

// What the log records ends it too, unless it is older than what is asked for.
func TestFollowReadsTheLog(t *testing.T) {
	l := newLog(t, 53, "run", 3)
	l.train(60)
	first := l.attests(2)
	l.train(100)
	second := l.attests(1)
	l.train(120)
	synctest.Test(t, func(t *testing.T) {
		w := follow(t, l, 80, sameReplicas(l, 2))
		r := <-w.report
		i := slices.IndexFunc(w.events, func(e Event) bool { return e.Event == EventDiverged })
		require.Equal(t, []uint64{2}, w.events[i].Ranks, "who is at fault, and not where it was read")
		require.True(t, strings.HasPrefix(w.events[i].What, "rank 2 at fault (device): "), w.events[i].What)
		require.Equal(t, 1, r.Status)
		require.Equal(t, VerdictDevice, r.Findings[0].Verdict)
		require.Equal(t, first, r.Findings[0].Index)
		w.after(0)

		w = follow(t, l, 80, sameReplicas(l, 2), func(cfg *FollowConfig, _ []*fakeNode) { cfg.SinceHead = true })
		require.Equal(t, []string{"caught_up at 80"}, w.after(5*time.Second))
		w.show(110, 0, 1)
		r = <-w.report
		require.Len(t, r.Findings, 1, text(r))
		require.Equal(t, second, r.Findings[0].Index)
		require.EqualValues(t, 1, r.Skipped)
	})
}

// What was there at the beginning is what any place had then; what a place brings
// that comes later is new.
func TestFollowSinceTheFurthestHead(t *testing.T) {
	l := newLog(t, 57, "run", 3)
	l.train(60)
	l.attests(2)
	l.train(100)
	synctest.Test(t, func(t *testing.T) {
		for behind := range 2 {
			w := follow(t, l, 80, sameReplicas(l, 2), func(cfg *FollowConfig, nodes []*fakeNode) {
				cfg.SinceHead, nodes[behind].shown = true, 20
			})
			require.Equal(t, []string{"caught_up at 80"}, w.after(5*time.Second))
			w.show(90, 0, 1)
			require.Empty(t, w.after(5*time.Second))
			require.EqualValues(t, 1, w.end().Skipped)
		}
		w := follow(t, l, 80, sameReplicas(l, 1), func(cfg *FollowConfig, nodes []*fakeNode) {
			cfg.SinceHead, nodes[0].fails = true, errors.New("not yet")
		})
		w.after(5 * time.Second)
		w.nodes[0].set(func(n *fakeNode) { n.fails = nil })
		require.Len(t, (<-w.report).Findings, 1, "of a log that was not there")
	})
}

// What the log says before the entry from which on a place was replayed is told by
// one that was replayed from the beginning, whichever comes first.
func TestFollowTellsWhatWasBeforeAdoption(t *testing.T) {
	l := newLog(t, 56, "run", 3)
	l.train(40)
	l.attests(1)
	l.leaves(2)
	for len(l.entries) < 100 {
		l.report()
	}
	synctest.Test(t, func(t *testing.T) {
		w := follow(t, l, 80, sameReplicas(l, 3), func(cfg *FollowConfig, nodes []*fakeNode) {
			cfg.SinceHead, cfg.Places[0], nodes[0].kind = true, "http://0", "esperd"
			nodes[2].shown, nodes[2].ended = 40, true
		})
		w.after(5 * time.Second)
		w.show(100, 0, 1)
		w.after(5 * time.Second)
		r := w.end()
		require.Equal(t, Consistent, r.Outcome, text(r))
		require.EqualValues(t, 81, r.Places[0].ReplayedFrom)
		require.EqualValues(t, 1, r.Skipped, text(r))
		require.Contains(t, r.Coverage[2], "the log has its node leave the world with entry")
	})
}

// It ends by itself when the run is over, as long as it was told to, and not
// before it has begun.
func TestFollowToTheEnd(t *testing.T) {
	l := newLog(t, 54, "run", 2)
	l.train(60)
	synctest.Test(t, func(t *testing.T) {
		w := follow(t, l, 40, sameReplicas(l, 2), func(cfg *FollowConfig, nodes []*fakeNode) {
			cfg.EndAfter = 30 * time.Second
			for _, n := range nodes {
				n.fails = errors.New("not yet")
			}
		})
		require.Equal(t, []string{"rank 0 unreachable at 0", "rank 1 unreachable at 0"}, slices.Sorted(slices.Values(noRanks(w.after(time.Hour)))))
		for _, n := range w.nodes {
			n.set(func(n *fakeNode) { n.fails = nil })
		}
		w.after(5 * time.Second)
		w.show(60, 0)
		w.nodes[0].set(func(n *fakeNode) { n.ended = true })
		w.after(time.Minute)
		w.show(60, 1)
		w.nodes[1].set(func(n *fakeNode) { n.ended = true })
		r := <-w.report
		require.Equal(t, Consistent, r.Outcome, text(r))
		require.EqualValues(t, 60, r.Agreed.Index)
	})
}

// noRanks drops who cannot be named yet.
func noRanks(told []string) []string {
	out := []string{}
	for i, s := range told {
		if s == "place at 0" {
			s = fmt.Sprintf("rank %d unreachable at 0", i)
		}
		if s != "caught_up at 0" {
			out = append(out, s)
		}
	}
	return out
}

// A place that holds another log than before is read anew, and a rank that left
// the world is not missed.
func TestFollowAcrossRestarts(t *testing.T) {
	l := newLog(t, 55, "run", 3)
	l.train(60)
	l.leaves(2)
	l.train(90)
	synctest.Test(t, func(t *testing.T) {
		w := follow(t, l, 40, sameReplicas(l, 3))
		require.Equal(t, []string{"caught_up at 40"}, w.after(5*time.Second))
		w.nodes[2].set(func(n *fakeNode) { n.ended = true })
		require.Equal(t, []string{"rank 2 stopped at 40"}, w.after(5*time.Second))
		w.show(90, 0, 1)
		require.Equal(t, []string{"rank 2 left at 40"}, w.after(time.Minute))

		w.show(20, 1) // as after a restart, until its log is applied again
		require.Equal(t, []string{"rank 1 unreachable at 90"}, w.after(time.Minute))
		w.show(90, 1)
		require.Equal(t, []string{"rank 1 ok at 90"}, w.after(5*time.Second))

		another := newLog(t, 56, "run", 3)
		another.train(95)
		w.nodes[1].set(func(n *fakeNode) {
			n.records, _, _ = (&replica{rank: 1, entries: another.entries}).rows(t)
			n.shown = 95
		})
		require.Equal(t, []string{"rank 1 other_log at 0", "rank 1 ok at 95"}, w.after(5*time.Second))
		r := w.end()
		require.Equal(t, 2, r.Status, text(r))
		require.Empty(t, r.Findings)
		require.Contains(t, r.Places[1].Problem, "not compared")
		require.EqualValues(t, 95, r.Places[1].Replayed)
		require.Contains(t, r.Places[2].Notes, "it ends with entry 40: the log has its node leave the world with entry 61 (silent), and what follows was not for it; entries 41 to 60, from before that, are not here either")
	})
}

// A place that lost what was read from it, or turned to another log, and then
// vanished, is not consistent.
func TestFollowWhatTurnedAndVanished(t *testing.T) {
	l, another := newLog(t, 58, "run", 2), newLog(t, 59, "run", 2)
	l.train(60)
	another.train(70)
	synctest.Test(t, func(t *testing.T) {
		for name, turn := range map[string]func(*fakeNode){
			"less": func(n *fakeNode) { n.shown = 20 },
			"other": func(n *fakeNode) {
				n.records, _, _ = (&replica{rank: 1, entries: another.entries}).rows(t)
				n.shown = 70
			},
		} {
			w := follow(t, l, 60, sameReplicas(l, 2))
			w.after(5 * time.Second)
			w.nodes[1].set(turn)
			w.after(5 * time.Second)
			w.nodes[1].set(func(n *fakeNode) { n.fails = errors.New("gone") })
			w.after(5 * time.Second)
			r := w.end()
			require.Equal(t, 2, r.Status, "%s: %s", name, text(r))
			require.NotEmpty(t, r.Places[1].Problem, name)
		}
	})
}

// The links that are kept are bounded, and a place that was too far behind is
// compared once it comes near.
func TestLedger(t *testing.T) {
	var l ledger
	chain := func(i uint64) events.Digest { return events.Digest{byte(i), byte(i >> 8), byte(i >> 16), 1} }
	const last = 3*ledgerMax + 7
	for i := uint64(1); i <= last; i++ {
		require.False(t, l.put("a", i, chain(i), 0))
		require.Less(t, len(l.logs["a"].list), 2*ledgerMax)
	}
	require.False(t, l.put("a", 1, events.Digest{9}, 1), "nobody knows any more")
	require.True(t, l.put("a", last-1, chain(last-1), 1))
	require.False(t, l.put("b", last, events.Digest{9}, 1), "another log")
	require.Nil(t, l.meeting())
	require.False(t, l.put("a", last, events.Digest{9}, 1))
	require.EqualValues(t, last, l.meeting().index)
	require.Equal(t, chain(last-1), l.meeting().before)
}
