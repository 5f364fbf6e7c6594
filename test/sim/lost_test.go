package sim

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/recovery"
	"github.com/esperd/esperd/replica"
)

// loseQuorum is the loss of so many disks, at one moment, that what is left can
// decide nothing. An operator continues the log from the best of it and restarts
// the job. All that the continued copy had is kept, the others that are left
// keep their directories aside, and training goes on.
func (s *schedule) loseQuorum() {
	t, ctx, w, j := s.t, s.ctx, s.w, s.j
	s.steady("before its disks are to be lost")
	s.pause(2000)
	job, left := w.job(), w.left(s.r)
	for _, h := range job {
		require.NoError(t, h.crash())
	}
	survivors := make([]*recovery.Survivor, len(left))
	for i, h := range left {
		survivors[i] = h.verified(t)
	}
	plan := recovery.Choose(survivors, "")
	require.Empty(t, plan.Against)
	chosen := left[slices.Index(survivors, plan.Chosen)]
	for _, h := range job {
		if !slices.Contains(left, h) {
			h.wipe()
		}
	}
	kept := sumOf(t, filepath.Join(chosen.path(), "history.db"))
	evidence := chosen.path()
	chosen.recover(t, plan.Chosen.Dir, j)
	require.Equal(t, kept, sumOf(t, filepath.Join(evidence, "history.db")), "evidence was touched")

	w.net.HealAll()
	for _, h := range job {
		require.NoError(t, h.start())
	}
	if !j.begin(len(job)) {
		j.outlived = true // no round will open with the new nodes
	}
	deadline, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for deadline.Err() == nil && (w.misshapen() != "" || !w.whole()) {
		s.giveWay()
		sleep(deadline, 100*time.Millisecond)
	}
	require.NoError(t, deadline.Err(), "the world did not repair itself after it was recovered from host %d: %s", chosen.id, w.tells())
}

// loseAll is the loss of every disk. The job founds a new log and goes on from the
// mark that rank 0 has with its weights.
func (s *schedule) loseAll() {
	if s.restarts > 0 || !s.j.hasMark() || !s.j.stop() { // machines that linger would come back with the old log
		return
	}
	for _, h := range s.w.hosts {
		require.NoError(s.t, h.crash())
		h.wipe()
	}
	s.j.forgetAll()
	s.w.net.HealAll()
	for _, h := range s.w.job() {
		require.NoError(s.t, h.start())
	}
	s.j.begin(len(s.w.job()))
	s.await("after all disks were lost")
	foundedAnew.Add(1)
}

func (j *job) hasMark() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.stored != nil
}

// forgetAll drops what was answered by a log that nobody has any more.
func (j *job) forgetAll() {
	j.mu.Lock()
	defer j.mu.Unlock()
	clear(j.answers)
	clear(j.acked)
	clear(j.late)
	clear(j.asked)
	clear(j.marks)
	clear(j.resumed)
}

// whole reports whether every node has the whole history of one log: until then
// it may be on one disk alone.
func (w *world) whole() bool {
	for _, h := range w.job() {
		n := h.alive()
		if n == nil {
			return false
		}
		s := n.Status()
		if s.Lineage != w.job()[0].alive().State().Lineage || s.CompleteFrom != 1 {
			return false
		}
	}
	return true
}

func (w *world) tells() string {
	var out string
	for rank, h := range w.job() {
		n := h.alive()
		if n == nil {
			continue
		}
		s := n.Status()
		out += fmt.Sprintf("rank %d: %s %s, entry %d of log %.6s %s; ", rank, s.Phase, s.Role, s.Index, s.Lineage, s.Problem)
	}
	return out
}

// left draws whose disks are left: at least one, and no majority of the voters.
func (w *world) left(r *rand.Rand) []*host {
	voters := 0
	for _, h := range w.job() {
		if h.alive().Status().Voter {
			voters++
		}
	}
	var left []*host
	voting := 0
	for _, i := range r.Perm(len(w.job())) {
		h := w.job()[i]
		v := 0
		if h.alive().Status().Voter {
			v = 1
		}
		if (len(left) == 0 || r.IntN(2) == 0) && 2*(voting+v) <= voters {
			left, voting = append(left, h), voting+v
		}
	}
	return left
}

