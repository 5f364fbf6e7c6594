package door_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/gpuexec/device"
	"github.com/esperd/esperd/gpuexec/element"
)

// maps puts the arena into the trainer's memory.
func (tr *trainer) maps() []byte {
	t := tr.j.t
	conn, _ := tr.upgrade(members{"session": tr.req.Incarnation})
	o, err := device.Receive(conn)
	require.NoError(t, err)
	mem, err := unix.Mmap(o.Chunks[0].FD, 0, int(o.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, unix.Munmap(mem)) })
	for _, c := range o.Chunks {
		unix.Close(c.FD)
	}
	return mem
}

// foundOut waits until the log says that a rank's device had something else, so many
// times.
func (j *job) foundOut(rank int, times uint64) {
	j.t.Helper()
	node := j.log.Node(0)
	for {
		changed := node.Changed()
		if n := node.State().Round.Tally(uint64(rank)).Attesting; n >= times {
			require.Equal(j.t, times, n)
			return
		}
		select {
		case <-changed:
		case <-j.ctx().Done():
			j.t.Fatalf("rank %d: nothing was found", rank)
		}
	}
}

// Where a trainer writes into the table, the fence at which that is found has
// rank and slot named at the next one, on every rank, with nobody asking for it;
// and as long as nobody does, the log has nothing of it.
func TestATableThatSaysSomethingElseIsNamed(t *testing.T) {
	for world := 1; world <= 3; world += 2 {
		t.Run(fmt.Sprint("ranks=", world), func(t *testing.T) {
			j := newJob(t, world, onHost(100))
			j.log.Record()
			all := j.trainers(arena)
			epoch := int64(0)
			step := func() *api.Fence {
				var out []*api.Fence
				for _, tr := range all {
					f := tr.step(epoch).fence(t)
					f.Arena = nil // each rank's own
					out = append(out, f)
					require.Equal(t, out[0], f)
				}
				epoch++
				return out[0]
			}
			for _, tr := range all {
				tr.germinate("r0c1").ok(t)
			}
			step()
			odd := world - 1
			mem := all[odd].maps()
			clean := step()
			entry := func(slot int) []byte { return mem[element.HeaderBytes+slot*element.EntryBytes:] }
			for i, tamper := range []func() (slots []string){
				func() []string { entry(1)[16] ^= 1; return []string{"r0c1"} },                           // alpha
				func() []string { entry(0)[20] ^= byte(element.Active); return []string{"r0c0"} },        // a flag, of a slot without a seed
				func() []string { entry(0)[0] ^= 1; entry(1)[20] ^= 2; return []string{"r0c0", "r0c1"} }, // several
				func() []string { mem[8] ^= 1; return []string{"(the table's header)"} },                 // whoever reads the table looks there first
			} {
				at := all[0].fenced
				slots := tamper()
				require.Empty(t, step().Differs, "this fence finds it")
				j.foundOut(odd, uint64(i+1))
				f := step()
				require.Equal(t, []api.Difference{{Index: at, What: "active", Ranks: []uint64{uint64(odd)}, Tensors: slots}}, f.Differs)
				require.Equal(t, clean.ActiveSet, f.ActiveSet)
				require.Empty(t, step().Differs, "it is right again")
			}
			var attested []*events.Attested
			for i := uint64(1); i <= j.log.Node(0).State().Index; i++ {
				e, _, err := j.log.Node(0).Entry(i)
				require.NoError(t, err)
				for k := range e.Events {
					if a := e.Events[k].Attested; a != nil {
						attested = append(attested, a)
					}
				}
			}
			require.Len(t, attested, 4, "nothing is written while all is well")
			for _, a := range attested {
				require.Equal(t, uint64(world-1), a.Ranks)
				require.Empty(t, a.Missing)
				require.Equal(t, clean.ActiveSet, a.Value)
			}
		})
	}
}
