package door_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

func TestBodiesAreReadStrictly(t *testing.T) {
	j := newJob(t, 1)
	session := j.connect()[0].Session().Session
	call := `"session":"` + session + `","model":"main","call":1,"fence":0`
	for name, tc := range map[string]struct {
		path, body string
		status     int
		text       string
	}{
		"unknown field": {"/v1/fence", `{` + call + `,"n":1,"verbose":true}`, 422, "body.verbose: unexpected property"},
		"other case":    {"/v1/fence", `{` + call + `,"N":1}`, 422, "body.N: unexpected property"},
		"missing field": {"/v1/fence", `{` + call + `}`, 422, "expected required property n"},
		"type":          {"/v1/fence", `{` + call + `,"n":"1"}`, 422, "body.n: expected integer"},
		"overflow":      {"/v1/fence", `{` + call + `,"n":1e30}`, 422, "cannot unmarshal"},
		"stage":         {"/v1/slots/r0c0/advance", `{` + call + `,"target":"FOSSIL"}`, 422, "FOSSILIZED"},
		"algorithm":     {"/v1/slots/r0c0/germinate", `{` + call + `,"blueprint":"b","algorithm":"SUM"}`, 422, "MULTIPLY"},
		"observation":   {"/v1/fence", `{` + call + `,"n":1,"observations":[{"slot":"r0c0","accuracy":"high"}]}`, 422, "accuracy"},
		"no JSON":       {"/v1/fence", `n=1`, 400, "invalid character"},
		"no body":       {"/v1/fence", ``, 400, "request body is required"},
		"two values":    {"/v1/fence", `{} {}`, 400, "invalid character"},
		"epoch":         {"/v1/epochs/first/step", `{` + call + `}`, 422, "path.epoch"},
		"path":          {"/v1/nothing", `{}`, 404, "there is nothing at"},
		"method":        {"/v1/state", `{}`, 405, "/v1/state takes GET, got "},
		"protocol":      {"/v1/session", `{"protocol":9,"rank":0,"world_size":1,"incarnation":"` + session + `"}`, 422, "the trainer speaks protocol 9, expected 1"},
		"incarnation":   {"/v1/session", `{"protocol":1,"rank":0,"world_size":1,"incarnation":"me"}`, 422, "body.incarnation"},
		"partial gates": {"/v1/session", `{"protocol":1,"rank":0,"world_size":1,"incarnation":"` + session + `","gates":{"permissive":true}}`, 422, "min_blending_epochs"},
		"unknown mode":  {"/v1/session", `{"protocol":1,"rank":0,"world_size":1,"mode":"leader","incarnation":"` + session + `"}`, 422, "body.mode"},
	} {
		t.Run(name, func(t *testing.T) {
			status, body := j.post(0, tc.path, tc.body)
			require.Equal(t, tc.status, status, body)
			p := decodeAs[api.Problem](t, body)
			require.Equal(t, events.CodeInvalidInput, p.Code())
			require.Equal(t, status, p.Status)
			require.Contains(t, p.Detail, tc.text)
		})
	}
	require.Equal(t, uint64(1), j.log.Node(0).State().Cursor("main").Calls, "none of them is in the log")
}

func TestBodiesHaveALimit(t *testing.T) {
	if testing.Short() {
		t.Skip("megabytes are slow under the race detector")
	}
	j := newJob(t, 1)
	status, body := j.post(0, "/v1/fence", `{"session":"`+strings.Repeat("x", 8<<20)+`"}`)
	require.Equal(t, 413, status)
	require.Contains(t, body, "more than 8388608 bytes")
	status, _ = j.post(0, "/v1/fence", `{"session":"`+strings.Repeat("x", 8<<20-100)+`"}`)
	require.Equal(t, 422, status)
}

