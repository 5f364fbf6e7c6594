package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

type fields = map[string]any

// badCalls: each is refused with what was wrong. Those that a trainer can mean
// are in the log, since the other ranks get the same answer; the rest is not.
func badCalls(t *testing.T) {
	w := startWorld(t, 1)
	c := newCaller(w.nodes[0])
	status, answer := c.connect(nil)
	require.Equal(t, http.StatusOK, status, "%s", answer)
	status, answer = c.do("/v1/slots/r0c0/germinate", fields{"blueprint": "conv"})
	require.Equal(t, http.StatusOK, status, "%s", answer)
	c.step()
	const illegal, invalid, unknown = events.CodeIllegalTransition, events.CodeInvalidInput, events.CodeUnknownSlot
	for _, bad := range []struct {
		name, path string
		args       fields
		status     int
		code       events.Code
		logged     bool
		words      []string
	}{
		{"an unknown slot", "/v1/slots/r9c9/advance", nil, 404, unknown, true, []string{`has no slot "r9c9"`, "its slots are r0c0, r0c1"}},
		{"an occupied slot", "/v1/slots/r0c0/germinate", fields{"blueprint": "conv"}, 409, illegal, true, []string{"expected an empty slot", "GERMINATED", "prune the seed first"}},
		{"nothing to prune", "/v1/slots/r0c1/prune", nil, 409, illegal, true, []string{"expected a seed", "r0c1"}},
		{"a stage that is no aim", "/v1/slots/r0c0/advance", fields{"target": "PRUNED"}, 409, illegal, true, []string{"PRUNED", "use prune()"}},
		{"a ramp too early", "/v1/slots/r0c0/alpha_target", fields{"target": 0.5, "ticks": 3}, 409, illegal, true, []string{"expected a seed in BLENDING or HOLDING", "GERMINATED"}},
		{"a stage that is none", "/v1/slots/r0c0/advance", fields{"target": "FOSSIL"}, 422, invalid, false, []string{"target", "FOSSILIZED"}},
		{"no number", "/v1/slots/r0c1/germinate", fields{"blueprint": "conv", "target": "NaN"}, 422, invalid, true, []string{"expected an alpha above 1e-06 and at most 1, got NaN"}},
		{"too much", "/v1/slots/r0c1/germinate", fields{"blueprint": "conv", "target": 1.5}, 422, invalid, true, []string{"at most 1, got 1.5"}},
		{"too little", "/v1/slots/r0c1/germinate", fields{"blueprint": "conv", "target": 0}, 422, invalid, true, []string{"above 1e-06", "got 0"}},
		{"no time", "/v1/slots/r0c1/germinate", fields{"blueprint": "conv", "tempo": 0}, 422, invalid, true, []string{"tempo: expected 1 to", "got 0"}},
		{"an infinite score", "/v1/slots/r0c0/verdict", fields{"gate": "G1", "passed": true, "score": "Infinity"}, 422, invalid, true, []string{"score: expected a finite number, got +Inf"}},
		{"a gate that is none", "/v1/slots/r0c0/verdict", fields{"gate": "G4", "passed": true}, 422, invalid, false, []string{"body.gate", "G0, G1, G2, G3, G5"}},
		{"an infinite alpha", "/v1/slots/r0c0/alpha_target", fields{"target": "-Infinity", "ticks": 3}, 422, invalid, true, []string{"target: expected a finite number, got -Inf"}},
		{"an alpha of 0", "/v1/slots/r0c0/alpha_target", fields{"target": 0, "ticks": 3}, 422, invalid, true, []string{"use schedule_prune to ramp to 0"}},
		{"a steepness that is none", "/v1/slots/r0c0/schedule_prune", fields{"ticks": 3, "steepness": "NaN"}, 422, invalid, true, []string{"steepness: expected a finite number, got NaN"}},
		{"for ever", "/v1/slots/r0c0/schedule_prune", fields{"ticks": 2_000_000_000}, 422, invalid, true, []string{"ticks: expected at most 1000000000, got 2000000000"}},
		{"an epoch that was", "/v1/epochs/0/step", nil, 422, invalid, true, []string{"expected an epoch above 0", "resume(mark)", "reset()"}},
		{"an unknown field", "/v1/slots/r0c0/advance", fields{"tarket": "BLENDING"}, 422, invalid, false, []string{"body.tarket: unexpected property", "/openapi.json"}},
		{"a field of another type", "/v1/slots/r0c0/alpha_target", fields{"target": "half", "ticks": 3}, 422, invalid, false, []string{"body.target"}},
		{"a field too few", "/v1/slots/r0c0/alpha_target", fields{"target": 0.5}, 422, invalid, false, []string{"ticks"}},
		{"a number too far", "/v1/slots/r0c0/advance", fields{"call": 999}, 422, invalid, false, []string{"expected call ", "got call 999", "without a gap"}},
		{"another session", "/v1/slots/r0c0/advance", fields{"session": strings.Repeat("cd", 16)}, 503, events.CodeUnavailable, false, []string{"is not open here", "POST /v1/session"}},
	} {
		t.Run(bad.name, func(t *testing.T) {
			status, answer := c.do(bad.path, bad.args)
			p := problem(t, status, answer, bad.status, bad.code, bad.words...)
			require.Equal(t, bad.logged, p.Index > 0)
		})
	}
	badBodies(t, c)
	f := c.step()
	require.Equal(t, int64(1), f.Epoch)
	require.Equal(t, []events.Stage{events.StageGerminated, events.StageDormant}, []events.Stage{f.Slots[0].Stage, f.Slots[1].Stage}, "nothing of all that had an effect")
	require.Equal(t, c.call+1, w.nodes[0].mustState().Models[0].Calls)
}

