package door_test

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// trainer makes its calls by plain requests and numbers them as a client does.
type trainer struct {
	j    *job
	rank int
	http *http.Client
	req  api.SessionRequest // with which it connected
	at   api.SessionAnswer  // and what it was told then

	call, fence uint64   // of its next call
	fenced      uint64   // index of its last fence's entry; before it, of the session
	matched     []uint64 // and of the entries that answered the calls since then
}

// members are those of a body, beside what every call carries.
type members map[string]any

// reply is what the door said.
type reply struct {
	status int
	body   string
}

var incarnations atomic.Uint64

func (j *job) trainer(rank int, change ...func(*api.SessionRequest)) *trainer {
	req := api.SessionRequest{Protocol: 1, Rank: uint64(rank), WorldSize: uint64(len(j.doors)), Model: "main", Gates: permissive(),
		Incarnation: fmt.Sprintf("%032x", incarnations.Add(1)), Slots: []api.SlotRequest{{Name: "r0c0"}, {Name: "r0c1"}}, Site: "train.py:1"}
	for _, c := range change {
		c(&req)
	}
	return &trainer{j: j, rank: rank, http: j.http(rank), req: req}
}

// trainers connects a trainer to each rank, all at once.
func (j *job) trainers(change ...func(*api.SessionRequest)) []*trainer {
	j.t.Helper()
	all, replies := make([]*trainer, len(j.doors)), make([]reply, len(j.doors))
	var wg sync.WaitGroup
	for rank := range all {
		all[rank] = j.trainer(rank, change...)
		wg.Go(func() { replies[rank] = all[rank].connect() })
	}
	wg.Wait()
	for rank, a := range replies {
		require.Equal(j.t, 200, a.status, "rank %d: %s", rank, a.body)
	}
	return all
}

func inMode(mode events.TrainerMode) func(*api.SessionRequest) {
	return func(r *api.SessionRequest) { r.Mode = mode }
}

// connect opens the session.
func (tr *trainer) connect() reply {
	a := tr.post("/v1/session", tr.req)
	if a.status == 200 {
		tr.at = decodeAs[api.SessionAnswer](tr.j.t, a.body)
		tr.call, tr.fence, tr.fenced, tr.matched = tr.at.NextCall, tr.at.NextFence, tr.at.Index, nil
	}
	return a
}

// returns opens the session once more, as after a lost connection.
func (tr *trainer) returns(change ...func(*api.SessionRequest)) reply {
	req, answered := tr.req, tr.call-1
	req.Answered, req.Round, req.Lineage = &answered, tr.at.Round, tr.at.Lineage
	req.FenceIndex, req.Fences, req.Matched = tr.fenced, tr.fence, tr.matched
	for _, c := range change {
		c(&req)
	}
	return tr.post("/v1/session", req)
}

// restart ends the door of the trainer's rank and opens another one on the same
// log. The trainer comes back to it.
func (tr *trainer) restart() api.SessionAnswer {
	tr.j.t.Helper()
	tr.j.stop(tr.rank)
	tr.http.CloseIdleConnections() // a request on one that has not been used is not sent again
	tr.j.start(tr.rank)
	a := decodeAs[api.SessionAnswer](tr.j.t, tr.returns().ok(tr.j.t).body)
	require.Equal(tr.j.t, [2]uint64{tr.call, tr.fence}, [2]uint64{a.NextCall, a.NextFence}, "rank %d goes on where it was", tr.rank)
	return a
}

