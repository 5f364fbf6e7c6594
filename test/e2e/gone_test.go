//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/events"
)

// connectTrainers has the trainers of all ranks but one connect, which asks
// already, and waits until all are in a round. It returns their processes' ids.
func connectTrainers(trainers []*trainerProcess, round uint64, but int) []int {
	pids := make([]int, len(trainers))
	for rank, p := range trainers {
		if rank != but {
			p.tell("connect")
		}
	}
	for i, p := range trainers {
		pids[i] = p.connected(round)
	}
	return pids
}

func allSay(trainers []*trainerProcess, what string) {
	for _, p := range trainers {
		p.tell(what)
	}
	for _, p := range trainers {
		p.says("done: " + what)
	}
}

// TestTrainerKilled: a trainer that dies leaves nobody waiting, and nobody else
// takes its place unasked. The trainers of a new round go on.
func TestTrainerKilled(t *testing.T) {
	t.Parallel()
	w := startWorld(t, 3)
	trainers := make([]*trainerProcess, len(w.nodes))
	for i, n := range w.nodes {
		trainers[i] = n.newTrainer()
	}
	epoch, asks := 0, -1
	step := func() string { return fmt.Sprintf("step %d", epoch) }
	for i, victim := range []int{2, 0} {
		round := uint64(i + 1)
		pid := connectTrainers(trainers, round, asks)[victim]
		allSay(trainers, step())
		epoch++

		second := w.nodes[victim].newTrainer()
		second.tell("connect")
		second.says("failed: not-authority: ", fmt.Sprintf("process %d is the trainer of rank %d", pid, victim), fmt.Sprintf("alive and in round %d", round), "ESPERD_SOCKET")
		allSay(trainers, step())
		epoch++

		var others []*trainerProcess
		for rank, p := range trainers {
			if rank != victim {
				others = append(others, p)
			}
			if rank != victim && rank != 0 { // rank 0's call waits for nobody
				p.tell(step())
				w.awaitWait(rank, "decision")
			}
		}
		trainers[victim].kill()
		if victim != 0 {
			w.faulted(victim)
			trainers[0].tell(step())
		}
		for _, p := range others {
			p.says("failed: round-faulted: ", fmt.Sprintf("the trainer of rank %d is gone: process %d ended without closing its session (host ", victim, pid),
				fmt.Sprintf("step_epoch epoch %d at ", epoch-1), "start it again")
		}
		trainers[victim], asks = second, victim // it asks again
		second.tell("connect")
		w.awaitWait(victim, "round")
	}
	connectTrainers(trainers, 3, asks)
	allSay(trainers, step())
	for _, p := range trainers {
		p.tell("end")
		p.says("done: end")
		p.tell("exit 0")
		require.Equal(t, 0, p.exited())
	}
	for _, s := range w.settled() {
		require.Nil(t, s.Round.Fault, "who says goodbye is not missed")
		require.EqualValues(t, 3, s.Round.Number)
	}
	w.verify()
}

// faulted waits until the round is over because a rank's trainer is gone.
func (w *world) faulted(rank int) *events.RoundFaulted {
	w.t.Helper()
	var f *events.RoundFaulted
	eventually(w.t, "the end of the round", func() error {
		s, err := w.nodes[0].state()
		if err != nil || s.Round.Fault == nil {
			return errors.Join(err, errors.New("it is open"))
		}
		f = s.Round.Fault
		return nil
	})
	require.Equal(w.t, []any{events.CodeUnavailable, uint64(rank)}, []any{f.Code, f.Rank})
	return f
}

