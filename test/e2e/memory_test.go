package e2e

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// TestOutOfMemory: rank 1's device has room for the small seed and not for the
// large one. That is pruned on both ranks by one fence, with rank and reason in
// the log, and the small one trains on.
func TestOutOfMemory(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	for _, n := range w.nodes {
		n.args = append(n.args, "--device", "host")
	}
	w.nodes[1].args = append(w.nodes[1].args, "--device-memory", "16MiB")
	w.startAll()
	w.settled()
	blueprint := func(name string, elements uint64) events.Blueprint {
		return events.Blueprint{Name: name, Tensors: []events.Tensor{{Name: "w", Shape: []uint64{elements}, DType: "float32", Init: &events.Init{Rule: events.InitUniform, Value: 0.5}}}}
	}
	slots := []api.SlotRequest{
		{Name: "small", Blueprints: []events.Blueprint{blueprint("tiny", 16)}, AutoForward: []events.Gate{events.G1}},
		{Name: "large", Blueprints: []events.Blueprint{blueprint("huge", 4<<20)}, AutoForward: []events.Gate{events.G1}}}
	callers := make([]*caller, len(w.nodes))
	w.inParallel(func(n *node) {
		c := newCaller(n)
		c.session = strings.Repeat("abcd"[n.rank:n.rank+2], 16)
		callers[n.rank] = c
		status, answer := c.connect(fields{"rank": n.rank, "world_size": 2, "slots": slots, "residency": true, "arena": true})
		require.Equal(t, http.StatusOK, status, "%s", answer)
	})
	call := func(path string, args fields) []api.Fence {
		fences := make([]api.Fence, len(callers))
		w.inParallel(func(n *node) {
			status, answer := callers[n.rank].do(path, args)
			require.Equal(t, http.StatusOK, status, "%s", answer)
			require.NoError(t, json.Unmarshal(answer, &fences[n.rank]))
		})
		return fences
	}
	call("/v1/slots/small/germinate", fields{"blueprint": "tiny"})
	call("/v1/slots/large/germinate", fields{"blueprint": "huge"})
	pruned := uint64(0)
	for epoch := 0; ; epoch++ { // votes are on their way to the log meanwhile
		require.Less(t, epoch, 2000)
		f := call("/v1/epochs/"+strconv.Itoa(epoch)+"/step", nil)
		require.Equal(t, f[0].Changes, f[1].Changes)
		for _, c := range f[0].Changes {
			if c.Slot == "large" && c.To == events.StagePruned {
				pruned = f[0].Index
			}
		}
		if pruned > 0 && f[0].Slots[0].Stage == events.StageTraining {
			require.Equal(t, f[0].Slots, f[1].Slots)
			require.Len(t, f[1].Arena.Spans, 1)
			require.Empty(t, f[1].Arena.Device, "the device goes on")
			break
		}
	}
	for _, n := range w.nodes {
		var reasons []string
		for _, e := range n.events() {
			for _, ev := range e.Events {
				if ev.Pruned != nil && e.Index == pruned {
					reasons = append(reasons, ev.Pruned.Slot, ev.Pruned.Initiator, ev.Pruned.Reason)
				}
			}
		}
		require.Len(t, reasons, 3)
		require.Equal(t, []string{"large", "rank 1"}, reasons[:2])
		says(t, reasons[2], "rank 1 has no room for it", "16777216 bytes", "out of memory", "--device-memory")
	}
	w.terminate()
}
