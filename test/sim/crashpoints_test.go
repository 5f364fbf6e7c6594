package sim

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// TestCrashPoints crashes one node at every write of its disk, right before it
// and right after it, while a fixed scenario goes on: founding, calls, snapshots,
// an orderly restart, and what its role is to show. Each time it is started on
// what was durable, the scenario goes to its end, and everything that was
// acknowledged has to be there on every rank. Soon after it was started it
// crashes once more.
//
// With -short every seventh point, another third of them for each role.
func TestCrashPoints(t *testing.T) {
	for _, role := range roles {
		t.Run(role.name, func(t *testing.T) {
			t.Parallel()
			seen := &landings{}
			whole := &crashing{role: role, seen: seen}
			whole.play(t)
			require.Subset(t, keys(whole.written), role.writes, "the scenario lacks what it is to show")
			step, first := 1, 1
			if testing.Short() {
				step, first = 7, 1+int(role.target)*2
			}
			// The interleaving is not the same each time: a few more writes, so
			// that the last one is among them.
			points := whole.total + whole.total/10
			t.Run("at", func(t *testing.T) {
				for point := first; point <= points; point += step {
					for _, after := range []bool{false, true} {
						t.Run(fmt.Sprintf("write=%d,after=%v", point, after), func(t *testing.T) {
							t.Parallel()
							(&crashing{role: role, seen: seen, point: point, after: after}).play(t)
						})
					}
				}
			})
			t.Logf("%d writes; crashes by what was written: %v", whole.total, seen.at)
			if step == 1 {
				require.Subset(t, keys(seen.at), role.writes, "no crash came there")
			}
		})
	}
}

// A role is what the node that crashes does in the scenario beside deciding or
// following.
type role struct {
	name   string
	world  uint64
	target uint64
	rounds int       // of the trainers
	calls  int       // in each
	writes []written // that have to be among its own
	play   func(*crashing, context.Context)
}

var always = []written{logAppended, stableSet, snapshotBegun, snapshotKept, historyPut}

var roles = []role{
	{"a node alone, which nobody helps", 1, 0, 2, 10, slices.Concat(always, []written{logTrimmed}), func(*crashing, context.Context) {}},
	{"the leader loses its lead with an entry that nobody else has", 3, 0, 2, 10, slices.Concat(always, []written{logTrimmed, logCut}), (*crashing).conflict},
	{"a voter falls behind and gets a snapshot", 3, 1, 1, 20, slices.Concat(always, []written{logTrimmed}), (*crashing).lag},
	{"an emptied node joins", 3, 2, 2, 10, always, (*crashing).join},
}

// landings are the kinds of writes at which nodes crashed.
type landings struct {
	mu sync.Mutex
	at map[written]int
}

func (l *landings) note(what written) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at == nil {
		l.at = map[written]int{}
	}
	l.at[what]++
}

func keys(m map[written]int) (list []written) {
	for k := range m {
		list = append(list, k)
	}
	return list
}

// crashing is one run of the scenario.
type crashing struct {
	role  role
	point int  // the write of the target at which it crashes; 0: it does not
	after bool // right after it, else right before
	seen  *landings

	t      *testing.T
	w      *world
	target *host
	j      *job
	turn   chan struct{} // who starts or stops the target; not a mutex, under which simulated time stands still

	total   int             // writes of the target
	written map[written]int // by what they were for
}

const (
	crashSeed  = 7
	crashEvery = 4 // entries between snapshots
)

func (c *crashing) play(t *testing.T) {
	dir, err := tempDir()
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	synctest.Test(t, func(t *testing.T) {
		c.t, c.w, c.turn, c.written = t, newWorld(c.role.world, dir, crashEvery, nil), make(chan struct{}, 1), map[written]int{}
		c.target = c.w.hosts[c.role.target]
		c.arm()
		c.j = newJob(c.w, crashSeed, c.role.rounds, c.role.calls)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		var trainers, reviver sync.WaitGroup
		defer func() {
			cancel()
			trainers.Wait()
			reviver.Wait()
			require.NoError(t, c.w.close())
		}()
		reviver.Go(func() { c.revive(ctx) })
		for _, h := range c.w.hosts {
			c.start(h)
		}
		for rank := range c.w.hosts {
			trainers.Go(func() { c.j.run(ctx, uint64(rank)) })
		}
		c.until(ctx, "calls are answered", func() bool { return c.j.answeredCalls() >= 3 })
		c.role.play(c, ctx)
		c.restart(ctx)
		trainers.Wait()
		require.NoError(t, ctx.Err(), "the trainers did not finish: %v", c.j.doing)
		c.settled(ctx)

		// And it can decide again.
		last := newJob(c.w, crashSeed+1, 1, 3)
		last.attempt = 1 << 20 // other trainers than before
		for rank := range c.w.hosts {
			trainers.Go(func() { last.run(ctx, uint64(rank)) })
		}
		trainers.Wait()
		require.NoError(t, ctx.Err(), "the last trainers did not finish: %v", last.doing)
		c.settled(ctx)
		checkLog(t, c.w, c.j, crashSeed)
		check(t, c.w, last, crashSeed)
		c.total = c.target.current().writes
	})
}

// arm sets the crash, and counts what the target writes.
func (c *crashing) arm() {
	d := c.target.current()
	d.crashAt, d.after = c.point, c.after
	if c.point > 0 {
		d.again = 1 + c.point%5
	}
	d.onWrite = func(what written) { c.note(what) }
}

