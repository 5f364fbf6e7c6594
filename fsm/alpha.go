package fsm

import (
	"errors"
	"math"

	"github.com/esperd/esperd/events"
)

// The alpha controller (lifecycle contract, section 4): pure functions on
// events.Controller, called by Decide only. Products are wrapped in float64 so
// that no compiler fuses them into the addition that follows: with fused ones
// two builds would differ in the last bit of what they propose.

const (
	// defaultSteepness is that of a seed's first ramp.
	defaultSteepness = 12.0
	// minSteepness keeps SIGMOID from degenerating into 0/0.
	minSteepness = 0.1
	// alphaEpsilon is how near two alphas count as equal, and a target as full
	// or as none.
	alphaEpsilon = 1e-6
)

// ErrRamping is what Retarget returns while a ramp is running.
var ErrRamping = errors.New("the controller is moving: it can be retargeted in HOLD only")

// freshController is what a seed germinates with.
var freshController = events.Controller{Mode: events.ModeHold, Curve: events.CurveLinear, Steepness: defaultSteepness}

// NewController brings given fields into their ranges (section 4.1). Mode and
// curve are taken as they are, even where they contradict the numbers.
func NewController(c events.Controller) events.Controller {
	c.Alpha, c.Start, c.Target = clamp(c.Alpha), clamp(c.Start), clamp(c.Target)
	c.Steepness = floorSteepness(c.Steepness)
	c.Total = max(0, c.Total)
	c.Done = min(max(0, c.Done), c.Total)
	return c
}

// Retarget starts a ramp from the controller's alpha to target in the given
// number of ticks, at once if that is 0 or less (section 4.2). A nil curve or
// steepness stays as it was. While a ramp is running the error is ErrRamping
// and nothing changes.
func Retarget(c events.Controller, target float64, ticks int64, curve *events.Curve, steepness *float64) (events.Controller, error) {
	if c.Mode != events.ModeHold {
		return c, ErrRamping
	}
	c.Start, c.Target = c.Alpha, clamp(target)
	c.Total, c.Done = max(0, ticks), 0
	if curve != nil {
		c.Curve = *curve
	}
	if steepness != nil {
		c.Steepness = floorSteepness(*steepness)
	}
	switch {
	case c.Target > c.Alpha:
		c.Mode = events.ModeUp
	case c.Target < c.Alpha:
		c.Mode = events.ModeDown
	}
	if c.Total == 0 {
		c.Alpha, c.Mode = c.Target, events.ModeHold
	}
	return c, nil
}

// Step moves a running ramp on by one tick and reports whether the target was
// reached on it (section 4.3).
func Step(c events.Controller) (events.Controller, bool) {
	if c.Mode == events.ModeHold || c.Total == 0 {
		return c, false
	}
	c.Done++
	if c.Done >= c.Total {
		c.Done, c.Alpha, c.Mode = c.Total, c.Target, events.ModeHold
		return c, true
	}
	p := ease(c.Curve, c.Steepness, float64(c.Done)/float64(c.Total))
	v := clamp(c.Start + float64((c.Target-c.Start)*p))
	if c.Mode == events.ModeUp {
		c.Alpha = min(max(v, c.Start), c.Target)
	} else {
		c.Alpha = max(min(v, c.Start), c.Target)
	}
	return c, false
}

// ease maps the ramp's progress t to that of alpha, both from 0 to 1.
func ease(curve events.Curve, k, t float64) float64 {
	switch curve {
	case events.CurveCosine:
		return 0.5 * (1 - math.Cos(float64(math.Pi*t)))
	case events.CurveSigmoid:
		low, high := logistic(-k/2), logistic(k/2)
		if high == low {
			return t
		}
		return (logistic(float64(k*(t-0.5))) - low) / (high - low)
	default:
		return t
	}
}

// logistic is 1/(1+e^-x) without overflow.
func logistic(x float64) float64 {
	if x < 0 {
		e := math.Exp(x)
		return e / (1 + e)
	}
	return 1 / (1 + math.Exp(-x))
}

// clamp brings v into [0, 1]. NaN becomes 1 and -0 becomes 0, as with the
// reference's max(0, min(1, v)).
func clamp(v float64) float64 {
	if !(v < 1) {
		return 1
	}
	if !(v > 0) {
		return 0
	}
	return v
}

// floorSteepness is max(0.1, k); NaN becomes 0.1.
func floorSteepness(k float64) float64 {
	if k > minSteepness {
		return k
	}
	return minSteepness
}
