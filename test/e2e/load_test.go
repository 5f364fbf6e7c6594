package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/events"
)

var slotNames = []string{"r0c0", "r0c1", "r0c2", "r0c3"}

// testGates let seeds through quickly, so that every stage is passed often.
var testGates = events.GateConfig{MinTrainingImprovement: 0.5, MinBlendingEpochs: 1, MinSeedGradientRatio: 0.1, MinGradientHealthForBlending: 0.7}

func slotRequests(names []string) []api.SlotRequest {
	out := make([]api.SlotRequest, len(names))
	for i, name := range names {
		out[i].Name = name
	}
	return out
}

// optionsOf are those of a trainer of a rank of this world.
func (w *world) optionsOf(rank int) client.Options {
	return client.Options{Rank: uint64(rank), World: uint64(len(w.nodes)), Fingerprint: "e2e", Slots: slotRequests(slotNames), Gates: &testGates}
}

// An answer is what a trainer was told about one numbered call.
type answer struct {
	call    uint64
	op      events.Op
	slot    string
	index   uint64
	code    events.Code     // why it was refused; "": it was not
	verdict *events.Verdict // of advance and verdict
	alone   bool            // the rank would have decided otherwise
	said    string          // all of it but what is the rank's own, as JSON
}

// A trainer is one rank's. It makes the same calls as the others, one after the
// other, however often its esperd goes.
type trainer struct {
	rank int
	c    *client.Client
	next uint64           // number of the next call
	born map[string]int64 // by slot: the epoch in which its seed germinated

	mu      sync.Mutex
	answers []answer
	err     error
}

// pace is what an epoch takes beside its calls: about as long as those, so that
// the log of a test that waits for something else stays short.
const pace = 10 * time.Millisecond

// A load is the trainers of one round.
type load struct {
	w        *world
	round    uint64
	trainers []*trainer
	step     *lockstep
	stop     context.CancelFunc
	running  sync.WaitGroup
}

// train connects a trainer on every rank, which opens a round, and lets them
// call until finish.
func (w *world) train() *load {
	w.t.Helper()
	ctx, stop := context.WithCancel(w.t.Context())
	l := &load{w: w, trainers: make([]*trainer, len(w.nodes)), step: newLockstep(len(w.nodes)), stop: stop}
	w.t.Cleanup(func() {
		stop()
		l.running.Wait()
	})
	errs := make([]error, len(w.nodes))
	connecting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	w.inParallel(func(n *node) { l.trainers[n.rank], errs[n.rank] = connect(connecting, n) })
	require.NoError(w.t, errors.Join(errs...))
	first := l.trainers[0].c.Session()
	l.round = first.Round
	for _, tr := range l.trainers {
		s := tr.c.Session()
		require.Equal(w.t, []uint64{first.Round, first.NextCall, first.NextFence, first.Index}, []uint64{s.Round, s.NextCall, s.NextFence, s.Index}, "rank %d", tr.rank)
		require.Equal(w.t, first.Slots, s.Slots)
		l.running.Go(func() { l.run(ctx, tr) })
	}
	return l
}

func connect(ctx context.Context, n *node) (*trainer, error) {
	c, err := client.Connect(ctx, n.socket, n.w.optionsOf(n.rank))
	if err != nil {
		return nil, fmt.Errorf("rank %d: %w", n.rank, err)
	}
	s := c.Session()
	return &trainer{rank: n.rank, c: c, next: s.NextCall, born: map[string]int64{}}, nil
}

// run is the training loop. A trainer that fails ends the others: they would
// wait for it.
func (l *load) run(ctx context.Context, tr *trainer) {
	defer tr.c.Close()
	err := func() error {
		for epoch := tr.c.Session().Epoch + 1; ; epoch++ {
			if err := tr.epoch(ctx, epoch); err != nil {
				return err
			}
			if more, err := l.step.wait(ctx, tr.prunable()); !more {
				return err
			}
			time.Sleep(pace)
		}
	}()
	if err != nil {
		tr.mu.Lock()
		tr.err = fmt.Errorf("rank %d, call %d: %w", tr.rank, tr.next, err)
		tr.mu.Unlock()
		l.stop()
	}
}

