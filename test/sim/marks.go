package sim

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/replica"
)

// The trainers take marks, and rank 0 stores them with its weights, where no
// esperd's disk is. In a later round, or later in this one, it resumes the newest
// mark that it stored, which may be one that the log has no entry of any more.

// checkpoint is a stored mark.
type checkpoint struct {
	mark *events.Mark
	sum  events.Digest
}

// marks reports whether a mark is taken after a call, on all ranks.
func (s *script) marks(k uint64) bool {
	return k > 0 && rand.New(rand.NewPCG(s.seed^s.round<<32, k|1<<40)).IntN(6) == 0
}

// checkpoint takes the mark of a rank that was answered a call. It may miss it,
// as one whose esperd has just died does; one whose replica has gone on would have
// to replay, which is what makes schedules dear.
func (j *job) checkpoint(rank uint64, id events.CallID, index uint64) {
	n := j.w.alive(rank)
	if n == nil {
		return
	}
	s := n.State()
	if s.Index != index {
		return
	}
	_, rec, err := n.Entry(index)
	m := s.Model(id.Model)
	if err != nil || m == nil {
		return
	}
	b, _, err := events.EncodeMark(s.Mark(m, index, rec.Chain))
	if err != nil {
		j.fail("call %+v: rank %d cannot take a mark: %v", id, rank, err)
		return
	}
	mark, sum, err := events.DecodeMark(b)
	if err != nil {
		j.fail("call %+v: rank %d took a mark that cannot be read: %v", id, rank, err)
		return
	}
	if j.w.alive(rank) != n {
		return
	}
	j.mu.Lock()
	other, taken := j.marks[id]
	j.marks[id] = sum
	if rank == 0 {
		j.stored = &checkpoint{mark, sum}
	}
	j.mu.Unlock()
	if taken && other != sum {
		j.fail("call %+v: ranks took different marks, one of them rank %d", id, rank)
	}
}

// resume is what rank 0 goes back to by a call, nil if nothing. Once chosen it
// stays, however often the call is repeated. A mark of a log that is lost as a
// whole is resumed before anything else is done.
func (j *job) resume(s *script, at *fsm.State, k uint64) *checkpoint {
	if c, chosen := s.resumed[k]; chosen {
		return c
	}
	j.mu.Lock()
	c := j.stored
	j.mu.Unlock()
	r := rand.New(rand.NewPCG(s.seed^s.round<<32, k|1<<41))
	switch {
	case c == nil || k == 0:
		c = nil
	case c.mark.Lineage != at.Lineage && !slices.ContainsFunc(at.Ancestors, func(a events.Ancestor) bool { return a.Lineage == c.mark.Lineage }):
		if k > 1 {
			c = nil
		}
	case k == 1 && r.IntN(2) > 0, k > 1 && r.IntN(12) > 0:
		c = nil
	}
	s.resumed[k] = c
	return c
}

// args are those of a resume, as rank 0's door makes them.
func (c *checkpoint) args(n *replica.Node) (fsm.Args, error) {
	held, err := c.held(n)
	return fsm.Resume{Mark: c.mark, Sum: c.sum, Held: held}, err
}

// held reports whether a node's own history has the entry of the mark.
func (c *checkpoint) held(n *replica.Node) (bool, error) {
	if c.mark.Index > n.State().Index {
		return false, nil
	}
	complete := n.Status().CompleteFrom
	_, rec, err := n.Entry(c.mark.Index)
	if errors.Is(err, events.ErrNotFound) && complete <= c.mark.Index {
		return false, nil
	}
	return err == nil && rec.Chain == c.mark.Chain && rec.Lifecycle == c.mark.Lifecycle, err
}

// is reports how a model differs from the mark that it was taken back to.
func (c *checkpoint) is(s *fsm.State) error {
	m := s.Model(c.mark.Model)
	if m == nil {
		return errors.New("there is no model")
	}
	got, _, err := events.EncodeMark(s.Mark(m, c.mark.Index, c.mark.Chain))
	if err != nil {
		return err
	}
	want := *c.mark
	want.Run, want.Lineage = s.Run, s.Lineage // of the log that goes on
	b, _, err := events.EncodeMark(&want)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, b) {
		return fmt.Errorf("after a resume the model is not the mark's of entry %d: its digest is %s, expected %s", c.mark.Index, m.Digest().Short(), c.mark.Lifecycle.Short())
	}
	return nil
}

// wentBack checks what a rank has after rank 0's resume.
func (j *job) wentBack(rank uint64, n *replica.Node, index uint64) {
	e, rec, err := n.Entry(index)
	if err != nil || len(e.Events) == 0 {
		return
	}
	for i := range e.Events {
		ev := e.Events[i].Rewound
		if ev == nil {
			continue
		}
		if rec.Lifecycle != ev.Lifecycle {
			j.fail("entry %d: rank %d went back to digest %s, expected the mark's, %s", index, rank, rec.Lifecycle.Short(), ev.Lifecycle.Short())
		}
		s := n.State()
		if m := s.Model(e.Key.Model); s.Index == index && (m == nil || m.Digest() != ev.Lifecycle) {
			j.fail("entry %d: rank %d's state is not the mark's", index, rank)
		}
	}
}
