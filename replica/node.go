package replica

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// Config is what a node needs to run. Zero timings take the defaults.
type Config struct {
	Rank  uint64
	World uint64
	Start string   // tells this start of the job from others, the same on all ranks; empty: unknown
	Run   string   // empty: the log's, or a new one is made when the log is founded
	Host  string   // for people
	Join  []string // peers' addresses to ask when no other is known; rank 0's

	Dir      *DataDir
	LogStore string  // "boltdb", "wal", or "auto" (default): what Dir has, "wal" if it has none
	Network  Network // how this node reaches the others
	Logger   *slog.Logger
	Timing   Timing

	// Durability is "durable" (default), or "relaxed": raft's log and votes are
	// not synced, so that a machine which crashes may lose decisions; a process
	// that dies loses none.
	Durability string

	// Build names this build of esperd. A start with another one than the last
	// verifies the whole history first (verify.go); empty: no start does.
	Build string

	// SnapshotEvery is how many raft entries lie between two snapshots, and how
	// many stay behind one; 0: 8192.
	SnapshotEvery uint64

	// Stores replaces the stores under Dir, for simulated clusters.
	Stores *Stores
}

// Network is how nodes reach each other. Close is called once, last.
type Network interface {
	PeerClient
	Transport() raft.Transport
	Serve(handlers map[string]peerHandler, log *slog.Logger) // until Close; returns at once
	Addr() string                                            // that other nodes can dial
	Find(where func(events.NodeID) string)                   // where nodes are now; "": where the address says
	Close() error
}

// Stores are where raft and the history keep what they write.
type Stores struct {
	Log       raft.LogStore
	Stable    raft.StableStore
	Snapshots raft.SnapshotStore
	History   *events.History
}

// Timing holds the protocol's durations.
type Timing struct {
	Election      time.Duration // of rank 0's node; others wait three times as long
	CommitTimeout time.Duration // the net under the nudger
	Hello         time.Duration // between two hellos of a node
	Gone          time.Duration // a node that is silent for so long does not come back soon: others take its place
	Drain         time.Duration // longest wait of Close for the other nodes
}

func (t Timing) withDefaults() Timing {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&t.Election, 500*time.Millisecond)
	set(&t.CommitTimeout, 20*time.Millisecond) // idle traffic: one message a follower each 20 to 40 ms
	set(&t.Hello, 500*time.Millisecond)
	set(&t.Gone, 10*time.Second)
	set(&t.Drain, 10*time.Second)
	return t
}

// Node is one replica: a data directory, its part in raft, its state machine.
type Node struct {
	cfg     Config
	id      events.NodeID
	log     *slog.Logger
	raft    *raft.Raft
	running atomic.Pointer[raft.Raft] // raft, for its own goroutine: it applies before NewRaft returns
	machine *machine
	history *events.History
	anchor  *anchor
	nudge   *nudger
	closers []io.Closer // stores, closed after raft
	net     Network

	logStore string // the kind that is open; empty: Config.Stores are

	deciding      chan struct{} // holds one token: one decision in flight
	barrier       barrier
	roster        roster
	outbox        outbox
	requester     requester
	registrations registrations
	gap           chan struct{} // entries below the head are missing

	process string // random, of this process: a copied directory has the same id
	term    term   // of leadership; watchLeadership's alone
	joining joining
	others  others
	opened  atomic.Bool // this node has opened a round since it started

	divergence atomic.Pointer[Divergence] // nil: this replica's state is the log's
	replaying  sync.Mutex                 // held while the history is replayed for somebody who doubts it
	rechecked  uint64                     // the last entry up to which it was; under replaying

	evidence []string // directories that were set aside beside this one

	remembered []string // what peers.json has; sayHello's alone, as hellos
	hellos     uint64

	peerHandlers map[string]peerHandler // what peers may call
	handlers     map[string]peerHandler // what they may ask, by the doors
	handlerMu    sync.RWMutex

	empty bool // the directory held no log when the node started

	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup
	closed sync.Once
}

