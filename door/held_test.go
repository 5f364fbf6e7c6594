package door

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
)

var heldAt = attestedAt{Round: 1, Model: "main", Generation: 1, Index: 9}

// one is what a rank's device held, as "planned" or "planned!value slots".
func one(rank int, text string) held {
	words := strings.Fields(text)
	planned, value, altered := strings.Cut(words[0], "!")
	h := held{attestedAt: heldAt, Rank: uint64(rank), Planned: events.Digest{planned[0]}, Value: events.Digest{planned[0]}, Altered: words[1:]}
	if altered {
		h.Value = events.Digest{value[0]}
	}
	return h
}

func compared(ev *events.Attested) string {
	if ev == nil {
		return ""
	}
	out := fmt.Sprintf("%c of %d", ev.Value[0], ev.Ranks)
	for _, o := range ev.Others {
		out += fmt.Sprintf(", %c%d%v", o.Value[0], o.Ranks, o.Tensors)
	}
	if ev.Missing != nil {
		out += fmt.Sprint(" without ", ev.Missing)
	}
	return out
}

// Whatever order ranks come in, most of those whose devices are as they should be
// have the value, of as many the lowest; all others are named.
func TestWhatDevicesHeldIsCompared(t *testing.T) {
	for _, c := range []struct {
		ranks []string // "": missing
		want  string
	}{
		{[]string{"a"}, ""},
		{[]string{"a", "a", "a"}, ""},
		{[]string{"a", "", "a"}, ""},
		{[]string{"a", "b", "b"}, "b of 2, a[0][]"},
		{[]string{"a", "b"}, "a of 1, b[1][]"},
		{[]string{"a!x s1"}, "a of 0, x[0][s1]"},
		{[]string{"a!x s1", "a!x s1", "a"}, "a of 1, x[0 1][s1]"},
		{[]string{"a!y s1 s2", "a!x s1", "a", ""}, "a of 1, x[1][s1], y[0][s1 s2] without [3]"},
		{[]string{"a!y s1", "b", "b"}, "b of 2, y[0][s1]"},
		{[]string{"a", "b!x s1", "c", "c"}, "c of 2, a[0][], x[1][s1]"},
	} {
		for range 5 {
			x := newHolding(len(c.ranks))
			for _, r := range rand.Perm(len(c.ranks)) {
				if c.ranks[r] != "" {
					x.add(one(r, c.ranks[r]))
				}
			}
			require.Equal(t, c.want, compared(x.compare(heldAt)), "%q", c.ranks)
			require.Nil(t, x.compare(heldAt), "the log is told once")
		}
	}
}

// Ranks that come after the others were compared are told of when they come.
func TestLateRanksAreToldOfLater(t *testing.T) {
	x := newHolding(5)
	x.add(one(1, "a!x s1"))
	x.add(one(2, "a"))
	x.add(one(4, "a"))
	require.Equal(t, "a of 2, x[1][s1] without [0 3]", compared(x.compare(heldAt)))
	x.add(one(3, "a!x s1"))
	x.add(one(0, "b"))
	require.Equal(t, "a of 2, b[0][], x[3][s1]", compared(x.compare(heldAt)))
}

// An entry of a world of 1,000 ranks stays below 64 KB, whoever differs.
func TestWhatManyDevicesHeldIsSmall(t *testing.T) {
	const world = 1000
	for name, of := range map[string]func(h *held){
		"all alike":    func(h *held) { h.Value = events.Digest{1} },
		"all differ":   func(h *held) { h.Value = events.Digest{1, byte(h.Rank), byte(h.Rank >> 8)} },
		"plans differ": func(h *held) { h.Planned = events.Digest{1, byte(h.Rank), byte(h.Rank >> 8)}; h.Value = h.Planned },
	} {
		x := newHolding(world)
		for r := range world {
			h := one(r, "a")
			for i := range differShown {
				h.Altered = append(h.Altered, fmt.Sprintf("%064d", i))
			}
			of(&h)
			x.add(h)
		}
		ev := x.compare(heldAt)
		ranks := 0
		for _, o := range ev.Others {
			ranks += len(o.Ranks)
		}
		require.Equal(t, world, ranks+int(ev.Ranks), name)
		b, err := events.Encode(&events.Entry{Version: events.Version, Kind: events.KindReport, Events: []events.Event{{Attested: ev}}})
		require.NoError(t, err)
		require.Less(t, len(b), 64<<10, name)
	}
}
