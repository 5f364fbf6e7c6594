package door_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/events"
)

func conv() api.GerminateRequest { return api.GerminateRequest{Blueprint: "conv"} }

func TestSwappedCallsNeverApplyAVerdictToTheWrongSlot(t *testing.T) {
	j := newJob(t, 3)
	trainers := j.connect()
	ctx := j.ctx()
	for _, c := range trainers {
		for _, slot := range []string{"r0c0", "r0c1"} {
			_, err := c.Germinate(ctx, slot, conv())
			require.NoError(t, err)
		}
	}
	_, err := trainers[0].Advance(ctx, "r0c0")
	require.NoError(t, err)
	_, err = trainers[1].Advance(ctx, "r0c1") // rank 1 has them the other way round
	require.ErrorIs(t, err, client.ErrOrderMismatch)
	p := problem(t, err)
	require.Equal(t, []string{"slot"}, p.Differs)
	require.Equal(t, "r0c1", p.Got.Slot)
	require.Equal(t, "r0c0", p.Want.Slot)
	require.Regexp(t, `match_test.go:\d+`, p.GotSite)
	require.Regexp(t, `match_test.go:\d+`, p.WantSite)
	require.NotEqual(t, p.GotSite, p.WantSite)
	require.Regexp(t, `rank 1 is at call 3, advance r0c1#1 epoch -1 at match_test.go:\d+, but rank 0 made call 3, advance r0c0#1 epoch -1 at match_test.go:\d+: they differ in slot; every rank has to`, p.Detail)
	require.Len(t, p.Last, 3, "every rank's last call")

	// The round is over for all, and everybody is told who and where.
	for _, rank := range []int{0, 1, 2} {
		_, err := trainers[rank].StepEpoch(ctx, 0)
		require.ErrorIs(t, err, client.ErrRoundFaulted, "rank %d", rank)
		p := problem(t, err)
		require.Equal(t, uint64(1), p.Fault.Rank)
		require.Equal(t, "r0c1", p.Got.Slot)
		require.NotEmpty(t, p.WantSite)
		require.Contains(t, p.Detail, "rank 1 was at call 3, advance r0c1#1")
	}

	// Connecting anew on all ranks opens the next round.
	again := j.connect()
	for _, c := range again {
		require.Equal(t, uint64(2), c.Session().Round)
		require.Equal(t, uint64(1), c.Session().NextCall)
		_, err := c.StepEpoch(ctx, 0)
		require.NoError(t, err)
	}
	_, err = trainers[2].StepEpoch(ctx, 0)
	require.ErrorIs(t, err, client.ErrNotAuthority, "the old trainer")
}

func TestMissingAndExtraCallsAreNamed(t *testing.T) {
	for name, tc := range map[string]struct {
		rank0, rank1 func(c *client.Client, j *job) error
		code         error
		text         string
	}{
		"missing": {prune, step(0), client.ErrMissingCall, "rank 1 did not make that call"},
		"extra":   {step(0), prune, client.ErrOrderMismatch, "rank 1 made a call more than rank 0 before that one"},
		"epoch":   {step(0), step(1), client.ErrOrderMismatch, "they differ in epoch, args"},
		"args":    {pruneFor("loss"), pruneFor("norm"), client.ErrOrderMismatch, "the same call with other arguments"},
		"op":      {prune, advance, client.ErrOrderMismatch, "they differ in op, args"},
		"fences":  {step(0), fence(0), client.ErrOrderMismatch, "they differ in op, epoch, args"},
	} {
		t.Run(name, func(t *testing.T) {
			j := newJob(t, 2)
			trainers := j.connect()
			for _, c := range trainers {
				_, err := c.Germinate(j.ctx(), "r0c0", conv())
				require.NoError(t, err)
			}
			require.NoError(t, tc.rank0(trainers[0], j))
			err := tc.rank1(trainers[1], j)
			require.ErrorIs(t, err, tc.code)
			require.Contains(t, err.Error(), tc.text)
			err = step(7)(trainers[0], j)
			require.ErrorIs(t, err, client.ErrRoundFaulted)
			var told *client.Problem
			require.ErrorAs(t, err, &told)
			require.Equal(t, []uint64{0, 1}, []uint64{told.Last[0].Rank, told.Last[1].Rank}, "what each rank did last")
			require.Equal(t, uint64(1), j.log.Node(0).State().Round.Fault.Rank)
		})
	}
}

func step(epoch int64) func(*client.Client, *job) error {
	return func(c *client.Client, j *job) error { _, err := c.StepEpoch(j.ctx(), epoch); return err }
}

func fence(n int64) func(*client.Client, *job) error {
	return func(c *client.Client, j *job) error { _, err := c.Fence(j.ctx(), n); return err }
}

