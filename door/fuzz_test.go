package door

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// FuzzTrainerDoor posts any body to any endpoint: the door answers each with
// 2xx or with a problem, of the codes that are documented, and goes on.
func FuzzTrainerDoor(f *testing.F) {
	brief := func(o *Options) { o.WaitMax = 10 * time.Millisecond } // for a call that never comes
	b := newBench(f, 1, brief)
	b.connect()
	defer func() { b.close() }()
	session := `"session":"` + incarnation(0) + `"`
	for i := range fuzzPaths {
		f.Add(uint8(i), `{`+session+`,"call":1,"fence":0,"n":1,"blueprint":"conv","gate":"G1","passed":true,"ticks":3,"target":0.5,"observations":[{"slot":"r0c0","accuracy":"NaN","healthy":null}]}`)
	}
	f.Add(uint8(0), `{"protocol":1,"rank":0,"world_size":1,"incarnation":"`+incarnation(0)+`","slots":[{"name":"r0c0","auto_forward":["G1"]}],"answered":0,"round":1,"lineage":"00000000000000000000000000000001"}`)
	f.Add(uint8(1), `{`+session+`,"call":1,"fence":0,"n":9007199254740993}`)
	f.Add(uint8(4), `{`+session+`,"call":1,"fence":0,"blueprint":"b","seed_id":"\u0000\ud800","tempo":-1,"target":1e308}`)
	f.Add(uint8(9), `{`+session+`,"call":1,"fence":0,"target":"-Infinity","ticks":9223372036854775807,"steepness":1e-300}`)
	f.Add(uint8(3), `[[[[[[[[[[[[`)
	for _, mark := range marksOf(b) {
		f.Add(uint8(14), `{`+session+`,"call":1,"fence":0,"mark":"`+base64.StdEncoding.EncodeToString(mark)+`"}`)
	}
	f.Add(uint8(14), `{`+session+`,"call":1,"fence":0,"mark":"not base64"}`)
	f.Add(uint8(15), `{`+session+`,"call":18446744073709551615}`)
	f.Add(uint8(11), `{`+session+`,"action":"prune","slot":"r0c0","seed":18446744073709551615,"reason":"\u0000","initiator":"\ud800"}`)
	f.Add(uint8(11), `{"action":"prune","slot":"r0c0","model":"critic"}`)
	f.Add(uint8(12), `{`+session+`,"reason":"evaluation","seconds":1e-320}`)
	f.Add(uint8(12), `{`+session+`,"reason":"evaluation","seconds":604800.0000001}`)
	f.Add(uint8(13), `{`+session+`,"failed":"ValueError: \ud83d"}`)
	f.Add(uint8(0), `{"protocol":1,"rank":0,"world_size":1,"incarnation":"`+incarnation(0)+`","mode":"observe","ordering":"warn","detached":true,"answered":0,"round":1,"lineage":"00000000000000000000000000000001","fence_index":3,"fences":1,"matched":[4,4]}`)
	f.Fuzz(func(t *testing.T, path uint8, body string) {
		b.t = t
		if !b.servers[0].sessions.served().is(incarnation(0)) || b.log.Node(0).State().Round.Fault != nil {
			b.close() // a body was a new trainer, or another call under a number that was used
			b = newBench(t, 1, brief)
			b.connect()
		}
		// Take a fresh number where the body has the seeds', so that calls go
		// through, not only the first.
		body = strings.Replace(body, `"call":1`, `"call":`+b.next(), 1)
		b.answersAnything(0, fuzzPaths[int(path)%len(fuzzPaths)], body)
	})
}

// marksOf returns a mark of rank 0's model, and what may become of one.
func marksOf(b *bench) [][]byte {
	state := b.log.Node(0).State()
	_, rec, err := b.log.Node(0).Entry(state.Index)
	require.NoError(b.t, err)
	mark := state.Mark(state.Model(api.DefaultModel), state.Index, rec.Chain)
	good, _, err := events.EncodeMark(mark)
	require.NoError(b.t, err)
	mark.Run, mark.Record.Tick = "another", 1<<63
	other, _, err := events.EncodeMark(mark)
	require.NoError(b.t, err)
	return [][]byte{good, other, good[:len(good)-1], nil}
}

var fuzzPaths = []string{"/v1/session", "/v1/fence", "/v1/epochs/3/step", "/v1/slots/r0c0/observe", "/v1/slots/r0c0/germinate", "/v1/slots/r0c0/advance",
	"/v1/slots/r0c0/verdict", "/v1/slots/r0c0/prune", "/v1/slots/r0c0/schedule_prune", "/v1/slots/r0c0/alpha_target", "/v1/reset",
	"/v1/requests", "/v1/busy", "/v1/close", "/v1/resume", "/v1/checkpoint"}