// A client that reads nothing before it has written everything gets the answer
// too.
func TestABodyThatIsFarTooLongIsAnswered(t *testing.T) {
	if testing.Short() {
		t.Skip("megabytes are slow under the race detector")
	}
	j := newJob(t, 1)
	c, err := net.Dial("unix", j.socket(0))
	require.NoError(t, err)
	defer c.Close()
	const length = 40 << 20
	_, err = fmt.Fprintf(c, "POST /v1/fence HTTP/1.1\r\nHost: esperd\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", length)
	require.NoError(t, err)
	_, err = c.Write(make([]byte, length))
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, http.StatusRequestEntityTooLarge, resp.StatusCode)
}

// However many observations a client sends, an entry holds one of each slot.
func TestObservationsOfABodyAreMerged(t *testing.T) {
	if testing.Short() {
		t.Skip("megabytes are slow under the race detector")
	}
	j := newJob(t, 1)
	c := j.connect()[0]
	_, err := c.Germinate(j.ctx(), "r0c0", conv())
	require.NoError(t, err)
	var list []api.Observation
	for i := range 140_000 {
		list = append(list, api.Observation{Slot: "r0c0", Readings: api.Readings{Accuracy: api.Value(events.Num(i))}})
	}
	status, body := j.post(0, "/v1/epochs/0/step", jsonOf(t, api.StepRequest{Call: api.Call{Session: c.Session().Session, Model: "main", Call: 2, Observations: list}}))
	require.Equal(t, 200, status, body)
	f := decodeAs[api.Fence](t, body)
	require.Equal(t, events.Num(139_999), f.Slots[0].Metrics.Accuracy)
	e, _, err := j.log.Node(0).Entry(f.Index)
	require.NoError(t, err)
	require.Len(t, e.Events, 2)
}

func TestOtherContentTypesAreRefused(t *testing.T) {
	j := newJob(t, 1)
	resp, err := j.http(0).Post("http://esperd/v1/fence", "application/cbor", strings.NewReader("{}"))
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, http.StatusUnsupportedMediaType, resp.StatusCode)
	require.Equal(t, "application/problem+json", resp.Header.Get("Content-Type"))
}

func TestArgumentsThatAreNoNumbersAreRefusedInTheLog(t *testing.T) {
	j := newJob(t, 1)
	c := j.connect()[0]
	call := `{"session":"` + c.Session().Session + `","fence":0,`
	for i, tc := range []struct{ path, rest, text string }{
		{"germinate", `"call":1,"blueprint":"b","target":"NaN"}`, "target: expected an alpha"},
		{"alpha_target", `"call":2,"target":"Infinity","ticks":3}`, "target: expected a finite number"},
		{"schedule_prune", `"call":3,"ticks":3,"steepness":"-Infinity"}`, "steepness: expected a finite number"},
	} {
		status, body := j.post(0, "/v1/slots/r0c0/"+tc.path, call+tc.rest)
		require.Equal(t, 422, status)
		p := decodeAs[api.Problem](t, body)
		require.Contains(t, p.Detail, tc.text)
		require.Equal(t, c.Session().Index+uint64(i)+1, p.Index)
	}
}

func TestDefaultsAreThoseOfTheContract(t *testing.T) {
	j := newJob(t, 1)
	session := j.connect()[0].Session().Session
	status, body := j.post(0, "/v1/slots/r0c0/germinate", `{"session":"`+session+`","call":1,"fence":0,"blueprint":"conv"}`)
	require.Equal(t, 200, status, body)
	seed := j.log.Node(0).State().Model("main").Slot("r0c0").Seed
	require.Equal(t, "sigmoid", seed.Blend)
	require.Equal(t, int64(5), seed.Tempo)
	require.Equal(t, events.AlgorithmAdd, seed.Amplitude.Algorithm)
	require.Equal(t, 1.0, seed.Target)
	status, body = j.post(0, "/v1/slots/r0c0/prune", `{"session":"`+session+`","call":2,"fence":0}`)
	require.Equal(t, 200, status, body)
	seed = j.log.Node(0).State().Model("main").Slot("r0c0").Seed
	require.Equal(t, "policy", seed.Pruned.Initiator)
	require.Empty(t, seed.Pruned.Reason)
}
