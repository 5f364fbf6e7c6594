package sim

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/gates"
	"github.com/esperd/esperd/replica"
)

// job is the trainers of all ranks: in each round all make the same calls, rank
// 0's being decided. A restart of the job abandons the round and opens the next.
type job struct {
	w      *world
	seed   uint64
	rounds int // to finish
	calls  int // in each

	mu       sync.Mutex
	restart  chan struct{} // closed when the job restarts
	attempt  uint64
	size     uint64                                     // ranks
	outlived bool                                       // a node was replaced when all rounds had been played
	complete bool                                       // all ranks have played all their rounds: nothing restarts any more
	answers  map[events.CallID]map[uint64]events.Digest // call -> rank -> hash of the entry it was answered from
	acked    map[events.CallID]uint64                   // rank 0's answered calls -> index
	late     map[events.CallID]uint64                   // likewise, of trainers that were left from the start before
	asked    map[uint64]string                          // index of a request that was acknowledged -> its slot
	marks    map[events.CallID]events.Digest            // of the mark that was taken after a call
	stored   *checkpoint                                // the last that rank 0 has with its weights
	resumed  map[events.CallID]*checkpoint              // likewise by rank 0's answered calls
	broken   error
	done     map[uint64]uint64 // rank -> 1 + attempt in which it played all its rounds
	doing    map[uint64]string // rank -> what it does, for a failing test
}

func newJob(w *world, seed uint64, rounds, calls int) *job {
	return &job{w: w, seed: seed, rounds: rounds, calls: calls, restart: make(chan struct{}), size: uint64(len(w.ranks)),
		answers: map[events.CallID]map[uint64]events.Digest{}, acked: map[events.CallID]uint64{}, late: map[events.CallID]uint64{}, asked: map[uint64]string{},
		marks: map[events.CallID]events.Digest{}, resumed: map[events.CallID]*checkpoint{}, doing: map[uint64]string{}, done: map[uint64]uint64{}}
}

// stop ends the trainers of this start on all ranks; false: they have played all
// their rounds, and nothing restarts any more.
func (j *job) stop() bool {
	return j.begin(0)
}

// begin lets trainers of the next start play on so many ranks.
func (j *job) begin(size int) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.complete {
		return false
	}
	close(j.restart)
	j.restart = make(chan struct{})
	j.attempt++
	j.size = uint64(size)
	return true
}

// over reports whether all ranks have played all their rounds.
func (j *job) over() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.complete
}

func (j *job) now() (attempt, size uint64, restart <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.attempt, j.size, j.restart
}

func (j *job) does(rank uint64, format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.doing[rank] = fmt.Sprintf(format, args...)
}

func (j *job) fail(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken == nil {
		j.broken = fmt.Errorf(format, args...)
	}
}

// run plays one rank to the end, in those starts of the job that have it.
func (j *job) run(ctx context.Context, rank uint64) {
	last, done := uint64(0), 0
	for ctx.Err() == nil && !j.over() {
		attempt, size, restart := j.now()
		if attempt != last {
			done, last = 0, attempt // the whole job began anew
		}
		if done == j.rounds || rank >= size {
			if done == j.rounds && j.finished(rank, attempt) {
				return
			}
			sleep(ctx, 100*time.Millisecond)
			continue
		}
		roundCtx, cancel := context.WithCancel(ctx)
		go func() {
			select {
			case <-restart:
				cancel()
			case <-roundCtx.Done():
			}
		}()
		ok := j.round(roundCtx, rank, size, fmt.Sprintf("%08x%08x%016x", done, attempt, rank), fmt.Sprintf("%d/%d", done, attempt))
		if ok && roundCtx.Err() == nil {
			done++
		} else {
			sleep(ctx, 100*time.Millisecond)
		}
		cancel()
	}
}

// finished notes that a rank has played all its rounds and reports whether all
// have: until then the whole job may begin anew.
func (j *job) finished(rank, attempt uint64) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.attempt == attempt {
		j.done[rank] = attempt + 1
	}
	for r := range j.size {
		if j.done[r] != j.attempt+1 {
			return false
		}
	}
	j.complete = true
	return true
}

