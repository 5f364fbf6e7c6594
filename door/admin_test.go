package door_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/replica"
)

// admins are the two ways to read the same: the admin door and the socket.
func (j *job) admins(rank int) map[string]*client.Admin {
	out := map[string]*client.Admin{
		"admin door": client.NewAdmin("http://" + j.doors[rank].AdminAddr()),
		"socket":     client.NewAdmin(j.socket(rank)),
	}
	for _, a := range out {
		j.t.Cleanup(a.Close)
	}
	return out
}

func TestBothDoorsReadTheSame(t *testing.T) {
	j := newJob(t, 2)
	trainers := j.connect()
	_, err := trainers[0].Germinate(j.ctx(), "r0c0", conv())
	require.NoError(t, err)
	require.NoError(t, step(0)(trainers[0], j))
	for door, a := range j.admins(1) {
		t.Run(door, func(t *testing.T) {
			ctx := j.ctx()
			st, err := a.State(ctx)
			require.NoError(t, err)
			require.Equal(t, "run-1", st.Run)
			require.Equal(t, uint64(1), st.Rank)
			require.Equal(t, "follower", st.Role)
			require.Equal(t, "durable", st.Durability)
			require.Equal(t, "wal", st.LogStore)
			require.True(t, st.Quorum)
			require.Equal(t, uint64(1), st.Round.Number)
			require.Len(t, st.Round.Members, 2)
			require.Equal(t, uint64(3), st.Models[0].Calls)

			m, err := a.Slots(ctx, "")
			require.NoError(t, err)
			require.Equal(t, int64(0), m.Epoch)
			require.Equal(t, events.StageGerminated, m.Slots[0].Stage, "the head, not rank 1's cursor")
			s, err := a.Slot(ctx, "main", "r0c0")
			require.NoError(t, err)
			require.Equal(t, m.Slots[0], *s)
			_, err = a.Slot(ctx, "", "r9c9")
			require.ErrorIs(t, err, client.ErrUnknownSlot)
			_, err = a.Slots(ctx, "critic")
			require.ErrorIs(t, err, client.ErrUnknownSlot)
			require.ErrorContains(t, err, "it has 1 models: [main]")
			require.NoError(t, a.Ready(ctx))
			var h api.Health
			require.NoError(t, a.Get(ctx, "/healthz", &h))
			require.Equal(t, api.Health{Status: "ok", Version: "test"}, h)
		})
	}
}

func TestRanksAndArrivals(t *testing.T) {
	j := newJob(t, 3)
	trainers := j.connect()
	require.NoError(t, step(0)(trainers[0], j))
	waits := make(chan error)
	require.NoError(t, step(0)(trainers[1], j))
	go func() { waits <- step(1)(trainers[1], j) }()
	j.waiting(1)
	j.stop(2)

	a := j.admins(0)["admin door"]
	arrivals, err := a.Arrivals(j.ctx())
	require.NoError(t, err)
	require.Len(t, arrivals.Waiting, 1)
	w := arrivals.Waiting[0]
	require.Equal(t, uint64(1), w.Rank)
	require.Equal(t, "decision", w.What)
	require.Equal(t, events.OpStepEpoch, w.Key.Op)
	require.Equal(t, []uint64{0}, w.Missing)
	require.Contains(t, w.Site, "match_test.go:")

	ranks, err := a.Ranks(j.ctx())
	require.NoError(t, err)
	require.Len(t, ranks.Ranks, 3)
	require.Equal(t, "leader", ranks.Ranks[0].Role)
	require.True(t, ranks.Ranks[0].Session)
	require.Equal(t, uint64(1), ranks.Ranks[0].Last.Key.Call)
	require.Equal(t, "host1", ranks.Ranks[1].Host)
	require.Len(t, ranks.Ranks[1].Waiting, 1)

	require.NoError(t, step(1)(trainers[0], j))
	require.NoError(t, <-waits)
	j.log.Node(2).Handle("ledger", func(context.Context, []byte) (any, error) { return nil, errors.New("connection refused") })
	ranks, err = a.Ranks(j.ctx())
	require.NoError(t, err)
	require.Equal(t, "connection refused", ranks.Ranks[2].Unreachable)
	require.Equal(t, "rank2:7400", ranks.Ranks[2].Address)
	require.NotEmpty(t, ranks.Ranks[2].Node)
	arrivals, err = a.Arrivals(j.ctx())
	require.NoError(t, err)
	require.Equal(t, "connection refused", arrivals.Unreachable[0].Reason)
}

