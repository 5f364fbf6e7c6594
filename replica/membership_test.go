package replica

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// testView is a membership in words: "A" votes, "a" does not; "A!" is silent for
// a moment, "A!!" is gone. Node A is at address A:1.
func testView(self string, round []string, servers ...string) *view {
	v := &view{self: nodeOf(self), index: 100, replaced: 2 * time.Second, gone: 10 * time.Second}
	silence := map[events.NodeID]time.Duration{}
	for _, text := range servers {
		id, s := nodeOf(text[:1]), raft.Server{Suffrage: raft.Nonvoter}
		if text[0] < 'a' {
			s.Suffrage = raft.Voter
		}
		s.ID, s.Address = raft.ServerID(id), raft.ServerAddress(addressOf(string(id)+":1", id))
		v.servers = append(v.servers, s)
		v.nodes = append(v.nodes, fsm.Node{ID: id})
		silence[id] = []time.Duration{0, time.Second, time.Minute}[len(text)-1]
	}
	v.silent = func(id events.NodeID) time.Duration { return silence[id] }
	if len(round) > 0 {
		v.round.Number = 1
	}
	for rank, name := range round {
		v.round.Members = append(v.round.Members, events.Member{Rank: uint64(rank), Node: nodeOf(name)})
	}
	return v
}

func nodeOf(name string) events.NodeID {
	if name[0] >= 'a' {
		return events.NodeID(name[0] - 'a' + 'A')
	}
	return events.NodeID(name[0])
}

// ranks lets nodes live, with these ranks in a world of so many; "-": none.
func (v *view) ranks(world uint64, names ...string) *view {
	for rank, name := range names {
		if name != "-" {
			v.joins(uint64(rank), world, nodeOf(name), 100)
		}
	}
	return v
}

func (v *view) joins(rank, world uint64, id events.NodeID, index uint64) *view {
	v.peers = append(v.peers, peer{hello: hello{Node: id, Rank: rank, World: world, Address: addressOf(string(id)+":1", id), Index: index, Start: "now"}})
	return v
}

func (v *view) said() string {
	c, due := v.next()
	if !due {
		first, _ := v.first()
		return "lead " + string(first.Node)
	}
	return map[changeKind]string{changeRemoved: "remove", changeLeaves: "leave", changeJoins: "join", changeAdmitted: "admit",
		changeVotes: "vote", changeDemoted: "demote"}[c.kind] + " " + string(c.node)
}

func TestMembershipStep(t *testing.T) {
	abc := []string{"A", "B", "C"}
	newcomer := testView("A", abc, "A", "B", "C").ranks(4, "A", "B", "C")
	newcomer.joins(3, 4, "D", 0)
	admitted := testView("A", abc, "A", "B", "C").ranks(4, "A", "B", "C")
	admitted.joins(3, 4, "D", 0).nodes = append(admitted.nodes, fsm.Node{ID: "D"})
	left := testView("A", abc, "A", "B", "C").ranks(3, "A", "B", "C")
	left.nodes = append(left.nodes, fsm.Node{ID: "D"})
	behind := testView("A", abc, "A", "B", "C", "d").ranks(4, "-", "A", "B", "C").joins(0, 4, "D", 10)
	late := testView("A", []string{"A", "B"}, "A", "b").ranks(3, "A", "B").joins(2, 3, "C", 10)
	late.servers = append(late.servers, raft.Server{ID: "C", Address: "C:1#C", Suffrage: raft.Nonvoter})
	late.nodes = append(late.nodes, fsm.Node{ID: "C"})
	twoStarts := testView("A", abc, "A", "B", "C", "d").ranks(3, "A", "B", "D")
	twoStarts.joins(2, 4, "C", 100)
	// A of the start before leads, or B of this one.
	onStart := testView("A", abc, "A", "B", "C").ranks(2, "B", "C").joins(0, 3, "A", 100)
	fromStart := testView("B", []string{"B", "C"}, "A", "B", "C").ranks(2, "B", "C").joins(0, 3, "A", 100)
	twoFirst := testView("A", []string{"B", "A"}, "A", "B", "C").ranks(3, "A", "-", "C")
	twoFirst.joins(0, 3, "B", 100)
	onPort := testView("A", nil, "A", "B", "C!").ranks(3, "A", "B").joins(2, 3, "D", 0)
	onPort.peers[2].Address = "C:1#D"
	onPort.silent = func(events.NodeID) time.Duration { return 3 * time.Second }
	// In the middle of an upgrade only A and B tell their start.
	upgraded := testView("B", []string{"A", "B", "C", "D", "E"}, "A", "B", "C", "d", "e").ranks(5, "A", "B", "C", "D", "E")
	for i := range upgraded.peers[2:] {
		upgraded.peers[2+i].Start = ""
	}

	for name, c := range map[string]struct {
		v    *view
		want string
	}{
		"nothing to do":                           {testView("A", abc, "A", "B", "C").ranks(3, "A", "B", "C"), "lead A"},
		"rank 0 moves to a voter":                 {testView("A", abc, "A", "B", "C").ranks(3, "B", "A", "C"), "lead B"},
		"rank 0 moves to a nonvoter":              {testView("A", abc, "A", "B", "C", "d").ranks(4, "D", "A", "B", "C"), "vote D"},
		"which has to have caught up":             {behind, "lead D"}, // handTo waits for its vote
		"then the last one votes no more":         {testView("D", abc, "A", "B", "C", "D").ranks(4, "D", "A", "B", "C"), "demote C"},
		"a new node joins the log":                {newcomer, "join D"},
		"and then raft":                           {admitted, "admit D"},
		"a node that raft has no more":            {left, "leave D"},
		"a voter is silent for a moment":          {testView("A", abc, "A", "B", "C!", "d").ranks(4, "A", "B", "-", "D"), "lead A"},
		"a voter of the round is gone":            {testView("A", abc, "A", "B", "C!!", "d").ranks(4, "A", "B", "-", "D"), "vote D"},
		"and has lost its vote to another":        {testView("A", abc, "A", "B", "C!!", "D").ranks(4, "A", "B", "-", "D"), "demote C"},
		"a voter is gone, with nobody to vote":    {testView("A", abc, "A", "B", "C!!").ranks(3, "A", "B", "-"), "lead A"},
		"a voter is gone that the round does not": {testView("A", []string{"A", "B"}, "A", "B", "C!!").ranks(2, "A", "B"), "remove C"},
		"without a round nobody is removed":       {testView("A", nil, "A", "B", "C!!").ranks(3, "A", "B"), "lead A"},
		"a nonvoter is gone":                      {testView("A", abc, "A", "B", "C", "d!!").ranks(3, "A", "B", "C"), "remove D"},
		"a world of 3 becomes one of 2":           {testView("A", []string{"A", "B"}, "A", "B").ranks(2, "A", "B"), "demote B"},
		"but not while the third may come back":   {testView("A", []string{"A", "B"}, "A", "B", "C!").ranks(2, "A", "B"), "lead A"},
		"and of 2 one of 1":                       {testView("A", []string{"A"}, "A", "B!!").ranks(1, "A"), "remove B"},
		"a world of 1 becomes one of 3":           {late, "vote B"},
		"a process of another start lives on":     {twoStarts, "lead A"},
		"and votes no more when it is not needed": {fromStart, "demote A"},
		"but nobody relies on it":                 {onStart, "lead B"},
		"two nodes for rank 0: the round's":       {twoFirst, "lead B"},
		"most nodes are too old to tell":          {upgraded, "lead A"},
		"a lost disk, told by its rank":           {testView("A", abc, "A", "B", "C!", "d").ranks(3, "A", "B", "D"), "lead A"},
		"a lost disk, told by its address":        {onPort, "remove C"},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, c.want, c.v.said()) })
	}
	lost := testView("A", abc, "A", "B", "C!", "d").ranks(3, "A", "B", "D")
	lost.silent = func(events.NodeID) time.Duration { return 3 * time.Second }
	require.Equal(t, "remove C", lost.said())
	lost = testView("A", abc, "A", "B", "C!", "d").ranks(3, "B", "A", "-")
	lost.silent = func(events.NodeID) time.Duration { return 3 * time.Second }
	require.Equal(t, "lead B", lost.said(), "its rank 1 has a node of the round, which has only moved")
}

