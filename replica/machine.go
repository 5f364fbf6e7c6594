package replica

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// imageEvery is how many entries lie between two state images in the history:
// what a restart replays at most.
const imageEvery = 4096

// recentStates is how many states are kept in memory, for evidence: a writer is
// told at the next entry that its state is wrong, and is a few entries on by then.
const recentStates = 64

// machine is what raft drives: it gives committed entries their index and their
// place in the chain, applies them, keeps them, and shows the result.
type machine struct {
	log     *slog.Logger
	history *events.History
	applied func(writer events.NodeID, raftIndex, term uint64) // who wrote an entry tells its followers at once
	joined  func(*fsm.State)                                   // the log's identity became known
	rebased func() error                                       // entries below the head are missing
	failed  chan struct{}                                      // closed when an entry cannot be read
	frozen  chan struct{}                                      // closed when this replica has diverged
	doubted uint64                                             // state images from this entry on are evidence, not states; 0: none

	mu      sync.Mutex
	head    head
	recent  [recentStates]*fsm.State // by index; they share what did not change
	changed chan struct{}            // closed when head or phase is replaced
	phase   Phase
	problem error
}

// head is the end of the log at this node. Its state is older than its index
// only on a replica that has diverged.
type head struct {
	state     *fsm.State
	index     uint64
	chain     events.Digest
	raftIndex uint64
}

// applied is what raft hands to the proposer of an entry.
type applied struct {
	index   uint64
	refused string
}

// newMachine goes on from a history. What it kept of its states from the entry
// doubted on is passed over: an earlier process of this node had wrong ones (0:
// none had).
func newMachine(log *slog.Logger, history *events.History, doubted uint64) (*machine, error) {
	m := &machine{log: log, history: history, changed: make(chan struct{}), failed: make(chan struct{}), frozen: make(chan struct{}), phase: PhaseJoining, doubted: doubted}
	index, chain, raftIndex := history.Head()
	m.head = head{state: fsm.New(), index: index, chain: chain, raftIndex: raftIndex}
	if index == 0 {
		return m, nil
	}
	state, err := replayTo(history, index, doubted)
	var diverged *fsm.DivergedError
	switch {
	case errors.As(err, &diverged):
		m.phase, m.problem = PhaseDiverged, err
		close(m.frozen)
	case err != nil:
		return nil, fmt.Errorf("replaying the history of this node: %w", err)
	case state.Lineage != "":
		m.phase = PhaseMember
	}
	m.head.state = state
	return m, nil
}

// replayTo rebuilds the state at an index from the newest intact image before
// it, and before the entry doubted (0: all are good). On a *fsm.DivergedError the state before the entry that shows it is
// returned too.
func replayTo(history *events.History, index, doubted uint64) (*fsm.State, error) {
	from := index
	if doubted > 0 {
		from = min(index, doubted-1)
	}
	state, err := newestImage(history, from)
	if err != nil || state.Index == index {
		return state, err
	}
	err = history.Range(state.Index+1, index, func(r events.Record) error {
		e, err := events.Decode(r.Entry)
		if err != nil {
			return fmt.Errorf("entry %d: %w", r.Index, err)
		}
		next, _, err := fsm.Apply(state, e)
		if err != nil {
			return err
		}
		if got := next.Bookkeeping(); got != r.Bookkeeping && (doubted == 0 || r.Index < doubted) {
			return fmt.Errorf("entry %d: replaying it gives bookkeeping digest %s, but the history has %s; keep this directory as evidence and compare it with the other ranks'", r.Index, got.Short(), r.Bookkeeping.Short())
		}
		state = next
		return nil
	})
	return state, err
}

// newestImage decodes the newest image not above index. A damaged one is passed
// over for the one before, and the state before entry 1 is before all.
func newestImage(history *events.History, index uint64) (*fsm.State, error) {
	for {
		at, image, ok, err := history.LatestImage(index)
		var damaged *events.CorruptError
		switch {
		case errors.As(err, &damaged) && damaged.Index > 0:
			at = damaged.Index
		case err != nil:
			return nil, err
		case !ok:
			return fsm.New(), nil
		default:
			if s, err := fsm.FromImage(image); err == nil {
				return s, nil
			}
		}
		index = at - 1
	}
}

