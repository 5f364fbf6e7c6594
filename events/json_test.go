package events

import (
	"encoding/json"
	"math"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// requireJSON checks that an event survives JSON, bit by bit.
func requireJSON(t testingT, ev Event) {
	t.Helper()
	want, err := Marshal(ev)
	require.NoError(t, err)
	j, err := json.Marshal(ev)
	require.NoError(t, err)
	var back Event
	require.NoError(t, json.Unmarshal(j, &back), "%s", j)
	got, err := Marshal(back)
	require.NoError(t, err)
	require.Equal(t, want, got, "%s", j)
}

func TestEventJSON(t *testing.T) {
	for i := range payloadNames {
		requireJSON(t, inOrder().event(i))
	}
	ev := Event{StageChanged: &StageChanged{Slot: "r0c1", Seed: math.MaxUint64, From: StageTraining, To: StageBlending, Alpha: 0.1,
		AccuracyDelta: Num(math.NaN())}}
	j, err := json.Marshal([]Event{ev})
	require.NoError(t, err)
	require.Equal(t, `[{"type":"stage_changed","slot":"r0c1","seed":18446744073709551615,"from":"TRAINING","to":"BLENDING","alpha":0.1,"accuracy_delta":"NaN","epochs_in_stage":0}]`,
		string(j))
}

func TestEventJSONRefuses(t *testing.T) {
	for in, want := range map[string]string{
		`{}`:                                     "needs a type",
		`{"type":7}`:                             "needs a type",
		`null`:                                   "needs a type",
		`{"type":"stage_changes"}`:               "unknown event type",
		`{"type":"fenced","n":1,"m":2}`:          "unknown field",
		`{"type":"fenced","n":"x"}`:              "cannot unmarshal",
		`{"type":"stage_changed","from":"DEAD"}`: "unknown stage",
		`[]`:                                     "cannot unmarshal",
	} {
		var ev Event
		require.ErrorContains(t, json.Unmarshal([]byte(in), &ev), want, in)
		require.Equal(t, Event{}, ev)
	}
	_, err := json.Marshal(Event{})
	require.Error(t, err)
}

// "type" is the event's: no payload may have such a field.
func TestNoPayloadFieldIsCalledType(t *testing.T) {
	events := reflect.TypeFor[Event]()
	for i := range events.NumField() {
		payload := events.Field(i).Type.Elem()
		for j := range payload.NumField() {
			name, _, _ := strings.Cut(payload.Field(j).Tag.Get("json"), ",")
			require.NotEmpty(t, name, "%s.%s", payload, payload.Field(j).Name)
			require.NotEqual(t, "type", name)
		}
	}
}

func FuzzEventJSON(f *testing.F) {
	lines, err := os.ReadFile("testdata/events.ndjson")
	require.NoError(f, err)
	for _, line := range strings.Split(string(lines), "\n") {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var ev Event
		if json.Unmarshal(b, &ev) != nil {
			return
		}
		if _, err := json.Marshal(ev); err != nil {
			t.Fatalf("%s is read, not written: %v", b, err)
		}
		requireJSON(t, ev)
	})
}
