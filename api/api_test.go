package api

import (
	"encoding/json"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
)

func TestReadingsAreAbsentNullOrAValue(t *testing.T) {
	for text, want := range map[string]Readings{
		`{}`:                          {},
		`{"accuracy":null}`:           {Accuracy: NotMeasured[events.Num]()},
		`{"accuracy":93.5}`:           {Accuracy: Value(events.Num(93.5))},
		`{"accuracy":"-Infinity"}`:    {Accuracy: Value(events.Num(math.Inf(-1)))},
		`{"has_exploding":false}`:     {Exploding: Value(false)},
		`{"healthy":null}`:            {Healthy: NotMeasured[bool]()},
		`{"gradient_ratio":0}`:        {GradientRatio: Value(events.Num(0))},
		`{"contribution":0.25}`:       {Contribution: Value(events.Num(0.25))},
		`{"gradient_health":"NaN"}`:   {},
		`{"gradient_norm":1e300}`:     {GradientNorm: Value(events.Num(1e300))},
		`{"has_vanishing":true}`:      {Vanishing: Value(true)},
		`{"gradient_norm":-0.000001}`: {GradientNorm: Value(events.Num(-1e-6))},
	} {
		var got Readings
		require.NoError(t, json.Unmarshal([]byte(text), &got))
		if text == `{"gradient_health":"NaN"}` {
			require.True(t, math.IsNaN(float64(*got.Health.Value)))
		} else {
			require.Equal(t, want, got)
		}
		b, err := json.Marshal(got)
		require.NoError(t, err)
		require.JSONEq(t, text, string(b))
	}
}

func TestObservationsReplaceWithinATick(t *testing.T) {
	o := Observation{Slot: "r0c0", Readings: Readings{Accuracy: Value(events.Num(1)), Healthy: NotMeasured[bool]()}}.FSM()
	require.True(t, o.Replace)
	require.Equal(t, "r0c0", o.Slot)
	require.Equal(t, events.Num(1), *o.Accuracy.Value)
	require.True(t, o.Healthy.Given)
	require.Nil(t, o.Healthy.Value)
	require.False(t, o.GradientNorm.Given)
}

func TestEntriesKeepTheirPlaceInJSON(t *testing.T) {
	e := Entry{Index: 7, Chain: events.Digest{1}, Refused: "why", Entry: events.Entry{Version: 1, Kind: events.KindCall, Predecessor: 5,
		Key: &events.Key{Call: 3, Op: events.OpFence}, Events: []events.Event{{Fenced: &events.Fenced{N: 2}}}}}
	b, err := json.Marshal(e)
	require.NoError(t, err)
	require.Contains(t, string(b), `"events":[{"type":"fenced","n":2}]`)
	var got Entry
	require.NoError(t, json.Unmarshal(b, &got))
	require.Equal(t, e, got)
}