// Apply is called by raft for every committed entry, in order, on every node.
func (m *machine) Apply(l *raft.Log) any {
	h, phase := m.now()
	if phase == PhaseFailed {
		return applied{refused: "this node has stopped"}
	}
	if l.Index <= h.raftIndex {
		return applied{refused: "the history has it already"} // replayed after a restart: nobody waits
	}
	next := head{state: h.state, index: h.index + 1, raftIndex: l.Index,
		chain: events.Chain(h.chain, h.index+1, l.Data)}
	rec := events.Record{Index: next.index, Chain: next.chain, RaftIndex: l.Index, Entry: l.Data}
	var call *events.CallID
	var writer events.NodeID
	out := fsm.Outcome{Refused: "this replica has diverged"}
	if phase != PhaseDiverged {
		e, err := events.Decode(l.Data)
		if err == nil {
			next.state, out, err = fsm.Apply(h.state, e)
		}
		if err != nil && !m.stop(next.index, err) {
			return applied{refused: err.Error()}
		}
		if err != nil {
			next.state, out.Refused = h.state, err.Error()
		} else {
			next.state = tamper(next.state)
			writer, rec.Bookkeeping = e.Node, next.state.Bookkeeping()
			if e.Key != nil {
				rec.Lifecycle = next.state.Lifecycle(e.Key.Model)
			}
			if e.Kind == events.KindCall && out.Refused == "" {
				call = &events.CallID{Round: e.Key.Round, Model: e.Key.Model, Call: e.Key.Call}
			}
		}
	}
	if err := m.history.Append(rec, call); err != nil {
		m.fail(fmt.Errorf("entry %d: %w", next.index, err))
		return applied{refused: err.Error()}
	}
	m.publish(next)
	if m.applied != nil && writer != "" {
		m.applied(writer, l.Index, l.Term)
	}
	return applied{index: next.index, refused: out.Refused}
}

// stop says what an entry that cannot be applied means. A diverged replica
// freezes its state and goes on storing (true); anything else ends the node.
func (m *machine) stop(index uint64, err error) bool {
	var diverged *fsm.DivergedError
	if !errors.As(err, &diverged) {
		m.fail(fmt.Errorf("entry %d: %w", index, err))
		return false
	}
	m.log.Error("this replica has diverged: its state is frozen, its history goes on", "index", index, "error", err)
	m.freeze(err)
	return true
}

// freeze ends the applying of entries, and keeps the state: audits say by it in
// which fields it differs. It may be called at any time, by anybody.
func (m *machine) freeze(err error) {
	m.mu.Lock()
	if m.phase == PhaseDiverged || m.phase == PhaseFailed {
		m.mu.Unlock()
		return
	}
	m.phase, m.problem = PhaseDiverged, err
	h := m.head
	close(m.frozen)
	m.wake()
	m.mu.Unlock()
	if h.state.Index == h.index {
		m.keepImage(h.state)
	}
}

// keepEvidence keeps the state after an entry, if it is still known.
func (m *machine) keepEvidence(index uint64) {
	m.mu.Lock()
	s := m.recent[index%recentStates]
	m.mu.Unlock()
	if s != nil && s.Index == index {
		m.keepImage(s)
	}
}

// explain replaces the problem of a frozen replica by what is known of it now.
func (m *machine) explain(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase == PhaseDiverged {
		m.problem = err
	}
	m.wake()
}

func (m *machine) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase == PhaseFailed {
		return
	}
	m.phase, m.problem = PhaseFailed, err
	close(m.failed)
	m.wake()
	m.log.Error("this node stops applying", "error", err)
}

