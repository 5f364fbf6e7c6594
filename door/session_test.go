package door_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/door"
	"github.com/esperd/esperd/events"
)

func TestWhoTheTrainerIsHasToFit(t *testing.T) {
	j := newJob(t, 2)
	for name, tc := range map[string]struct {
		change func(*client.Options)
		text   string
	}{
		"rank":          {func(o *client.Options) { o.Rank = 1 }, "the trainer is rank 1, the esperd behind this socket is rank 0's"},
		"world":         {func(o *client.Options) { o.World = 4 }, "the trainer's world size is 4, this esperd's is 2"},
		"rank in world": {func(o *client.Options) { o.Rank = 2 }, "the trainer's rank is 2 in a world of 2, expected 0 to 1"},
		"run":           {func(o *client.Options) { o.Run = "run-2" }, `the trainer is in run "run-2", this esperd's log is run "run-1"`},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(0, 2)
			tc.change(&o)
			_, err := client.Connect(j.ctx(), j.socket(0), o)
			require.ErrorIs(t, err, client.ErrConfigMismatch)
			require.Contains(t, err.Error(), tc.text)
		})
	}
}

// another connects a new trainer of a rank in the background.
func (j *job) another(ctx context.Context, rank int) <-chan error {
	connected := make(chan error, 1)
	go func() {
		c, err := client.Connect(ctx, j.socket(rank), options(rank, len(j.doors)))
		if err == nil {
			err = c.Close()
		}
		connected <- err
	}()
	return connected
}

func TestAStrayTrainerEndsNobodysCalls(t *testing.T) {
	j := newJob(t, 2)
	trainers := j.connect()
	waits := make(chan error)
	go func() { waits <- step(0)(trainers[1], j) }()
	j.waiting(1)

	ctx, cancel := context.WithCancel(j.ctx())
	stray := j.another(ctx, 1)
	j.waitingFor(1, "round")
	require.NoError(t, step(0)(trainers[0], j))
	require.NoError(t, <-waits, "the call that waited")
	for _, c := range trainers {
		require.NoError(t, step(1)(c, j), "and those after it")
	}
	other := make(chan error)
	go func() { // a model that nobody has opened yet
		c, err := trainers[1].Model(j.ctx(), "critic")
		if err == nil {
			err = c.Close()
		}
		other <- err
	}()
	c, err := trainers[0].Model(j.ctx(), "critic")
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, <-other)
	ranks, err := j.admins(0)["admin door"].Ranks(j.ctx())
	require.NoError(t, err)
	require.True(t, ranks.Ranks[1].Session)
	require.Equal(t, "round", ranks.Ranks[1].Waiting[0].What)
	cancel()
	require.ErrorIs(t, <-stray, context.Canceled)
	require.NoError(t, step(2)(trainers[0], j))
	require.NoError(t, step(2)(trainers[1], j))
}

func TestTheTrainerOfTheNewRoundCounts(t *testing.T) {
	j := newJob(t, 2)
	trainers := j.connect()
	waits := make(chan error)
	go func() { waits <- step(0)(trainers[1], j) }()
	j.waiting(1)
	newcomer := j.another(j.ctx(), 1)
	j.waitingFor(1, "round")
	select {
	case err := <-waits:
		t.Fatalf("the living trainer's call ended before a new round was open: %v", err)
	default:
	}
	require.NoError(t, <-j.another(j.ctx(), 0))
	require.NoError(t, <-newcomer)
	require.ErrorIs(t, <-waits, client.ErrNotAuthority)
	for rank, c := range trainers {
		err := step(0)(c, j)
		require.ErrorIs(t, err, client.ErrNotAuthority, "it does not come back")
		require.Contains(t, err.Error(), fmt.Sprintf("another trainer of rank %d connected at 2", rank))
	}
}

func TestOfTwoTrainersThatWaitTheNewerOneGoesOn(t *testing.T) {
	j := newJob(t, 2)
	trainers := j.connect()
	older := j.another(j.ctx(), 1)
	j.waitingFor(1, "round")
	newer := j.another(j.ctx(), 1)
	err := <-older
	require.ErrorIs(t, err, client.ErrNotAuthority)
	require.Contains(t, err.Error(), "another trainer of rank 1 connected at 2")
	require.Contains(t, err.Error(), "while this one waited for its round")
	require.NoError(t, step(0)(trainers[0], j))
	require.NoError(t, step(0)(trainers[1], j), "the living one is served until the round is open")
	require.NoError(t, <-j.another(j.ctx(), 0))
	require.NoError(t, <-newer)
	require.ErrorIs(t, step(1)(trainers[1], j), client.ErrNotAuthority)
}

