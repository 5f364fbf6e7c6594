package replica

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// waits is a trainer, "RANK/WORLD START@NODE": its node repeats its registration.
func waits(text string) registration {
	var r registration
	var rest string
	if _, err := fmt.Sscanf(text, "%d/%d %s", &r.Rank, &r.World, &rest); err != nil {
		panic(err)
	}
	start, node, _ := strings.Cut(rest, "@")
	r.Fingerprint, r.Node, r.Incarnation, r.Mode = start, events.NodeID(node), text, events.ModeKeyed
	r.Address = node + ":1"
	return r
}

// What the leader tells a trainer after its node and the others' have repeated
// their registrations for a while.
func TestRegistrations(t *testing.T) {
	roundOf := func(trainers ...string) fsm.Round {
		round := fsm.Round{Number: 1}
		for _, text := range trainers {
			r := waits(text)
			round.Members = append(round.Members, events.Member{Rank: r.Rank, Node: r.Node, Incarnation: r.Incarnation})
		}
		return round
	}
	for name, c := range map[string]struct {
		round    fsm.Round
		trainers []string // the last one asks
		opens    []string // the nodes of the round that opens, by rank
		missing  []uint64
		refused  string
	}{
		"all are there":             {trainers: []string{"0/2 s@A", "1/2 s@B"}, opens: []string{"A", "B"}},
		"the order is the ranks'":   {trainers: []string{"1/2 s@A", "0/2 s@B"}, opens: []string{"B", "A"}},
		"one is missing":            {trainers: []string{"0/3 s@A", "2/3 s@C"}, missing: []uint64{1}},
		"a smaller world":           {roundOf("0/3 s@A", "1/3 s@B", "2/3 s@C"), []string{"0/2 t@C", "1/2 t@A"}, []string{"C", "A"}, nil, ""},
		"a larger world":            {roundOf("0/1 s@A"), []string{"0/2 t@A", "1/2 t@B"}, []string{"A", "B"}, nil, ""},
		"of another start, a few":   {trainers: []string{"3/4 old@D", "0/2 s@A", "1/2 s@B"}, opens: []string{"A", "B"}},
		"a rank of another start":   {trainers: []string{"1/2 old@C", "0/2 s@A", "1/2 s@B"}, opens: []string{"A", "B"}},
		"the open round's":          {roundOf("0/2 s@A", "1/2 s@B"), []string{"0/2 s@A", "1/2 s@C"}, nil, []uint64{0}, ""},
		"a rank on two nodes":       {trainers: []string{"0/2 s@A", "1/2 s@B", "1/2 s@C"}, refused: "rank 1 is registered by two trainers, on node C at C:1 and on node B at B:1"},
		"a rank on two, to another": {trainers: []string{"1/2 s@B", "1/2 s@C", "0/2 s@A"}, missing: []uint64{1}},
		"two worlds for one start":  {trainers: []string{"0/2 s@A", "2/3 s@C"}, refused: `rank 2's trainer (node C) connects in a world of 3, rank 0's (node A) in one of 2, both with the rendezvous "s"`},
		"two starts, nobody else":   {trainers: []string{"0/2 s@A", "1/2 t@B"}, refused: `rank 1's trainer belongs to "t" and rank 0's to "s"`},
		"two starts, somebody else": {trainers: []string{"0/3 s@A", "1/3 t@B"}, missing: []uint64{0, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var rs registrations
				var missing []uint64
				var opens []registration
				var err error
				for began := time.Now(); time.Since(began) < 2*settled; time.Sleep(registerEvery) {
					for _, text := range c.trainers {
						r := waits(text)
						r.seen = time.Now()
						missing, opens, err = rs.put(c.round, r)
						require.True(t, err == nil || time.Since(began) >= settled, "told at once: %v", err)
					}
					if opens != nil {
						break
					}
				}
				var nodes []string
				for _, r := range opens {
					nodes = append(nodes, string(r.Node))
				}
				require.Equal(t, c.opens, nodes)
				if c.refused == "" {
					require.NoError(t, err)
					require.Equal(t, c.missing, missing)
					return
				}
				require.ErrorContains(t, err, c.refused)
				require.Equal(t, events.CodeConfigMismatch, err.(*Error).Code)
			})
		})
	}
}

// A trainer that ended is forgotten, so that the one that took its rank gets its
// round.
func TestRegistrationsForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rs registrations
		put := func(text string) []registration {
			r := waits(text)
			r.seen = time.Now()
			_, opens, err := rs.put(fsm.Round{}, r)
			require.NoError(t, err)
			return opens
		}
		put("1/2 s@B")
		put("0/2 s@A")
		put("1/2 s@C")
		require.Empty(t, put("0/2 s@A"), "two of rank 1 are there")
		time.Sleep(3 * registerEvery)
		put("1/2 s@C")
		time.Sleep(registerEvery)
		require.Len(t, put("0/2 s@A"), 2)
	})
}

func TestRegistrationOfNoWorld(t *testing.T) {
	for text, code := range map[string]events.Code{"3/3 s@A": events.CodeConfigMismatch, "0/0 s@A": events.CodeConfigMismatch,
		"0/9999999999 s@A": events.CodeConfigMismatch, "0/5 s@A": events.CodeUnavailable} {
		err := checkRegistration(waits(text), 4)
		require.Error(t, err, text)
		require.Equal(t, code, err.(*Error).Code, text)
	}
	require.NoError(t, checkRegistration(waits("3/4 s@A"), 4))
}