// TestTrainerKilledBeforeItsRound: whether a round opens with a trainer that has
// just died or not, nobody goes on waiting for it.
func TestTrainerKilledBeforeItsRound(t *testing.T) {
	plain(t)
	t.Parallel()
	w := startWorld(t, 2)
	first, second, restarted := w.nodes[0].newTrainer(), w.nodes[1].newTrainer(), w.nodes[0].newTrainer()
	first.tell("connect")
	w.awaitWait(0, "round")
	first.kill()
	second.tell("connect")
	restarted.tell("connect")
	for in := 0; in < 2; {
		p, line := second, ""
		select {
		case line = <-second.said:
		case line = <-restarted.said:
			p = restarted
		case <-time.After(patience):
			t.Fatalf("the trainers wait: %s", w.waiting())
		}
		if strings.HasPrefix(line, "in round ") {
			in++
			continue
		}
		says(t, line, "failed: ", "connect again on all ranks")
		p.tell("connect")
	}
	allSay([]*trainerProcess{restarted, second}, "step 0")
}

// TestTrainerKilledObserved: where nobody waits for the trainer, the round goes
// on without it, and another one is welcome at once.
func TestTrainerKilledObserved(t *testing.T) {
	plain(t)
	t.Parallel()
	w := startWorld(t, 1)
	n := w.nodes[0]
	for round := range uint64(3) {
		p := n.newTrainer()
		p.tell("connect observe")
		p.connected(round + 1)
		p.tell("step 0")
		p.says("done: step 0")
		p.kill()
		require.Nil(t, n.mustState().Round.Fault)
	}
}

// TestExecTrainerFails: under esperd exec the trainer's esperd ends with it, and
// still says why before it goes.
func TestExecTrainerFails(t *testing.T) {
	plain(t)
	t.Parallel()
	w := newWorld(t, 3)
	w.nodes[0].start()
	w.nodes[1].start()
	trainers := []*trainerProcess{w.nodes[0].newTrainer(), w.nodes[1].newTrainer(), nil}
	for i, end := range []struct {
		how    string
		end    func(p *trainerProcess, pid int)
		status int
	}{
		{"by a status", func(p *trainerProcess, _ int) { p.tell("exit 7") }, 7},
		{"by a signal", func(_ *trainerProcess, pid int) { require.NoError(t, syscall.Kill(pid, syscall.SIGKILL)) }, 128 + int(syscall.SIGKILL)},
		{"after its goodbye", func(p *trainerProcess, _ int) {
			p.tell("end")
			p.says("done: end")
			p.tell("exit 5")
		}, 5},
	} {
		trainers[2] = w.nodes[2].execTrainer()
		pid := connectTrainers(trainers, uint64(i+1), -1)[2]
		trainers[1].tell(fmt.Sprintf("step %d", i))
		w.awaitWait(1, "decision")
		end.end(trainers[2], pid)
		trainers[1].says("failed: round-faulted: ", "the trainer of rank 2 is gone: ")
		require.Equal(t, end.status, trainers[2].exited(), end.how)
		reason := w.faulted(2).Reason // esperd exec says it, or, where it is slow, the door
		require.Regexp(t, fmt.Sprintf(`^(its command ended with status %d|process %d ended without closing its session) `, end.status, pid), reason, end.how)
	}
}

// TestTrainerDiesWithoutItsEsperd: who dies while its esperd is down is missed when
// that is back, and who lives then is watched again.
func TestTrainerDiesWithoutItsEsperd(t *testing.T) {
	plain(t)
	t.Parallel()
	w := startWorld(t, 3)
	for i, gone := range []func(p *trainerProcess, n *node) (reason string){
		func(p *trainerProcess, n *node) string {
			n.kill()
			p.kill()
			n.start()
			return " while its esperd was not running (host "
		},
		func(p *trainerProcess, n *node) string {
			n.kill()
			n.start()
			eventually(t, "the trainer to be watched", func() error {
				second := n.newTrainer()
				defer second.kill()
				second.tell("connect")
				select {
				case line := <-second.said:
					says(t, line, "failed: not-authority: ", "is the trainer of rank 1")
				case <-time.After(time.Second):
					return errors.New("a second one may connect")
				}
				return nil
			})
			p.kill()
			return " (host "
		},
	} {
		trainers := make([]*trainerProcess, len(w.nodes))
		for i, n := range w.nodes {
			trainers[i] = n.newTrainer()
		}
		pid := connectTrainers(trainers, uint64(i+1), -1)[1]
		trainers[2].tell(fmt.Sprintf("step %d", i))
		w.awaitWait(2, "decision")
		reason := gone(trainers[1], w.nodes[1])
		trainers[2].says("failed: round-faulted: ", fmt.Sprintf("the trainer of rank 1 is gone: process %d ended without closing its session%s", pid, reason))
		w.faulted(1)
		for _, p := range trainers {
			p.kill()
		}
	}
}