// Open starts the node and takes cfg.Network over; it is closed if Open fails.
// Errors name the file or setting at fault; nothing that a directory holds is
// ever reset.
func Open(cfg Config) (*Node, error) {
	cfg.Timing = cfg.Timing.withDefaults()
	if cfg.World == 0 || cfg.Rank >= cfg.World {
		return nil, errorf(events.CodeInvalidInput, "rank %d does not exist in a world of %d: expected 0 to world size - 1", cfg.Rank, cfg.World)
	}
	cfg.Durability = cmp.Or(cfg.Durability, durabilityDurable)
	if err := checkDurability(cfg.Durability); err != nil {
		return nil, err
	}
	if run := cfg.Dir.Run(); run != "" && cfg.Run != "" && run != cfg.Run {
		return nil, &RunMismatchError{Dir: cfg.Dir.Path(""), What: "run", Have: run, Got: cfg.Run}
	}
	n := &Node{cfg: cfg, id: cfg.Dir.Node(), net: cfg.Network, deciding: make(chan struct{}, 1), handlers: map[string]peerHandler{}, gap: make(chan struct{}, 1)}
	n.log = cfg.Logger.With("rank", cfg.Rank)
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.evidence = Evidence(cfg.Dir.Path(""))
	n.roster.init()
	n.process = rand.Text()
	n.recallPeers()
	n.net.Find(n.roster.where)
	n.outbox.init(cfg.Dir.Boots())
	n.requester.init(cfg.Dir.Boots())
	if err := n.start(); err != nil {
		n.cancel()
		err = errors.Join(err, n.net.Close())
		for _, c := range n.closers {
			err = errors.Join(err, c.Close())
		}
		return nil, err
	}
	return n, nil
}

func (n *Node) start() error {
	stores, err := n.openStores()
	if err != nil {
		return err
	}
	n.history = stores.History
	n.closers = append(n.closers, n.history)
	if err := n.verifyHistory(); err != nil {
		return err
	}
	doubted, err := doubtedFrom(n.cfg.Dir.Path(""))
	if err != nil {
		return err
	}
	if n.machine, err = newMachine(n.log, n.history, doubted); err != nil {
		return err
	}
	n.machine.joined = n.onJoined
	n.machine.applied = n.onApplied
	n.machine.rebased = n.onRebased
	n.nudge = newNudger(n.net.Transport(), raft.ServerID(n.id), raft.ServerAddress(n.net.Addr()), n.log, time.Millisecond)

	var snapshots raft.SnapshotStore
	if n.anchor, snapshots, err = newAnchor(stores, n.log, n.ctx.Done()); err != nil {
		return err
	}
	conf := n.raftConfig()
	restore, err := n.mustRestore(snapshots)
	if err != nil {
		return err
	}
	conf.NoSnapshotRestoreOnStart = !restore
	if err := n.lookForLog(stores); err != nil {
		return err
	}
	if err := n.startRaft(conf, stores, snapshots); err != nil {
		return err
	}
	n.running.Store(n.raft)
	if s := n.machine.state(); s.Lineage != "" {
		n.onJoined(s) // the directory may not know it yet
	}
	n.installHandlers()
	n.net.Serve(n.peerHandlers, n.log)
	for _, run := range []func(){n.watchLeadership, n.sayHello, n.sendReports, n.fillHistory, n.watchDivergence} {
		n.work.Go(run)
	}
	return nil
}

// onJoined is called once the log's identity is known here.
func (n *Node) onJoined(s *fsm.State) {
	if n.cfg.Run != "" && n.cfg.Run != s.Run {
		n.machine.fail(&RunMismatchError{Dir: n.cfg.Dir.Path(""), What: "run", Have: s.Run, Got: n.cfg.Run})
		return
	}
	if err := n.cfg.Dir.SetRun(s.Run, s.Lineage); err != nil {
		n.machine.fail(err)
		return
	}
	n.log.Info("part of the log", "run", s.Run, "lineage", s.Lineage, "index", s.Index)
}

// onApplied nudges the followers on, but only for entries that this node wrote:
// only then did it lead their term.
func (n *Node) onApplied(writer events.NodeID, raftIndex, term uint64) {
	if r := n.running.Load(); writer == n.id && r != nil && r.State() == raft.Leader {
		n.nudge.Applied(raftIndex, term, r.GetConfiguration().Configuration().Servers)
	}
}

// ID returns the node's identity: that of its data directory.
func (n *Node) ID() events.NodeID { return n.id }

// State returns the state after the last entry applied here.
func (n *Node) State() *fsm.State { return n.machine.state() }

// Changed returns a channel that is closed when there is a newer state, or when
// the node's phase changes.
func (n *Node) Changed() <-chan struct{} { return n.machine.changes() }

// Failed is closed when the node met an entry that it cannot read; Status tells
// which, and the process should stop.
func (n *Node) Failed() <-chan struct{} { return n.machine.failed }

// Entry reads one entry of the history.
func (n *Node) Entry(index uint64) (*events.Entry, events.Record, error) {
	rec, err := n.history.Read(index)
	if err != nil {
		return nil, rec, err
	}
	e, err := events.Decode(rec.Entry)
	return e, rec, err
}

