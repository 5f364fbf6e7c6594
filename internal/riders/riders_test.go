package riders

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

func slots(list []api.Observation) (out []string) {
	for _, o := range list {
		out = append(out, o.Slot)
	}
	return out
}

func accuracy(v float64) api.Readings { return api.Readings{Accuracy: api.Value(events.Num(v))} }

func TestRidersGoWithOneCall(t *testing.T) {
	var r Riders
	for i, slot := range []string{"b", "a", "c"} {
		require.Equal(t, i+1, r.Add(api.Observation{Slot: slot}))
	}
	require.Equal(t, []string{"b", "a", "c"}, slots(r.Board()), "in the order of the first ones")
	require.Equal(t, 4, r.Add(api.Observation{Slot: "late"}))
	require.Len(t, r.Board(), 3, "a second try of the same call")
	r.Land()
	require.Equal(t, []string{"late"}, slots(r.Board()))
	r.Stay()
	r.Add(api.Observation{Slot: "later"})
	require.Equal(t, []string{"late", "later"}, slots(r.Board()), "the call before was not made")
}

func TestASlotIsThereOnce(t *testing.T) {
	var r Riders
	r.Add(api.Observation{Slot: "a", Readings: accuracy(1)})
	r.Add(api.Observation{Slot: "b", Readings: accuracy(2)})
	for range 1000 {
		require.Equal(t, 2, r.Add(api.Observation{Slot: "a", Readings: accuracy(3)}))
	}
	aboard := r.Board()
	require.Equal(t, []api.Observation{{Slot: "a", Readings: accuracy(3)}, {Slot: "b", Readings: accuracy(2)}}, aboard)
	require.Equal(t, 3, r.Add(api.Observation{Slot: "a", Readings: accuracy(4)}))
	require.Equal(t, accuracy(3), r.Board()[0].Readings, "what is aboard stays as it is")
	r.Stay()
	require.Equal(t, 2, r.Add(api.Observation{Slot: "b", Readings: api.Readings{Healthy: api.Value(true)}}))
	b := accuracy(2)
	b.Healthy = api.Value(true)
	require.Equal(t, []api.Observation{{Slot: "a", Readings: accuracy(4)}, {Slot: "b", Readings: b}}, r.Board())
}

func TestALaterFieldReplacesTheEarlierOne(t *testing.T) {
	num := func(v float64) api.Reading[events.Num] { return api.Value(events.Num(v)) }
	full := api.Readings{Accuracy: num(1), GradientRatio: num(2), GradientNorm: num(3), Health: num(4),
		Exploding: api.Value(true), Vanishing: api.Value(true), Contribution: num(5), Healthy: api.Value(true)}
	null := api.Readings{Accuracy: api.NotMeasured[events.Num](), GradientRatio: api.NotMeasured[events.Num](), GradientNorm: api.NotMeasured[events.Num](),
		Health: api.NotMeasured[events.Num](), Exploding: api.NotMeasured[bool](), Vanishing: api.NotMeasured[bool](),
		Contribution: api.NotMeasured[events.Num](), Healthy: api.NotMeasured[bool]()}
	nullButAccuracy := null
	nullButAccuracy.Accuracy = full.Accuracy
	for name, tc := range map[string]struct{ first, second, want api.Readings }{
		"absent leaves":                 {full, api.Readings{}, full},
		"given replaces absent":         {api.Readings{}, full, full},
		"null replaces, but accuracy":   {full, null, nullButAccuracy},
		"a value replaces null":         {null, full, full},
		"null replaces absent":          {api.Readings{}, null, null},
		"fields of both":                {accuracy(1), api.Readings{Health: num(4)}, api.Readings{Accuracy: num(1), Health: num(4)}},
		"a second accuracy is the last": {accuracy(1), accuracy(9), accuracy(9)},
	} {
		got := Merge([]api.Observation{{Slot: "a", Readings: tc.first}}, []api.Observation{{Slot: "a", Readings: tc.second}})
		require.Equal(t, []api.Observation{{Slot: "a", Readings: tc.want}}, got, name)
	}
	require.Empty(t, Merge(nil, nil))
}