// Before the first round the log does not say whose node is whose.
func TestANodeThatDoesNotAnswerBeforeTheFirstRound(t *testing.T) {
	j := newJob(t, 3)
	a := j.admins(0)["admin door"]
	dead := func(rank int) {
		j.log.Node(rank).Handle("ledger", func(context.Context, []byte) (any, error) { return nil, errors.New("connection refused") })
	}
	dead(2)
	ranks, err := a.Ranks(j.ctx())
	require.NoError(t, err)
	require.Empty(t, ranks.Ranks[1].Unreachable)
	require.Equal(t, "connection refused", ranks.Ranks[2].Unreachable)
	require.Equal(t, "rank2:7400", ranks.Ranks[2].Address, "all others have said who they are")
	require.Equal(t, "host2", ranks.Ranks[2].Host)
	dead(1)
	ranks, err = a.Ranks(j.ctx())
	require.NoError(t, err)
	for _, r := range ranks.Ranks[1:] {
		require.Equal(t, "its node does not answer; no answer came from rank1:7400 (connection refused) rank2:7400 (connection refused)", r.Unreachable)
		require.Empty(t, r.Node)
	}
}

func TestReadyNamesWhatIsMissing(t *testing.T) {
	j := newJob(t, 1)
	a := j.admins(0)["admin door"]
	for text, change := range map[string]func(*replica.Status){
		"this node is joining":              func(s *replica.Status) { s.Phase = replica.PhaseJoining },
		"no leader is known":                func(s *replica.Status) { s.Leader = "" },
		"the disk is full":                  func(s *replica.Status) { s.Problem = "the disk is full" },
		"entries wait to be written to the": func(s *replica.Status) { s.HistoryLag = 5000 },
	} {
		before := j.log.Node(0).Status()
		j.log.Node(0).Set(change)
		err := a.Ready(j.ctx())
		require.ErrorIs(t, err, client.ErrUnavailable)
		require.ErrorContains(t, err, text)
		j.log.Node(0).Set(func(s *replica.Status) { *s = before })
	}
	require.NoError(t, a.Ready(j.ctx()))
}

func TestEventsAreReadInPagesAndFollowed(t *testing.T) {
	j := newJob(t, 1)
	c := j.connect()[0]
	a := j.admins(0)["socket"]
	for epoch := range int64(5) {
		require.NoError(t, step(epoch)(c, j))
	}
	head := j.log.Node(0).State().Index
	var got []uint64
	for from := uint64(0); ; {
		page, err := a.Events(j.ctx(), from, 3)
		require.NoError(t, err)
		require.Equal(t, head, page.Head)
		for _, e := range page.Entries {
			got = append(got, e.Index)
			require.NotZero(t, e.Chain)
		}
		if from = page.Next; from == 0 {
			break
		}
	}
	require.Len(t, got, int(head))

	ctx, cancel := context.WithCancel(j.ctx())
	defer cancel()
	followed, ended := make(chan api.Entry), make(chan error)
	go func() {
		ended <- a.Follow(ctx, head, func(e api.Entry) error { followed <- e; return nil })
	}()
	require.Equal(t, head, (<-followed).Index)
	require.NoError(t, step(5)(c, j))
	e := <-followed
	require.Equal(t, head+1, e.Index)
	require.Equal(t, int64(5), e.Events[len(e.Events)-1].EpochStepped.Epoch)
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)

	go func() { ended <- a.Follow(j.ctx(), head+2, func(api.Entry) error { return nil }) }()
	time.Sleep(10 * time.Millisecond) // it may also meet a closed door, which is an error
	j.stop(0)
	if err := <-ended; err != nil {
		require.ErrorContains(t, err, "esperd does not answer")
	}
}

func TestHistoryThatIsNotHere(t *testing.T) {
	j := newJob(t, 1)
	j.connect()
	j.log.Node(0).Set(func(s *replica.Status) { s.CompleteFrom = 3 })
	a := j.admins(0)["socket"]
	_, err := a.Events(j.ctx(), 2, 10)
	require.ErrorIs(t, err, client.ErrUnavailable)
	require.ErrorContains(t, err, "begins at entry 3")
	page, err := a.Events(j.ctx(), 0, 10)
	require.NoError(t, err)
	require.Equal(t, uint64(3), page.Entries[0].Index)
	for _, limit := range []uint64{0, 10001} {
		_, err = a.Events(j.ctx(), 1, limit)
		require.Error(t, err)
	}
}

func TestTheAdminDoorOnlyReads(t *testing.T) {
	j := newJob(t, 1)
	base := "http://" + j.doors[0].AdminAddr()
	defer http.DefaultClient.CloseIdleConnections()
	resp, err := http.Post(base+"/v1/fence", "application/json", strings.NewReader("{}"))
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, http.StatusMethodNotAllowed, resp.StatusCode)

	req, err := http.NewRequest(http.MethodGet, base+"/v1/state", nil)
	require.NoError(t, err)
	req.Host = "rebound.example"
	resp, err = http.DefaultClient.Do(req)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, http.StatusForbidden, resp.StatusCode)
	require.Contains(t, string(body), "rebound.example")

	for path, status := range map[string]int{"/v1/nothing": 404, "/v1/session": 405, "/": 404} {
		resp, err = http.Get(base + path)
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, status, resp.StatusCode, path)
		require.Equal(t, "application/problem+json", resp.Header.Get("Content-Type"), path)
	}
}