func TestATrainerThatIsBackDoesNotEndAnothersWait(t *testing.T) {
	j := newJob(t, 2)
	trainers := j.connect()
	j.stop(1)
	j.start(1)
	newcomer := j.another(j.ctx(), 1)
	j.waitingFor(1, "round")
	critic := make([]*client.Client, 2) // of the living trainers; rank 1's has not made a call since
	for rank, c := range trainers {
		var err error
		critic[rank], err = c.Model(j.ctx(), "critic")
		require.NoError(t, err)
		defer critic[rank].Close()
	}
	for rank := range trainers {
		require.NoError(t, step(0)(critic[rank], j))
		require.NoError(t, step(0)(trainers[rank], j))
	}
	require.NoError(t, <-j.another(j.ctx(), 0))
	require.NoError(t, <-newcomer)
	require.ErrorIs(t, step(1)(critic[1], j), client.ErrNotAuthority)
}

func TestTheRendezvousOfATrainerThatNamesNone(t *testing.T) {
	j := newJob(t, 1, func(o *door.Options) { o.Fingerprint = "host:29500/1/2" })
	j.connect()
	require.Equal(t, "host:29500/1/2", j.log.Node(0).State().Round.Fingerprint)
	j.connect(func(o *client.Options) { o.Fingerprint = "my own" })
	require.Equal(t, "my own", j.log.Node(0).State().Round.Fingerprint)
}

func TestConfigurationsHaveToBeTheSame(t *testing.T) {
	j := newJob(t, 2)
	trainers, errs := make([]*client.Client, 2), make([]error, 2)
	done := make(chan int)
	for rank := range 2 {
		go func() {
			o := options(rank, 2)
			if rank == 1 {
				o.Slots[1].AutoForward = []events.Gate{events.G2, events.G1}
			}
			trainers[rank], errs[rank] = client.Connect(j.ctx(), j.socket(rank), o)
			done <- rank
		}()
	}
	<-done
	<-done
	require.NoError(t, errs[0])
	defer trainers[0].Close()
	require.ErrorIs(t, errs[1], client.ErrConfigMismatch)
	require.Contains(t, errs[1].Error(), "slot r0c1: auto_forward is [] in the log, [G1 G2] here")
	err := step(0)(trainers[0], j)
	require.ErrorIs(t, err, client.ErrRoundFaulted)
	require.Contains(t, err.Error(), "rank 1 configured model main at session_test.go:")
}

func TestATrainerMayTakeTheLogsConfiguration(t *testing.T) {
	j := newJob(t, 2)
	for _, c := range j.connect(func(o *client.Options) {
		if o.Rank == 1 {
			o.Slots, o.Gates = nil, nil
		}
	}) {
		require.Len(t, c.Slots(), 2)
	}
	for _, c := range j.connect(func(o *client.Options) { o.Slots = nil }) {
		require.Equal(t, uint64(2), c.Session().Round)
		require.Len(t, c.Slots(), 2)
	}
	strict := permissive()
	strict.Permissive = false
	_, err := client.Connect(j.ctx(), j.socket(0), func() client.Options {
		o := options(0, 2)
		o.Slots, o.Gates = nil, strict
		o.Incarnation = j.log.Node(0).State().Round.Members[0].Incarnation
		return o
	}())
	require.NoError(t, err, "call 0 is answered already: it is not asked again")
}

func TestALogWithoutAConfigurationAsksForOne(t *testing.T) {
	j := newJob(t, 1)
	o := options(0, 1)
	o.Slots = nil
	_, err := client.Connect(j.ctx(), j.socket(0), o)
	require.ErrorIs(t, err, client.ErrConfigMismatch)
	require.Contains(t, err.Error(), "pass slots")
	require.Positive(t, problem(t, err).Index)
}

