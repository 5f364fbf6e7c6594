package door

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
)

// FuzzTrainerDoor posts any body to any endpoint: the door answers each with
// 2xx or with a problem, of the codes that are documented, and goes on.
func FuzzTrainerDoor(f *testing.F) {
	brief := func(o *Options) { o.WaitMax = 10 * time.Millisecond } // for a call that never comes
	b := newBench(f, 1, brief)
	b.connect()
	defer func() { b.close() }()
	session := `"session":"` + incarnation(0) + `"`
	paths := []string{"/v1/session", "/v1/fence", "/v1/epochs/3/step", "/v1/slots/r0c0/observe"}
	for _, op := range []string{"germinate", "advance", "verdict", "prune", "schedule_prune", "alpha_target"} {
		paths = append(paths, "/v1/slots/r0c0/"+op)
	}
	for i := range paths {
		f.Add(uint8(i), `{`+session+`,"call":1,"fence":0,"n":1,"blueprint":"conv","gate":"G1","passed":true,"ticks":3,"target":0.5,"observations":[{"slot":"r0c0","accuracy":"NaN","healthy":null}]}`)
	}
	f.Add(uint8(0), `{"protocol":1,"rank":0,"world_size":1,"incarnation":"`+incarnation(0)+`","slots":[{"name":"r0c0","auto_forward":["G1"]}],"answered":0,"round":1,"lineage":"00000000000000000000000000000001"}`)
	f.Add(uint8(1), `{`+session+`,"call":1,"fence":0,"n":9007199254740993}`)
	f.Add(uint8(4), `{`+session+`,"call":1,"fence":0,"blueprint":"b","seed_id":"\u0000\ud800","tempo":-1,"target":1e308}`)
	f.Add(uint8(9), `{`+session+`,"call":1,"fence":0,"target":"-Infinity","ticks":9223372036854775807,"steepness":1e-300}`)
	f.Add(uint8(3), `[[[[[[[[[[[[`)
	documented := []int{200, 400, 404, 405, 409, 413, 415, 422, 503, 504}
	f.Fuzz(func(t *testing.T, path uint8, body string) {
		p := paths[int(path)%len(paths)]
		b.t = t
		if b.servers[0].sessions.living() != incarnation(0) || b.log.Node(0).State().Round.Fault != nil {
			b.close() // a body was a new trainer, or another call under a number that was used
			b = newBench(t, 1, brief)
			b.connect()
		}
		// Take a fresh number where the body has the seeds', so that calls go
		// through, not only the first.
		body = strings.Replace(body, `"call":1`, `"call":`+b.next(), 1)
		r := httptest.NewRequest(http.MethodPost, p, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		b.muxes[0].ServeHTTP(w, r)
		if w.Code == 200 {
			return
		}
		require.True(t, slices.Contains(documented, w.Code), "%d: %s", w.Code, w.Body)
		problem := decodeProblem(t, w.Body.Bytes())
		require.Equal(t, w.Code, problem.Status)
		require.NotEmpty(t, problem.Title, problem.Type)
		require.NotEmpty(t, problem.Detail)
	})
}

// next is the number of rank 0's next call.
func (b *bench) next() string {
	return strconv.FormatUint(b.log.Node(0).State().Cursor(api.DefaultModel).Calls, 10)
}

func decodeProblem(t *testing.T, b []byte) (p api.Problem) {
	require.NoError(t, json.Unmarshal(b, &p))
	return p
}
