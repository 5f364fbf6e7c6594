package door_test

import (
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// each makes a call on every rank at once.
func each(all []*trainer, call func(*trainer) reply) []reply {
	replies := make([]reply, len(all))
	var wg sync.WaitGroup
	for rank, tr := range all {
		wg.Go(func() { replies[rank] = call(tr) })
	}
	wg.Wait()
	return replies
}

// together expects the same fence of every rank.
func (j *job) fenced(all []*trainer, call func(*trainer) reply) *api.Fence {
	j.t.Helper()
	replies := each(all, call)
	for _, a := range replies {
		require.Equal(j.t, replies[0].ok(j.t).body, a.body)
	}
	return replies[0].fence(j.t)
}

func (j *job) stepped(all []*trainer, epochs ...int64) *api.Fence {
	j.t.Helper()
	var f *api.Fence
	for _, epoch := range epochs {
		f = j.fenced(all, func(tr *trainer) reply { return tr.step(epoch) })
	}
	return f
}

// marked takes the mark of every rank, which is one.
func (j *job) marked(all []*trainer) []byte {
	j.t.Helper()
	first := all[0].checkpoint()
	for _, tr := range all[1:] {
		require.Equal(j.t, first, tr.checkpoint())
	}
	require.Len(j.t, first.Mark, first.Bytes)
	return first.Mark
}

func (j *job) lifecycle() events.Digest { return j.log.Node(0).State().Model("main").Digest() }

func resumed(mark []byte) func(*trainer) reply {
	return func(tr *trainer) reply { return tr.resume(mark) }
}

var kinds = map[string]func(*api.SessionRequest){
	"keyed":  inMode(events.ModeKeyed),
	"follow": inMode(events.ModeFollow),
	"warn":   func(r *api.SessionRequest) { r.Ordering = "warn" },
}

// calling makes a call on the ranks that make calls in a mode.
func calling(all []*trainer, call func(*trainer) reply) {
	for _, tr := range all {
		if tr.rank == 0 || tr.req.Mode != events.ModeFollow {
			call(tr).ok(tr.j.t)
		}
	}
}

func TestResumeTakesAllRanksBack(t *testing.T) {
	for kind, as := range kinds {
		t.Run(kind, func(t *testing.T) {
			j := newJob(t, 3)
			all := j.trainers(as)
			calling(all, func(tr *trainer) reply { return tr.germinate("r0c0") })
			j.stepped(all, 39, 40)
			mark, at40 := j.marked(all), j.lifecycle()
			calling(all, func(tr *trainer) reply { return tr.advance("r0c0") })
			require.Equal(t, kind != "keyed" && kind != "warn", string(mark) == string(all[0].checkpoint().Mark), "in the mode follow, rank 0 sees what it did at the next fence")
			calling(all, func(tr *trainer) reply { return tr.germinate("r0c1") })
			j.stepped(all, 41, 57)
			require.NotEqual(t, at40, j.lifecycle())

			f := j.fenced(all, resumed(mark))
			require.Equal(t, at40, j.lifecycle())
			require.Equal(t, []any{int64(40), uint64(1)}, []any{f.Epoch, f.Generation})
			require.Equal(t, []api.Change{
				{Slot: "r0c0", Seed: 1, Blueprint: "conv", From: events.StageTraining, To: events.StageGerminated},
				{Slot: "r0c1", Blueprint: "conv", From: events.StageGerminated, To: events.StageDormant}}, f.Changes)
			require.NotEqual(t, mark, j.marked(all), "a mark of where the rewind is")

			calling(all, func(tr *trainer) reply { return tr.germinate("r0c1", members{"blueprint": "mlp"}) })
			branch := j.stepped(all, 41)
			require.Equal(t, "r0c1", branch.Changes[0].Slot)
			second := j.marked(all)
			j.fenced(all, resumed(mark))
			calling(all, func(tr *trainer) reply { return tr.germinate("r0c1") })
			j.stepped(all, 41)
			f = j.fenced(all, resumed(second))
			require.Equal(t, []api.Change{{Slot: "r0c1", Seed: 1, Blueprint: "mlp", From: events.StageGerminated, To: events.StageGerminated, Replaced: true}}, f.Changes,
				"of the same number and stage, but another seed")
			for _, tr := range all {
				tr.restart()
			}
			j.stepped(all, 42)
			require.Nil(t, j.fault())
		})
	}
}

func TestARefusedResumeIsRefusedAlike(t *testing.T) {
	j := newJob(t, 2)
	all := j.trainers()
	j.stepped(all, 0)
	future, _, err := events.DecodeMark(j.marked(all))
	require.NoError(t, err)
	future.Index = 99
	mark, _, err := events.EncodeMark(future)
	require.NoError(t, err)
	replies := each(all, resumed(mark))
	require.Equal(t, replies[0], replies[1])
	p := replies[0].refused(t, events.CodeMarkMismatch)
	require.Positive(t, p.Index)
	require.Contains(t, p.Detail, "the mark is of entry 99, and this log ends at entry")
	j.stepped(all, 1)
}

func TestMarksThatDifferNameTheRanks(t *testing.T) {
	for kind, as := range kinds {
		t.Run(kind, func(t *testing.T) {
			j := newJob(t, 3)
			all := j.trainers(as)
			j.stepped(all, 0)
			first := j.marked(all)
			j.stepped(all, 1)
			second := j.marked(all)
			head, before := j.head(0), j.lifecycle()
			for range 2 { // a try of before does not count for the next one
				replies := each(all, func(tr *trainer) reply {
					if tr.rank == 1 {
						return tr.resume(first)
					}
					return tr.resume(second)
				})
				for _, a := range replies {
					require.Equal(t, replies[0], a)
				}
				p := replies[0].refused(t, events.CodeMarkMismatch)
				require.Zero(t, p.Index, "nothing is written")
				require.Contains(t, p.Detail, "ranks 0 2 brought the mark of epoch 1 (entry")
				require.Contains(t, p.Detail, "; rank 1 brought the mark of epoch 0 (entry")
				require.Equal(t, []uint64{0, 2}, p.Marks[0].Ranks)
				require.Equal(t, []uint64{1}, p.Marks[1].Ranks)
				require.Equal(t, [2]int64{1, 0}, [2]int64{p.Marks[0].Epoch, p.Marks[1].Epoch})
			}
			require.Equal(t, []any{head, before}, []any{j.head(0), j.lifecycle()})
			require.Equal(t, int64(0), j.fenced(all, resumed(first)).Epoch, "and then")
			j.stepped(all, 1)
		})
	}
}

func TestBytesThatAreNoMark(t *testing.T) {
	for rank := range 3 {
		t.Run(fmt.Sprintf("rank %d", rank), func(t *testing.T) {
			j := newJob(t, 3)
			all := j.trainers()
			j.stepped(all, 0)
			mark := j.marked(all)
			head := j.head(0)
			bad := later(func() reply { return all[rank].resume(mark[:len(mark)-1]) })
			told := func() {
				t.Helper()
				require.Contains(t, (<-bad).refused(t, events.CodeMarkMismatch).Detail, fmt.Sprintf("rank %d brought not a mark that can be resumed: its ", rank))
			}
			if rank != 0 { // it waits for nobody
				told()
			}
			var others []*trainer
			for _, tr := range all {
				if tr.rank != rank {
					others = append(others, tr)
				}
			}
			for _, a := range each(others, resumed(mark)) {
				p := a.refused(t, events.CodeMarkMismatch)
				require.Contains(t, p.Detail, fmt.Sprintf("rank %d brought not a mark", rank))
				require.Contains(t, p.Detail, "brought the mark of epoch 0")
			}
			if rank == 0 {
				told()
			}
			require.Equal(t, head, j.head(0))
			for range 3 { // whoever comes first, each try is one for all
				for i, a := range each(all, func(tr *trainer) reply { return tr.resume(mark[:9*tr.rank]) }) {
					require.Contains(t, a.refused(t, events.CodeMarkMismatch).Detail, fmt.Sprintf("rank %d brought not a mark", i))
				}
			}
			j.fenced(all, resumed(mark))
			if rank == 0 {
				return
			}
			for _, bad := range []any{nil, "", "not base64", "bm8gbWFyaw=="} {
				all[rank].makes("/v1/resume", members{"mark": bad}).refused(t, events.CodeMarkMismatch)
			}
			j.stepped(all, 1) // it has given up its resume
			require.Nil(t, j.fault())
		})
	}
}

func TestAnotherCallWhereRank0Resumes(t *testing.T) {
	for kind, as := range kinds {
		t.Run(kind, func(t *testing.T) {
			j := newJob(t, 3)
			all := j.trainers(as)
			j.stepped(all, 0)
			mark := j.marked(all)
			first := later(func() reply { return all[0].resume(mark) })
			j.waitingFor(0, "marks")
			second := later(func() reply { return all[2].resume(mark) })
			p := all[1].step(1).refused(t, events.CodeRoundFaulted)
			require.Equal(t, []any{events.CodeOrderMismatch, uint64(1), events.OpStepEpoch, events.OpResume}, []any{p.Fault.Code, p.Fault.Rank, p.Fault.Got.Op, p.Fault.Want.Op})
			require.Equal(t, "rank1.py:2", p.GotSite)
			require.Equal(t, "rank0.py:2", p.WantSite)
			(<-first).refused(t, events.CodeRoundFaulted)
			(<-second).refused(t, events.CodeRoundFaulted)
		})
	}
}

func TestRank0CallsWhereTheOthersResume(t *testing.T) {
	j := newJob(t, 2)
	all := j.trainers()
	j.stepped(all, 0)
	mark := j.marked(all)
	waits := later(func() reply { return all[1].resume(mark) })
	j.waiting(1)
	all[0].step(1).ok(t)
	p := (<-waits).refused(t, events.CodeOrderMismatch)
	require.Equal(t, events.OpResume, p.Got.Op)
	require.NotNil(t, j.fault())
}

func TestAResumeIsSeenToWait(t *testing.T) {
	j := newJob(t, 3)
	all := j.trainers()
	j.stepped(all, 0)
	mark := j.marked(all)
	first := later(func() reply { return all[0].resume(mark) })
	second := later(func() reply { return all[1].resume(mark) })
	admin := j.admins(2)["admin door"]
	require.Eventually(t, func() bool {
		a, err := admin.Arrivals(j.ctx())
		require.NoError(t, err)
		missing := map[uint64]string{}
		for _, w := range a.Waiting {
			missing[w.Rank] = fmt.Sprint(w.What, w.Missing)
		}
		return maps.Equal(missing, map[uint64]string{0: "marks[2]", 1: "decision[2]"})
	}, 5*time.Second, time.Millisecond)
	all[2].resume(mark).ok(t)
	require.Equal(t, <-first, <-second)
}

// Whose answer was lost with its esperd repeats the call, and keeps its place.
func TestAResumeThatIsInterrupted(t *testing.T) {
	for rank := range 2 {
		t.Run(fmt.Sprintf("the esperd of rank %d", rank), func(t *testing.T) {
			j := newJob(t, 2)
			all := j.trainers()
			j.stepped(all, 0)
			mark := j.marked(all)
			j.stepped(all, 1)
			waits := later(func() reply { return all[rank].resume(mark) })
			j.waitingFor(rank, []string{"marks", "decision"}[rank])
			j.stop(rank)
			(<-waits).refused(t, events.CodeUnavailable)
			all[rank].http.CloseIdleConnections()
			j.start(rank)
			all[rank].returns().ok(t)
			require.Equal(t, int64(0), j.fenced(all, resumed(mark)).Epoch)
			for _, tr := range all { // and after it
				tr.call, tr.fence = tr.call-1, tr.fence-1
				tr.restart()
				again := tr.resume(mark)
				require.Equal(t, int64(0), again.fence(t).Epoch)
			}
			j.stepped(all, 1)
		})
	}
}

func TestATrainerThatEndsWhileOthersResume(t *testing.T) {
	j := newJob(t, 3)
	all := j.trainers()
	j.stepped(all, 0)
	mark := j.marked(all)
	first := later(func() reply { return all[0].resume(mark) })
	second := later(func() reply { return all[1].resume(mark) })
	j.waitingFor(0, "marks")
	j.waiting(1)
	all[2].post("/v1/close", members{"session": all[2].req.Incarnation}).ok(t)
	p := (<-first).refused(t, events.CodeRoundFaulted)
	require.Contains(t, p.Detail, "the trainer of rank 2 is gone: it closed its session in order")
	(<-second).refused(t, events.CodeRoundFaulted)
}

func TestAMarkConfiguresAnEmptyLog(t *testing.T) {
	old := newJob(t, 2)
	before := old.trainers()
	calling(before, func(tr *trainer) reply { return tr.germinate("r0c0") })
	old.stepped(before, 0, 40)
	mark, want := old.marked(before), old.lifecycle()
	m, _, err := events.DecodeMark(mark)
	require.NoError(t, err)
	m.Lineage = "00000000000000000000000000000009" // doortest's logs have all the same one
	mark, _, err = events.EncodeMark(m)
	require.NoError(t, err)

	j := newJob(t, 2)
	all := j.trainers(func(r *api.SessionRequest) { r.Slots, r.Gates, r.Resume = nil, nil, mark })
	f := j.fenced(all, resumed(mark))
	require.Equal(t, int64(40), f.Epoch)
	require.Equal(t, want, j.lifecycle())
	require.Equal(t, []events.Ancestor{{Lineage: m.Lineage}}, j.log.Node(1).State().Ancestors)
	j.stepped(all, 41)

	j = newJob(t, 1)
	p := j.trainer(0, func(r *api.SessionRequest) { r.Slots, r.Gates, r.Resume = nil, nil, mark[:99] }).connect().refused(t, events.CodeMarkMismatch)
	require.Contains(t, p.Detail, "truncated or changed")
	p = j.trainer(0, func(r *api.SessionRequest) { r.Slots, r.Gates, r.Resume, r.Model = nil, nil, mark, "critic" }).connect().refused(t, events.CodeMarkMismatch)
	require.Contains(t, p.Detail, `the mark is of model "main", expected one of model "critic"`)
}

// What a rank measured on the branch that was left does not count afterwards.
func TestOwnVerdictsBeginAnewAtAMark(t *testing.T) {
	j := newJob(t, 2)
	all := j.trainers()
	calling(all, func(tr *trainer) reply { return tr.germinate("r0c0") })
	calling(all, func(tr *trainer) reply { return tr.advance("r0c0") })
	j.stepped(all, 0)
	mark := j.marked(all)
	measures := func(tr *trainer) members {
		if tr.rank == 0 {
			return measured("r0c0", accuracy(50))
		}
		return measured("r0c0", api.Readings{Accuracy: api.Value(events.Num(50)), Health: api.Value(events.Num(0.1))})
	}
	for _, tr := range all {
		d := tr.advance("r0c0", measures(tr)).decision(t)
		require.Equal(t, []bool{true, tr.rank == 0}, []bool{d.Passed, d.Agreed})
	}
	j.fenced(all, resumed(mark))
	for _, tr := range all {
		d := tr.advance("r0c0", measured("r0c0", accuracy(50))).decision(t)
		require.True(t, d.Passed)
		if tr.rank == 1 {
			require.Nil(t, d.Local, "of a seed from before the mark nothing is known")
		}
	}
	require.Len(t, j.log.Node(1).Verdicts(), 1)
}

func TestCheckpointOfAClientThatMissedItsLastAnswer(t *testing.T) {
	j := newJob(t, 1)
	tr := j.trainers()[0]
	tr.step(0).ok(t)
	before := tr.checkpoint()
	tr.step(1).ok(t)
	tr.call, tr.fence = tr.call-1, tr.fence-1
	require.Equal(t, before, tr.checkpoint())
	tr.call--
	p := tr.post("/v1/checkpoint", members{"session": tr.req.Incarnation, "call": tr.call}).refused(t, events.CodeInvalidInput)
	require.Contains(t, p.Detail, "expected call to be 3")
}

func TestInTheModeObserveNothingWaitsForAMark(t *testing.T) {
	keyed := newJob(t, 2)
	mark := keyed.marked(keyed.trainers())
	j := newJob(t, 2)
	all := j.trainers(inMode(events.ModeObserve))
	p := all[0].post("/v1/checkpoint", members{"session": all[0].req.Incarnation}).refused(t, events.CodeNotAuthority)
	require.Contains(t, p.Detail, "in the mode observe the log is written behind the trainers' back")
	all[1].resume(mark).ok(t)
	all[0].resume([]byte("x")).refused(t, events.CodeMarkMismatch)
	all[0].resume(mark).ok(t)
	require.Eventually(t, func() bool { return j.log.Node(0).State().Cursor("main").Calls == 2 }, 5*time.Second, time.Millisecond)
	require.Nil(t, j.fault())
}

func TestALargeMarkIsTaken(t *testing.T) {
	j := newJob(t, 1)
	tr := j.trainers()[0]
	if testing.Short() {
		t.Skip("megabytes are slow under the race detector")
	}
	p := tr.resume(make([]byte, api.BodyBytesMax)).refused(t, events.CodeMarkMismatch)
	require.Contains(t, p.Detail, "expected it to begin with")
	tr.step(0, members{"site2": string(make([]byte, api.BodyBytesMax))}).refused(t, events.CodeInvalidInput)
}
