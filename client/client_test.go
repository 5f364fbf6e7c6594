package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/door"
	"github.com/esperd/esperd/door/doortest"
	"github.com/esperd/esperd/events"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// esperd is one node's doors, which can be closed and opened again.
type esperd struct {
	t      *testing.T
	node   *doortest.Node
	socket string
	doors  *door.Server
}

func newEsperd(t *testing.T, node *doortest.Node) *esperd {
	t.Helper()
	dir, err := os.MkdirTemp("", "client") // t.TempDir would be too long
	require.NoError(t, err)
	e := &esperd{t: t, node: node, socket: filepath.Join(dir, "s")}
	t.Cleanup(func() {
		e.stop()
		require.NoError(t, os.RemoveAll(dir))
	})
	e.start()
	return e
}

func (e *esperd) start() {
	var err error
	e.doors, err = door.Open(door.Options{Replica: e.node, Socket: e.socket, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	require.NoError(e.t, err)
}

func (e *esperd) stop() {
	if e.doors != nil {
		require.NoError(e.t, e.doors.Close(context.Background()))
		e.doors = nil
	}
}

func (e *esperd) connect(rank, world int) *client.Client {
	c, err := client.Connect(testContext(e.t), e.socket, client.Options{Rank: uint64(rank), World: uint64(world), Slots: []api.SlotRequest{{Name: "r0c0"}}})
	require.NoError(e.t, err)
	e.t.Cleanup(func() { require.NoError(e.t, c.Close()) })
	return c
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func accuracy(v float64) api.Readings { return api.Readings{Accuracy: api.Value(events.Num(v))} }

func TestACallOutlivesTheEsperdItWaitsIn(t *testing.T) {
	log := doortest.New("run-1", 2)
	nodes := []*esperd{newEsperd(t, log.Node(0)), newEsperd(t, log.Node(1))}
	var trainers [2]*client.Client
	var wg sync.WaitGroup
	for rank, e := range nodes {
		wg.Go(func() { trainers[rank] = e.connect(rank, 2) })
	}
	wg.Wait()
	answered := make(chan error)
	go func() {
		_, err := trainers[1].StepEpoch(testContext(t), 0)
		answered <- err
	}()
	for range 3 {
		time.Sleep(20 * time.Millisecond) // anywhere in the call, or before it
		nodes[1].stop()
		nodes[1].start()
	}
	_, err := trainers[0].StepEpoch(testContext(t), 0)
	require.NoError(t, err)
	require.NoError(t, <-answered)
	require.Nil(t, log.Node(0).State().Round.Fault)
}

func TestACallHappensOnce(t *testing.T) {
	log := doortest.New("run-1", 1)
	e := newEsperd(t, log.Node(0))
	c := e.connect(0, 1)
	ctx := testContext(t)
	_, err := c.Germinate(ctx, "r0c0", api.GerminateRequest{Blueprint: "conv"})
	require.NoError(t, err)
	for epoch := range int64(5) {
		c.Observe("r0c0", accuracy(float64(epoch)))
		log.Node(0).Lose(int(epoch) % 3)
		if epoch == 3 {
			e.stop()
			e.start()
		}
		f, err := c.StepEpoch(ctx, epoch)
		require.NoError(t, err)
		require.Equal(t, epoch+1, f.Slots[0].Metrics.Epochs, "no observation is lost, none counts twice")
		require.Equal(t, events.Num(epoch), f.Slots[0].Metrics.Accuracy)
	}
	require.Equal(t, uint64(7), log.Node(0).State().Cursor("main").Calls)
}

func TestObservationsOfAnUnknownOutcomeAreSentAgain(t *testing.T) {
	log := doortest.New("run-1", 1)
	e := newEsperd(t, log.Node(0))
	c := e.connect(0, 1)
	_, err := c.Germinate(testContext(t), "r0c0", api.GerminateRequest{Blueprint: "conv"})
	require.NoError(t, err)
	c.Observe("r0c0", accuracy(1))
	log.Node(0).Lose(1)
	log.Node(0).Refuse(errors.New("no leader"))
	ctx, cancel := context.WithTimeout(testContext(t), 50*time.Millisecond)
	defer cancel()
	_, err = c.StepEpoch(ctx, 0)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	c.Observe("r0c0", accuracy(2)) // of the time after the call that is still open
	log.Node(0).Refuse(nil)
	f, err := c.StepEpoch(testContext(t), 0)
	require.NoError(t, err)
	require.Equal(t, events.Num(1), f.Slots[0].Metrics.Accuracy)
	f, err = c.StepEpoch(testContext(t), 1)
	require.NoError(t, err)
	require.Equal(t, events.Num(2), f.Slots[0].Metrics.Accuracy)
}

func TestObservingOftenCostsAsMuchAsOnce(t *testing.T) {
	log := doortest.New("run-1", 1)
	c := newEsperd(t, log.Node(0)).connect(0, 1)
	_, err := c.Germinate(testContext(t), "r0c0", api.GerminateRequest{Blueprint: "conv"})
	require.NoError(t, err)
	c.Observe("r0c0", api.Readings{Healthy: api.Value(false)})
	for i := range 1 << 18 { // more than an entry may hold, and than a body
		c.Observe("r0c0", accuracy(float64(i)))
	}
	c.Observe("r0c0", api.Readings{Accuracy: api.NotMeasured[events.Num]()})
	f, err := c.StepEpoch(testContext(t), 0)
	require.NoError(t, err)
	require.Equal(t, events.Num(1<<18-1), f.Slots[0].Metrics.Accuracy)
	require.True(t, f.Slots[0].Metrics.Unhealthy)
	e, _, err := log.Node(0).Entry(f.Index)
	require.NoError(t, err)
	require.Len(t, e.Events, 2, "one Observed, one EpochStepped")
}

func TestARequestThatIsTooLongIsRefusedHere(t *testing.T) {
	log := doortest.New("run-1", 1)
	c := newEsperd(t, log.Node(0)).connect(0, 1)
	_, err := c.Germinate(testContext(t), "r0c0", api.GerminateRequest{Blueprint: "conv"})
	require.NoError(t, err)
	c.Observe("r0c0", accuracy(7))
	_, err = c.Prune(testContext(t), "r0c0", api.PruneRequest{Reason: strings.Repeat("x", api.BodyBytesMax)})
	require.ErrorIs(t, err, client.ErrInvalidInput)
	require.Regexp(t, `the request has 83\d+ bytes, expected at most 8388608: shorten its arguments`, err.Error())
	f, err := c.StepEpoch(testContext(t), 0)
	require.NoError(t, err, "its number was free")
	require.Equal(t, events.Num(7), f.Slots[0].Metrics.Accuracy, "the observations are still there")

	_, err = client.Connect(testContext(t), "nowhere", client.Options{Slots: []api.SlotRequest{{Name: strings.Repeat("x", api.BodyBytesMax)}}})
	require.ErrorIs(t, err, client.ErrInvalidInput, "a session's as well")
}

// A server with another limit answers while the client still writes, and closes
// the connection.
func TestAnAnswerBeforeTheEndOfTheRequestIsNoLostConnection(t *testing.T) {
	socket := listen(t, func(c net.Conn) {
		_, _ = c.Read(make([]byte, 4096))
		body := `{"type":"https://esperd.dev/problems/invalid-input","status":413,"detail":"too long"}`
		_, _ = fmt.Fprintf(c, "HTTP/1.1 413 Too Long\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	})
	_, err := client.Connect(testContext(t), socket, client.Options{Slots: []api.SlotRequest{{Name: strings.Repeat("x", 4<<20)}}})
	require.ErrorIs(t, err, client.ErrInvalidInput)
	require.ErrorContains(t, err, "too long")
}

func TestWhatWasReturnedStaysAsItWas(t *testing.T) {
	e := newEsperd(t, doortest.New("run-1", 1).Node(0))
	c := e.connect(0, 1)
	_, err := c.Germinate(testContext(t), "r0c0", api.GerminateRequest{Blueprint: "conv"})
	require.NoError(t, err)
	session := c.Session()
	fence, err := c.StepEpoch(testContext(t), 0)
	require.NoError(t, err)
	e.stop()
	e.start()
	_, err = c.Prune(testContext(t), "r0c0", api.PruneRequest{}) // opens the session again
	require.NoError(t, err)
	require.Equal(t, events.StageGerminated, c.Session().Slots[0].Stage)
	require.Equal(t, events.StageDormant, session.Slots[0].Stage)
	require.Equal(t, events.StageGerminated, fence.Slots[0].Stage)
}

// A whole life through the client: grown by the trainer's own verdicts, turned
// down half, then ramped away.
func TestRamps(t *testing.T) {
	c := newEsperd(t, doortest.New("run-1", 1).Node(0)).connect(0, 1)
	ctx := testContext(t)
	_, err := c.Germinate(ctx, "r0c0", api.GerminateRequest{Blueprint: "conv", Tempo: new(int64(1))})
	require.NoError(t, err)
	for _, gate := range []events.Gate{events.G1, events.G2} {
		d, err := c.Verdict(ctx, "r0c0", events.Verdict{Gate: gate, Passed: true})
		require.NoError(t, err)
		require.True(t, d.Passed)
	}
	fence, err := c.StepEpoch(ctx, 0)
	require.NoError(t, err)
	require.EqualValues(t, 1, fence.Slots[0].Alpha)
	_, err = c.AlphaTarget(ctx, "r0c0", api.AlphaTargetRequest{Target: 0.5, Ticks: 1})
	require.NoError(t, err)
	fence, err = c.StepEpoch(ctx, 1)
	require.NoError(t, err)
	require.EqualValues(t, 0.5, fence.Slots[0].Alpha)
	_, err = c.SchedulePrune(ctx, "r0c0", api.SchedulePruneRequest{Ticks: 1, Reason: "enough"})
	require.NoError(t, err)
	fence, err = c.StepEpoch(ctx, 2)
	require.NoError(t, err)
	require.Equal(t, events.StagePruned, fence.Slots[0].Stage)
	require.EqualValues(t, 0, fence.Slots[0].Alpha)
}

func TestProblemsAreErrorsOfTheirCode(t *testing.T) {
	log := doortest.New("run-1", 1)
	c := newEsperd(t, log.Node(0)).connect(0, 1)
	_, err := c.Prune(testContext(t), "r0c0", api.PruneRequest{})
	require.ErrorIs(t, err, client.ErrIllegalTransition)
	require.NotErrorIs(t, err, client.ErrUnknownSlot)
	var p *client.Problem
	require.ErrorAs(t, err, &p)
	require.Equal(t, events.CodeIllegalTransition, p.Code())
	require.ErrorContains(t, err, "illegal-transition: prune r0c0: expected a seed")
	e, _, err := log.Node(0).Entry(p.Index)
	require.NoError(t, err)
	require.Regexp(t, `^client_test.go:\d+$`, e.Site)
}

func TestSlotsAreThoseOfTheLastAnswer(t *testing.T) {
	c := newEsperd(t, doortest.New("run-1", 1).Node(0)).connect(0, 1)
	ctx := testContext(t)
	require.Equal(t, events.StageDormant, c.Slots()[0].Stage)
	_, err := c.Germinate(ctx, "r0c0", api.GerminateRequest{Blueprint: "conv"})
	require.NoError(t, err)
	require.Equal(t, events.StageGerminated, c.Slots()[0].Stage)
	_, err = c.Advance(ctx, "r0c0")
	require.NoError(t, err)
	require.Equal(t, events.StageTraining, c.Slots()[0].Stage)
	f, err := c.Fence(ctx, 1)
	require.NoError(t, err)
	require.Equal(t, f.Slots, c.Slots())
	_, err = c.Prune(ctx, "r0c0", api.PruneRequest{})
	require.NoError(t, err)
	require.Equal(t, events.StageTraining, f.Slots[0].Stage, "an answer stays as it was")
	require.Equal(t, events.StagePruned, c.Slots()[0].Stage)
	f.Slots[0].Name = "the caller's"
	for n := int64(2); n < 4; n++ { // what did not change is not sent, and there all the same
		f, err = c.Fence(ctx, n)
		require.NoError(t, err)
		require.Len(t, f.Slots, 1)
		require.Equal(t, "r0c0", f.Slots[0].Name)
		require.Equal(t, events.StagePruned, f.Slots[0].Stage)
		require.Zero(t, f.Since)
		require.Equal(t, f.Slots, c.Slots())
	}
}

func TestCallsOfManyGoroutinesAreMadeOneAfterTheOther(t *testing.T) {
	log := doortest.New("run-1", 1)
	c := newEsperd(t, log.Node(0)).connect(0, 1)
	other, err := c.Model(testContext(t), "other")
	require.NoError(t, err)
	defer other.Close()
	var wg sync.WaitGroup
	for range 8 {
		for _, c := range []*client.Client{c, other} {
			wg.Go(func() {
				c.Observe("r0c0", accuracy(1))
				if _, err := c.Advance(testContext(t), "r0c0"); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	for _, model := range []string{"main", "other"} {
		require.Equal(t, uint64(9), log.Node(0).State().Cursor(model).Calls)
	}
}

func TestWithoutEsperdConnectSaysWhere(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	_, err := client.Connect(testContext(t), socket, client.Options{ConnectMax: 20 * time.Millisecond})
	require.ErrorContains(t, err, "esperd does not answer at "+socket)
	require.ErrorContains(t, err, "ESPERD_SOCKET")
	ctx, cancel := context.WithTimeout(testContext(t), 20*time.Millisecond)
	defer cancel()
	_, err = client.Connect(ctx, socket, client.Options{})
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestSomethingElseBehindTheSocket(t *testing.T) {
	socket := listen(t, func(c net.Conn) {
		_, _ = c.Read(make([]byte, 4096))
		_, _ = c.Write([]byte("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 5\r\n\r\nproxy"))
	})
	_, err := client.Connect(testContext(t), socket, client.Options{ConnectMax: time.Millisecond})
	require.ErrorContains(t, err, `HTTP status 502 and no problem document, but "proxy"`)
}

// listen serves connections to a socket one after the other.
func listen(t *testing.T, serve func(net.Conn)) string {
	dir, err := os.MkdirTemp("", "client")
	require.NoError(t, err)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, l.Close())
		require.NoError(t, os.RemoveAll(dir))
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c)
			_ = c.Close()
		}
	}()
	return l.Addr().String()
}