func (tr *trainer) post(path string, body any) reply {
	tr.j.t.Helper()
	req, err := http.NewRequestWithContext(tr.j.ctx(), http.MethodPost, "http://esperd"+path, strings.NewReader(jsonOf(tr.j.t, body)))
	require.NoError(tr.j.t, err)
	req.Header.Set("Content-Type", "application/json")
	resp, err := tr.http.Do(req)
	require.NoError(tr.j.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(tr.j.t, err)
	return reply{resp.StatusCode, string(b)}
}

// body is that of the trainer's next call.
func (tr *trainer) body(more ...members) members {
	out := members{"session": tr.req.Incarnation, "model": tr.req.Model, "call": tr.call, "fence": tr.fence,
		"site": fmt.Sprintf("rank%d.py:%d", tr.rank, tr.call)}
	for _, m := range more {
		maps.Copy(out, m)
	}
	return out
}

// makes is one numbered call.
func (tr *trainer) makes(path string, more ...members) reply {
	tr.j.t.Helper()
	a := tr.post(path, tr.body(more...))
	tr.goesOn(path, a)
	return a
}

// goesOn to the next number, if the call has taken its own.
func (tr *trainer) goesOn(path string, a reply) {
	var at struct {
		Index uint64 `json:"index"`
	}
	require.NoError(tr.j.t, json.Unmarshal([]byte(a.body), &at))
	if a.status != 200 && at.Index == 0 {
		return // it is free
	}
	tr.call++
	switch fences := path == "/v1/fence" || path == "/v1/reset" || path == "/v1/resume" || strings.HasSuffix(path, "/step"); {
	case !fences && at.Index > 0:
		tr.matched = append(tr.matched, at.Index)
	case fences:
		tr.matched = nil
		if at.Index > 0 {
			tr.fenced = at.Index
		}
		if a.status == 200 {
			tr.fence++
		}
	}
}

func (tr *trainer) germinate(slot string, more ...members) reply {
	return tr.makes("/v1/slots/"+slot+"/germinate", append([]members{{"blueprint": "conv"}}, more...)...)
}

func (tr *trainer) advance(slot string, more ...members) reply {
	return tr.makes("/v1/slots/"+slot+"/advance", more...)
}

func (tr *trainer) prune(slot string, more ...members) reply {
	return tr.makes("/v1/slots/"+slot+"/prune", more...)
}

func (tr *trainer) verdict(slot, gate string, more ...members) reply {
	return tr.makes("/v1/slots/"+slot+"/verdict", append([]members{{"gate": gate, "passed": true}}, more...)...)
}

func (tr *trainer) step(epoch int64, more ...members) reply {
	return tr.makes(fmt.Sprintf("/v1/epochs/%d/step", epoch), more...)
}

func (tr *trainer) fenceAt(n int64, more ...members) reply {
	return tr.makes("/v1/fence", append([]members{{"n": n}}, more...)...)
}

func (tr *trainer) reset() reply { return tr.makes("/v1/reset") }

func (tr *trainer) resume(mark []byte) reply { return tr.makes("/v1/resume", members{"mark": mark}) }

// checkpoint takes a mark.
func (tr *trainer) checkpoint() *api.Mark {
	tr.j.t.Helper()
	m := decodeAs[api.Mark](tr.j.t, tr.post("/v1/checkpoint", members{"session": tr.req.Incarnation, "model": tr.req.Model, "call": tr.call}).ok(tr.j.t).body)
	return &m
}

// later makes a call in the background.
func later(call func() reply) <-chan reply {
	done := make(chan reply, 1)
	go func() { done <- call() }()
	return done
}

// measured are observations that ride with a call.
func measured(slot string, r api.Readings) members {
	return members{"observations": []api.Observation{{Slot: slot, Readings: r}}}
}

func (a reply) ok(t testing.TB) reply {
	t.Helper()
	require.Equal(t, 200, a.status, a.body)
	return a
}

// refused expects a problem of a code.
func (a reply) refused(t testing.TB, code events.Code) *api.Problem {
	t.Helper()
	p := decodeAs[api.Problem](t, a.body)
	require.Equal(t, code, p.Code(), a.body)
	require.Equal(t, p.Status, a.status)
	return &p
}

func (a reply) fence(t testing.TB) *api.Fence {
	t.Helper()
	f := decodeAs[api.Fence](t, a.ok(t).body)
	return &f
}

func (a reply) decision(t testing.TB) *api.Decision {
	t.Helper()
	d := decodeAs[api.Decision](t, a.ok(t).body)
	return &d
}

// head is the state that a rank's node has.
func (j *job) head(rank int) uint64 { return j.log.Node(rank).State().Index }

func (j *job) fault() *events.RoundFaulted { return j.log.Node(0).State().Round.Fault }
