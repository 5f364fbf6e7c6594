package door_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/door"
	"github.com/esperd/esperd/events"
)

// together connects trainers at the same time.
func together(t *testing.T, all ...*trainer) {
	t.Helper()
	replies := make([]<-chan reply, len(all))
	for i, tr := range all {
		replies[i] = later(tr.connect)
	}
	for _, a := range replies {
		(<-a).ok(t)
	}
}

func (j *job) faulted() *events.RoundFaulted {
	j.t.Helper()
	require.Eventually(j.t, func() bool { return j.fault() != nil }, 20*time.Second, time.Millisecond)
	return j.fault()
}

func TestATrainerThatDiesEndsTheRound(t *testing.T) {
	for _, culprit := range []int{0, 1} {
		t.Run(fmt.Sprint("rank ", culprit), func(t *testing.T) {
			j := newJob(t, 3)
			all := make([]*trainer, 3)
			for rank := range all {
				all[rank] = j.trainer(rank)
			}
			p := j.process(culprit)
			all[culprit] = p.trainer
			together(t, all...)
			for _, tr := range all {
				tr.germinate("r0c0").ok(t)
			}
			if culprit != 0 {
				all[0].step(0).ok(t)
			}
			other := (culprit + 1) % 3
			waits := later(func() reply { // rank 1 waits for rank 0, or rank 2 for its step 1
				if culprit != 0 {
					all[other].step(0).ok(t)
					return all[other].step(1)
				}
				return all[other].step(0)
			})
			j.waiting(other)
			p.dies()

			f := j.faulted()
			require.Equal(t, events.CodeUnavailable, f.Code)
			require.Equal(t, uint64(culprit), f.Rank)
			require.Equal(t, j.log.Node(culprit).Status().Node, f.Node)
			require.Equal(t, fmt.Sprintf("process %d ended without closing its session (host host%d)", p.cmd.Process.Pid, culprit), f.Reason)
			require.Equal(t, events.OpGerminate, f.Got.Op, "its last call")
			require.Equal(t, fmt.Sprintf("rank%d.py:1", culprit), f.GotSite)
			require.Equal(t, fmt.Sprintf("rank0.py:%d", 1+min(culprit, 1)), f.WantSite, "rank 0's")

			problem := (<-waits).refused(t, events.CodeRoundFaulted)
			require.Equal(t, f, problem.Fault)
			require.Contains(t, problem.Detail, fmt.Sprintf("the trainer of rank %d is gone: process %d ended", culprit, p.cmd.Process.Pid))
			require.Contains(t, problem.Detail, "start it again, and connect again on all ranks")
			for rank, tr := range all {
				if rank != culprit {
					tr.step(7).refused(t, events.CodeRoundFaulted)
				}
			}
			again := j.trainers() // this process is another one, and may connect now
			require.Equal(t, uint64(2), again[0].at.Round)
			again[0].step(7).ok(t)
		})
	}
}

func TestATrainerThatHasMadeNoCallDies(t *testing.T) {
	j := newJob(t, 2)
	p := j.process(1)
	rank0 := j.trainer(0)
	together(t, rank0, p.trainer)
	p.dies()
	f := j.faulted()
	require.Equal(t, uint64(1), f.Rank)
	require.Equal(t, events.OpConfigure, f.Got.Op)
	rank0.step(0).refused(t, events.CodeRoundFaulted)
}

func TestATrainerThatClosesMayEnd(t *testing.T) {
	j := newJob(t, 2)
	rank0, p := j.trainer(0), j.process(1)
	together(t, rank0, p.trainer)
	for _, tr := range []*trainer{rank0, p.trainer} {
		tr.step(0).ok(t)
	}
	bye := members{"session": p.req.Incarnation}
	for range 2 {
		p.post("/v1/close", bye).ok(t)
	}
	p.ends()
	j.stop(1) // it looks once more, and waits for who watches
	require.Nil(t, j.fault())
}

