package door_test

import (
	"fmt"
	"strings"
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

// What a rank that is far behind has found is told, though the others' have been
// put away by then.
func TestARankThatIsFarBehindIsToldOf(t *testing.T) {
	j := newJob(t, 2, onHost(100))
	j.log.Record()
	all := j.trainers(arena, inMode(events.ModeFollow))
	const fences = 600
	for n := range int64(fences) {
		all[0].fenceAt(n).ok(t)
	}
	mem := all[1].maps()
	all[1].fenceAt(0).ok(t)
	at := all[1].fenced
	mem[element.HeaderBytes+16] = 1
	for n := int64(1); n < fences; n++ {
		require.Empty(t, all[1].fenceAt(n).fence(t).Differs)
	}
	j.foundOut(1, 1)
	want := []api.Difference{{Index: at, What: "active", Ranks: []uint64{1}, Tensors: []string{"r0c0"}}}
	for _, tr := range all {
		require.Equal(t, want, tr.fenceAt(fences).fence(t).Differs)
	}
}

// What no rank of the round says, or what is about no model, is left: the log could
// not hold any name there is.
func TestWhatIsHeldIsBelievedOfRanksOnly(t *testing.T) {
	j := newJob(t, 1, onHost(100))
	j.log.Record()
	tr := j.trainers(arena)[0]
	tr.step(0).ok(t)
	ask := func(what, text string) error {
		return j.log.Node(0).AskNode(j.ctx(), j.log.Node(0).Status().Node, what, []byte(text)).Err
	}
	require.Error(t, ask("held", "["))
	require.Error(t, ask("held", `[{"rank":-1}]`))
	long := strings.Repeat("x", events.MaxEntryBytes)
	for _, at := range []string{`"round":1,"rank":1,"model":"main"`, `"round":1,"rank":4294967296,"model":"main"`, `"round":2,"rank":0,"model":"main"`,
		`"round":1,"rank":0,"model":"other"`, `"round":1,"rank":0,"model":"` + long + `"`} {
		require.NoError(t, ask("held", fmt.Sprintf(`[{%s,"index":%d,"planned":"%064d","value":"%064d"}]`, at, tr.fenced, 1, 2)))
		require.NoError(t, ask("attested", fmt.Sprintf(`{%s,"index":%d,"shards":{"":"%064d"}}`, at, tr.fenced, 1)))
	}
	require.NoError(t, ask("attested", fmt.Sprintf(`{"round":1,"rank":0,"model":"main","index":%d,"shards":{"%s":"%064d"}}`, tr.fenced, long, 1)))
	tr.step(1).ok(t)
	require.Empty(t, tr.step(2).fence(t).Differs)
	require.Zero(t, j.log.Node(0).State().Round.Tally(0).Attesting)
	require.Equal(t, tr.fenced, j.log.Node(0).State().Index, "the log was told nothing")
}