func (m *machine) publish(next head) {
	m.mu.Lock()
	first := m.head.state.Lineage == "" && next.state.Lineage != ""
	if first {
		m.phase = PhaseMember
	}
	m.head = next
	m.recent[next.index%recentStates] = next.state
	m.wake()
	phase := m.phase
	m.mu.Unlock()

	if first && m.joined != nil {
		m.joined(next.state)
	}
	if phase == PhaseMember && next.index%imageEvery == 0 {
		m.keepImage(next.state)
	}
}

// wake is called with mu held.
func (m *machine) wake() {
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *machine) keepImage(s *fsm.State) {
	image, err := s.Image()
	if err == nil {
		err = m.history.PutImage(s.Index, image)
	}
	if err != nil {
		m.log.Warn("a state image could not be kept; restarts replay more", "index", s.Index, "error", err)
	}
}

func (m *machine) now() (head, Phase) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.head, m.phase
}

func (m *machine) state() *fsm.State {
	h, _ := m.now()
	return h.state
}

func (m *machine) changes() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

func (m *machine) trouble() (Phase, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.phase, m.problem
}

// snapshotFile is a raft snapshot: O(state), never the history.
type snapshotFile struct {
	Index     uint64        `cbor:"1,keyasint"`
	Chain     events.Digest `cbor:"2,keyasint"`
	RaftIndex uint64        `cbor:"3,keyasint"`
	Image     []byte        `cbor:"4,keyasint"`
}

type snapshot struct {
	machine *machine
	head    head
}

// Snapshot is called by raft between two Applies.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	h, phase := m.now()
	if phase != PhaseMember {
		return nil, fmt.Errorf("no snapshot while this node is %s", phase)
	}
	return &snapshot{machine: m, head: h}, nil
}

// Persist writes the snapshot. The history must be durable first, because raft
// may drop the entries that the snapshot covers.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	err := s.machine.history.Flush()
	var image, b []byte
	if err == nil {
		image, err = s.head.state.Image()
	}
	if err == nil {
		b, err = events.Marshal(snapshotFile{Index: s.head.index, Chain: s.head.chain, RaftIndex: s.head.raftIndex, Image: image})
	}
	if err == nil {
		_, err = sink.Write(b)
	}
	if err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (s *snapshot) Release() {}

// Restore is called by raft when the leader sends a snapshot, or at start when
// the history is behind the newest one.
func (m *machine) Restore(r io.ReadCloser) error {
	b, err := io.ReadAll(r)
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	var f snapshotFile
	if err := events.Unmarshal(b, &f); err != nil {
		return fmt.Errorf("raft snapshot of %d bytes: %w", len(b), err)
	}
	h, phase := m.now()
	switch {
	case phase == PhaseDiverged || phase == PhaseFailed:
		return fmt.Errorf("this node is %s: its state stays as it is, as evidence", phase)
	case f.Index <= h.index:
		return m.checkAgainst(f)
	}
	state, err := fsm.FromImage(f.Image)
	if err != nil {
		return err
	}
	if err := m.history.Rebase(f.Index, f.Chain, f.RaftIndex, f.Image); err != nil {
		return err
	}
	m.log.Info("the state was taken from the leader's snapshot; the history before it is fetched from the other ranks", "index", f.Index)
	m.publish(head{state: state, index: f.Index, chain: f.Chain, raftIndex: f.RaftIndex})
	if m.rebased != nil {
		return m.rebased()
	}
	return nil
}

// checkAgainst compares a snapshot that this node is already past with what it
// has.
func (m *machine) checkAgainst(f snapshotFile) error {
	rec, err := m.history.Read(f.Index)
	if errors.Is(err, events.ErrNotFound) {
		return nil // in a gap that is still being filled, and verified then
	}
	if err == nil && rec.Chain != f.Chain {
		err = fmt.Errorf("the leader's log has chain %s at entry %d, this node's history has %s: they are different logs; move this data directory aside as evidence and start with an empty one", f.Chain.Short(), f.Index, rec.Chain.Short())
	}
	if err != nil {
		m.fail(err)
	}
	return err
}
