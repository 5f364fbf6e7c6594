package replica

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"

	"github.com/esperd/esperd/events"
)

// startRaft makes an error of raft's panic at a log with a gap, which a crash of
// the machine may leave of one that was not synced.
func (n *Node) startRaft(conf *raft.Config, stores *Stores, snapshots raft.SnapshotStore) (err error) {
	stable := &patientStable{StableStore: stores.Stable, log: n.log, done: n.ctx.Done()}
	panicked := recovered(func() error {
		n.raft, err = raft.NewRaft(conf, n.machine, n.anchor, stable, snapshots, n.net.Transport())
		return nil
	})
	if panicked != nil {
		return damaged(n.cfg.Dir.Path("raft"), panicked)
	}
	if err != nil {
		return fmt.Errorf("starting raft in %s: %w", n.cfg.Dir.Path(""), err)
	}
	return nil
}

// refuseLostLog looks before anything is made: a directory that was part of a
// log has raft's files.
func (n *Node) refuseLostLog() error {
	files, err := filepath.Glob(n.cfg.Dir.Path("raft/*"))
	if err != nil || n.cfg.Dir.Lineage() == "" || len(files) > 0 {
		return err
	}
	return n.lostLog()
}

func (n *Node) lostLog() error {
	return errorf(events.CodeUnavailable, "data directory %s was part of log %s, but its raft log is gone: this node might vote twice; move the whole directory aside as evidence and start with an empty one, which is a new node and fetches the history from the others", n.cfg.Dir.Path(""), n.cfg.Dir.Lineage())
}

// lookForLog sets whether the directory holds no log, so that one may be
// founded, and refuses one whose log is gone, or ends before the history does:
// neither store notices when its newest file is lost or torn beyond one write.
func (n *Node) lookForLog(stores *Stores) error {
	last, err := stores.Log.LastIndex()
	if err != nil {
		return fmt.Errorf("looking for a log in %s: %w", n.cfg.Dir.Path("raft"), err)
	}
	list, err := stores.Snapshots.List()
	if err != nil {
		return fmt.Errorf("listing raft snapshots: %w", err)
	}
	h, _ := n.machine.now()
	n.empty = last == 0 && len(list) == 0 && h.index == 0
	if last == 0 && len(list) == 0 && (h.index > 0 || n.cfg.Dir.Lineage() != "") {
		return n.lostLog()
	}
	if len(list) > 0 {
		last = max(last, list[0].Index)
	}
	if last < h.raftIndex {
		return errorf(events.CodeUnavailable, "data directory %s: its raft log ends at raft's entry %d, and its history at %d: entries that this node acknowledged are gone, and it might vote twice; move the whole directory aside as evidence and start with an empty one, which is a new node and fetches the history from the others", n.cfg.Dir.Path(""), last, h.raftIndex)
	}
	if n.empty {
		return undoHalfBootstrap(stores.Stable)
	}
	return nil
}

// undoHalfBootstrap completes nothing and undoes what a crash left of founding:
// raft writes term 1, then the first entry, and refuses to begin again where it
// finds a term. No election gives term 1, so nobody voted in it.
func undoHalfBootstrap(stable raft.StableStore) error {
	key := []byte("CurrentTerm") // raft's own
	term, err := stable.GetUint64(key)
	if err != nil || term != 1 {
		return nil // nothing there, or more than half
	}
	return stable.SetUint64(key, 0)
}

// raftConfig gives rank 0's node a short election timeout and the others a long
// one, so that leadership falls to it where nothing speaks against it.
func (n *Node) raftConfig() *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(n.id)
	c.ProtocolVersion = raft.ProtocolVersionMax
	c.HeartbeatTimeout = n.cfg.Timing.Election
	if n.cfg.Rank != 0 {
		c.HeartbeatTimeout *= 3 // no more: a leader's heartbeats follow from its own timeout
	}
	c.ElectionTimeout = c.HeartbeatTimeout
	c.LeaderLeaseTimeout = n.cfg.Timing.Election
	c.CommitTimeout = n.cfg.Timing.CommitTimeout
	if n.cfg.World > 16 {
		c.CommitTimeout = 50 * time.Millisecond // idle traffic grows with the world
	}
	c.SnapshotInterval = 30 * time.Second
	c.SnapshotThreshold, c.TrailingLogs = 8192, 8192
	if n.cfg.SnapshotEvery > 0 {
		c.SnapshotInterval = time.Second
		c.SnapshotThreshold, c.TrailingLogs = n.cfg.SnapshotEvery, n.cfg.SnapshotEvery
	}
	c.BatchApplyCh = false // what is in a channel with room when raft stops is never answered (found by test/sim)
	c.NoLegacyTelemetry = true
	c.Logger = newRaftLogger(n.log)
	return c
}

func (n *Node) openStores() (*Stores, error) {
	if n.cfg.Stores != nil {
		return n.cfg.Stores, nil
	}
	if err := n.refuseLostLog(); err != nil {
		return nil, err
	}
	kind, err := chooseLogStore(n.cfg.LogStore, n.cfg.Dir.Path("raft"))
	if err != nil {
		return nil, err
	}
	n.logStore = kind
	if err := os.MkdirAll(n.cfg.Dir.Path("raft"), 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of the raft log: %w", err)
	}
	logs, stable, closer, err := openLogStore(kind, n.cfg.Dir.Path("raft"), n.cfg.Durability == durabilityRelaxed)
	if err != nil {
		return nil, err
	}
	n.closers = append(n.closers, closer)
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(n.cfg.Dir.Path("raft"), 2, newRaftLogger(n.log))
	if err != nil {
		return nil, fmt.Errorf("opening the snapshots under %s: %w", n.cfg.Dir.Path("raft"), err)
	}
	// The stores sync what is in their directories, and not that these are there:
	// the votes in them would be gone, or the snapshot that a log begins behind.
	if err := errors.Join(syncDir(n.cfg.Dir.Path("raft")), syncDir(n.cfg.Dir.Path(""))); err != nil {
		return nil, fmt.Errorf("syncing the directory of the raft log: %w", err)
	}
	// The history is synced also where durability is relaxed: no decision waits
	// for it, and it is what tells of them after a machine's crash.
	history, err := events.OpenHistory(n.cfg.Dir.Path("history.db"), events.HistoryOptions{Logger: n.log})
	if err != nil {
		return nil, err
	}
	return &Stores{Log: logs, Stable: stable, Snapshots: fileSnapshots{snapshots, n.cfg.Dir.Path("raft")}, History: history}, nil
}

// mustRestore reports whether the newest raft snapshot is ahead of the history,
// which happens when it came from the leader and the process died before the
// history followed.
func (n *Node) mustRestore(snapshots raft.SnapshotStore) (bool, error) {
	list, err := snapshots.List()
	if err != nil {
		return false, fmt.Errorf("listing raft snapshots: %w", err)
	}
	h, _ := n.machine.now()
	return len(list) > 0 && list[0].Index > h.raftIndex, nil
}