// prunable reports whether a seed lives: a load ends only then, so that there is
// something left to ask for.
func (tr *trainer) prunable() bool {
	return slices.ContainsFunc(tr.c.Slots(), func(s api.Slot) bool {
		switch s.Stage {
		case events.StageGerminated, events.StageTraining, events.StageBlending, events.StageHolding:
			return true
		}
		return false
	})
}

// epoch is one turn of the script. What it does follows from the epoch and from
// what the slots were at the last fence, which is the same on every rank.
func (tr *trainer) epoch(ctx context.Context, epoch int64) error {
	slots := tr.c.Slots()
	for i := range slots {
		tr.c.Observe(slots[i].Name, tr.measure(epoch))
	}
	for i := range slots {
		if err := tr.slot(ctx, &slots[i], epoch+int64(i)); err != nil {
			return err
		}
	}
	if epoch%3 == 0 {
		d, err := tr.c.Advance(ctx, "nonesuch")
		if err := tr.decided("nonesuch", events.OpAdvance, d, err); err != nil {
			return err
		}
	}
	if epoch%4 == 0 {
		d, err := tr.c.Verdict(ctx, slotNames[0], events.Verdict{Gate: events.G1, Passed: true, Score: math.Inf(1)})
		if err := tr.decided(slotNames[0], events.OpVerdict, d, err); err != nil {
			return err
		}
	}
	f, err := tr.c.StepEpoch(ctx, epoch)
	if err == nil {
		err = tr.counted(f)
	}
	if err != nil {
		return err
	}
	return tr.note(answer{op: events.OpStepEpoch, index: f.Index}, f, nil)
}

// measure differs between ranks, so that some would decide otherwise.
func (tr *trainer) measure(epoch int64) api.Readings {
	accuracy := 40 + events.Num(epoch)
	if tr.rank > 0 && (epoch+int64(tr.rank))%3 == 0 {
		accuracy -= 30
	}
	return api.Readings{Accuracy: api.Value(accuracy), GradientRatio: api.Value(events.Num(1)), Health: api.Value(events.Num(0.9)),
		Exploding: api.Value(false), Vanishing: api.Value(false), Contribution: api.Value(events.Num(0.5))}
}

// slot makes the call that a slot's stage asks for, and now and then one that
// it does not allow.
func (tr *trainer) slot(ctx context.Context, s *api.Slot, turn int64) error {
	switch s.Stage {
	case events.StageGerminated, events.StageTraining, events.StageBlending:
		d, err := tr.c.Advance(ctx, s.Name)
		return tr.decided(s.Name, events.OpAdvance, d, err)
	case events.StageHolding:
		if turn%2 == 0 {
			d, err := tr.c.SchedulePrune(ctx, s.Name, api.SchedulePruneRequest{Ticks: 2, Reason: "for the next one"})
			return tr.done(s.Name, events.OpSchedulePrune, d, err)
		}
		d, err := tr.c.Prune(ctx, s.Name, api.PruneRequest{Reason: "for the next one"})
		return tr.done(s.Name, events.OpPrune, d, err)
	default: // empty, or cooling down, where it is refused
		tempo := int64(2)
		d, err := tr.c.Germinate(ctx, s.Name, api.GerminateRequest{Blueprint: "conv", Tempo: &tempo})
		if err == nil {
			tr.born[s.Name] = turn - int64(indexOf(s.Name))
		}
		return tr.done(s.Name, events.OpGerminate, d, err)
	}
}

func indexOf(slot string) int {
	for i, name := range slotNames {
		if name == slot {
			return i
		}
	}
	return -1
}

// counted checks that every observation counted once: each seed was measured
// once in every epoch after the one in which it germinated.
func (tr *trainer) counted(f *api.Fence) error {
	for i := range f.Slots {
		s := &f.Slots[i]
		if s.Metrics == nil || s.Stage.Cooldown() {
			continue
		}
		if _, known := tr.born[s.Name]; !known { // it is of an earlier round, whose last epoch may not have been closed
			tr.born[s.Name] = f.Epoch - s.Metrics.Epochs
		}
		if want := f.Epoch - tr.born[s.Name]; s.Metrics.Epochs != want {
			return fmt.Errorf("at fence %d slot %s counts %d epochs, expected %d: an observation was lost, or counted twice", f.Epoch, s.Name, s.Metrics.Epochs, want)
		}
	}
	return nil
}

