package door_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/gpuexec/device"
)

// BenchmarkVisible is what a trainer waits for with so many living seeds: the
// whole call over the socket, into a log in memory. A step changes one alpha, and
// the trainer sees it in its own mapping of the arena; all lists every slot in
// its answer, as for a client that keeps none. An advance changes one stage. The
// least of all calls is what other work on the machine has disturbed least.
func BenchmarkVisible(b *testing.B) {
	for _, live := range []int{10, 1000} {
		b.Run(fmt.Sprintf("live=%d", live), func(b *testing.B) {
			tr := liveTrainer(b, live)
			conn, _ := tr.upgrade(members{"session": tr.req.Incarnation})
			o, err := device.Receive(conn)
			require.NoError(b, err)
			mem, err := unix.Mmap(o.Chunks[0].FD, 0, int(o.Size), unix.PROT_READ, unix.MAP_SHARED)
			require.NoError(b, err)
			for _, c := range o.Chunks {
				unix.Close(c.FD)
			}
			defer func() { require.NoError(b, unix.Munmap(mem)) }()
			view := decodeAs[api.View](b, tr.attaches("s0", weight).ok(b).body)
			seen := func() float32 { return math.Float32frombits(binary.LittleEndian.Uint32(mem[view.Entry+16:])) }
			epoch, before := int64(2), seen()
			step := func(b *testing.B, keeps bool) {
				least := time.Hour
				for b.Loop() {
					more := members{}
					if keeps {
						more["since"] = tr.fenced
					}
					began := time.Now()
					a := tr.step(epoch, more)
					now := seen()
					least = min(least, time.Since(began))
					if epoch++; a.status != 200 || now <= before {
						b.Fatalf("alpha %v after %v: %.300s", now, before, a.body)
					}
					before = now
				}
				b.ReportMetric(float64(least), "least-ns")
			}
			b.Run("step", func(b *testing.B) { step(b, true) })
			b.Run("all", func(b *testing.B) { step(b, false) })
			b.Run("advance", func(b *testing.B) {
				gates, stages := []string{"G3", "G2"}, []string{"HOLDING", "BLENDING"}
				least := time.Hour
				for i := 0; b.Loop(); i++ {
					began := time.Now()
					a := tr.verdict("s0", gates[i%2])
					if least = min(least, time.Since(began)); !strings.Contains(a.body, `"stage":"`+stages[i%2]) {
						b.Fatalf("%.300s", a.body)
					}
				}
				b.ReportMetric(float64(least), "least-ns")
			})
		})
	}
}

// liveTrainer has so many seeds in TRAINING, but the first one's alpha rises.
func liveTrainer(b *testing.B, live int) *trainer {
	j := newJob(b, 1, onHost(1<<30))
	tr := j.trainers(arena, func(r *api.SessionRequest) {
		conv := r.Slots[0].Blueprints
		r.Slots, r.Residency = nil, false
		for i := range live {
			r.Slots = append(r.Slots, api.SlotRequest{Name: fmt.Sprint("s", i), Blueprints: conv})
		}
	})[0]
	for i := range live {
		tr.germinate(fmt.Sprint("s", i), members{"tempo": 1 << 20, "blend": "linear"}).ok(b)
		tr.advance(fmt.Sprint("s", i)).ok(b)
	}
	tr.step(0, measured("s0", health(0.9))).ok(b)
	require.True(b, tr.advance("s0").decision(b).Passed)
	tr.step(1).ok(b)
	return tr
}