// note is called with a disk's mutex held, before the write is counted.
func (c *crashing) note(what written) {
	c.target.mu.Lock()
	ghost, d := c.target.ghost, c.target.disk
	c.target.mu.Unlock()
	if ghost {
		return
	}
	c.written[what]++
	if d.crashAt == d.writes+1 && !(d.after && what == historyPut) {
		c.seen.note(what)
	}
}

func (c *crashing) start(h *host) {
	if err := h.start(); err != nil && !h.dying() {
		c.t.Errorf("host %d does not start: %v", h.id, err)
	}
}

// revive starts the target again whenever it crashed: at once, or when the
// others have noticed. With a voter that is behind, the leader goes down too: the
// next one knows nothing of a snapshot that was under way.
func (c *crashing) revive(ctx context.Context) {
	for sleep(ctx, 20*time.Millisecond) {
		if !c.target.dying() {
			continue
		}
		if c.after {
			sleep(ctx, 4*time.Second)
		}
		c.alone(func() {
			if err := c.target.bury(); err != nil {
				c.t.Errorf("host %d: burying: %v", c.target.id, err)
			}
			c.target.reconnect()
			if leader := c.w.hosts[0]; c.role.target == 1 {
				if err := leader.crash(); err != nil {
					c.t.Errorf("the leader: %v", err)
				}
				leader.reconnect()
				c.start(leader)
			}
			c.start(c.target)
		})
	}
}

// alone keeps who restarts the target and who revives it apart.
func (c *crashing) alone(do func()) {
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	do()
}

// until waits for what the scenario is about. A crash may take it away, so only
// the run without one insists.
func (c *crashing) until(ctx context.Context, what string, done func() bool) {
	deadline, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for !done() {
		if !sleep(deadline, 20*time.Millisecond) {
			if c.point == 0 {
				c.t.Errorf("it does not happen that %s", what)
			}
			return
		}
	}
}

func (c *crashing) settled(ctx context.Context) {
	settling, stop := context.WithTimeout(ctx, 5*time.Minute)
	defer stop()
	c.alone(func() { require.NoError(c.t, c.w.heal()) }) // no more crashes
	require.NoError(c.t, c.w.settle(settling))
}

// restart stops the target in order and starts it again.
func (c *crashing) restart(ctx context.Context) {
	c.alone(func() {
		if c.target.dying() {
			return // the reviver's
		}
		if err := c.target.stop(ctx); err != nil {
			c.t.Errorf("rank %d: stopping: %v", c.target.id, err)
		}
		if !c.target.dying() {
			c.start(c.target)
		}
	})
}

// conflict cuts the leader off at the moment when it has written an entry and
// nobody else has it. The others elect, and write another one in its place.
func (c *crashing) conflict(ctx context.Context) {
	d := c.target.current()
	d.mu.Lock()
	armed := true
	d.onWrite = func(what written) {
		if c.note(what); armed && what == logAppended {
			armed = false
			c.w.net.Isolate(c.target.addr)
		}
	}
	d.mu.Unlock()
	c.until(ctx, "the leader and another node have different entries in one place", func() bool {
		mine := c.target.current()
		return slices.ContainsFunc(c.w.hosts[1:], func(h *host) bool { return mine.differs(h.current()) })
	})
	if !c.target.dying() {
		c.target.reconnect()
	}
	c.until(ctx, "the old leader gives way", func() bool {
		mine := c.target.current()
		return !slices.ContainsFunc(c.w.hosts[1:], func(h *host) bool { return mine.differs(h.current()) })
	})
}

// lag keeps a voter away until the others' log begins behind what it has.
func (c *crashing) lag(ctx context.Context) {
	c.w.net.Isolate(c.target.addr)
	c.until(ctx, "a voter falls behind the leader's log", func() bool {
		low, _ := c.w.hosts[0].current().ends()
		_, high := c.target.current().ends()
		return low > high+1
	})
	if !c.target.dying() {
		c.target.reconnect()
	}
	c.caughtUp(ctx)
}

// join empties a node's disk; the user restarts the job.
func (c *crashing) join(ctx context.Context) {
	c.until(ctx, "the leader's log is trimmed", func() bool {
		low, _ := c.w.hosts[0].current().ends()
		return low > 1
	})
	c.until(ctx, "the world is whole", c.whole)
	c.alone(func() {
		if c.target.dying() {
			return
		}
		require.NoError(c.t, c.target.crash())
		c.target.wipe()
		c.target.reconnect()
		c.start(c.target)
		c.j.begin(len(c.w.hosts))
	})
	c.caughtUp(ctx)
}

func (c *crashing) whole() bool { return c.w.misshapen() == "" }

func (c *crashing) caughtUp(ctx context.Context) {
	c.until(ctx, "the node has a snapshot from the leader and the history before it", func() bool {
		n := c.target.alive()
		return n != nil && n.Status().Phase == "member" && n.Status().CompleteFrom == 1 && c.whole()
	})
}

// differs reports whether two logs have different entries in one place.
func (d *disk) differs(other *disk) bool {
	terms := func(d *disk) map[uint64]uint64 {
		d.mu.Lock()
		defer d.mu.Unlock()
		terms := map[uint64]uint64{}
		for i, l := range d.logs {
			terms[i] = l.Term
		}
		return terms
	}
	mine, others := terms(d), terms(other)
	for i, term := range mine {
		if t, ok := others[i]; ok && t != term {
			return true
		}
	}
	return false
}

func (j *job) answeredCalls() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.acked)
}
