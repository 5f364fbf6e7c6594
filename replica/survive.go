package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// Kept is what one stopped node has of its log, after all of it was verified.
type Kept struct {
	State     *fsm.State    // after the last entry
	Chain     events.Digest // there
	Time      int64         // of the last entry, Unix nanoseconds
	First     uint64        // the first entry whose effect was replayed; 1: of all
	Committed uint64        // the last entry of the history; what follows was in raft's log alone
	Links     Links
	Dropped   *Dropped // nil: nothing was

	RaftTerm    uint64 // of the last entry of raft's log or snapshot; 0: not known
	RaftProblem error  // why raft's log cannot be used; nil: the node could start with it
	Members     []Member

	raftIndex uint64
	machine   *machine
}

// Member is a node of raft's configuration.
type Member struct {
	Node    events.NodeID
	Address string // host:port
	Voter   bool
}

// Links are the chain's links from an entry on.
type Links struct {
	From  uint64
	Chain []events.Digest
}

// At returns the link of an entry.
func (l Links) At(index uint64) (events.Digest, bool) {
	if index < l.From || index-l.From >= uint64(len(l.Chain)) {
		return events.Digest{}, false
	}
	return l.Chain[index-l.From], true
}

// OpenStopped opens the raft stores of a data directory that no node uses. It
// may write to them, as a start does: give it a copy.
func OpenStopped(dir string, log *slog.Logger) (*Stores, func() error, error) {
	raftDir := filepath.Join(dir, "raft")
	kind, err := chooseLogStore(logStoreAuto, raftDir)
	if err != nil {
		return nil, nil, err
	}
	if _, err := os.Stat(filepath.Join(raftDir, logStoreFiles[kind])); err != nil {
		return nil, nil, fmt.Errorf("raft's log is gone: %w", err)
	}
	return openRaftStores(kind, raftDir, log)
}

// MakeStores makes the raft stores of a new data directory.
func MakeStores(dir string, log *slog.Logger) (*Stores, func() error, error) {
	raftDir := filepath.Join(dir, "raft")
	if err := os.Mkdir(raftDir, 0o700); err != nil {
		return nil, nil, err
	}
	return openRaftStores(logStoreWAL, raftDir, log)
}

func openRaftStores(kind, raftDir string, log *slog.Logger) (*Stores, func() error, error) {
	logs, stable, closer, err := openLogStore(kind, raftDir, false)
	if err != nil {
		return nil, nil, err
	}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(raftDir, 2, newRaftLogger(log))
	if err != nil {
		return nil, nil, errors.Join(err, closer.Close())
	}
	return &Stores{Log: logs, Stable: stable, Snapshots: snapshots}, closer.Close, nil
}

// Verify replays a history, compares every digest that it recorded, and takes
// over what raft's log has beyond it: the history is written behind, and this
// disk may hold the last copy of an acknowledged decision. So the history is
// that of a copy. old, without its History, is nil where there is no raft log;
// one that cannot be used leaves the history alone, which is told.
//
// An error says what makes the directory no candidate, and names the entry.
func Verify(history *events.History, old *Stores, log *slog.Logger) (*Kept, error) {
	k := &Kept{Links: Links{From: history.CompleteFrom()}}
	head, _, _ := history.Head()
	k.Committed = head
	state, err := k.replay(history)
	if err != nil {
		return nil, err
	}
	if k.machine, err = newMachine(log, history, 0); err != nil {
		return nil, err
	}
	if _, problem := k.machine.trouble(); problem != nil {
		return nil, problem
	}
	sameModel := func(a, b *fsm.Model) bool { return a.Name == b.Name && a.Digest() == b.Digest() }
	if got := k.machine.state(); got.Bookkeeping() != state.Bookkeeping() || !slices.EqualFunc(got.Models, state.Models, sameModel) {
		return nil, fmt.Errorf("entry %d: a state image of the history gives another state than its entries", head)
	}
	switch {
	case old == nil:
		k.RaftProblem = errors.New("raft's log is gone")
	default:
		k.RaftProblem = k.takeOver(old)
	}
	if _, problem := k.machine.trouble(); problem != nil {
		return nil, problem // an entry that raft's log has does not fit
	}
	if err := k.note(history); err != nil {
		return nil, err
	}
	if k.State.Lineage == "" {
		return nil, errors.New("it holds no entry")
	}
	return k, nil
}

