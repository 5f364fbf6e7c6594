package door

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/gpuexec/element"
)

func handed(rank uint64, prints map[string]byte) *attested {
	a := &attested{Rank: rank, tensors: map[string][]tensorPrint{}}
	for name, b := range prints {
		shard, name, _ := strings.Cut(name, ":")
		a.tensors[shard] = append(a.tensors[shard], tensorPrint{name, element.Fingerprint{b}})
	}
	if p := a.sum(); p != nil {
		panic(p)
	}
	return a
}

// One entry of a world of 1,000 ranks stays below 64 KB, whoever differs.
func TestAnAttestationOfManyRanksIsSmall(t *testing.T) {
	const world = 1000
	for name, print := range map[string]func(rank int) map[string]byte{
		"all the same":       func(int) map[string]byte { return map[string]byte{":w": 1} },
		"one differs":        func(r int) map[string]byte { return map[string]byte{":w": byte(r / 999)} },
		"each its own shard": func(r int) map[string]byte { return map[string]byte{fmt.Sprint("shard", r, ":w"): byte(r)} },
		"all differ":         func(r int) map[string]byte { return map[string]byte{":w": byte(r), ":v": byte(r >> 8)} },
	} {
		by := map[uint64]*attested{}
		for r := range uint64(world) {
			if r != 7 {
				by[r] = handed(r, print(int(r)))
			}
		}
		list := compareAttested(attestedAt{1, "main", 1, 9}, world, by)
		require.LessOrEqual(t, len(list), 2, name)
		left := differShown
		e := &events.Entry{Version: events.Version, Kind: events.KindReport}
		for i := range list {
			for k := range list[i].Others {
				for ; left > 0; left-- {
					list[i].Others[k].Tensors = append(list[i].Others[k].Tensors, strings.Repeat("x", 64+1+256))
				}
			}
			e.Events = append(e.Events, events.Event{Attested: &list[i]})
		}
		b, err := events.Encode(e)
		require.NoError(t, err)
		require.Less(t, len(b), 64<<10, name)
		root := list[len(list)-1]
		require.Equal(t, []uint64{7}, root.Missing)
		switch name {
		case "one differs":
			require.Equal(t, []uint64{999}, list[0].Others[0].Ranks)
			require.Zero(t, root.Ranks, "nothing is alike")
		case "all differ":
			require.Len(t, list[0].Others, world-2)
		default:
			require.Len(t, list, 1)
			require.Equal(t, uint64(999), root.Ranks)
		}
	}
}

func TestDiffering(t *testing.T) {
	list := func(text string) (out []tensorPrint) {
		for _, w := range strings.Fields(text) {
			out = append(out, tensorPrint{w[:1], element.Fingerprint{w[1]}})
		}
		return out
	}
	require.Equal(t, []string{"a", "c", "d", "e"}, differing(list("a1 b1 c1 d1"), list("b1 c2 e1")))
	require.Empty(t, differing(list("a1"), list("a1")))
	require.Equal(t, []string{"a"}, differing(nil, list("a1")))
	longest := strings.Repeat("x", tensorMax)
	require.Equal(t, []string{longest}, differing(nil, []tensorPrint{{Name: longest}, {Name: longest + "x"}}))
}

// Of comparisons that were made without some ranks the last ones are remembered,
// as long as the round is open.
func TestWhatRanksHaveLeftOut(t *testing.T) {
	g := gatherings{open: map[attestedAt]*gathering{
		{1, "main", 1, 30}: {by: map[uint64]*attested{0: handed(0, nil)}},
		{1, "main", 1, 31}: {by: map[uint64]*attested{0: handed(0, nil), 1: handed(1, nil)}},
	}}
	for i := range uint64(lackingMax + 4) {
		g.lacks(lack{attestedAt: attestedAt{1, "main", 1, i}, missing: []uint64{1}})
	}
	list := g.unattested(&fsm.Round{Number: 1, Members: make([]events.Member, 2)})
	require.Len(t, list, lackingMax+1)
	require.Equal(t, []any{uint64(4), true}, []any{list[0].Index, list[0].Over})
	require.Equal(t, []any{uint64(30), false, []uint64{1}}, []any{list[lackingMax].Index, list[lackingMax].Over, list[lackingMax].Missing})
	require.Empty(t, g.unattested(&fsm.Round{Number: 2}))
}

// What a rank says it lacks is no difference, and where nothing is alike nothing
// is said to be.
func TestWhatIsNotCompared(t *testing.T) {
	at := attestedAt{1, "main", 1, 9}
	same, other := map[string]byte{":w": 1, "half:v": 1}, map[string]byte{":w": 2, "half:v": 1}
	lacks := handed(1, other)
	lacks.Partial = true
	list := compareAttested(at, 3, map[uint64]*attested{0: handed(0, same), 1: lacks, 2: handed(2, same)})
	require.Len(t, list, 1)
	require.Empty(t, list[0].Others)
	require.EqualValues(t, 2, list[0].Ranks)

	lacks = handed(0, nil) // of all it has in the arena
	lacks.Partial = true
	require.Empty(t, compareAttested(at, 1, map[uint64]*attested{0: lacks}))

	alone, two := handed(0, map[string]byte{":w": 1}), handed(1, map[string]byte{":w": 2})
	list = compareAttested(at, 2, map[uint64]*attested{0: alone, 1: two})
	require.Len(t, list, 1, "nothing is alike")
	require.Equal(t, []uint64{1}, list[0].Others[0].Ranks)
	list = compareAttested(at, 3, map[uint64]*attested{0: alone, 1: two})
	require.Len(t, list, 2)
	require.Zero(t, list[1].Ranks)
	require.Zero(t, list[1].Value)
	require.Equal(t, []uint64{2}, list[1].Missing, "who is missing is said all the same")
	b, err := events.Encode(&events.Entry{Version: events.Version, Kind: events.KindReport, Events: []events.Event{{Attested: &list[1]}}})
	require.NoError(t, err)
	_, err = events.Decode(b)
	require.NoError(t, err)
}

func TestDifferencesAreToldInWords(t *testing.T) {
	require.Equal(t, "ranks [1] differ in r0c0/0.weight, w (tensors); ranks [0 2] differ (tensors of shard half)", differsText([]api.Difference{
		{Index: 9, What: "tensors", Ranks: []uint64{1}, Tensors: []string{"r0c0/0.weight", "w"}},
		{Index: 9, What: "tensors", Shard: "half", Ranks: []uint64{0, 2}}}))
}