func pruneFor(reason string) func(*client.Client, *job) error {
	return func(c *client.Client, j *job) error {
		_, err := c.Prune(j.ctx(), "r0c0", api.PruneRequest{Reason: reason})
		return err
	}
}

func prune(c *client.Client, j *job) error   { return pruneFor("")(c, j) }
func advance(c *client.Client, j *job) error { _, err := c.Advance(j.ctx(), "r0c0"); return err }

func TestAFaultWakesRanksThatWait(t *testing.T) {
	j := newJob(t, 3)
	trainers := j.connect()
	require.NoError(t, step(0)(trainers[0], j))
	require.NoError(t, step(0)(trainers[2], j))
	waits := make(chan error)
	go func() { waits <- step(1)(trainers[2], j) }()
	j.waiting(2)
	require.ErrorIs(t, step(9)(trainers[1], j), client.ErrOrderMismatch)
	err := <-waits
	require.ErrorIs(t, err, client.ErrRoundFaulted)
	require.Equal(t, uint64(1), problem(t, err).Fault.Rank)
}

func TestAFaultIsWrittenInTheBackground(t *testing.T) {
	j := newJob(t, 2)
	trainers := j.connect()
	require.NoError(t, step(0)(trainers[0], j))
	j.log.Node(1).Refuse(fmt.Errorf("no leader"))
	began := time.Now()
	require.ErrorIs(t, step(1)(trainers[1], j), client.ErrOrderMismatch)
	require.Less(t, time.Since(began), 10*time.Second, "the answer does not wait for ever")
	require.Nil(t, j.log.Node(0).State().Round.Fault)
	j.log.Node(1).Refuse(nil)
	require.Eventually(t, func() bool { return j.log.Node(0).State().Round.Fault != nil }, 5*time.Second, time.Millisecond)
	require.Equal(t, events.CodeOrderMismatch, j.log.Node(0).State().Round.Fault.Code)
}

func TestRefusedCallsAreEntriesAndEqualOnAllRanks(t *testing.T) {
	j := newJob(t, 2)
	trainers := j.connect()
	ctx := j.ctx()
	calls := map[string]func(*client.Client) error{
		"unknown slot": func(c *client.Client) error { _, err := c.Prune(ctx, "nowhere", api.PruneRequest{}); return err },
		"empty slot":   func(c *client.Client) error { _, err := c.Prune(ctx, "r0c0", api.PruneRequest{}); return err },
		"tempo": func(c *client.Client) error {
			_, err := c.Germinate(ctx, "r0c0", api.GerminateRequest{Blueprint: "conv", Tempo: new(int64(0))})
			return err
		},
		"epoch": func(c *client.Client) error { _, err := c.StepEpoch(ctx, -5); return err },
	}
	for _, name := range []string{"unknown slot", "empty slot", "tempo", "epoch"} {
		var seen [2]*client.Problem
		for rank, c := range trainers {
			seen[rank] = problem(t, calls[name](c))
			require.Positive(t, seen[rank].Index, name)
		}
		require.Equal(t, seen[0], seen[1], name)
	}
	for _, c := range trainers { // the numbers went on, and so does everything else
		_, err := c.StepEpoch(ctx, 0)
		require.NoError(t, err)
	}
}

func TestFossilizingHasToBeNamed(t *testing.T) {
	j := newJob(t, 2)
	trainers := j.connect()
	ctx := j.ctx()
	var refused [2]*client.Problem
	var last [2]*api.Decision
	for rank, c := range trainers {
		_, err := c.Germinate(ctx, "r0c0", conv())
		require.NoError(t, err)
		for i, gate := range []events.Gate{events.G1, events.G2, events.G3} {
			_, err := c.Verdict(ctx, "r0c0", events.Verdict{Gate: gate, Passed: true})
			require.NoError(t, err, i)
		}
		_, err = c.Advance(ctx, "r0c0")
		require.ErrorIs(t, err, client.ErrInvalidInput)
		require.Contains(t, err.Error(), `pass target "FOSSILIZED"`)
		refused[rank] = problem(t, err)
		c.Observe("r0c0", api.Readings{Contribution: api.Value(events.Num(3))})
		last[rank], err = c.Advance(ctx, "r0c0", events.StageFossilized)
		require.NoError(t, err)
		require.Equal(t, events.StageFossilized, last[rank].Stage)
	}
	require.Equal(t, refused[0], refused[1])
	require.Equal(t, last[0].Index, refused[0].Index+1, "the refusal is an entry")
	require.Equal(t, last[0], last[1])
}

