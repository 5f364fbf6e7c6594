package door_test

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/events"
)

func health(v float64) api.Readings {
	return api.Readings{Health: api.Value(events.Num(v)), Accuracy: api.Value(events.Num(70))}
}

// toTraining brings r0c0 to TRAINING on both ranks.
func toTraining(t *testing.T, j *job, trainers []*client.Client) {
	t.Helper()
	for _, c := range trainers {
		_, err := c.Germinate(j.ctx(), "r0c0", conv())
		require.NoError(t, err)
		d, err := c.Advance(j.ctx(), "r0c0")
		require.NoError(t, err)
		require.True(t, d.Agreed)
	}
}

func TestOwnVerdictsThatDifferAreReported(t *testing.T) {
	j := newJob(t, 2)
	trainers := j.connect()
	toTraining(t, j, trainers)
	readings := [2]api.Readings{health(0.9), health(0.2)}
	var d [2]*api.Decision
	for rank, c := range trainers {
		c.Observe("r0c0", readings[rank])
		c.Observe("r0c0", api.Readings{GradientNorm: api.Value(events.Num(math.NaN()))}) // never a reason to fail
		var err error
		d[rank], err = c.Advance(j.ctx(), "r0c0")
		require.NoError(t, err)
		require.True(t, d[rank].Passed, "rank 0 decides for all")
		require.Equal(t, events.StageBlending, d[rank].Stage)
	}
	require.True(t, d[0].Agreed)
	require.Equal(t, d[0].Verdict, *d[0].Local)
	require.False(t, d[1].Agreed)
	require.False(t, d[1].Local.Passed)
	require.Equal(t, []string{"gradient_health_low_0.20_need_0.70"}, d[1].Local.ChecksFailed)

	reports := j.log.Node(1).Verdicts()
	require.Len(t, reports, 1)
	require.Equal(t, uint64(1), reports[0].Rank)
	require.Equal(t, d[1].Index, reports[0].Index)
	require.Equal(t, events.OpAdvance, reports[0].Key.Op)
	require.Contains(t, reports[0].Site, "shadow_test.go:")
	require.Empty(t, j.log.Node(0).Verdicts())

	require.NoError(t, j.log.Node(1).WriteReports())
	a := client.NewAdmin(j.socket(0))
	defer a.Close()
	div, err := a.Divergences(j.ctx())
	require.NoError(t, err)
	require.Equal(t, []api.VerdictCount{{Rank: 1, Count: 1}}, div.Verdicts)
	for _, c := range trainers { // reports between two calls are in nobody's way
		require.NoError(t, step(0)(c, j))
	}
}

func TestOwnVerdictsFollowTheStagesOfTheLog(t *testing.T) {
	j := newJob(t, 2)
	strict := *permissive()
	strict.Permissive, strict.MinBlendingEpochs = false, 2
	trainers := j.connect(func(o *client.Options) { o.Gates = &strict })
	toTraining(t, j, trainers)
	measure := func(c *client.Client, accuracy float64) {
		c.Observe("r0c0", api.Readings{Accuracy: api.Value(events.Num(accuracy)), GradientRatio: api.Value(events.Num(0.5))})
	}
	// Rank 1 improves by less than rank 0, and only from the second epoch on.
	for epoch, accuracies := range [][2]float64{{50, 50}, {52, 50.1}} {
		for rank, c := range trainers {
			measure(c, accuracies[rank])
			require.NoError(t, step(int64(epoch))(c, j))
		}
	}
	for rank, c := range trainers {
		d, err := c.Advance(j.ctx(), "r0c0")
		require.NoError(t, err)
		require.True(t, d.Passed)
		require.Equal(t, rank == 0, d.Agreed)
		if rank == 1 {
			require.Equal(t, []string{"global_improvement_insufficient_0.10%"}, d.Local.ChecksFailed)
			require.Contains(t, d.Local.ChecksPassed, "seed_ready", "epochs are counted as rank 0's are")
		}
	}
	// In BLENDING the epochs and the baseline begin anew, on rank 1 as well.
	for epoch := range int64(5) {
		for _, c := range trainers {
			measure(c, 60)
			require.NoError(t, step(epoch+2)(c, j))
		}
	}
	for _, c := range trainers {
		d, err := c.Advance(j.ctx(), "r0c0")
		require.NoError(t, err)
		require.Equal(t, events.StageHolding, d.Stage)
		require.True(t, d.Agreed)
		require.Contains(t, d.Local.ChecksPassed, "blending_complete")
	}
}