// verified verifies a copy of what a host that is down has.
func (h *host) verified(t *testing.T) *recovery.Survivor {
	name := h.path() + ".copy"
	require.NoError(t, errors.Join(os.RemoveAll(name), os.Mkdir(name, 0o700)))
	require.NoError(t, copyFile(filepath.Join(h.path(), "history.db"), filepath.Join(name, "history.db")))
	history := h.open(t, name)
	d := h.current().clone()
	kept, err := replica.Verify(history, &replica.Stores{Log: d, Snapshots: d}, h.w.log)
	require.NoError(t, err)
	require.NoError(t, kept.RaftProblem)
	require.NoError(t, history.Abandon())
	return &recovery.Survivor{Dir: name, Kept: kept}
}

func (h *host) open(t *testing.T, dir string) *events.History {
	history, err := events.OpenHistory(filepath.Join(dir, "history.db"), events.HistoryOptions{Logger: h.w.log, NoSync: true})
	require.NoError(t, err)
	return history
}

// recover continues the log of a host that is down, from a copy of its
// directory, and forgets what was answered and is lost with the others.
func (h *host) recover(t *testing.T, copied string, j *job) {
	history := h.open(t, copied)
	old := h.current().clone()
	kept, err := replica.Verify(history, &replica.Stores{Log: old, Snapshots: old}, h.w.log)
	require.NoError(t, err)
	j.forget(t, history, kept)
	node, err := replica.NewID()
	require.NoError(t, err)
	lineage, err := replica.NewID()
	require.NoError(t, err)
	h.wipe()
	d := h.current()
	who := replica.Successor{Node: events.NodeID(node), Address: h.addr, Host: h.addr, Lineage: lineage}
	require.NoError(t, replica.Continue(history, kept, &replica.Stores{Log: d, Stable: d, Snapshots: d}, who, slog.New(slog.DiscardHandler)))
	require.NoError(t, history.Close())
	require.NoError(t, os.Rename(copied, h.path()))
	require.NoError(t, replica.WriteIdentity(h.path(), replica.DirIdentity{Node: who.Node, Run: kept.State.Run, Lineage: lineage}))
}

// forget drops what nobody has any more. What the continued copy has stays, and
// is compared in the end.
func (j *job) forget(t *testing.T, history *events.History, kept *replica.Kept) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for id := range j.answers {
		index, ok, err := history.Find(id)
		require.NoError(t, err)
		if !ok {
			require.False(t, j.acked[id] > 0 && j.acked[id] <= kept.State.Index, "call %+v was answered from entry %d, and the copy that ends at entry %d does not have it", id, j.acked[id], kept.State.Index)
			delete(j.answers, id)
			delete(j.acked, id)
			delete(j.marks, id)
			delete(j.resumed, id)
			continue
		}
		rec, err := history.Read(index)
		require.NoError(t, err)
		for rank, sum := range j.answers[id] {
			require.Equal(t, events.Digest(sha256.Sum256(rec.Entry)), sum, "call %+v was answered otherwise on rank %d", id, rank)
		}
	}
	for index := range j.asked {
		if index > kept.State.Index {
			delete(j.asked, index)
		}
	}
	for id, index := range j.late {
		if index > kept.State.Index {
			delete(j.late, id)
		}
	}
}

// giveWay does what the process around a node does whose run goes on as another
// log: the directory stays as it is, and an empty one takes its place.
func (h *host) giveWay(t *testing.T) {
	n := h.alive()
	if n == nil || n.Failure() == nil {
		return
	}
	var other *replica.OtherLogError
	require.ErrorAs(t, n.Failure(), &other)
	require.NoError(t, h.crash())
	kept := sumOf(t, filepath.Join(h.path(), "history.db"))
	was := h.path()
	h.wipe()
	h.reconnect()
	require.NoError(t, h.start())
	require.Equal(t, kept, sumOf(t, filepath.Join(was, "history.db")))
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func sumOf(t *testing.T, name string) events.Digest {
	b, err := os.ReadFile(name)
	require.NoError(t, err)
	return sha256.Sum256(b)
}