func (tr *trainer) decided(slot string, op events.Op, d *api.Decision, err error) error {
	if err != nil {
		return tr.note(answer{op: op, slot: slot}, nil, err)
	}
	common := *d
	common.Local, common.Agreed = nil, false // the rank's own
	return tr.note(answer{op: op, slot: slot, index: d.Index, verdict: &d.Verdict, alone: !d.Agreed}, common, nil)
}

func (tr *trainer) done(slot string, op events.Op, d *api.Done, err error) error {
	if err != nil {
		return tr.note(answer{op: op, slot: slot}, nil, err)
	}
	return tr.note(answer{op: op, slot: slot, index: d.Index}, d, nil)
}

// note keeps an answer. An error that is no refusal in the log ends the
// trainer: it has been given no answer.
func (tr *trainer) note(a answer, body any, err error) error {
	if err != nil {
		p, ok := errors.AsType[*client.Problem](err)
		if !ok || p.Index == 0 {
			return err
		}
		a.index, a.code, body = p.Index, p.Code(), p.Problem
	}
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	a.call, a.said = tr.next, string(b)
	tr.next++
	tr.answers = append(tr.answers, a)
	return nil
}

func (tr *trainer) now() (answers []answer, err error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.answers, tr.err
}

// progress waits until every trainer has had so many more answers.
func (l *load) progress(more int) {
	l.w.t.Helper()
	target := make([]int, len(l.trainers))
	for i, tr := range l.trainers {
		answers, _ := tr.now()
		target[i] = len(answers) + more
	}
	eventually(l.w.t, "more answers for every trainer", func() error {
		if err := errors.Join(l.errors(), l.w.alive()); err != nil {
			l.w.t.Fatal(err)
		}
		for i, tr := range l.trainers {
			if answers, _ := tr.now(); len(answers) < target[i] {
				return fmt.Errorf("rank %d has %d of %d; who waits: %s", i, len(answers), target[i], l.w.waiting())
			}
		}
		return nil
	})
}

func (l *load) errors() error {
	var errs []error
	for _, tr := range l.trainers {
		_, err := tr.now()
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// finish lets the trainers end the epoch that they are in.
func (l *load) finish() {
	l.w.t.Helper()
	l.step.end()
	done := make(chan struct{})
	go func() {
		l.running.Wait()
		close(done)
	}()
	eventually(l.w.t, "the trainers' end", func() error {
		select {
		case <-done:
			return nil
		default:
			return errors.New(l.w.waiting())
		}
	})
	require.NoError(l.w.t, l.errors())
}

// waiting says who waits for whom, for a failed test.
func (w *world) waiting() string {
	var out string
	err := w.nodes[0].ask(func(ctx context.Context, a *client.Admin) error {
		arrivals, err := a.Arrivals(ctx)
		if err != nil {
			return err
		}
		b, err := json.Marshal(arrivals)
		out = string(b)
		return err
	})
	if err != nil {
		return err.Error()
	}
	return out
}

// lockstep lets the trainers wait for each other after every epoch, as the
// collectives of a training job do.
type lockstep struct {
	n int

	mu      sync.Mutex
	waiting int
	open    chan struct{} // closed when all are there
	ending  bool
	over    bool // set once, before open is closed: nobody goes on
}

func newLockstep(n int) *lockstep { return &lockstep{n: n, open: make(chan struct{})} }

// wait reports whether to go on, the same for all: until the end was asked for,
// and may be here.
func (s *lockstep) wait(ctx context.Context, mayEnd bool) (more bool, err error) {
	s.mu.Lock()
	open := s.open
	if s.waiting++; s.waiting == s.n {
		s.waiting, s.open, s.over = 0, make(chan struct{}), s.ending && mayEnd
		close(open)
	}
	s.mu.Unlock()
	select {
	case <-open:
		s.mu.Lock()
		defer s.mu.Unlock()
		return !s.over, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

func (s *lockstep) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending = true
}