// The same, of an esperd that goes on: what it does when the process ends it has
// done when another process may connect.
func TestTheEndOfAClosedSessionIsNobodysFault(t *testing.T) {
	for _, mode := range []events.TrainerMode{events.ModeKeyed, events.ModeFollow} {
		j := newJob(t, 1)
		p := j.process(0, inMode(mode))
		together(t, p.trainer)
		p.post("/v1/close", members{"session": p.req.Incarnation}).ok(t)
		p.ends()
		again := j.process(0, inMode(mode))
		together(t, again.trainer)
		require.Equal(t, uint64(2), again.at.Round)
		again.step(0).ok(t)
		require.Nil(t, j.fault())
		require.NotContains(t, j.logs[0].String(), "the round ends for all ranks")
	}
}

func TestATrainerThatFailsSaysSo(t *testing.T) {
	j := newJob(t, 2)
	rank0, p := j.trainer(0), j.process(1)
	together(t, rank0, p.trainer)
	bye := members{"session": p.req.Incarnation, "failed": "ValueError: loss is nan"}
	p.post("/v1/close", bye).ok(t)
	f := j.fault() // it is in the log when that is answered
	require.NotNil(t, f)
	require.Equal(t, events.CodeUnavailable, f.Code)
	require.Equal(t, "it failed: ValueError: loss is nan (host host1)", f.Reason)
	head := j.head(0)
	p.post("/v1/close", bye).ok(t)
	p.ends()
	problem := rank0.step(0).refused(t, events.CodeRoundFaulted)
	require.Contains(t, problem.Detail, "the trainer of rank 1 is gone: it failed: ValueError: loss is nan")
	require.Equal(t, head, j.head(0))
	p.trainer.http = j.http(1)
	p.post("/v1/close", members{"session": strings.Repeat("0", 32)}).refused(t, events.CodeUnavailable)
}

func TestAnObservedTrainerMayDie(t *testing.T) {
	j := newJob(t, 1)
	p := j.process(0, inMode(events.ModeObserve))
	together(t, p.trainer)
	p.step(0).ok(t)
	j.told(0)
	p.dies()
	again := j.process(0, inMode(events.ModeObserve))
	require.Eventually(t, func() bool { return again.connect().status == 200 }, 20*time.Second, time.Millisecond, "when its end is known")
	require.Nil(t, j.fault())
	again.step(1).ok(t)
	j.told(1)
	again.post("/v1/close", members{"session": again.req.Incarnation, "failed": "it does not matter"}).ok(t)
	require.Nil(t, j.fault())
	again.ends()
	third := j.trainer(0, inMode(events.ModeObserve))
	together(t, third)
}

func TestASecondTrainerIsRefusedWhileTheFirstLives(t *testing.T) {
	j := newJob(t, 1)
	p := j.process(0)
	together(t, p.trainer)
	other := j.trainer(0)
	for range 2 {
		problem := other.connect().refused(t, events.CodeNotAuthority)
		require.Contains(t, problem.Detail, fmt.Sprintf("process %d is the trainer of rank 0 since ", p.cmd.Process.Pid))
		require.Contains(t, problem.Detail, fmt.Sprintf("alive and in round 1, and this is process %d: expected one trainer on this socket", os.Getpid()))
	}
	p.step(0).ok(t)

	// The same process may connect again, as after an exception in a notebook.
	p.req.Incarnation = strings.Repeat("c", 32)
	p.connect().ok(t)
	require.Equal(t, uint64(2), p.at.Round)
	p.step(1).ok(t)
	other.connect().refused(t, events.CodeNotAuthority)

	// Another process with the same incarnation is a client of the same trainer.
	same := j.trainer(0)
	same.req.Incarnation = p.req.Incarnation
	same.connect().refused(t, events.CodeInvalidInput)

	p.post("/v1/close", members{"session": p.req.Incarnation}).ok(t)
	other.connect().ok(t)
	require.Equal(t, uint64(3), other.at.Round)
}