// From any membership whose living voters are a majority, whatever is gone and
// whoever holds which rank, every step keeps such a majority, and the steps end
// with few voters, all of them living, rank 0's node among them.
func TestMembershipConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := rapid.IntRange(1, 7).Draw(t, "nodes")
		leader := -1
		var servers, round, living []string
		for i := range nodes {
			name := string(rune('a' + i))
			votes := rapid.Bool().Draw(t, "votes")
			gone := rapid.IntRange(0, 2).Draw(t, "gone") == 0
			if votes {
				name = string(rune('A' + i))
			}
			if rapid.Bool().Draw(t, "in the round") {
				round = append(round, name)
			}
			if !gone {
				living = append(living, name)
			}
			if votes && !gone {
				leader = i
			}
			if gone {
				name += "!!"
			}
			servers = append(servers, name)
		}
		if leader < 0 {
			t.Skip("nobody can lead")
		}
		v := testView(string(rune('A'+leader)), round, servers...)
		v.ranks(uint64(len(living)), rapid.Permutation(living).Draw(t, "ranks")...)
		strangers := false
		for i := range v.peers { // of the start before
			if rapid.IntRange(0, 5).Draw(t, "stranger") == 0 {
				v.peers[i].Start, strangers = "before", true
			}
		}
		if !v.holds("", "") {
			t.Skip("no quorum")
		}
		for range 40 {
			c, due := v.next()
			first, ok := v.first()
			if !due && strangers {
				return
			}
			if !due && ok && v.votes(first.Node) && first.Node != v.self {
				v.self = first.Node // it was handed over
				continue
			}
			if !due {
				require.True(t, v.votes(first.Node))
				for _, s := range v.servers {
					require.True(t, s.Suffrage == raft.Nonvoter || v.lives(events.NodeID(s.ID)) || v.voters() <= voters(len(living)), "%s votes and is gone", s.ID)
				}
				require.LessOrEqual(t, v.voters(), voters(len(living)))
				return
			}
			v.does(c)
			require.True(t, v.holds("", ""), "after %v", c)
		}
		t.Fatalf("it does not end: %s", fmt.Sprint(v.servers))
	})
}

// does makes a change, as raft would.
func (v *view) does(c change) {
	id := raft.ServerID(c.node)
	at := slices.IndexFunc(v.servers, func(s raft.Server) bool { return s.ID == id })
	switch c.kind {
	case changeRemoved:
		v.servers = slices.Delete(v.servers, at, at+1)
	case changeLeaves:
		v.nodes = slices.DeleteFunc(v.nodes, func(n fsm.Node) bool { return n.ID == c.node })
	case changeJoins:
		v.nodes = append(v.nodes, fsm.Node{ID: c.node})
	case changeAdmitted:
		v.servers = append(v.servers, raft.Server{ID: id, Address: raft.ServerAddress(c.address), Suffrage: raft.Nonvoter})
	case changeVotes:
		v.servers[at].Suffrage = raft.Voter
	case changeDemoted:
		v.servers[at].Suffrage = raft.Nonvoter
	}
}