func TestATrainersOwnVerdictIsItsLocalOne(t *testing.T) {
	j := newJob(t, 2)
	trainers := j.connect()
	toTraining(t, j, trainers)
	verdicts := [2]events.Verdict{{Gate: events.G2, Passed: false, Score: 0.1, ChecksFailed: []string{"mine"}}, {Gate: events.G2, Passed: true, Score: 1}}
	for rank, c := range trainers {
		d, err := c.Verdict(j.ctx(), "r0c0", verdicts[rank])
		require.NoError(t, err)
		require.False(t, d.Passed)
		require.Equal(t, []string{"mine"}, d.ChecksFailed)
		require.Equal(t, events.StageTraining, d.Stage)
		require.Equal(t, rank == 0, d.Agreed)
		require.Equal(t, verdicts[rank].Passed, d.Local.Passed)
	}
	require.Len(t, j.log.Node(1).Verdicts(), 1)
	// A gate that passes where its stage cannot be entered decides nothing, on
	// either rank, so they agree.
	for _, c := range trainers {
		d, err := c.Verdict(j.ctx(), "r0c0", events.Verdict{Gate: events.G5, Passed: true})
		require.NoError(t, err)
		require.Equal(t, []string{"transition_failed"}, d.ChecksFailed)
		require.True(t, d.Agreed)
	}
	// A score that is no number is refused from rank 0 and harmless from others.
	for i, scores := range [][2]float64{{0.5, math.NaN()}, {math.NaN(), 0.5}} {
		for rank, c := range trainers {
			d, err := c.Verdict(j.ctx(), "r0c0", events.Verdict{Gate: events.G2, Score: scores[rank]})
			if i == 1 {
				require.ErrorIs(t, err, client.ErrInvalidInput)
				continue
			}
			require.NoError(t, err)
			require.Equal(t, rank == 1, d.Local == nil)
		}
	}
	require.Len(t, j.log.Node(1).Verdicts(), 1)
}

func TestOwnVerdictsAreUnknownUntilASeedGerminatesHere(t *testing.T) {
	j := newJob(t, 2)
	trainers := j.connect()
	toTraining(t, j, trainers)
	trainers = j.connect() // new processes, in mid-seed
	for rank, c := range trainers {
		c.Observe("r0c0", [2]api.Readings{health(0.9), health(0.2)}[rank])
		d, err := c.Advance(j.ctx(), "r0c0")
		require.NoError(t, err)
		require.Equal(t, rank == 1, d.Local == nil)
		require.True(t, d.Agreed)
		_, err = c.Germinate(j.ctx(), "r0c1", conv())
		require.NoError(t, err)
		d, err = c.Advance(j.ctx(), "r0c1")
		require.NoError(t, err)
		require.NotNil(t, d.Local)
	}
	require.Empty(t, j.log.Node(1).Verdicts())
}

func TestObservationsRideWithTheNextCall(t *testing.T) {
	j := newJob(t, 1)
	c := j.connect()[0]
	_, err := c.Germinate(j.ctx(), "r0c0", conv())
	require.NoError(t, err)
	session := `{"session":"` + c.Session().Session + `",`
	status, body := j.post(0, "/v1/slots/r0c0/observe", session+`"accuracy":41,"gradient_norm":"Infinity","gradient_ratio":null}`)
	require.Equal(t, 200, status, body)
	status, body = j.post(0, "/v1/slots/r0c0/observe", session+`"accuracy":"NaN"}`)
	require.Equal(t, 200, status, body)
	require.Equal(t, 1, decodeAs[api.Observed](t, body).Pending, "of one slot")
	status, body = j.post(0, "/v1/slots/nowhere/observe", session+`"accuracy":41}`)
	require.Equal(t, 404, status)
	require.Contains(t, body, "unknown-slot")

	c.Observe("r0c0", api.Readings{Accuracy: api.NotMeasured[events.Num]()})
	c.Observe("r0c0", accuracy(43)) // the body's come after those of POST .../observe
	f, err := c.StepEpoch(j.ctx(), 0)
	require.NoError(t, err)
	m := f.Slots[0].Metrics
	require.Equal(t, events.Num(43), m.Accuracy, "the last one of an epoch counts")
	require.Equal(t, int64(1), m.Epochs)
	require.True(t, math.IsInf(float64(*m.GradientNorm), 1))
	require.Nil(t, m.GradientRatio)
	e, _, err := j.log.Node(0).Entry(f.Index)
	require.NoError(t, err)
	require.Len(t, e.Events, 2, "one Observed, one EpochStepped")
	f, err = c.StepEpoch(j.ctx(), 1)
	require.NoError(t, err)
	require.Equal(t, int64(1), f.Slots[0].Metrics.Epochs, "they ride once")
}