// answersAnything posts a body and returns whether it was taken.
func (b *bench) answersAnything(rank int, path, body string) bool {
	code, answer := b.raw(rank, path, body)
	if code == 200 {
		return true
	}
	require.True(b.t, slices.Contains([]int{400, 404, 405, 409, 413, 415, 422, 503, 504}, code), "%d: %s", code, answer)
	problem := decodeProblem(b.t, []byte(answer))
	require.Equal(b.t, code, problem.Status)
	require.NotEmpty(b.t, problem.Title, problem.Type)
	require.NotEmpty(b.t, problem.Detail)
	require.NotContains(b.t, answer, "bug in esperd")
	return false
}

// FuzzOtherRanks posts any body to the door of rank 1 in the modes and orderings
// in which its calls have not rank 0's numbers, where rank 0 is some calls ahead.
// Any session that is asked for is one of an esperd that was started anew.
func FuzzOtherRanks(f *testing.F) {
	kinds := [][2]string{{"keyed", "warn"}, {"follow", "strict"}, {"observe", "strict"}, {"keyed", "strict"}}
	benches := make([]*bench, len(kinds))
	defer func() {
		for _, b := range benches {
			if b != nil {
				b.close()
			}
		}
	}()
	session := `"session":"` + incarnation(1) + `"`
	outcome := `"outcomes":[{"slot":"r0c0","stage":"TRAINING","alpha":"-Infinity","passed":true},{"slot":"","stage":"FOSSILIZED","alpha":-0}]`
	for kind := range kinds {
		for i := range fuzzPaths {
			f.Add(uint8(kind), uint8(i), `{`+session+`,"call":1,"fence":0,"n":1,"blueprint":"conv","gate":"G1","passed":true}`)
			f.Add(uint8(kind), uint8(i), `{`+session+`,"call":1,"fence":0,`+outcome+`}`)
		}
		for _, rest := range []string{`"answered":0,"fence_index":3`, `"answered":1,"fence_index":3,"matched":[4]`, `"answered":2,"fence_index":3,"matched":[6,4,4]`,
			`"answered":9,"fence_index":5,"fences":7`, `"answered":1,"fence_index":1`, `"answered":18446744073709551615,"fence_index":18446744073709551615`} {
			f.Add(uint8(kind), uint8(0), `{"protocol":1,"rank":1,"world_size":2,"incarnation":"`+incarnation(1)+`","mode":"`+kinds[kind][0]+`","ordering":"`+kinds[kind][1]+
				`","round":1,"lineage":"00000000000000000000000000000001",`+rest+`}`)
		}
	}
	f.Fuzz(func(t *testing.T, kind, path uint8, body string) {
		at := &benches[int(kind)%len(kinds)]
		if *at == nil {
			*at = otherRank(t, kinds[int(kind)%len(kinds)])
		}
		b, s := *at, (*at).servers[1]
		b.t = t
		ses := s.sessions.served()
		if p := fuzzPaths[int(path)%len(fuzzPaths)]; p == "/v1/session" {
			ses.end(errClosing)
			s.sessions.mu.Lock()
			s.sessions.current, s.sessions.next = nil, nil
			s.sessions.mu.Unlock()
			b.answersAnything(1, p, body)
		} else {
			if track, _ := ses.opened(api.DefaultModel); track != nil {
				body = strings.Replace(body, `"call":1,"fence":0`, fmt.Sprintf(`"call":%d,"fence":%d`, track.next, track.fences), 1)
			}
			b.answersAnything(1, p, body)
		}
		if ses = s.sessions.served(); ses != nil {
			if track, _ := ses.opened(api.DefaultModel); track != nil && b.log.Node(0).State().Round.Fault == nil {
				return
			}
		}
		b.close()
		*at = nil
	})
}

// otherRank is a world of two in which rank 0 is some calls ahead.
func otherRank(t *testing.T, kind [2]string) *bench {
	b := newBench(t, 2)
	b.connect(func(r *api.SessionRequest) { r.Mode, r.Ordering = kind[0], kind[1] })
	post := func(path, body string) {
		code, answer := b.raw(0, path, `{"session":"`+incarnation(0)+`",`+body+`}`)
		require.Equal(t, 200, code, answer)
	}
	post("/v1/slots/r0c0/germinate", `"call":1,"fence":0,"blueprint":"conv"`)
	post("/v1/slots/r0c0/advance", `"call":2,"fence":0`)
	post("/v1/epochs/3/step", `"call":3,"fence":0`)
	post("/v1/slots/r0c0/advance", `"call":4,"fence":1`)
	post("/v1/slots/r0c0/prune", `"call":5,"fence":1`)
	post("/v1/fence", `"call":6,"fence":1,"n":1`)
	for _, s := range b.servers {
		s.waitMax = time.Millisecond // for a call that never comes
	}
	return b
}

// next is the number of rank 0's next call.
func (b *bench) next() string {
	return strconv.FormatUint(b.log.Node(0).State().Cursor(api.DefaultModel).Calls, 10)
}

func decodeProblem(t testing.TB, b []byte) (p api.Problem) {
	require.NoError(t, json.Unmarshal(b, &p))
	return p
}