// script is what both trainers of the tests below do, in steps that they can be
// interrupted between.
var script = []func(*client.Client, *job) (any, error){
	func(c *client.Client, j *job) (any, error) { return c.Germinate(j.ctx(), "r0c0", conv()) },
	func(c *client.Client, j *job) (any, error) {
		c.Observe("r0c0", accuracy(50))
		return c.Advance(j.ctx(), "r0c0")
	},
	func(c *client.Client, j *job) (any, error) { return c.StepEpoch(j.ctx(), 0) },
	func(c *client.Client, j *job) (any, error) { return c.Germinate(j.ctx(), "r0c1", conv()) },
	func(c *client.Client, j *job) (any, error) { return c.Prune(j.ctx(), "nowhere", api.PruneRequest{}) },
	func(c *client.Client, j *job) (any, error) {
		c.Observe("r0c0", accuracy(60))
		return c.Advance(j.ctx(), "r0c0")
	},
	func(c *client.Client, j *job) (any, error) { return c.StepEpoch(j.ctx(), 1) },
	func(c *client.Client, j *job) (any, error) { return c.Fence(j.ctx(), 5) },
	func(c *client.Client, j *job) (any, error) { return c.StepEpoch(j.ctx(), 2) },
}

func TestAnEsperdThatRestartsIsNotNoticed(t *testing.T) {
	quiet := run(t, func(*job, int) {})
	restarted := run(t, func(j *job, _ int) {
		for rank := range 2 {
			j.stop(rank)
			j.start(rank)
		}
	})
	for i := range quiet[0] {
		require.Equal(t, quiet[0][i], restarted[0][i], "call %d of rank 0", i+1)
		require.Equal(t, unlocal(quiet[1][i]), unlocal(restarted[1][i]), "call %d of rank 1", i+1)
		require.Equal(t, unlocal(quiet[0][i]), unlocal(quiet[1][i]), "call %d", i+1)
	}
	require.NotNil(t, quiet[1][5].(*api.Decision).Local)
	require.Nil(t, restarted[1][5].(*api.Decision).Local, "what rank 1 measured of this seed is lost")
}

// run plays the script on two ranks and returns their answers. Rank 0 is ahead
// by half of it.
func run(t *testing.T, between func(j *job, i int)) [2][]any {
	t.Helper()
	j := newJob(t, 2)
	trainers := j.connect()
	var out [2][]any
	play := func(rank int) {
		i := len(out[rank])
		v, err := script[i](trainers[rank], j)
		if err != nil {
			v = problem(t, err).Problem
		}
		out[rank] = append(out[rank], v)
		between(j, i)
	}
	ahead := len(script) / 2
	for i := range len(script) + ahead {
		if i < len(script) {
			play(0)
		}
		if i >= ahead {
			play(1)
		}
	}
	return out
}

// unlocal drops what is a rank's own in an answer.
func unlocal(v any) any {
	if d, ok := v.(*api.Decision); ok {
		c := *d
		c.Local = nil
		return &c
	}
	return v
}

