package door_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/door"
	"github.com/esperd/esperd/events"
)

// asks for the end of a slot's seed.
func (tr *trainer) asks(slot string, more ...members) reply {
	tr.j.t.Helper()
	m := members{"session": tr.req.Incarnation, "action": "prune", "slot": slot}
	for _, x := range more {
		for k, v := range x {
			m[k] = v
		}
	}
	return tr.post("/v1/requests", m)
}

func (j *job) pending(rank int) []api.PendingRequest {
	j.t.Helper()
	resp, err := j.http(rank).Get("http://esperd/v1/state")
	require.NoError(j.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(j.t, err)
	return decodeAs[api.State](j.t, string(b)).Requests
}

func TestARequestIsExecutedAtTheNextFence(t *testing.T) {
	j := newJob(t, 2)
	all := j.trainers()
	germinated(t, all...)
	require.Empty(t, j.pending(0))
	a := decodeAs[api.Requested](t, all[1].asks("r0c0", members{"reason": "governor_nan"}).ok(t).body)
	require.Equal(t, j.head(1), a.Index, "it is applied here")
	want := []api.PendingRequest{{Index: a.Index, Requested: events.Requested{Node: j.log.Node(1).Status().Node, Number: 1, Model: "main",
		Generation: 1, Slot: "r0c0", Seed: 1, Action: events.ActionPrune, Reason: "governor_nan", Initiator: "rank 1"}}}
	require.Equal(t, want, j.pending(0))
	require.Equal(t, want, j.pending(1))

	// Asking twice is asking once, whoever asks.
	for _, tr := range all {
		require.Equal(t, a, decodeAs[api.Requested](t, tr.asks("r0c0").ok(t).body))
	}
	require.Equal(t, want, j.pending(0))

	for _, tr := range all { // calls before the fence do not see it
		require.Equal(t, events.StageTraining, tr.advance("r0c0").decision(t).Stage)
	}
	for _, tr := range all {
		f := tr.step(1).fence(t)
		require.Equal(t, []api.Change{{Slot: "r0c0", Seed: 1, Blueprint: "conv", From: events.StageGerminated, To: events.StagePruned}}, f.Changes)
	}
	require.Empty(t, j.pending(0))
	require.Equal(t, &[2]string{"governor_nan", "rank 1"}, prunedBy(j, "r0c0"))
	p := all[0].asks("r0c0").refused(t, events.CodeIllegalTransition)
	require.Contains(t, p.Detail, "was pruned already")
}

// prunedBy returns why a seed was pruned, and who asked for it.
func prunedBy(j *job, slot string) *[2]string {
	seed := j.log.Node(0).State().Model("main").Slot(slot).Seed
	if seed == nil || seed.Pruned == nil {
		return nil
	}
	return &[2]string{seed.Pruned.Reason, seed.Pruned.Initiator}
}

// A request of rank 1 means the seed at rank 1's cursor, however far the log is.
func TestATrainerMeansTheSeedThatItSees(t *testing.T) {
	j := newJob(t, 2)
	all := j.trainers()
	rank0, rank1 := all[0], all[1]
	germinated(t, all...)
	rank0.prune("r0c0").ok(t)
	for epoch := int64(1); j.log.Node(0).State().Model("main").Slot("r0c0").Seed != nil; epoch++ {
		rank0.step(epoch).ok(t)
	}
	rank0.germinate("r0c0").ok(t)
	p := rank1.asks("r0c0").refused(t, events.CodeIllegalTransition)
	require.Contains(t, p.Detail, "seed 2 is in the slot, not seed 1")
	rank1.asks("r0c0", members{"seed": 3}).refused(t, events.CodeIllegalTransition)
	require.Empty(t, j.pending(0))
	a := decodeAs[api.Requested](t, rank1.asks("r0c0", members{"seed": 2}).ok(t).body)
	require.Equal(t, a.Index, j.pending(0)[0].Index)

	// A slot in which it has seen none yet.
	other := newJob(t, 2)
	all = other.trainers()
	all[0].germinate("r0c0").ok(t)
	p = all[1].asks("r0c0").refused(t, events.CodeIllegalTransition)
	require.Contains(t, p.Detail, "no seed has germinated in slot r0c0 yet, as this trainer sees it")
	require.Empty(t, other.pending(0))
	all[1].germinate("r0c0").ok(t)
	all[1].asks("r0c0").ok(t)
}

func TestRequestsThatCannotBeTaken(t *testing.T) {
	j := newJob(t, 1)
	tr := j.trainers()[0]
	tr.germinate("r0c0").ok(t)
	require.Contains(t, tr.asks("r9c9").refused(t, events.CodeUnknownSlot).Detail, `model main has no slot "r9c9"; its slots are r0c0, r0c1`)
	require.Contains(t, tr.asks("r0c0", members{"model": "critic"}).refused(t, events.CodeUnavailable).Detail, `model "critic" is not open in this session`)
	require.Contains(t, tr.asks("r0c0", members{"session": strings.Repeat("0", 32)}).refused(t, events.CodeUnavailable).Detail, "is not open here")
	require.Contains(t, tr.asks("r0c0", members{"action": "water"}).refused(t, events.CodeInvalidInput).Detail, "prune")
	require.Contains(t, tr.asks("r0c0", members{"reason": strings.Repeat("x", 1025)}).refused(t, events.CodeInvalidInput).Detail, "reason")
	require.Contains(t, tr.asks("r0c0", members{"generation": 1}).refused(t, events.CodeInvalidInput).Detail, "unexpected property")
	operator := members{"action": "prune", "slot": "r0c0", "model": "critic"}
	require.Contains(t, tr.post("/v1/requests", operator).refused(t, events.CodeConfigMismatch).Detail, `expected a model of the log, got "critic"`)
	require.Empty(t, j.pending(0))
	j.log.Node(0).Refuse(errors.New("no leader"))
	tr.asks("r0c0").refused(t, events.CodeUnavailable)
}

// at posts to the admin door.
func (j *job) at(path, token, body string, change ...func(*http.Request)) reply {
	j.t.Helper()
	req, err := http.NewRequestWithContext(j.ctx(), http.MethodPost, "http://"+j.doors[0].AdminAddr()+path, strings.NewReader(body))
	require.NoError(j.t, err)
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", token)
	}
	for _, c := range change {
		c(req)
	}
	c := &http.Client{Transport: &http.Transport{}}
	defer c.CloseIdleConnections()
	resp, err := c.Do(req)
	require.NoError(j.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(j.t, err)
	require.Equal(j.t, resp.StatusCode != 200, resp.Header.Get("Content-Type") == "application/problem+json")
	return reply{resp.StatusCode, string(b)}
}

func TestAnOperatorAsksAtTheAdminDoor(t *testing.T) {
	const token = "7e57-70ken"
	j := newJob(t, 1, func(o *door.Options) { o.Token = token })
	tr := j.trainers()[0]
	tr.germinate("r0c0").ok(t)
	tr.germinate("r0c1").ok(t)
	ask := `{"action":"prune","slot":"r0c0","reason":"too large"}`
	for name, wrong := range map[string]string{"none": "", "another": "Bearer 7e57-70keN", "longer": "Bearer " + token + "x", "part": "Bearer 7e57",
		"empty": "Bearer ", "no scheme": token, "scheme": "Basic " + token} {
		a := j.at("/v1/requests", wrong, ask)
		require.Equal(t, http.StatusUnauthorized, a.status, name)
		p := decodeAs[api.Problem](t, a.body)
		require.Equal(t, events.CodeNotAuthority, p.Code())
		require.Contains(t, p.Detail, "--token-file (ESPERD_TOKEN_FILE)")
		require.NotContains(t, a.body, token)
	}
	require.Empty(t, j.pending(0))
	bearer := "Bearer " + token
	a := decodeAs[api.Requested](t, j.at("/v1/requests", bearer, ask).ok(t).body)
	require.Equal(t, a, decodeAs[api.Requested](t, j.at("/v1/requests", bearer, ask).ok(t).body))
	j.at("/v1/requests", bearer, `{"action":"prune","slot":"r0c1","initiator":"ann","seed":1}`).ok(t)
	list := j.pending(0)
	require.Len(t, list, 2)
	require.Equal(t, "operator", list[0].Initiator)
	require.Equal(t, "ann", list[1].Initiator)
	require.Equal(t, uint64(1), list[0].Seed, "the one that is there now")
	j.at("/v1/requests", bearer, `{"action":"prune","slot":"r9c9"}`).refused(t, events.CodeUnknownSlot)

	for _, path := range []string{"/v1/fence", "/v1/session", "/v1/close", "/v1/busy", "/v1/reset", "/v1/slots/r0c0/prune", "/v1/state", "/v1/requests/", "/"} {
		a := j.at(path, bearer, "{}")
		require.Equal(t, http.StatusMethodNotAllowed, a.status, path)
		require.Contains(t, decodeAs[api.Problem](t, a.body).Detail, "trainers call on the unix socket", path)
	}
	for _, method := range []string{http.MethodPut, http.MethodDelete, http.MethodPatch} {
		a := j.at("/v1/requests", bearer, ask, func(r *http.Request) { r.Method = method })
		require.Equal(t, http.StatusMethodNotAllowed, a.status, method)
	}
	a405 := j.at("/v1/requests", bearer, "", func(r *http.Request) { r.Method, r.Body = http.MethodGet, http.NoBody })
	require.Equal(t, http.StatusMethodNotAllowed, a405.status)

	// What comes in is as limited as on the socket.
	long := `{"action":"prune","slot":"r0c0","reason":"` + strings.Repeat("x", api.BodyBytesMax) + `"}`
	require.Equal(t, http.StatusRequestEntityTooLarge, j.at("/v1/requests", bearer, long).status)
	require.Equal(t, http.StatusBadRequest, j.at("/v1/requests", bearer, "prune r0c0").status)
	require.Equal(t, http.StatusForbidden, j.at("/v1/requests", bearer, ask, func(r *http.Request) { r.Host = "rebound.example" }).status)

	tr.step(0).ok(t)
	require.Empty(t, j.pending(0))
	require.Equal(t, &[2]string{"too large", "operator"}, prunedBy(j, "r0c0"))
	require.Equal(t, &[2]string{"", "ann"}, prunedBy(j, "r0c1"))
}

func TestWithoutATokenTheAdminDoorOnlyReads(t *testing.T) {
	j := newJob(t, 1)
	tr := j.trainers()[0]
	tr.germinate("r0c0").ok(t)
	ask := `{"action":"prune","slot":"r0c0"}`
	for _, token := range []string{"", "Bearer ", "Bearer x"} {
		a := j.at("/v1/requests", token, ask)
		require.Equal(t, http.StatusForbidden, a.status)
		require.Contains(t, decodeAs[api.Problem](t, a.body).Detail, "this esperd has no token, so its admin door only reads")
	}
	status, body := j.post(0, "/v1/requests", ask) // on the socket, as who runs the trainer
	require.Equal(t, 200, status, body)
	require.Equal(t, "operator", j.pending(0)[0].Initiator)
}

// A request that is pending when the model is reset ends without an effect.
func TestARequestDoesNotOutliveAReset(t *testing.T) {
	j := newJob(t, 2)
	all := j.trainers()
	germinated(t, all...)
	a := decodeAs[api.Requested](t, all[0].asks("r0c0").ok(t).body)
	for _, tr := range all {
		tr.reset().ok(t)
	}
	require.Empty(t, j.pending(0))
	e, _, err := j.log.Node(0).Entry(j.head(0))
	require.NoError(t, err)
	require.Equal(t, &events.RequestDone{Request: a.Index, Skipped: "the model was reset"}, e.Events[0].RequestDone)
	germinated(t, all...)
	all[0].asks("r0c0").ok(t)
	require.Len(t, j.pending(0), 1)
}

// A shadow follows what a request did to the log.
func TestOwnVerdictsAfterARequest(t *testing.T) {
	for _, mode := range []events.TrainerMode{events.ModeKeyed, events.ModeFollow} {
		t.Run(mode, func(t *testing.T) {
			j := newJob(t, 2)
			all := j.trainers(inMode(mode))
			stretch := func(epoch int64, calls func(*trainer)) {
				for _, tr := range all {
					if mode == events.ModeKeyed || tr.rank == 0 {
						calls(tr)
					}
					tr.step(epoch, measured("r0c0", health([]float64{0.9, 0.2}[tr.rank]))).ok(t)
				}
			}
			stretch(0, func(tr *trainer) {
				tr.germinate("r0c0").ok(t)
				tr.germinate("r0c1").ok(t)
				tr.advance("r0c0").ok(t)
				if tr.rank == 0 {
					all[1].asks("r0c1", members{"seed": 1}).ok(t)
				}
			})
			require.Equal(t, &[2]string{"", "rank 1"}, prunedBy(j, "r0c1"))
			stretch(1, func(tr *trainer) { tr.prune("nowhere").refused(t, events.CodeUnknownSlot) })
			require.Empty(t, j.log.Node(1).Verdicts())
			stretch(2, func(tr *trainer) { tr.advance("r0c0").ok(t) })
			require.Len(t, j.log.Node(1).Verdicts(), 1)
			require.NotContains(t, j.logs[1].String(), "bug in esperd")
		})
	}
}