func TestTheDocumentNamesEveryPath(t *testing.T) {
	j := newJob(t, 1)
	var doc struct {
		OpenAPI string                                `json:"openapi"`
		Paths   map[string]map[string]json.RawMessage `json:"paths"`
	}
	for _, a := range j.admins(0) {
		require.NoError(t, a.Get(j.ctx(), "/openapi.json", &doc))
	}
	require.Equal(t, "3.1.0", doc.OpenAPI)
	want := map[string]string{"/v1/session": "post", "/v1/fence": "post", "/v1/epochs/{epoch}/step": "post", "/v1/reset": "post",
		"/v1/resume": "post", "/v1/checkpoint": "post", "/v1/requests": "post", "/v1/busy": "post", "/v1/attest": "post", "/v1/arena": "post", "/v1/close": "post"}
	for _, op := range []string{"germinate", "observe", "advance", "verdict", "prune", "schedule_prune", "alpha_target", "ready", "failed", "attach", "loaded"} {
		want["/v1/slots/{slot}/"+op] = "post"
	}
	for _, path := range []string{"/v1/state", "/v1/slots", "/v1/slots/{slot}", "/v1/ranks", "/v1/arrivals", "/v1/events",
		"/v1/divergences", "/v1/chain", "/v1/records", "/healthz", "/readyz", "/metrics", "/openapi.json"} {
		want[path] = "get"
	}
	require.Len(t, doc.Paths, len(want))
	for path, method := range want {
		require.Contains(t, doc.Paths[path], method, path)
	}
}

func TestMetrics(t *testing.T) {
	j := newJob(t, 2)
	trainers := j.connect()
	toTraining(t, j, trainers)
	for rank, c := range trainers {
		c.Observe("r0c0", [2]api.Readings{health(0.9), health(0.2)}[rank])
		_, err := c.Advance(j.ctx(), "r0c0")
		require.NoError(t, err)
		_, err = c.Prune(j.ctx(), "r0c1", api.PruneRequest{})
		require.Error(t, err)
	}
	waits := make(chan error)
	go func() { waits <- step(0)(trainers[1], j) }()
	j.waiting(1)
	resp, err := j.http(1).Get("http://esperd/metrics")
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	resp.Body.Close()
	for _, line := range []string{
		`esperd_info{node="00000000000000000000000000000002",rank="1",run_id="run-1",version="test"} 1`,
		`esperd_index 7`, `esperd_role{role="follower"} 1`, `esperd_role{role="leader"} 0`, `esperd_round 1`, `esperd_round_faulted 0`,
		`esperd_decisions_total{op="advance",outcome="passed"} 2`, `esperd_decisions_total{op="germinate",outcome="done"} 1`,
		`esperd_decisions_total{op="prune",outcome="illegal-transition"} 1`,
		`esperd_shadow_disagreements_total 1`, `esperd_raft_term 2`, `esperd_raft_last_log_index 9`, `esperd_history_lag_entries 0`,
		`esperd_slot_stage{model="main",slot="r0c0"} 4`, `esperd_slot_alpha{model="main",slot="r0c1"} 0`,
		`esperd_waiting_seconds{rank="1",what="round"} 0`, `esperd_waiting_seconds{rank="1",what="decision"}`, `esperd_wait_seconds_count`, `esperd_decide_seconds_count 0`,
	} {
		require.Contains(t, string(body), line)
	}
	require.NoError(t, step(0)(trainers[0], j))
	require.NoError(t, <-waits)
}

func TestADivergenceIsFoundAgainInTheLog(t *testing.T) {
	j := newJob(t, 2)
	c := j.connect()
	j.log.Node(1).Corrupt(replica.BlameSelf)
	a := j.admins(0)["socket"]
	div, err := a.Divergences(j.ctx())
	require.NoError(t, err)
	require.Len(t, div.State, 1)
	require.Equal(t, "lifecycle", div.State[0].Which)
	require.Equal(t, "main", div.State[0].Model)
	require.NotEqual(t, div.State[0].Want, div.State[0].Got)
	ranks, err := a.Ranks(j.ctx())
	require.NoError(t, err)
	require.Equal(t, "diverged", ranks.Ranks[1].Phase)
	require.ErrorIs(t, step(0)(c[1], j), client.ErrDiverged)
}
