package recovery

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/replica"
)

// survivor ends at an entry, of which the history has committed ones; from the
// entry split on, its chain is that of another branch.
func survivor(dir string, term, last, committed, split uint64) *Survivor {
	k := &replica.Kept{State: &fsm.State{Run: "r", Lineage: "L", Index: last}, RaftTerm: term, Committed: committed, Links: replica.Links{From: 1},
		Members: []replica.Member{{Node: "0", Address: "h0:1", Voter: true}, {Node: "1", Address: "h1:1", Voter: true}, {Node: "2", Address: "h2:1", Voter: true}, {Node: "3", Address: "h3:1"}}}
	for i := uint64(1); i <= last; i++ {
		link := events.Digest{byte(i)}
		if split > 0 && i >= split {
			link[1] = dir[0]
		}
		k.Links.Chain = append(k.Links.Chain, link)
	}
	return &Survivor{Dir: dir, Node: events.NodeID(dir), Kept: k}
}

func TestChoose(t *testing.T) {
	recovered := survivor("c", 1, 3, 3, 0)
	recovered.Kept.State.Lineage, recovered.Kept.State.Ancestors = "M", []events.Ancestor{{Lineage: "L", Index: 3}}
	other := survivor("d", 9, 9, 9, 0)
	other.Kept.State.Lineage = "N"
	foreign := survivor("e", 1, 2, 2, 0)
	foreign.Kept.State.Run = "other"
	blind := survivor("f", 0, 6, 6, 0)
	blind.Kept.RaftProblem = errors.New("gone")
	decided := survivor("g", 0, 6, 6, 5) // a has other entries from there on, and in raft's log alone
	decided.Kept.RaftProblem = errors.New("gone")
	for name, c := range map[string]struct {
		survivors []*Survivor
		from      string
		chosen    string
		against   string
	}{
		"the longest":                        {[]*Survivor{survivor("a", 2, 5, 4, 0), survivor("b", 2, 6, 6, 0)}, "", "b", ""},
		"the later term, though shorter":     {[]*Survivor{survivor("a", 2, 7, 4, 5), survivor("b", 3, 6, 6, 5)}, "", "b", ""},
		"a contradiction in what is decided": {[]*Survivor{survivor("a", 2, 7, 6, 5), survivor("b", 3, 6, 6, 5)}, "", "b", "b and a contradict each other from entry 5 on"},
		"a contradiction, told":              {[]*Survivor{survivor("a", 2, 7, 6, 5), survivor("b", 3, 6, 6, 5)}, "a", "a", ""},
		"the one that continues the other":   {[]*Survivor{survivor("a", 2, 7, 7, 0), recovered}, "", "c", ""},
		"another log":                        {[]*Survivor{survivor("a", 2, 7, 7, 0), other}, "", "d", "neither continues the other"},
		"another run":                        {[]*Survivor{survivor("a", 2, 7, 7, 0), foreign}, "", "a", `of run "other"`},
		"no raft log, longer":                {[]*Survivor{survivor("a", 2, 5, 5, 0), blind}, "", "f", ""},
		"decided, against a longer end":      {[]*Survivor{survivor("a", 2, 7, 4, 5), decided}, "", "g", ""},
		"a later term, against decisions":    {[]*Survivor{survivor("a", 9, 7, 4, 5), decided}, "a", "a", ""},
		"from is no candidate":               {[]*Survivor{survivor("a", 2, 5, 5, 0)}, "x", "", "cannot be continued"},
		"a later term that lacks decisions":  {[]*Survivor{survivor("a", 2, 7, 7, 0), survivor("b", 3, 6, 6, 0)}, "", "b", "a has entries up to 7, which were decided"},
	} {
		t.Run(name, func(t *testing.T) {
			p := Choose(c.survivors, c.from)
			if c.chosen == "" {
				require.Nil(t, p.Chosen)
			} else {
				require.Equal(t, c.chosen, p.Chosen.Dir)
			}
			if c.against == "" {
				require.Empty(t, p.Against)
			} else {
				require.Len(t, p.Against, 1)
				require.Contains(t, p.Against[0].Why, c.against)
			}
		})
	}
}

