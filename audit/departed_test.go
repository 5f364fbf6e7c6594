package audit

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
)

// leaves writes that a rank's node is not part of the world any more.
func (l *testLog) leaves(rank int) {
	l.write(events.Entry{Kind: events.KindMembership, Events: []events.Event{{NodeLeft: &events.NodeLeft{Node: nodeOf(rank), Reason: "silent"}}}})
}

func (l *testLog) joins(rank int) {
	l.write(events.Entry{Kind: events.KindMembership, Events: []events.Event{{NodeJoined: &events.NodeJoined{Node: nodeOf(rank), Version: events.Version}}}})
}

// shrinks opens a round without the last rank.
func (l *testLog) shrinks() {
	l.ranks--
	round := &events.RoundOpened{Round: l.state.Round.Number + 1, Fingerprint: "again"}
	for rank := range l.ranks {
		round.Members = append(round.Members, events.Member{Rank: uint64(rank), Node: nodeOf(rank), Incarnation: "again", Mode: events.ModeKeyed})
	}
	l.write(events.Entry{Kind: events.KindRound, Events: []events.Event{{RoundOpened: round}}})
}

// A rank that left the world for good lacks nothing, if the log says that it left.
func TestARankThatLeft(t *testing.T) {
	for name, c := range map[string]struct {
		then   func(*testLog)
		status int
		says   string
	}{
		"left":            {func(l *testLog) { l.leaves(2) }, 0, "leave the world with entry 61 (silent), and what follows was not for it; entries 41 to 60, from before that, are not here either"},
		"a smaller round": {(*testLog).shrinks, 0, "it ends with entry 40: round 2, which entry 61 opens with 2 ranks, is without its node"},
		"came back":       {func(l *testLog) { l.leaves(2); l.joins(2) }, 2, "entries 41 to 80, which another place has, are not here"},
		"nothing said":    {func(*testLog) {}, 2, "entries 41 to 80, which another place has, are not here"},
		"another left":    {func(l *testLog) { l.leaves(1) }, 2, "entries 41 to 80, which another place has, are not here"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLog(t, 41, "run", 3)
			l.train(60)
			c.then(l)
			for len(l.entries) < 80 {
				l.report()
			}
			dir := t.TempDir()
			short := (&replica{rank: 2, entries: l.entries[:40]}).write(t, dir)
			whole := (&replica{rank: 0, entries: l.entries}).write(t, dir)
			var sent atomic.Int64
			for _, other := range []string{whole, serve(t, whole, 0, 3, l.state, &sent)} { // replayed, and only compared
				r := auditOf(t, short, other)
				require.Equal(t, c.status, r.Status, text(r))
				require.Contains(t, strings.Join(r.Coverage, "\n"), c.says)
				require.EqualValues(t, 40, r.Agreed.Index)
			}
		})
	}
}
