package fsm

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/esperd/esperd/events"
)

func TestNewController(t *testing.T) {
	got := NewController(events.Controller{Alpha: -1, Start: 2, Target: math.NaN(), Mode: events.ModeUp,
		Curve: events.CurveCosine, Steepness: math.NaN(), Total: -3, Done: 5})
	require.Equal(t, events.Controller{Alpha: 0, Start: 1, Target: 1, Mode: events.ModeUp,
		Curve: events.CurveCosine, Steepness: 0.1}, got, "mode and curve are kept, even where they contradict")
	got = NewController(events.Controller{Alpha: math.Copysign(0, -1), Curve: events.CurveLinear, Steepness: 12, Total: 2, Done: 9})
	require.False(t, math.Signbit(got.Alpha))
	require.EqualValues(t, 2, got.Done)
}

func TestRetarget(t *testing.T) {
	rest := events.Controller{Alpha: 0.5, Start: 0.2, Target: 0.5, Mode: events.ModeHold, Curve: events.CurveLinear, Steepness: 12, Total: 7, Done: 7}
	cosine, low := events.CurveCosine, 0.01
	for _, c := range []struct {
		name      string
		target    float64
		ticks     int64
		curve     *events.Curve
		steepness *float64
		want      events.Controller
	}{
		{"up", 1, 3, nil, nil, events.Controller{Alpha: 0.5, Start: 0.5, Target: 1, Mode: events.ModeUp, Curve: events.CurveLinear, Steepness: 12, Total: 3}},
		{"down, other curve", 0, 3, &cosine, &low, events.Controller{Alpha: 0.5, Start: 0.5, Target: 0, Mode: events.ModeDown, Curve: events.CurveCosine, Steepness: 0.1, Total: 3}},
		{"at once", 1, 0, nil, nil, events.Controller{Alpha: 1, Start: 0.5, Target: 1, Mode: events.ModeHold, Curve: events.CurveLinear, Steepness: 12}},
		{"negative ticks", 1, -3, nil, nil, events.Controller{Alpha: 1, Start: 0.5, Target: 1, Mode: events.ModeHold, Curve: events.CurveLinear, Steepness: 12}},
		{"to where it is: never counts up", 0.5, 4, nil, nil, events.Controller{Alpha: 0.5, Start: 0.5, Target: 0.5, Mode: events.ModeHold, Curve: events.CurveLinear, Steepness: 12, Total: 4}},
		{"beyond the range", 7, 1, nil, nil, events.Controller{Alpha: 0.5, Start: 0.5, Target: 1, Mode: events.ModeUp, Curve: events.CurveLinear, Steepness: 12, Total: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Retarget(rest, c.target, c.ticks, c.curve, c.steepness)
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
	moving, err := Retarget(rest, 1, 3, nil, nil)
	require.NoError(t, err)
	again, err := Retarget(moving, 0, 1, &cosine, &low)
	require.ErrorIs(t, err, ErrRamping)
	require.Equal(t, moving, again)
}

func TestStep(t *testing.T) {
	for _, c := range []struct {
		curve events.Curve
		want  []float64
	}{
		{events.CurveLinear, []float64{0.25, 0.5, 0.75, 1}},
		{events.CurveCosine, []float64{0.14644660940672627, 0.5, 0.8535533905932737, 1}},
		{events.CurveSigmoid, []float64{0.04517665973091212, 0.5, 0.9548233402690879, 1}},
	} {
		a, err := Retarget(NewController(events.Controller{Curve: c.curve, Steepness: 12}), 1, 4, nil, nil)
		require.NoError(t, err)
		for i, want := range c.want {
			var reached bool
			a, reached = Step(a)
			require.InDelta(t, want, a.Alpha, 1e-12)
			require.Equal(t, i == 3, reached)
		}
		after, reached := Step(a)
		require.False(t, reached)
		require.Equal(t, a, after)
	}
}

// A ramp stays between its ends, never turns, and arrives exactly.
func TestRampProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		unit := rapid.Float64Range(0, 1)
		c := NewController(events.Controller{Alpha: unit.Draw(t, "alpha"), Steepness: rapid.Float64Range(-5, 1e6).Draw(t, "steepness"),
			Curve: rapid.SampledFrom([]events.Curve{events.CurveLinear, events.CurveCosine, events.CurveSigmoid}).Draw(t, "curve")})
		target, ticks := unit.Draw(t, "target"), rapid.Int64Range(1, 60).Draw(t, "ticks")
		start := c.Alpha
		c, err := Retarget(c, target, ticks, nil, nil)
		require.NoError(t, err)
		for n := int64(1); c.Mode != events.ModeHold; n++ {
			before := c.Alpha
			var reached bool
			c, reached = Step(c)
			require.Equal(t, n == ticks, reached)
			require.GreaterOrEqual(t, c.Alpha, min(start, target))
			require.LessOrEqual(t, c.Alpha, max(start, target))
			const slack = 1e-12 // neighbouring steps of a steep curve may round either way
			require.GreaterOrEqual(t, (c.Alpha-before)*(target-start), -slack)
		}
		require.Equal(t, target, c.Alpha)
	})
}
