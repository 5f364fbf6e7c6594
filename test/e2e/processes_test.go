package e2e

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/events"
)

// answersBetween is how many answers every trainer gets between two faults.
const answersBetween = 25

// TestProcesses kills and stops the esperds of every role in turn under a load
// of calls, then stops all in order and starts them again on what they left,
// for another round.
func TestProcesses(t *testing.T) {
	t.Parallel()
	sizes := []int{5, 4, 3}
	if testing.Short() {
		sizes = []int{3}
	}
	for _, size := range sizes {
		t.Run(fmt.Sprintf("world=%d", size), func(t *testing.T) {
			t.Parallel()
			w := startWorld(t, size)
			first := w.train()
			first.progress(answersBetween)
			for _, f := range faultsOf(size) {
				w.t.Logf("after %d answers: %s", len(first.trainers[0].answered()), f.name)
				f.do(w)
				first.progress(answersBetween)
				w.led()
			}
			first.finish()
			log := w.verify(first)
			require.Positive(t, kinds(log)[events.KindReport], "no rank disagreed: the load is too tame")

			w.terminate()
			w.startAll()
			w.settled()
			w.nodes[size-1].holds(log)
			second := w.train()
			require.Equal(t, first.round+1, second.round)
			second.progress(answersBetween)
			second.finish()
			w.verify(first, second)
		})
	}
}

func (tr *trainer) answered() []answer {
	answers, _ := tr.now()
	return answers
}

type fault struct {
	name string
	do   func(*world)
}

// faultsOf has each role in turn. In a world of 3 all nodes vote; the last one
// of a larger world does not.
func faultsOf(size int) []fault {
	last := size - 1
	list := []fault{
		{"rank 0 is killed", killed(0, size > 3)},
		{"a voter is killed", killed(1, size > 3)},
	}
	if size > 3 {
		list = append(list, fault{"a nonvoter is killed", killed(last, false)})
	}
	list = append(list, fault{"all are killed", allKilled})
	if testing.Short() {
		return list
	}
	return append(list,
		fault{"rank 0 is stopped for a while", stopped(0)},
		fault{"a follower is stopped for a while", stopped(last)},
		fault{"all are told to stop", func(w *world) {
			w.terminate()
			w.startAll()
		}})
}

// killed kills a node and starts it again: at once, or when the others have
// noticed.
func killed(rank int, noticed bool) func(*world) {
	return func(w *world) {
		w.t.Helper()
		n := w.nodes[rank]
		before := n.mustState()
		require.Equal(w.t, rank < 3, before.Voter, "rank %d", rank)
		n.kill()
		if noticed {
			w.notice(n, before.Node)
		}
		n.start()
	}
}

func allKilled(w *world) {
	for _, n := range w.nodes {
		n.process.signal(w.t, syscall.SIGKILL)
	}
	for _, n := range w.nodes {
		n.process.wait(w.t)
	}
	w.startAll()
}

func stopped(rank int) func(*world) {
	return func(w *world) {
		w.t.Helper()
		n := w.nodes[rank]
		id := n.mustState().Node
		n.process.signal(w.t, syscall.SIGSTOP)
		w.notice(n, id)
		n.process.signal(w.t, syscall.SIGCONT)
	}
}

// notice waits until the world has noticed that a node is silent: another one
// leads instead of rank 0's, and nobody can reach it.
func (w *world) notice(n *node, id events.NodeID) {
	w.t.Helper()
	other := w.nodes[(n.rank+1)%len(w.nodes)]
	eventually(w.t, fmt.Sprintf("rank %d's absence", n.rank), func() error {
		s, err := other.state()
		if err != nil {
			return err
		}
		if s.Leader == id || s.Leader == "" {
			return fmt.Errorf("rank %d takes %q for the leader", other.rank, s.Leader)
		}
		return other.ask(func(ctx context.Context, a *client.Admin) error {
			ranks, err := a.Ranks(ctx)
			if err == nil && ranks.Ranks[n.rank].Unreachable == "" {
				err = errors.New("it answers")
			}
			return err
		})
	})
}

// led waits until every node is ready and follows rank 0's.
func (w *world) led() {
	w.t.Helper()
	eventually(w.t, "rank 0's node as the leader of all", func() error {
		var first *api.State
		for _, n := range w.nodes {
			s, err := n.state()
			if err == nil {
				err = n.ready()
			}
			if err != nil {
				return fmt.Errorf("rank %d: %w", n.rank, err)
			}
			if first == nil {
				first = s
			}
			if s.Leader != first.Node {
				return fmt.Errorf("rank %d follows %s, rank 0 is %s", n.rank, s.Leader, first.Node)
			}
		}
		return nil
	})
}

// TestProcessesDrain: the first SIGTERM waits until every rank has the whole
// log, and the log everything that the ranks had to tell. Each of them then
// shows it alone, without a quorum.
func TestProcessesDrain(t *testing.T) {
	t.Parallel()
	w := startWorld(t, 3)
	l := w.train()
	l.progress(answersBetween)
	l.finish()
	w.terminate()
	answers := l.trainers[0].answered()
	last := answers[len(answers)-1].index
	var log []api.Entry
	for _, n := range w.nodes {
		n.start()
		eventually(t, "an answer without a quorum", func() error { _, err := n.state(); return err })
		s := n.mustState()
		require.GreaterOrEqual(t, s.Index, last, "rank %d", n.rank)
		got := n.events()
		chained(t, got, s)
		both := min(len(log), len(got)) // one that stopped first may lack the reports of the others
		sameEntries(t, log[:both], got[:both])
		if len(got) > both {
			log = got
		}
		n.kill()
	}
	l.sameAnswers()
	require.Equal(t, disagreements(l), shadowVerdicts(log))
	require.Positive(t, shadowVerdicts(log))
}

// disagreements counts what the trainers were told, shadowVerdicts what the log
// has of it.
func disagreements(l *load) (n int) {
	for _, tr := range l.trainers {
		for _, a := range tr.answered() {
			if a.alone {
				n++
			}
		}
	}
	return n
}

func shadowVerdicts(log []api.Entry) (n int) {
	for i := range log {
		for _, ev := range log[i].Events {
			if ev.ShadowVerdict != nil {
				n++
			}
		}
	}
	return n
}