func TestALostAnswerIsGivenAgain(t *testing.T) {
	j := newJob(t, 1)
	c := j.connect()[0]
	s := c.Session()
	call := func(n uint64, reason string) string {
		return jsonOf(t, api.PruneRequest{Call: api.Call{Session: s.Session, Model: "main", Call: n, Site: "raw:1"}, Reason: reason})
	}
	germinate := jsonOf(t, api.GerminateRequest{Call: api.Call{Session: s.Session, Model: "main", Call: 1}, Blueprint: "conv"})
	status, _ := j.post(0, "/v1/slots/r0c0/germinate", germinate)
	require.Equal(t, 200, status)
	status, first := j.post(0, "/v1/slots/r0c0/prune", call(2, "a"))
	require.Equal(t, 200, status, first)
	index := j.log.Node(0).State().Index
	status, again := j.post(0, "/v1/slots/r0c0/prune", call(2, "a"))
	require.Equal(t, 200, status)
	require.Equal(t, first, again)
	require.Equal(t, index, j.log.Node(0).State().Index)

	// The client that missed the answer to call 2 comes back to call 1.
	req := api.SessionRequest{Protocol: 1, Rank: 0, WorldSize: 1, Incarnation: s.Session, Model: "main", Answered: new(uint64(1)), Round: s.Round, Lineage: s.Lineage}
	status, body := j.post(0, "/v1/session", jsonOf(t, req))
	require.Equal(t, 200, status)
	answer := decodeAs[api.SessionAnswer](t, body)
	require.Equal(t, uint64(2), answer.NextCall)
	require.Equal(t, events.StageGerminated, answer.Slots[0].Stage)
	_, again = j.post(0, "/v1/slots/r0c0/prune", call(2, "a"))
	require.Equal(t, first, again)
	for _, answered := range []uint64{0, 3} {
		req.Answered = &answered
		status, body = j.post(0, "/v1/session", jsonOf(t, req))
		require.Equal(t, 422, status, body)
	}

	for text, change := range map[string]func(*api.SessionRequest){
		"the log was founded anew":                 func(r *api.SessionRequest) { r.Lineage = "another" },
		"is of round 0, expected 1, which is open": func(r *api.SessionRequest) { r.Round = 0 },
	} {
		other := req
		change(&other)
		status, body = j.post(0, "/v1/session", jsonOf(t, other))
		require.Equal(t, 409, status)
		require.Contains(t, body, text)
	}

	stale := req
	stale.Incarnation = strings.Repeat("e", 32)
	status, body = j.post(0, "/v1/session", jsonOf(t, stale))
	require.Equal(t, 409, status)
	require.Contains(t, body, "round 1 has another trainer of rank 0 than this incarnation")

	status, body = j.post(0, "/v1/slots/r0c0/prune", call(4, "a"))
	require.Equal(t, 422, status)
	require.Contains(t, body, "expected call 3 after 0 fences (or the last call once more), got call 4 after 0")
	status, body = j.post(0, "/v1/slots/r0c0/prune", call(2, "b"))
	require.Equal(t, 409, status)
	require.Contains(t, body, "order-mismatch")
	require.Contains(t, body, "rank 0 is at call 2, prune r0c0#1 epoch -1 at raw:1, but it made call 2, prune")
}

func TestCallsOfAnUnknownSession(t *testing.T) {
	j := newJob(t, 1)
	status, body := j.post(0, "/v1/fence", `{"session":"`+strings.Repeat("0", 32)+`","call":1,"fence":0,"n":1}`)
	require.Equal(t, 503, status)
	require.Contains(t, body, "is not open here: esperd was started anew")
	c := j.connect()[0]
	status, body = j.post(0, "/v1/fence", `{"session":"`+c.Session().Session+`","model":"other","call":1,"fence":0,"n":1}`)
	require.Equal(t, 503, status)
	require.Contains(t, body, `model \"other\" is not open`)
}

func TestAClientThatGoesStopsWaiting(t *testing.T) {
	j := newJob(t, 2)
	trainers := j.connect()
	ctx, cancel := context.WithCancel(j.ctx())
	waits := make(chan error)
	go func() {
		_, err := trainers[1].StepEpoch(ctx, 0)
		waits <- err
	}()
	j.waiting(1)
	cancel()
	require.ErrorIs(t, <-waits, context.Canceled)
	a := client.NewAdmin(j.socket(1))
	defer a.Close()
	require.Eventually(t, func() bool {
		arrivals, err := a.Arrivals(j.ctx())
		return err == nil && len(arrivals.Waiting) == 0
	}, 5*time.Second, time.Millisecond)
	require.NoError(t, step(0)(trainers[0], j))
	require.NoError(t, step(0)(trainers[1], j), "the same call again")
}

func TestAReplicaThatDivergesAnswersNoMore(t *testing.T) {
	j := newJob(t, 2)
	trainers := j.connect()
	waits := make(chan error)
	go func() { waits <- step(0)(trainers[1], j) }()
	j.waiting(1)
	j.diverge(1)
	err := <-waits
	require.ErrorIs(t, err, client.ErrDiverged)
	require.Contains(t, err.Error(), "bits differ")
}

func TestATrainerThatIsBackBeforeItsNodeIs(t *testing.T) {
	for _, applied := range []uint64{0, 1, 2, 4} { // nothing, no round yet, no call yet, some calls
		j := newJob(t, 2)
		trainers := j.connect()
		for _, c := range trainers {
			require.NoError(t, step(0)(c, j))
			require.NoError(t, step(1)(c, j))
		}
		j.stop(1)
		j.log.Node(1).Behind(applied)
		j.start(1)
		waits := make(chan error)
		go func() { waits <- step(2)(trainers[1], j) }()
		require.NoError(t, step(2)(trainers[0], j))
		select {
		case err := <-waits:
			t.Fatalf("answered before the node has caught up: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
		j.log.Node(1).Release()
		require.NoError(t, <-waits)
	}
}