// A rank that named the target where rank 0 did not made another call.
func TestARankThatFossilizesWhereRank0DidNot(t *testing.T) {
	j := newJob(t, 2)
	trainers := j.connect()
	for _, c := range trainers {
		_, err := c.Germinate(j.ctx(), "r0c0", conv())
		require.NoError(t, err)
		for _, gate := range []events.Gate{events.G1, events.G2, events.G3} {
			_, err := c.Verdict(j.ctx(), "r0c0", events.Verdict{Gate: gate, Passed: true})
			require.NoError(t, err)
		}
	}
	require.ErrorIs(t, advance(trainers[0], j), client.ErrInvalidInput)
	_, err := trainers[1].Advance(j.ctx(), "r0c0", events.StageFossilized)
	require.ErrorIs(t, err, client.ErrOrderMismatch)
	require.Equal(t, []string{"args"}, problem(t, err).Differs)
}

func TestProblemsTellTheLastCallsOfTheirModel(t *testing.T) {
	j := newJob(t, 2)
	trainers := j.connect()
	var others [2]*client.Client
	var wg sync.WaitGroup
	for rank, c := range trainers {
		wg.Go(func() {
			var err error
			others[rank], err = c.Model(j.ctx(), "critic")
			require.NoError(t, err)
			t.Cleanup(func() { others[rank].Close() })
		})
	}
	wg.Wait()
	for _, c := range trainers {
		for epoch := range int64(12) {
			require.NoError(t, step(epoch)(c, j))
		}
	}
	for _, c := range others { // another model is the last one that both called
		require.NoError(t, fence(7)(c, j))
	}

	a := j.admins(0)["admin door"]
	ranks, err := a.Ranks(j.ctx())
	require.NoError(t, err)
	for _, r := range ranks.Ranks {
		require.Equal(t, "critic", r.Last.Key.Model, "of any model")
		require.Len(t, r.Recent, 2)
		require.Equal(t, *r.Last, r.Recent[0])
	}
	require.NoError(t, a.Get(j.ctx(), "/v1/ranks?model=main", ranks))
	for rank, r := range ranks.Ranks {
		require.Len(t, r.Recent, 8)
		for i, c := range r.Recent {
			require.Equal(t, uint64(rank), c.Rank)
			require.Equal(t, "main", c.Key.Model)
			require.Equal(t, int64(11-i), c.Key.Epoch)
		}
		require.Equal(t, *r.Last, r.Recent[0])
	}

	require.NoError(t, step(12)(trainers[0], j))
	err = step(13)(trainers[1], j)
	require.ErrorIs(t, err, client.ErrOrderMismatch)
	p := problem(t, err)
	require.Len(t, p.Last, 2)
	for rank, epoch := range []int64{12, 11} {
		require.Equal(t, uint64(rank), p.Last[rank].Rank)
		require.Equal(t, "main", p.Last[rank].Key.Model)
		require.Equal(t, epoch, p.Last[rank].Key.Epoch)
	}
	require.Len(t, p.Recent, 8)
	require.Equal(t, p.Last[1], p.Recent[0])
}

func TestModelsGoOnWithoutEachOther(t *testing.T) {
	j := newJob(t, 2)
	trainers := j.connect()
	var others [2]*client.Client
	var wg sync.WaitGroup
	for rank, c := range trainers {
		wg.Go(func() {
			var err error
			others[rank], err = c.Model(j.ctx(), "critic")
			require.NoError(t, err)
			t.Cleanup(func() { others[rank].Close() })
		})
	}
	wg.Wait()
	waits := make(chan error)
	go func() { waits <- step(0)(trainers[1], j) }() // main waits on rank 1 ...
	j.waiting(1)
	require.NoError(t, step(0)(others[0], j))
	require.NoError(t, step(0)(others[1], j)) // ... and critic does not
	require.NoError(t, step(0)(trainers[0], j))
	require.NoError(t, <-waits)
}

func TestARankThatLagsSeesEachModelAsItWas(t *testing.T) {
	j := newJob(t, 2)
	models := [][2]*client.Client{}
	for _, name := range []string{"a", "b", "c"} {
		trainers := j.connect(func(o *client.Options) { o.Model, o.Incarnation = name, fmt.Sprintf("%032d", o.Rank) })
		models = append(models, [2]*client.Client(trainers))
	}
	var fences [2][]*api.Fence
	for rank := range 2 {
		for _, m := range models {
			_, err := m[rank].Germinate(j.ctx(), "r0c0", conv())
			require.NoError(t, err)
		}
		for epoch := range int64(10) {
			for i, m := range models {
				m[rank].Observe("r0c0", accuracy(float64(50+epoch)*float64(i+1)))
				f, err := m[rank].StepEpoch(j.ctx(), epoch)
				require.NoError(t, err)
				fences[rank] = append(fences[rank], f)
			}
		}
	}
	require.Equal(t, fences[0], fences[1])
}
