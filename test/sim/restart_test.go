package sim

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/replica"
)

const (
	ranksMax    = 5
	restartsMax = 2
)

// restart starts the whole job again, as an elastic launcher does: with as many
// ranks as there are machines now, on the same or on others, each with the rank
// and the address that it happens to get. The processes of the start before may
// not all be gone. It hits at any moment where all machines come back; where some
// do not, most of the voters have to, and a settled world tells who they are.
func (s *schedule) restart(*host) {
	if s.restarts == restartsMax {
		return
	}
	s.restarts++
	same := s.r.IntN(3) == 0
	if !same {
		s.steady("before the job is started again")
	}
	old := s.w.job()
	round := uint64(0)
	if n := old[0].alive(); n != nil {
		round = n.State().Round.Number
	}
	if !s.j.stop() {
		return
	}
	next := slices.Clone(old)
	if !same {
		next = s.others(old)
	}
	s.r.Shuffle(len(next), func(a, b int) { next[a], next[b] = next[b], next[a] })
	address := s.addresses(old)
	taken := map[string]bool{}
	for rank, h := range next {
		taken[address(rank, h)] = true
	}
	for _, h := range old {
		switch {
		case slices.Contains(next, h):
			s.halt(h)
		case taken[h.addr] || s.r.IntN(2) == 0:
			require.NoError(s.t, h.crash())
		default:
			s.linger(h, h == old[0], round)
		}
	}
	s.w.net.HealAll()
	s.w.place(fmt.Sprint(s.restarts), next, address)
	s.j.begin(len(next))
	for _, h := range next {
		if s.r.IntN(3) == 0 {
			s.pause(1500)
		}
		require.NoError(s.t, h.start())
	}
}

// others chooses the machines of the next start: most of the voters, some of the
// other nodes, machines that left earlier, and new ones.
func (s *schedule) others(old []*host) []*host {
	var voters, rest []*host
	for _, h := range old {
		if h.alive().Status().Voter {
			voters = append(voters, h)
		} else {
			rest = append(rest, h)
		}
	}
	s.r.Shuffle(len(voters), func(a, b int) { voters[a], voters[b] = voters[b], voters[a] })
	most := len(voters)/2 + 1
	next, rest := voters[:most:most], append(rest, voters[most:]...)
	for _, h := range s.w.hosts { // with what they had when they left
		if !slices.Contains(old, h) && !h.leaves() && s.r.IntN(2) == 0 {
			rest = append(rest, h)
		}
	}
	size := 2 + s.r.IntN(ranksMax-1)
	s.r.Shuffle(len(rest), func(a, b int) { rest[a], rest[b] = rest[b], rest[a] })
	for len(next) < size {
		if len(rest) == 0 || s.r.IntN(4) == 0 {
			next = append(next, s.w.newHost())
			continue
		}
		next, rest = append(next, rest[0]), rest[1:]
	}
	return next
}

// addresses says where ranks listen in the next start: where their machines did,
// at the rank's own place, whoever was there before, or at new ones.
func (s *schedule) addresses(old []*host) func(rank int, h *host) string {
	start := s.restarts
	switch s.r.IntN(3) {
	case 0:
		return func(_ int, h *host) string {
			if slices.Contains(old, h) {
				return h.addr
			}
			return fmt.Sprintf("host%d:%d", h.id, start+1)
		}
	case 1:
		return func(rank int, _ *host) string { return fmt.Sprintf("rank%d:1", rank) }
	}
	return func(_ int, h *host) string { return fmt.Sprintf("host%d:%d", h.id, start+1) }
}

// halt ends a host's process before it is started again: in order, or not.
func (s *schedule) halt(h *host) {
	if n := h.alive(); n != nil && s.r.IntN(4) == 0 {
		ctx, cancel := context.WithTimeout(s.ctx, time.Second)
		defer cancel()
		require.NoError(s.t, h.close(ctx))
		return
	}
	require.NoError(s.t, h.crash())
}

// linger leaves a process of the start before running for a while. Some of these
// machines are never seen again. Rank 0's goes on deciding, if it is let.
func (s *schedule) linger(h *host, first bool, round uint64) {
	h.mu.Lock()
	h.gone = true
	h.mu.Unlock()
	returns := s.r.IntN(2) == 0
	ctx, cancel := context.WithTimeout(s.ctx, time.Duration(s.r.IntN(6000))*time.Millisecond)
	s.running.Go(func() {
		defer cancel()
		if n := h.alive(); first && n != nil {
			s.j.decideLate(ctx, n, round)
		}
		<-ctx.Done()
		if err := h.crash(); err != nil {
			s.j.fail("host %d: %v", h.id, err)
		}
		h.mu.Lock()
		h.gone = !returns
		h.mu.Unlock()
	})
}

// decideLate steps epochs of a round whose trainers have been replaced, or are
// about to be.
func (j *job) decideLate(ctx context.Context, n *replica.Node, round uint64) {
	for ctx.Err() == nil {
		s := n.State()
		c, key := s.Cursor(model), events.Key{Round: round, Model: model, Epoch: -1}
		key.Call, key.Fence = c.Calls, c.Fence
		if m := s.Model(model); m != nil && c.Calls > 0 && s.Round.Number == round {
			args := fsm.StepEpoch{Epoch: m.Epoch + 1}
			key.Generation, key.Epoch, key.Op, key.Args = m.Generation, m.Epoch, args.Op(), fsm.ArgsHash(args)
			trying, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
			index, err := n.Decide(trying, fsm.Call{Key: key, Args: args})
			cancel()
			if err == nil {
				j.mu.Lock()
				j.late[events.CallID{Round: round, Model: model, Call: key.Call}] = index
				j.mu.Unlock()
			}
		}
		sleep(ctx, 50*time.Millisecond)
	}
}