func TestASecondTrainerMayConnectWhenTheRoundIsOver(t *testing.T) {
	j := newJob(t, 2)
	all := []*trainer{j.process(0).trainer, j.process(1).trainer}
	together(t, all...)
	all[0].step(0).ok(t)
	all[1].step(1).refused(t, events.CodeOrderMismatch)
	again := j.trainers()
	require.Equal(t, uint64(2), again[0].at.Round)
}

func TestAnEsperdThatClosesTellsOfADeathFirst(t *testing.T) {
	for name, reported := range map[string]bool{"noticed only then": false, "noticed before, without a leader": true} {
		t.Run(name, func(t *testing.T) {
			j := newJob(t, 2)
			rank0, p := j.trainer(0), j.process(1)
			together(t, rank0, p.trainer)
			if reported {
				j.log.Node(1).Refuse(fmt.Errorf("no leader"))
			}
			p.dies()
			if reported {
				require.Eventually(t, func() bool { return strings.Contains(j.logs[1].String(), "the end of the round is not in the log yet") }, 20*time.Second, time.Millisecond)
				time.AfterFunc(2500*time.Millisecond, func() { j.log.Node(1).Refuse(nil) }) // longer than an answer waits for it
			} else {
				_ = p.cmd.Wait() // the kernel knows of it from here on
			}
			j.stop(1)
			require.NotNil(t, j.fault())
			require.Contains(t, rank0.step(0).refused(t, events.CodeRoundFaulted).Detail, "ended without closing its session")
		})
	}
}

// The other ranks are told of a goodbye, so nobody comes back after it.
func TestAGoodbyeIsFinal(t *testing.T) {
	j := newJob(t, 2)
	rank0, p := j.trainer(0), j.process(1)
	together(t, rank0, p.trainer)
	for _, tr := range []*trainer{rank0, p.trainer} {
		tr.step(0).ok(t)
	}
	critic := j.trainer(1)
	critic.req.Incarnation, critic.req.Model = p.req.Incarnation, "critic"
	opens := later(critic.connect)
	j.waiting(1)
	p.post("/v1/close", members{"session": p.req.Incarnation}).ok(t)
	before := p.returns().refused(t, events.CodeNotAuthority)
	require.Contains(t, before.Detail, "this trainer closed its session of round 1, and the other ranks expect no further call of it: connect anew on all ranks")
	p.connect().refused(t, events.CodeNotAuthority)

	// What was asked for before it is answered, and changes nothing.
	at := j.trainer(0)
	at.req.Incarnation, at.req.Model = rank0.req.Incarnation, "critic"
	at.connect().ok(t)
	(<-opens).ok(t)
	p.returns().refused(t, events.CodeNotAuthority)
	p.ends()
	j.stop(1)
	require.Nil(t, j.fault())
	require.Equal(t, uint64(1), j.log.Node(1).State().Round.Tally(1).Ended)
	j.start(1)
	p.trainer.http = j.http(1)
	p.returns().refused(t, events.CodeNotAuthority) // the log knows
	require.Nil(t, j.fault())
}

// A trainer that closes its session before it is in a round has left none.
func TestAGoodbyeBeforeTheRound(t *testing.T) {
	j := newJob(t, 2)
	p := j.process(1)
	waits := later(p.connect)
	j.waitingFor(1, "round")
	bye := members{"session": p.req.Incarnation}
	early := j.trainer(1)
	early.post("/v1/close", bye).ok(t)
	j.trainer(1).post("/v1/close", members{"session": p.req.Incarnation, "failed": "x"}).ok(t)
	rank0 := j.trainer(0)
	rank0.connect().ok(t)
	(<-waits).ok(t)
	rank0.step(0).ok(t)
	p.step(0).ok(t)
	p.dies()
	require.Equal(t, uint64(1), j.faulted().Rank)
	require.Empty(t, j.log.Node(1).Reports())
}

