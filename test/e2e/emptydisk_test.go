package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/events"
)

// TestEmptyDisk: a node whose disk was replaced while everybody trained comes
// back as a new node, gets all of the history from the others, and the world
// goes on when the trainers have connected anew.
func TestEmptyDisk(t *testing.T) {
	plain(t)
	t.Parallel()
	for _, rank := range []int{2, 0} {
		t.Run(fmt.Sprintf("rank=%d", rank), func(t *testing.T) {
			t.Parallel()
			w := startWorld(t, 3)
			n := w.nodes[rank]
			first := w.train()
			first.progress(answersBetween)
			before := n.mustState()
			n.kill()
			require.NoError(t, os.RemoveAll(n.dir))
			n.start()

			w.led()
			after := n.mustState()
			require.NotEqual(t, before.Node, after.Node)
			require.Equal(t, []string{before.Run, before.Lineage}, []string{after.Run, after.Lineage})
			if rank == 0 {
				first.replaced()
			} else {
				first.progress(answersBetween)
				first.finish()
			}
			second := w.train()
			require.Equal(t, first.round+1, second.round)
			second.progress(answersBetween)
			second.finish()
			eventually(t, "the old node's end and the new one's vote", func() error { return w.replacedBy(before.Node, after.Node) })
			w.verify(second)
			if rank != 0 {
				w.verify(first)
			}

			w.terminate()
			w.startAll()
			w.settled()
		})
	}
}

// replaced waits until the trainer of rank 0 was told that its node decides no
// longer, which ends the trainers, and compares what they were told before.
func (l *load) replaced() {
	l.w.t.Helper()
	eventually(l.w.t, "the end of the trainers of rank 0's old node", func() error {
		if l.errors() == nil {
			return errors.New(l.w.waiting())
		}
		return nil
	})
	l.running.Wait()
	_, err := l.trainers[0].now()
	require.ErrorIs(l.w.t, err, client.ErrNotAuthority)
	log := l.w.settledLog()
	calls := callsOnce(l.w.t, log)
	for _, tr := range l.trainers {
		inLog(l.w.t, log, calls, l.round, tr.answered())
	}
}

func (w *world) settledLog() []api.Entry {
	w.t.Helper()
	head := w.settled()[0].Index
	return w.nodes[0].events()[:head]
}

// replacedBy reports whether the log and every node's peers know only the new
// one, and it votes in the old one's place.
func (w *world) replacedBy(old, now events.NodeID) error {
	gone := false
	for _, e := range w.nodes[0].events() {
		for _, ev := range e.Events {
			gone = gone || ev.NodeLeft != nil && ev.NodeLeft.Node == old
		}
	}
	if !gone {
		return fmt.Errorf("nothing in the log says that node %s is gone", old)
	}
	for _, n := range w.nodes {
		err := n.ask(func(ctx context.Context, a *client.Admin) error {
			ranks, err := a.Ranks(ctx)
			if err != nil {
				return err
			}
			for _, r := range ranks.Ranks {
				if r.Unreachable != "" || r.Node == old || r.Node == now && !r.Voter {
					return fmt.Errorf("rank %d sees %+v", n.rank, r)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
