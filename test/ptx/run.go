package ptx

import "fmt"

// maxSteps ends a kernel that does not.
const maxSteps = 1 << 32

// What a thread is waiting for.
const (
	running = iota
	atBarrier
	atShuffle
	ended
)

type thread struct {
	id    int
	at    int // the instruction
	next  int
	state int
	r     []uint64
	g     *group
}

// A group is a block of threads, in CUDA's words.
type group struct {
	id, groups, threads int
	params, shared      []byte
	memory              *Memory
	steps               int64
}

// Launch runs a kernel: so many groups of so many threads, a multiple of 32. Its
// arguments lie in params as the kernel declares them. It returns how many
// instructions ran.
func (k *Kernel) Launch(m *Memory, groups, threads int, params []byte) (steps int64, err error) {
	if uint64(len(params)) != k.paramBytes {
		return 0, fmt.Errorf("%s: %d bytes of parameters: expected %d", k.Name, len(params), k.paramBytes)
	}
	if threads%32 != 0 || threads < 32 || threads > 1024 {
		return 0, fmt.Errorf("%s: %d threads: expected a multiple of 32 up to 1024", k.Name, threads)
	}
	for id := range groups {
		g := &group{id: id, groups: groups, threads: threads, params: params, shared: make([]byte, k.sharedSize), memory: m}
		if err := k.run(g); err != nil {
			return steps, err
		}
		steps += g.steps
	}
	return steps, nil
}

func (k *Kernel) run(g *group) error {
	threads := make([]thread, g.threads)
	for i := range threads {
		threads[i] = thread{id: i, r: make([]uint64, len(k.registers)), g: g}
	}
	for {
		for i := 0; i < len(threads); i += 32 {
			warp := threads[i : i+32]
			if g.memory.Backward {
				warp = threads[len(threads)-32-i:][:32]
			}
			if err := k.runWarp(warp); err != nil {
				return err
			}
		}
		count := [ended + 1]int{}
		for i := range threads {
			count[threads[i].state]++
		}
		switch {
		case count[ended] == len(threads):
			return nil
		case count[atBarrier] != len(threads):
			return fmt.Errorf("%s: group %d: threads wait in different places: %d at a barrier, %d at a shuffle, %d have ended",
				k.Name, g.id, count[atBarrier], count[atShuffle], count[ended])
		}
		for i := range threads {
			threads[i].at++
			threads[i].state = running
		}
	}
}

// runWarp runs a warp as far as it comes without the others: so a barrier that
// is missing shows.
func (k *Kernel) runWarp(warp []thread) error {
	for moved := true; moved; moved = k.shuffle(warp) {
		for i := range warp {
			if err := k.advance(&warp[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// advance runs a thread until it waits or ends.
func (k *Kernel) advance(t *thread) error {
	for t.state == running {
		in := &k.code[t.at]
		if t.g.steps++; t.g.steps > maxSteps {
			return fmt.Errorf("%s: more than %d instructions", k.Name, int64(maxSteps))
		}
		t.next = t.at + 1
		if in.guard < 0 || (t.r[in.guard] != 0) != in.negated {
			if err := in.do(t); err != nil {
				return fmt.Errorf("%s: group %d, thread %d, %q: %w", k.Name, t.g.id, t.id, in.text, err)
			}
		}
		if t.state == running {
			t.at = t.next
		}
	}
	return nil
}

// shuffle moves values down a warp whose threads have all come to the same
// shuffle.
func (k *Kernel) shuffle(warp []thread) bool {
	var old [32]uint64
	in := &k.code[warp[0].at]
	for i := range warp {
		if warp[i].state != atShuffle || warp[i].at != warp[0].at {
			return false
		}
		old[i] = warp[i].r[in.operands[1].index]
	}
	to, distance := in.operands[0].index, int(in.operands[2].value)
	for i := range warp {
		from := i + distance
		if from > 31 {
			from = i
		}
		warp[i].r[to] = old[from] & 0xffffffff
		warp[i].at++
		warp[i].state = running
	}
	return true
}