// A goodbye and the end of its process come by two ways.
func TestAGoodbyeThatIsOvertaken(t *testing.T) {
	j := newJob(t, 2)
	rank0, p := j.trainer(0), j.process(1)
	together(t, rank0, p.trainer)
	rank0.step(0).ok(t)
	p.step(0).ok(t)
	p.dies()
	_ = p.cmd.Wait()
	j.trainer(1).post("/v1/close", members{"session": p.req.Incarnation}).ok(t)
	j.stop(1)
	require.Nil(t, j.fault())
}

func TestADeathIsToldWithinASecond(t *testing.T) {
	j := newJob(t, 2)
	rank0, p := j.trainer(0), j.process(1)
	together(t, rank0, p.trainer)
	p.dies()
	require.Eventually(t, func() bool { return j.fault() != nil }, time.Second, time.Millisecond)
}

func TestADetachedProcessMayDie(t *testing.T) {
	j := newJob(t, 1)
	p := j.process(0, func(r *api.SessionRequest) { r.Detached = true })
	together(t, p.trainer)
	p.step(0).ok(t)
	p.ends()
	p.trainer.http = j.http(0) // another process for the next call
	p.step(1).ok(t)
	p.returns(func(r *api.SessionRequest) { r.Detached = true }).ok(t)
	j.stop(0)
	require.Nil(t, j.fault())
}

func TestATrainerOfAnEarlierRoundMayDie(t *testing.T) {
	j := newJob(t, 1)
	p := j.process(0)
	together(t, p.trainer)
	j.stop(0)
	require.NoError(t, os.Remove(j.socket(0)+door.TrainerSuffix)) // the next esperd does not know of the process
	j.start(0)
	again := j.trainers()
	p.dies()
	_ = p.cmd.Wait()
	again[0].step(0).ok(t)
	j.stop(0)
	require.Nil(t, j.fault())
}

// The same process connects anew on rank 0, and its last round is nobody's: whoever
// waits there for rank 0 is told.
func TestRank0ConnectsAnewWhereAnotherRankWaits(t *testing.T) {
	brief := func(o *door.Options) { o.WarnAfter = 50 * time.Millisecond }
	j := newJob(t, 2, brief)
	p, rank1 := j.process(0), j.trainer(1)
	together(t, p.trainer, rank1)
	old := p.req.Incarnation
	waits := later(func() reply { return rank1.step(0) })
	j.waiting(1)
	p.req.Incarnation = strings.Repeat("c", 32)
	connects := later(p.connect)
	problem := (<-waits).refused(t, events.CodeRoundFaulted)
	require.Regexp(t, `the trainer of rank 0 is gone: a new trainer of its rank waits for a round since \d\d:\d\d:\d\d \(host host0\); its last call was call 0, configure`, problem.Detail)
	require.Equal(t, events.CodeUnavailable, j.fault().Code)
	require.Equal(t, old, j.log.Node(0).State().Round.Members[0].Incarnation)
	again := j.trainer(1)
	again.connect().ok(t)
	(<-connects).ok(t)
	require.Equal(t, uint64(2), p.at.Round)
	p.step(0).ok(t)
	again.step(0).ok(t)
}

func TestATrainerThatIsKilledWhileOthersResume(t *testing.T) {
	j := newJob(t, 2)
	rank0, p := j.trainer(0), j.process(1)
	together(t, rank0, p.trainer)
	rank0.step(0).ok(t)
	p.step(0).ok(t)
	mark := rank0.checkpoint().Mark
	waits := later(func() reply { return rank0.resume(mark) })
	j.waitingFor(0, "marks")
	p.dies()
	problem := (<-waits).refused(t, events.CodeRoundFaulted)
	require.Contains(t, problem.Detail, "the trainer of rank 1 is gone: process")
}