// round is one run of a rank's trainer; it reports whether it made all calls.
func (j *job) round(ctx context.Context, rank, size uint64, incarnation, fingerprint string) bool {
	var number uint64
	for number == 0 {
		n, err := j.w.wait(ctx, rank)
		if err != nil {
			return false
		}
		number, err = n.Register(ctx, replica.Registration{Rank: rank, World: size, Incarnation: incarnation, Fingerprint: fingerprint, Mode: "keyed"})
		if j.does(rank, "registers %s: %v", fingerprint, err); err != nil && !sleep(ctx, 50*time.Millisecond) {
			return false
		}
	}
	script := newScript(j.seed, number)
	cursor := uint64(0) // index of the last answered entry
	pace := rand.New(rand.NewPCG(j.seed^rank, number))
	for k := range j.calls {
		if !sleep(ctx, time.Duration(pace.IntN(800))*time.Millisecond) { // training
			return false
		}
		index, ok := j.call(ctx, rank, number, uint64(k), cursor, script)
		if !ok {
			return false
		}
		cursor = index
		if script.marks(uint64(k)) {
			j.checkpoint(rank, events.CallID{Round: number, Model: model, Call: uint64(k)}, index)
		}
		if pace.IntN(6) == 0 {
			j.ask(ctx, rank, []string{"a", "b", "c", "nowhere"}[pace.IntN(4)])
		}
	}
	return true
}

// ask requests a prune, as a rank's governor does. It may be refused, or give up
// not knowing what becomes of it.
func (j *job) ask(ctx context.Context, rank uint64, slot string) {
	n, err := j.w.wait(ctx, rank)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	index, err := n.Request(ctx, events.Requested{Model: model, Slot: slot, Action: events.ActionPrune, Reason: "sim"})
	j.does(rank, "asks for a prune in slot %s: entry %d, %v", slot, index, err)
	if err == nil && j.w.alive(rank) == n {
		j.mu.Lock()
		j.asked[index] = slot
		j.mu.Unlock()
	}
}

// call makes one numbered call until it is answered.
func (j *job) call(ctx context.Context, rank, round, k, cursor uint64, script *script) (uint64, bool) {
	id := events.CallID{Round: round, Model: model, Call: k}
	for ctx.Err() == nil {
		n, err := j.w.wait(ctx, rank)
		if err != nil {
			return 0, false
		}
		var index uint64
		if rank == 0 {
			index, err = j.decide(ctx, n, id, cursor, script)
		} else {
			index, err = find(ctx, n, id)
		}
		j.does(rank, "call %d of round %d: entry %d, %v", k, round, index, err)
		var e *replica.Error
		switch {
		case err == nil && j.w.alive(rank) == n && j.answered(rank, n, id, index, script.resumed[k]):
			j.wentBack(rank, n, index)
			script.next(k)
			return index, true
		case errors.As(err, &e) && e.Code == events.CodeNotAuthority:
			return 0, false
		}
		sleep(ctx, 20*time.Millisecond)
	}
	return 0, false
}

const model = "main"

// decide makes rank 0's call, sometimes giving up early and asking again.
func (j *job) decide(ctx context.Context, n *replica.Node, id events.CallID, cursor uint64, script *script) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, script.patience())
	defer cancel()
	key := events.Key{Round: id.Round, Model: id.Model, Call: id.Call, Fence: script.fences, Epoch: -1}
	if id.Call > 0 || id.Round > 1 {
		at := n.State()
		if cursor > 0 {
			var err error
			if at, err = n.StateAt(ctx, cursor); err != nil {
				return 0, err
			}
		}
		if m := at.Model(id.Model); m != nil {
			key.Generation, key.Epoch = m.Generation, m.Epoch
			script.see(m)
		}
	}
	args := script.args(id.Call)
	if c := j.resume(script, n.State(), id.Call); c != nil {
		var err error
		if args, err = c.args(n); err != nil {
			return 0, err
		}
		script.steps[id.Call] = true
	}
	key.Op, key.Args = args.Op(), fsm.ArgsHash(args)
	if !key.Op.Fence() && key.Op != events.OpConfigure {
		key.Slot = script.slot(id.Call)
	}
	return n.Decide(ctx, fsm.Call{Key: key, Args: args, Observations: script.observations(id.Call)})
}