// replay applies every entry up to the head that can be, and compares what the
// history recorded with it.
func (k *Kept) replay(history *events.History) (*fsm.State, error) {
	state, err := oldestImage(history)
	if err != nil {
		return nil, err
	}
	k.First = state.Index + 1
	return state, history.Range(k.Links.From, k.Committed, func(r events.Record) error {
		k.Links.Chain = append(k.Links.Chain, r.Chain)
		e, err := events.Decode(r.Entry)
		if err != nil {
			return fmt.Errorf("entry %d: %w", r.Index, err)
		}
		if r.Index <= state.Index {
			return nil
		}
		next, _, err := fsm.Apply(state, e)
		if err != nil {
			return fmt.Errorf("entry %d: %w", r.Index, err)
		}
		lifecycle := events.Digest{}
		if e.Key != nil {
			lifecycle = next.Lifecycle(e.Key.Model)
		}
		if next.Bookkeeping() != r.Bookkeeping || lifecycle != r.Lifecycle {
			return fmt.Errorf("entry %d: replaying it gives the digests %s and %s, the history has %s and %s: its node had diverged, or the file was changed",
				r.Index, next.Bookkeeping().Short(), lifecycle.Short(), r.Bookkeeping.Short(), r.Lifecycle.Short())
		}
		*state = *next
		return nil
	})
}

// oldestImage is where replaying a history begins: before entry 1, or, where
// the first entries are missing, at the oldest state that is there.
func oldestImage(history *events.History) (*fsm.State, error) {
	from := history.CompleteFrom()
	if from == 1 {
		return fsm.New(), nil
	}
	head, _, _ := history.Head()
	var oldest []byte
	for at := head; at+1 >= from; {
		index, image, ok, err := history.LatestImage(at)
		if err != nil {
			return nil, err
		}
		if !ok || index+1 < from {
			break
		}
		oldest, at = image, index-1
	}
	if oldest == nil {
		return nil, fmt.Errorf("it has the entries %d to %d and no state to begin with: those before %[1]d were still being fetched", from, head)
	}
	return fsm.FromImage(oldest)
}

// takeOver applies what raft's snapshot and log have beyond the history, and
// reads who its members were.
func (k *Kept) takeOver(old *Stores) error {
	snapshots, err := old.Snapshots.List()
	if err != nil {
		return fmt.Errorf("listing raft's snapshots: %w", err)
	}
	snapshot := uint64(0)
	if len(snapshots) > 0 {
		snapshot, k.RaftTerm = snapshots[0].Index, snapshots[0].Term
		k.setMembers(snapshots[0].Configuration)
	}
	if h, _ := k.machine.now(); snapshot > h.raftIndex {
		_, r, err := old.Snapshots.Open(snapshots[0].ID)
		if err == nil {
			err = k.machine.Restore(r)
		}
		if err != nil {
			return fmt.Errorf("raft's snapshot: %w", err)
		}
	}
	first, err := old.Log.FirstIndex()
	if err != nil {
		return fmt.Errorf("raft's log: %w", err)
	}
	last, err := old.Log.LastIndex()
	if err != nil {
		return fmt.Errorf("raft's log: %w", err)
	}
	h, _ := k.machine.now()
	if max(last, snapshot) < h.raftIndex {
		return fmt.Errorf("raft's log ends at raft's entry %d, the history at %d", max(last, snapshot), h.raftIndex)
	}
	have := max(h.raftIndex, snapshot)
	if first > have+1 {
		return fmt.Errorf("raft's log begins at raft's entry %d, the history ends at %d", first, h.raftIndex)
	}
	k.raftIndex = have
	for i := max(first, 1); i <= last; i++ {
		var l raft.Log
		err := old.Log.GetLog(i, &l)
		switch {
		case errors.Is(err, raft.ErrLogNotFound) && i <= have:
			continue
		case err != nil:
			return fmt.Errorf("raft's log, raft's entry %d: %w", i, err)
		}
		k.RaftTerm = max(k.RaftTerm, l.Term)
		switch l.Type {
		case raft.LogConfiguration:
			k.setMembers(raft.DecodeConfiguration(l.Data))
		case raft.LogCommand:
			k.machine.Apply(&l)
		}
		k.raftIndex = max(k.raftIndex, i)
	}
	return nil
}

func (k *Kept) setMembers(c raft.Configuration) {
	k.Members = nil
	for _, s := range c.Servers {
		k.Members = append(k.Members, Member{Node: events.NodeID(s.ID), Address: hostOf(string(s.Address)), Voter: s.Suffrage == raft.Voter})
	}
}

