package audit

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// TestBranches: a rewind says which entries it left, and what else the log goes on
// from is told, too.
func TestBranches(t *testing.T) {
	key := &events.Key{Model: "main", Op: events.OpResume}
	rewound := func(w events.Rewound) *events.Entry {
		return &events.Entry{Kind: events.KindCall, Key: key, Events: []events.Event{{EpochStepped: &events.EpochStepped{}}, {Rewound: &w}}}
	}
	chain := events.Digest{7}
	for name, c := range map[string]struct {
		entry *events.Entry
		want  *Branch
	}{
		"rewound": {rewound(events.Rewound{Run: "r", Lineage: "l", Index: 12, Chain: chain}),
			&Branch{Index: 20, Kind: BranchRewound, Run: "run", Lineage: "l", Model: "main", From: Point{12, chain}, LeftFrom: 13, LeftTo: 19}},
		"rewound to the entry before": {rewound(events.Rewound{Run: "r", Lineage: "l", Index: 19, Chain: chain}),
			&Branch{Index: 20, Kind: BranchRewound, Run: "run", Lineage: "l", Model: "main", From: Point{19, chain}}},
		"adopted": {rewound(events.Rewound{Run: "r", Lineage: "lost", Index: 900, Chain: chain, Adopted: true}),
			&Branch{Index: 20, Kind: BranchAdopted, Run: "run", Lineage: "lost", Model: "main", From: Point{900, chain}}},
		"recovered": {&events.Entry{Kind: events.KindRecover, Events: []events.Event{{Recovered: &events.Recovered{Lineage: "new", From: events.Ancestor{Lineage: "old", Index: 19, Chain: chain}}}}},
			&Branch{Index: 20, Kind: BranchRecovered, Run: "run", Lineage: "old", From: Point{19, chain}}},
		"another call": {&events.Entry{Kind: events.KindCall, Key: key}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var r recorder
			r.see(20, c.entry, fsm.Outcome{}, &fsm.State{Run: "run"})
			if c.want == nil {
				require.Empty(t, r.branches)
				return
			}
			require.Equal(t, []Branch{*c.want}, r.branches)
			r = recorder{}
			r.see(20, c.entry, fsm.Outcome{Refused: "late"}, &fsm.State{Run: "run"})
			require.Empty(t, r.branches, "a refused entry branches nothing")
		})
	}
}