func find(ctx context.Context, n *replica.Node, id events.CallID) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	for {
		changed := n.Changed()
		index, ok, err := n.Find(id)
		if ok || err != nil {
			return index, err
		}
		if r := n.State().Round.Number; r > id.Round {
			return 0, &replica.Error{Code: events.CodeNotAuthority, Reason: "the round is over"}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// answered notes what a rank was answered and checks that no other rank was
// answered otherwise.
func (j *job) answered(rank uint64, n *replica.Node, id events.CallID, index uint64, resumed *checkpoint) bool {
	_, rec, err := n.Entry(index)
	if err != nil {
		return false
	}
	sum := events.Digest(sha256.Sum256(rec.Entry))
	j.mu.Lock()
	if j.answers[id] == nil {
		j.answers[id] = map[uint64]events.Digest{}
	}
	j.answers[id][rank] = sum
	if rank == 0 {
		j.acked[id] = index
		if resumed != nil {
			j.resumed[id] = resumed
		}
	}
	var other uint64
	differs := false
	for r, d := range j.answers[id] {
		if d != sum {
			other, differs = r, true
		}
	}
	j.mu.Unlock()
	if differs {
		j.fail("call %+v: ranks %d and %d were answered from different entries", id, rank, other)
	}
	return true
}

// wait returns a rank's node once it is up.
func (w *world) wait(ctx context.Context, rank uint64) (*replica.Node, error) {
	for {
		if n := w.alive(rank); n != nil {
			return n, nil
		}
		if !sleep(ctx, 50*time.Millisecond) {
			return nil, ctx.Err()
		}
	}
}

// alive returns a rank's node; nil while there is none, or its host is down.
func (w *world) alive(rank uint64) *replica.Node {
	h := w.at(rank)
	if h == nil {
		return nil
	}
	return h.alive()
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// script is the sequence of calls of one round, the same on every rank. What it
// asks for may well be refused.
type script struct {
	seed    uint64
	round   uint64
	fences  uint64
	epoch   int64 // last stepped, as rank 0's cursor shows it
	steps   map[uint64]bool
	resumed map[uint64]*checkpoint // by call, what rank 0 has chosen; nil: nothing
	haste   *rand.Rand
}

func newScript(seed, round uint64) *script {
	return &script{seed: seed, round: round, epoch: -1, steps: map[uint64]bool{}, resumed: map[uint64]*checkpoint{}, haste: rand.New(rand.NewPCG(seed, round))}
}

func (s *script) rand(k uint64) *rand.Rand { return rand.New(rand.NewPCG(s.seed^s.round<<32, k)) }

func (s *script) see(m *fsm.Model) { s.epoch = m.Epoch }

// patience is how long rank 0 waits for an answer before it asks again.
func (s *script) patience() time.Duration {
	if s.haste.IntN(4) == 0 {
		return time.Duration(s.haste.IntN(3000)) * time.Microsecond
	}
	return 5 * time.Second
}

func (s *script) next(k uint64) {
	if s.steps[k] {
		s.fences++
	}
}

func (s *script) args(k uint64) fsm.Args {
	if k == 0 {
		cfg := gates.Defaults()
		cfg.MinBlendingEpochs, cfg.Permissive = 1, true
		auto := []events.Gate{events.G1, events.G2, events.G3}
		return fsm.Configure{Slots: []events.SlotConfig{{Name: "a", Gates: cfg, AutoForward: auto}, {Name: "b", Gates: cfg}, {Name: "c", Gates: cfg}}}
	}
	r := s.rand(k)
	switch r.IntN(6) {
	case 0:
		return fsm.Germinate{Blueprint: "norm", Blend: "sigmoid", Tempo: 2, Algorithm: events.AlgorithmAdd}
	case 1:
		return fsm.Advance{}
	case 2:
		return fsm.Prune{Reason: "sim", Initiator: "policy"}
	case 3:
		return fsm.AlphaTarget{Target: 0.5, Ticks: 2, Steepness: 12}
	default:
		s.steps[k] = true
		if r.IntN(12) == 0 {
			return fsm.Reset{}
		}
		return fsm.StepEpoch{Epoch: s.epoch + 1}
	}
}

func (s *script) slot(k uint64) string {
	r := s.rand(k)
	return []string{"a", "b", "c", "nowhere"}[(r.IntN(6)*7+r.IntN(40))/10%4]
}

func (s *script) observations(k uint64) []fsm.Observation {
	if k == 0 {
		return nil
	}
	v, h := events.Num(float64(s.rand(k).IntN(100))), events.Num(1)
	return []fsm.Observation{{Slot: "a", Replace: true, Accuracy: fsm.Reading[events.Num]{Given: true, Value: &v}, Health: fsm.Reading[events.Num]{Given: true, Value: &h}}}
}