func TestHeard(t *testing.T) {
	silent := func(address string) replica.PeerStatus {
		return replica.PeerStatus{Address: address, Err: errors.New("connection refused")}
	}
	for name, c := range map[string]struct {
		named   []*Survivor
		peers   []replica.PeerStatus
		against string
		final   bool
	}{
		"nobody":            {nil, []replica.PeerStatus{silent("h0:1"), silent("h2:1")}, "", false},
		"one voter waits":   {nil, []replica.PeerStatus{{Address: "h2:1", Node: "x", Lineage: "L", Index: 5}}, "", false},
		"a majority waits":  {[]*Survivor{survivor("1", 1, 5, 5, 0)}, []replica.PeerStatus{{Address: "h0:1", Node: "0", Lineage: "L", Index: 5}}, "2 of 3 voters are here", true},
		"both are named":    {[]*Survivor{survivor("1", 1, 5, 5, 0), survivor("2", 1, 5, 5, 0)}, nil, "nothing needs to be recovered", true},
		"a leader":          {nil, []replica.PeerStatus{{Address: "h3:1", Node: "3", Lineage: "L", Leader: "0"}}, "the world is healthy", true},
		"another leader":    {nil, []replica.PeerStatus{{Address: "h3:1", Node: "9", Lineage: "M", Leader: "9"}}, "goes on already, as log M", true},
		"who has more":      {nil, []replica.PeerStatus{{Address: "h3:1", Node: "3", Rank: 3, Lineage: "L", Index: 6}}, "has this log up to entry 6", false},
		"who refuses":       {nil, []replica.PeerStatus{{Address: "h3:1", Err: &replica.SecurityError{Text: "no secret"}}}, "does not let this one ask: no secret", false},
		"another job":       {nil, []replica.PeerStatus{{Address: "h3:1", Node: "9", Run: "other", Lineage: "M", Leader: "9"}}, "", false},
		"a nonvoter, empty": {nil, []replica.PeerStatus{{Address: "h3:1", Node: "8"}}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			named := c.named
			if named == nil {
				named = []*Survivor{survivor("1", 1, 5, 5, 0)}
			}
			p := Choose(named, "")
			p.Heard(c.peers)
			if c.against == "" {
				require.Empty(t, p.Against)
				return
			}
			require.Len(t, p.Against, 1)
			require.Contains(t, p.Against[0].Why, c.against)
			require.Equal(t, c.final, p.Against[0].Final)
			require.Len(t, p.Refused(true), map[bool]int{true: 1}[c.final])
		})
	}
	p := Choose([]*Survivor{survivor("1", 1, 5, 5, 0)}, "")
	require.Len(t, p.Missing(), 2)
	require.Equal(t, []string{"h0:1", "h1:1", "h2:1", "h3:1"}, p.Addresses())
}

// A directory whose raft log cannot be used does not tell who votes.
func TestWhoIsAskedWithoutRaft(t *testing.T) {
	blind := survivor("1", 0, 6, 6, 0)
	blind.Kept.RaftProblem, blind.Kept.Members = errors.New("gone"), nil
	blind.Kept.State.Nodes = []fsm.Node{{ID: "0"}, {ID: "1"}, {ID: "2"}}
	p := Choose([]*Survivor{blind}, "")
	require.Empty(t, p.Addresses())
	p.Heard(nil)
	require.Len(t, p.Against, 1)
	require.Contains(t, p.Against[0].Why, "nobody could be asked whether the world is healthy")

	blind.Peers = []string{"h0:1", "h2:1"}
	p = Choose([]*Survivor{blind}, "")
	require.Equal(t, blind.Peers, p.Addresses())
	p.Heard([]replica.PeerStatus{{Address: "h0:1", Err: errors.New("refused")}})
	require.Empty(t, p.Against)

	p = Choose([]*Survivor{blind, survivor("2", 1, 5, 5, 0)}, "")
	require.Equal(t, "1", p.Chosen.Dir)
	require.Equal(t, []string{"h0:1", "h1:1", "h2:1", "h3:1"}, p.Addresses())
	p.Heard([]replica.PeerStatus{{Address: "h0:1", Node: "0", Run: "r", Lineage: "L", Index: 5}})
	require.Len(t, p.Against, 1)
	require.Contains(t, p.Against[0].Why, "2 of 3 voters are here")
}
