package door_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// keeper keeps the slots of its last fence, and is sent what has changed.
type keeper struct {
	*trainer
	at     uint64 // 0: it keeps none
	slots  map[string]api.Slot
	sent   int // slots in all answers
	partly int // answers that listed some
}

// take completes an answer.
func (k *keeper) take(f *api.Fence) {
	if f.Since == 0 {
		k.slots = map[string]api.Slot{}
	} else {
		require.Equal(k.j.t, k.at, f.Since)
		k.partly++
	}
	for _, s := range f.Slots {
		k.slots[s.Name] = s
	}
	k.at, k.sent = f.Index, k.sent+len(f.Slots)
}

// A client that keeps the slots of its last fence has the same ones as a client
// that is sent all, whatever happens: on the other rank, which is sent all.
func TestWhoKeepsSlotsIsSentWhatHasChanged(t *testing.T) {
	const slots = 200
	name := func(i int) string { return fmt.Sprint("s", i) }
	many := func(r *api.SessionRequest) {
		r.Slots = nil
		for i := range slots {
			r.Slots = append(r.Slots, api.SlotRequest{Name: name(i)})
		}
	}
	for _, mode := range []events.TrainerMode{events.ModeKeyed, events.ModeFollow} {
		t.Run(mode, func(t *testing.T) {
			j := newJob(t, 2)
			all := j.trainers(inMode(mode), many)
			rnd := rand.New(rand.NewPCG(1, 2))
			k, n := &keeper{trainer: all[1]}, int64(-1)
			var mark []byte
			for round := range 60 {
				for range rnd.IntN(3) {
					slot := name(rnd.IntN(8))
					for rank, tr := range all {
						if mode == events.ModeFollow && rank > 0 {
							continue
						}
						switch round % 3 { // some are refused
						case 0:
							tr.germinate(slot)
						case 1:
							tr.advance(slot, measured(slot, health(0.9)))
						default:
							tr.prune(slot)
						}
					}
				}
				if round%17 == 9 {
					k.restart()
				}
				call := func(tr *trainer, more members) reply { return tr.step(n, more) }
				switch n++; {
				case round == 20:
					mark = all[0].checkpoint().Mark
				case round == 45:
					call, n = func(tr *trainer, more members) reply { return tr.makes("/v1/reset", more) }, -1
				case round == 30:
					call = func(tr *trainer, more members) reply { return tr.makes("/v1/resume", members{"mark": mark}, more) }
				}
				first := later(func() reply { return call(all[0], nil) })
				f := call(k.trainer, members{"since": k.at}).fence(t)
				k.take(f)
				require.Equal(t, f.Epoch, (<-first).fence(t).Epoch)
				n = f.Epoch
				want := map[string]api.Slot{}
				for i, s := range j.log.Node(0).State().Model("main").Config.Slots {
					want[s.Name] = api.SlotOf(j.log.Node(0).State().Model("main"), i)
				}
				require.Equal(t, want, decodeAs[map[string]api.Slot](t, jsonOf(t, k.slots)))
			}
			require.Greater(t, k.partly, 40)
			require.Less(t, k.sent, 60*slots/4)
		})
	}
}

// What is sent depends on what the client says to have when it asks, also where it
// asks again.
func TestAnAnswerThatIsAskedForAgainFitsWhatTheClientHas(t *testing.T) {
	tr := newJob(t, 1).trainers()[0]
	first := tr.step(0, members{"since": 0}).fence(t)
	require.Len(t, first.Slots, 2)
	tr.germinate("r0c1").ok(t)
	body := tr.body()
	again := func(since uint64) *api.Fence {
		body["since"] = since
		return tr.post("/v1/epochs/1/step", body).fence(t)
	}
	for _, since := range []uint64{0, first.Index - 1, first.Index + 1, 1 << 60} {
		f := again(since)
		require.Len(t, f.Slots, 2, "%d is no fence whose slots it can have", since)
		require.Zero(t, f.Since)
	}
	f := again(first.Index)
	require.Equal(t, first.Index, f.Since)
	require.Len(t, f.Slots, 1)
	require.Equal(t, "r0c1", f.Slots[0].Name)
}
