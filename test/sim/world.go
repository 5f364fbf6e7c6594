package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/replica"
)

// world is a job's machines in simulated time: an in-memory network, real history
// files. Which machine holds which rank changes as the job is started again.
type world struct {
	net   *replica.MemNetwork
	dir   string
	log   *slog.Logger
	every uint64 // raft entries between two snapshots

	mu    sync.Mutex
	hosts []*host // all there ever were
	ranks []*host // the job's, by rank
	start string  // tells this start of the job from others
}

// host is one machine. Its node comes and goes, its disk stays, until it is wiped.
type host struct {
	w    *world
	id   int
	addr string // as of its last start, like all that place sets

	mu    sync.Mutex
	conf  replica.Config
	node  *replica.Node // nil: down
	data  *replica.DataDir
	disk  *disk
	ghost bool // crashed at a write: what it still does reaches nobody
	gone  bool // it is about to end, or has: heal leaves it alone
	wipes int
	kept  *disk  // of the moment of the crash
	json  []byte // node.json, likewise
}

var errDead = errors.New("the host has crashed")

func newWorld(size uint64, dir string, every uint64, log *slog.Logger) *world {
	if log == nil {
		log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	w := &world{net: replica.NewMemNetwork(), dir: dir, log: log, every: every}
	ranks := make([]*host, size)
	for rank := range ranks {
		ranks[rank] = w.newHost()
	}
	w.place("0", ranks, func(rank int, h *host) string { return fmt.Sprintf("host%d:1", h.id) })
	return w
}

func (w *world) newHost() *host {
	h := &host{w: w, id: len(w.hosts), disk: newDisk()}
	w.hosts = append(w.hosts, h)
	return h
}

// place gives hosts, which are down, their ranks and addresses in the next start
// of the job.
func (w *world) place(start string, ranks []*host, address func(rank int, h *host) string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ranks, w.start = ranks, start
	for rank, h := range ranks {
		h.addr = address(rank, h)
		h.conf = replica.Config{Rank: uint64(rank), World: uint64(len(ranks)), Start: start, Run: "sim", Host: fmt.Sprintf("host%d", h.id),
			Join: []string{ranks[0].addr}, Logger: w.log, SnapshotEvery: w.every, Timing: replica.Timing{CommitTimeout: 50 * time.Millisecond}}
	}
}

// at returns the host of a rank, nil while there is no such rank.
func (w *world) at(rank uint64) *host {
	w.mu.Lock()
	defer w.mu.Unlock()
	if rank >= uint64(len(w.ranks)) {
		return nil
	}
	return w.ranks[rank]
}

// job returns the hosts of the job, by rank.
func (w *world) job() []*host {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ranks
}

func (h *host) path() string {
	return filepath.Join(h.w.dir, fmt.Sprintf("host%d-%d", h.id, h.wipes))
}

// start opens the host's node on what its disk holds.
func (h *host) start() error {
	if h.running() {
		return nil
	}
	data, err := replica.OpenDataDir(h.path(), replica.DataDirOptions{NoFsync: true})
	if err != nil {
		return err
	}
	d := h.current()
	d.onCrash = func() { h.crashed(d) }
	history, err := events.OpenHistory(data.Path("history.db"), events.HistoryOptions{Logger: h.w.log, NoSync: true, BeforeWrite: func() error {
		if h.isGhost(d) {
			return errDead
		}
		d.atOnce(historyPut, func() {})
		if h.isGhost(d) {
			return errDead
		}
		return nil
	}})
	if err != nil {
		return errors.Join(err, data.Close())
	}
	conf := h.conf
	conf.Dir, conf.Network = data, h.w.net.Join(h.addr+"#"+string(data.Node()))
	conf.Stores = &replica.Stores{Log: d, Stable: d, Snapshots: d, History: history}
	n, err := replica.Open(conf)
	if err != nil {
		return errors.Join(err, data.Close())
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.node, h.data = n, data
	return nil
}

func (h *host) running() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.node != nil
}

// reconnect brings the host's links back, but none to a host that has crashed:
// what a ghost does must reach nobody.
func (h *host) reconnect() {
	for _, other := range h.w.hosts {
		if other != h && !other.dying() {
			h.w.net.Heal(h.addr, other.addr)
			h.w.net.Heal(other.addr, h.addr)
		}
	}
}

// crashed is called by the disk at the write before which the host dies.
func (h *host) crashed(d *disk) {
	h.ghostly(d)
	h.w.net.Isolate(h.addr)
}

func (h *host) ghostly(d *disk) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.disk == d && !h.ghost {
		h.ghost, h.kept = true, d.clone()
		h.json, _ = os.ReadFile(filepath.Join(h.path(), "node.json"))
	}
}

func (h *host) dying() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ghost
}

func (h *host) leaves() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.gone
}

func (h *host) isGhost(d *disk) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ghost || h.disk != d
}

func (h *host) current() *disk {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.disk
}

// alive returns the running node, nil while the host is down or dying.
func (h *host) alive() *replica.Node {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ghost {
		return nil
	}
	return h.node
}

// crash stops the host as a power cut would; what was written stays.
func (h *host) crash() error {
	d := h.current()
	d.mu.Lock()
	h.crashed(d)
	d.mu.Unlock()
	return h.bury()
}