// TestRank0ConnectsAnew: rank 0 leaves the round in which another rank waits for
// it, which is told.
func TestRank0ConnectsAnew(t *testing.T) {
	plain(t)
	t.Parallel()
	w := startWorld(t, 2)
	trainers := []*trainerProcess{w.nodes[0].newTrainer(), w.nodes[1].newTrainer()}
	connectTrainers(trainers, 1, -1)
	trainers[1].tell("step 0")
	w.awaitWait(1, "decision")
	trainers[0].tell("connect") // the same process, as after an exception in a notebook
	trainers[1].says("failed: round-faulted: ", "the trainer of rank 0 is gone: a new trainer of its rank waits for a round since ")
	w.faulted(0)
	connectTrainers(trainers, 2, 0)
	allSay(trainers, "step 0")
}

// TestBusy: a rank that says what it does is waited for longer than any other,
// and not for ever.
func TestBusy(t *testing.T) {
	t.Parallel()
	const timeout = 2 * time.Second
	w := newWorld(t, 2)
	w.nodes[1].args = append(w.nodes[1].args, "--decision-timeout", timeout.String())
	w.startAll()
	w.settled()
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	var trainers [2]*client.Client
	connected := make(chan error, 1)
	go func() {
		var err error
		trainers[0], err = client.Connect(ctx, w.nodes[0].socket, w.optionsOf(0))
		connected <- err
	}()
	w.awaitWait(0, "round") // rank 1 has not so much time
	var err error
	trainers[1], err = client.Connect(ctx, w.nodes[1].socket, w.optionsOf(1))
	require.NoError(t, errors.Join(err, <-connected))

	busy := func() { require.NoError(t, trainers[0].Busy(ctx, "evaluation", 10*time.Second)) }
	busy()
	waits := make(chan error, 1)
	go func() {
		_, err := trainers[1].StepEpoch(ctx, 0)
		waits <- err
	}()
	w.awaitWait(1, "decision")
	eventually(t, "a wait that is longer than any other", func() error {
		busy()
		r := decodeAs[api.Ranks](t, w.nodes[1].types("ranks", "--json")).Ranks
		require.Len(t, r[1].Waiting, 1)
		switch s := r[1].Waiting[0].Seconds; {
		case r[0].Busy == nil:
			return fmt.Errorf("rank 0 is not known to be busy: %q", r[0].Unreachable)
		case s < 2*timeout.Seconds():
			return fmt.Errorf("it has waited %.1f s", s)
		}
		require.Equal(t, "evaluation", r[0].Busy.Reason)
		says(t, w.nodes[1].types("ranks"), "waits ", " s for step_epoch 0 at gone_test.go:", "missing rank 0 (rank 0 is busy: evaluation, ")
		return nil
	})
	select {
	case err := <-waits:
		t.Fatal(err)
	default:
	}
	require.ErrorIs(t, <-waits, client.ErrDecisionTimeout, "rank 0 is not busy any more, and does not call")
	go func() {
		_, err := trainers[1].StepEpoch(ctx, 0) // once more
		waits <- err
	}()
	_, err = trainers[0].StepEpoch(ctx, 0)
	require.NoError(t, err)
	require.NoError(t, <-waits)
	for _, c := range trainers {
		require.NoError(t, c.End(ctx, ""))
	}
}