// note looks at the end of the history with what was taken over.
func (k *Kept) note(history *events.History) error {
	h, _ := k.machine.now()
	k.State, k.Chain, k.raftIndex = h.state, h.chain, max(k.raftIndex, h.raftIndex)
	if from := history.CompleteFrom(); from != k.Links.From { // the state came from a snapshot
		k.Links, k.First, k.Committed = Links{From: from}, from, from-1
	}
	k.Committed = max(k.Committed, k.Links.From-1)
	err := history.Range(k.Committed+1, h.index, func(r events.Record) error {
		k.Links.Chain = append(k.Links.Chain, r.Chain)
		return nil
	})
	if rec, lastErr := history.Read(h.index); lastErr == nil {
		if e, err := events.Decode(rec.Entry); err == nil {
			k.Time = e.Time
		}
	}
	return err
}

// Successor is the node that a log goes on with.
type Successor struct {
	Node    events.NodeID
	Address string // HOST:PORT, until it says another
	Host    string // for people
	Lineage string // the new one
}

const continueWithin = 30 * time.Second

// Continue makes the successor's raft log in new, empty stores, and writes the
// entry of kind recover, as its only voter and without listening to anybody.
// What raft had on the old disk is not needed for it. k and history are what
// Verify was given and made; the caller closes history and stores, and syncs.
func Continue(history *events.History, k *Kept, to *Stores, who Successor, log *slog.Logger) error {
	_, transport := raft.NewInmemTransport(raft.ServerAddress(addressOf(who.Address, who.Node)))
	defer transport.Close()
	server := raft.Server{ID: raft.ServerID(who.Node), Address: transport.LocalAddr(), Suffrage: raft.Voter}
	term := max(k.RaftTerm, 1)
	if err := k.seed(to, term, raft.Configuration{Servers: []raft.Server{server}}, transport); err != nil {
		return fmt.Errorf("writing the new log's first snapshot: %w", err)
	}
	done := make(chan struct{})
	defer close(done)
	anchor, snapshots, err := newAnchor(to, log, done)
	if err != nil {
		return err
	}
	conf := raft.DefaultConfig()
	conf.LocalID, conf.NoSnapshotRestoreOnStart, conf.NoLegacyTelemetry = server.ID, true, true
	conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	conf.Logger = newRaftLogger(log)
	r, err := raft.NewRaft(conf, k.machine, anchor, to.Stable, snapshots, transport)
	if err != nil {
		return fmt.Errorf("starting the new log: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), continueWithin)
	defer cancel()
	err = k.announce(ctx, r, who)
	if err == nil {
		// Whoever joins gets this one, and never sees the old lineage.
		err = r.Snapshot().Error()
	}
	return errors.Join(err, r.Shutdown().Error(), history.Flush())
}

// seed writes the state as a snapshot, which makes the stores those of a log
// that has come this far.
func (k *Kept) seed(to *Stores, term uint64, members raft.Configuration, transport raft.Transport) error {
	s, err := k.machine.Snapshot()
	if err != nil {
		return err
	}
	sink, err := to.Snapshots.Create(raft.SnapshotVersionMax, k.raftIndex, term, members, 1, transport)
	if err != nil {
		return err
	}
	if err := s.Persist(sink); err != nil {
		return err
	}
	return to.Stable.SetUint64([]byte("CurrentTerm"), term) // raft's own key
}

// announce writes the entry that gives the log its new lineage.
func (k *Kept) announce(ctx context.Context, r *raft.Raft, who Successor) error {
	for r.State() != raft.Leader {
		if !sleep(ctx, 5*time.Millisecond) {
			return errors.New("the new log has no leader: this machine may be overloaded; try again")
		}
	}
	if err := r.Barrier(enqueueTimeout).Error(); err != nil {
		return err
	}
	h, _ := k.machine.now()
	from := events.Ancestor{Lineage: h.state.Lineage, Index: h.index, Chain: h.chain}
	b, err := seal(h.state, who.Node, &events.Entry{Kind: events.KindRecover, Events: []events.Event{
		{Recovered: &events.Recovered{Lineage: who.Lineage, From: from}},
		{NodeJoined: &events.NodeJoined{Node: who.Node, Version: events.Version, Host: who.Host}},
	}})
	if err != nil {
		return err
	}
	f := r.Apply(b, enqueueTimeout)
	if err := f.Error(); err != nil {
		return err
	}
	if res := f.Response().(applied); res.refused != "" {
		return fmt.Errorf("the entry that continues the log was refused: %s", res.refused)
	}
	return nil
}