// close stops the host's node in order.
func (h *host) close(ctx context.Context) error {
	h.mu.Lock()
	n, data := h.node, h.data
	h.mu.Unlock()
	err := n.Close(ctx)
	if h.dying() { // it crashed over it, which err tells
		return h.bury()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.node, h.data = nil, nil
	return errors.Join(err, data.Close())
}

// bury clears away a host that crashed.
func (h *host) bury() error {
	h.mu.Lock()
	n, data := h.node, h.data
	down := n == nil && !h.ghost // a ghost without a node crashed while it started
	h.mu.Unlock()
	if down {
		return nil
	}
	var err error
	if n != nil {
		err = errors.Join(n.Abort(), data.Close())
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.kept != nil {
		h.disk = h.kept
		err = errors.Join(err, os.WriteFile(filepath.Join(h.path(), "node.json"), h.json, 0o600))
	}
	h.node, h.data, h.ghost, h.kept = nil, nil, false, nil
	return err
}

// stop ends the node in order. It may crash meanwhile.
func (h *host) stop(ctx context.Context) error {
	h.mu.Lock()
	n, data := h.node, h.data
	h.mu.Unlock()
	if n == nil {
		return nil
	}
	err := errors.Join(n.Close(ctx), data.Close())
	h.mu.Lock()
	defer h.mu.Unlock()
	h.node, h.data = nil, nil
	if h.ghost {
		return nil // what it says of its end reached nobody
	}
	return err
}

// wipe replaces the disk of a host that is down: it comes back as another node.
func (h *host) wipe() {
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.disk
	h.disk = newDisk()
	h.disk.writes, h.disk.crashAt, h.disk.after, h.disk.again, h.disk.onWrite = old.writes, old.crashAt, old.after, old.again, old.onWrite
	h.wipes++
}

// heal brings every host of the job up and every link back.
func (w *world) heal() error {
	w.net.SetDelay(nil)
	for _, h := range w.hosts {
		if h.leaves() {
			continue
		}
		if h.dying() {
			if err := h.bury(); err != nil {
				return fmt.Errorf("host %d: burying: %w", h.id, err)
			}
		}
		d := h.current()
		d.mu.Lock()
		d.delay, d.crashAt, d.again = 0, 0, 0
		d.mu.Unlock()
	}
	w.net.HealAll()
	for rank, h := range w.job() {
		if err := h.start(); err != nil {
			return fmt.Errorf("rank %d: starting: %w", rank, err)
		}
	}
	return nil
}

func (w *world) close() error {
	var err error
	for _, h := range w.hosts {
		err = errors.Join(err, h.bury())
	}
	return err
}

// tempDir is in memory where the system has such a place.
func tempDir() (string, error) {
	base := "/dev/shm"
	if _, err := os.Stat(base); err != nil {
		base = ""
	}
	return os.MkdirTemp(base, "esperd-sim-")
}

// settle waits until every node has the same last entry, rank 0's node leads,
// and every history is complete; ctx bounds it, in simulated time.
func (w *world) settle(ctx context.Context) error {
	for {
		why := w.unsettled()
		if why == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the world did not settle: %s", why)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (w *world) unsettled() string {
	if why := w.misshapen(); why != "" {
		return why
	}
	job := w.job()
	first := job[0].alive().Status()
	for rank, h := range job {
		s := h.alive().Status()
		switch {
		case s.Index != first.Index || s.Chain != first.Chain:
			return fmt.Sprintf("rank %d has entry %d (chain %s), rank 0 entry %d (chain %s)", rank, s.Index, s.Chain.Short(), first.Index, first.Chain.Short())
		case s.CompleteFrom != 1:
			return fmt.Sprintf("rank %d has the history only from entry %d on", rank, s.CompleteFrom)
		}
	}
	return ""
}

// misshapen says what is not as it should be in a world that nothing hits:
// rank 0's node leads, a few nodes vote, all follow closely, and nobody else is
// part of the log.
func (w *world) misshapen() string {
	job := w.job()
	voting := 0
	low, high := uint64(1<<63), uint64(0)
	for rank, h := range job {
		n := h.alive()
		if n == nil {
			return fmt.Sprintf("rank %d's host is down", rank)
		}
		s := n.Status()
		switch {
		case s.Phase != replica.PhaseMember:
			return fmt.Sprintf("rank %d is %s: %s", rank, s.Phase, s.Problem)
		case (rank == 0) != (s.Role == "leader"):
			return fmt.Sprintf("rank %d's node is %s, and takes %s for the leader", rank, s.Role, s.Leader)
		}
		if s.Voter {
			voting++
		}
		low, high = min(low, s.Index), max(high, s.Index)
	}
	if high-low >= 8 {
		return fmt.Sprintf("the ranks have entries %d to %d", low, high)
	}
	if nodes := job[0].alive().State().Nodes; len(nodes) != len(job) {
		return fmt.Sprintf("%d nodes are part of the log, and the job has %d", len(nodes), len(job))
	}
	if want := votersOf(len(job)); voting != want {
		return fmt.Sprintf("%d nodes vote, expected %d of %d", voting, want, len(job))
	}
	return ""
}

// votersOf is the largest odd number up to 3 of so many nodes.
func votersOf(nodes int) int {
	if nodes < 3 {
		return 1
	}
	return 3
}