// Records calls fn with the records from..to of the history, each checked
// against the chain; ChainAt returns the link after an entry.
func (n *Node) Records(from, to uint64, fn func(events.Record) error) error {
	return n.history.Range(from, to, fn)
}

// ChainAt is described at Records.
func (n *Node) ChainAt(index uint64) (events.Digest, error) { return n.history.ChainAt(index) }

// Find returns the index of a numbered call's entry, false while it is not
// applied here. A call from before the history is complete is unavailable.
func (n *Node) Find(id events.CallID) (uint64, bool, error) {
	s := n.State()
	if id.Round == s.Round.Number && id.Call >= s.Cursor(id.Model).Calls {
		return 0, false, nil // without a look at the disk: who waits asks at every entry
	}
	i, ok, err := n.history.Find(id)
	if err != nil || ok || id.Round > s.Round.Number {
		return i, ok, err
	}
	if complete := n.history.CompleteFrom(); complete > 1 {
		return 0, false, errorf(events.CodeUnavailable, "call %d of model %s in round %d is decided, but this node has the history only from entry %d on and fetches the rest from the other ranks: try again", id.Call, id.Model, id.Round, complete)
	}
	return 0, false, nil // of a round that ended without it
}

// StateAt rebuilds the state after an entry, by replay from the nearest image.
func (n *Node) StateAt(_ context.Context, index uint64) (*fsm.State, error) {
	s := n.State()
	switch {
	case s.Index == index:
		return s, nil
	case index > s.Index:
		return nil, errorf(events.CodeUnavailable, "entry %d is not applied here yet; the last one is %d", index, s.Index)
	}
	return replayTo(n.history, index, n.machine.doubted)
}

// Status tells what this node knows, with or without a quorum.
func (n *Node) Status() Status {
	h, _ := n.machine.now()
	phase, problem := n.machine.trouble()
	s := Status{
		Identity:     n.identity(h.state),
		Phase:        phase,
		Role:         "none",
		Index:        h.index,
		Chain:        h.chain,
		CompleteFrom: n.history.CompleteFrom(),
		HistoryLag:   n.history.Lag().Records,
		Durability:   n.cfg.Durability,
		LogStore:     n.logStore,
		Rival:        n.others.rival(),
		Evidence:     n.evidence,
		RaftStats:    n.raft.Stats(),
		Divergence:   n.Divergence(),
	}
	for _, trouble := range []func() error{n.history.Err, n.anchor.trouble} {
		if problem == nil {
			problem = trouble()
		}
	}
	if problem == nil {
		s.Problem = n.waitsFor(phase)
	}
	if problem != nil {
		s.Problem = problem.Error()
	}
	for _, server := range n.members().Servers {
		if server.ID == raft.ServerID(n.id) {
			s.Role = lower(n.raft.State().String())
			s.Voter = server.Suffrage == raft.Voter
		}
	}
	_, leader := n.raft.LeaderWithID()
	s.Leader = events.NodeID(leader)
	return s
}

// identity is what is known of the log: by its entries, or, until some are known
// to be committed, by what the directory was part of.
func (n *Node) identity(s *fsm.State) Identity {
	return Identity{Node: n.id, Rank: n.cfg.Rank, World: n.cfg.World, Run: cmp.Or(s.Run, n.cfg.Dir.Run(), n.cfg.Run), Lineage: cmp.Or(s.Lineage, n.cfg.Dir.Lineage()),
		Address: hostOf(n.net.Addr()), Host: n.cfg.Host}
}

// Close drains and stops the node: it flushes reports, waits until every other
// live node has the last entry (at most Timing.Drain or ctx), and leaves
// everything on disk.
func (n *Node) Close(ctx context.Context) error {
	drain, cancel := context.WithTimeout(ctx, n.cfg.Timing.Drain)
	defer cancel()
	n.drain(drain)
	return n.stop(n.closers)
}

// Abort stops the node as a crash would: what was not written is lost. It is
// for simulated clusters.
func (n *Node) Abort() error {
	return n.stop([]io.Closer{closer(n.history.Abandon)})
}

type closer func() error

func (c closer) Close() error { return c() }

func (n *Node) stop(closers []io.Closer) error {
	var err error
	n.closed.Do(func() {
		n.cancel()
		err = errors.Join(n.net.Close(), n.raft.Shutdown().Error())
		n.nudge.Close()
		n.work.Wait()
		for i := len(closers) - 1; i >= 0; i-- {
			err = errors.Join(err, closers[i].Close())
		}
	})
	return err
}