func badBodies(t *testing.T, c *caller) {
	t.Helper()
	status, answer := c.post("/v1/slots/r0c0/advance", []byte(`{"session":"`+strings.Repeat("x", 8<<20)+`"}`))
	problem(t, status, answer, http.StatusRequestEntityTooLarge, events.CodeInvalidInput, "more than 8388608 bytes, expected fewer")
	status, answer = c.post("/v1/slots/r0c0/advance", []byte(`{"session":`))
	problem(t, status, answer, http.StatusBadRequest, events.CodeInvalidInput, "unexpected end of JSON input")
	status, answer = c.post("/v1/slots/r0c0/grow", []byte(`{}`))
	problem(t, status, answer, http.StatusNotFound, events.CodeInvalidInput, "there is nothing at", "/openapi.json")
}

// badObservations: a value is recorded whatever it is, and fails its gate.
func badObservations(t *testing.T) {
	w := startWorld(t, 1)
	c := newCaller(w.nodes[0])
	status, answer := c.connect(nil)
	require.Equal(t, http.StatusOK, status, "%s", answer)
	for _, call := range []struct {
		op   string
		args fields
	}{{"germinate", fields{"blueprint": "conv"}}, {"advance", nil}} {
		status, answer := c.do("/v1/slots/r0c0/"+call.op, call.args)
		require.Equal(t, http.StatusOK, status, "%s", answer)
	}
	c.step(fields{"slot": "r0c0", "accuracy": 10})
	f := c.step(fields{"slot": "r0c0", "accuracy": "NaN", "gradient_ratio": "Infinity", "gradient_health": nil})
	require.False(t, f.Slots[0].Metrics.Accuracy.Finite())
	require.False(t, f.Slots[0].Metrics.GradientRatio.Finite())
	status, answer = c.do("/v1/slots/r0c0/advance", nil)
	require.Equal(t, http.StatusOK, status)
	says(t, string(answer), `"passed":false`, "G2", "global_improvement_insufficient_nan%")

	status, answer = c.do("/v1/slots/r0c0/advance", fields{"observations": []fields{{"slot": "r9c9", "accuracy": 1}}})
	require.Positive(t, problem(t, status, answer, http.StatusNotFound, events.CodeUnknownSlot, "observation", `"r9c9"`, "r0c0").Index)
	status, answer = c.post("/v1/slots/r9c9/observe", []byte(`{"session":"`+c.session+`","accuracy":1}`))
	problem(t, status, answer, http.StatusNotFound, events.CodeUnknownSlot, `"r9c9"`)
	status, answer = c.post("/v1/slots/r0c0/observe", []byte(`{"session":"`+c.session+`","accuracy":"high"}`))
	problem(t, status, answer, http.StatusUnprocessableEntity, events.CodeInvalidInput, "accuracy")
	require.Equal(t, int64(2), c.step().Epoch)
}

// badSessions: a trainer that contradicts its esperd, or the log, is told both
// values.
func badSessions(t *testing.T) {
	w := startWorld(t, 1)
	c := newCaller(w.nodes[0])
	status, answer := c.connect(fields{"slots": nil})
	problem(t, status, answer, http.StatusConflict, events.CodeConfigMismatch, `model "main" is not in the log`, "pass slots")
	status, answer = c.connect(fields{"incarnation": strings.Repeat("01", 16)})
	require.Equal(t, http.StatusOK, status, "%s", answer)
	others := slotRequests([]string{"r0c0", "other"})
	gates := testGates
	gates.MinBlendingEpochs = 77
	const mismatch, invalid = events.CodeConfigMismatch, events.CodeInvalidInput
	incarnation := 0
	for name, bad := range map[string]struct {
		changed fields
		status  int
		code    events.Code
		words   []string
	}{
		"a rank outside the world": {fields{"rank": 5}, 409, mismatch, []string{"rank is 5 in a world of 1", "expected 0 to 0"}},
		"another rank":             {fields{"rank": 1, "world_size": 2}, 409, mismatch, []string{"world size is 2", "this esperd's is 1"}},
		"another run":              {fields{"run_id": "other"}, 409, mismatch, []string{`run "other"`, `run "e2e"`, "ESPERD_RUN_ID"}},
		"other slots":              {fields{"slots": others}, 409, mismatch, []string{"slot 1 is r0c1 in the log, other here", "start a new run"}},
		"fewer slots":              {fields{"slots": slotRequests(slotNames[:2])}, 409, mismatch, []string{"the log has 4 slots, here are 2"}},
		"other gates":              {fields{"gates": gates}, 409, mismatch, []string{"gates.min_", " in the log, ", " here"}},
		"a newer protocol":         {fields{"protocol": 9}, 422, invalid, []string{"protocol 9, expected 1"}},
		"an older protocol":        {fields{"protocol": 0}, 422, invalid, []string{"protocol 0, expected 1"}},
		"no incarnation":           {fields{"incarnation": "me"}, 422, invalid, []string{"body.incarnation"}},
		"an unknown field":         {fields{"colour": "red"}, 422, invalid, []string{"body.colour: unexpected property"}},
	} {
		t.Run(name, func(t *testing.T) {
			if bad.changed["incarnation"] == nil { // another one: call 0 of a round is answered once
				incarnation++
				bad.changed["incarnation"] = fmt.Sprintf("%032x", 0x100+incarnation)
			}
			status, answer := c.connect(bad.changed)
			problem(t, status, answer, bad.status, bad.code, bad.words...)
		})
	}
	// A new trainer goes on where the last one was.
	status, answer = c.connect(fields{"incarnation": strings.Repeat("02", 16), "slots": []api.SlotRequest(nil)})
	require.Equal(t, http.StatusOK, status, "%s", answer)
}
