package door

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

func TestUnheardRanks(t *testing.T) {
	dead := api.Unreachable{Node: "b", Address: "b:1", Reason: "refused"}
	none := fsm.New()
	require.Equal(t, "its node has not been part of the log yet", unheard(none, 2, 1, nil).Unreachable)
	require.Equal(t, "its node does not answer, or has not been part of the log yet; no answer came from b:1 (refused)",
		unheard(none, 2, 2, []api.Unreachable{dead}).Unreachable)
	require.Equal(t, api.Rank{Rank: 2, Node: "b", Address: "b:1", Unreachable: "refused"}, unheard(none, 2, 1, []api.Unreachable{dead}))

	round := fsm.New()
	round.Round.Members = []events.Member{{Rank: 0, Node: "a"}, {Rank: 1, Node: "b"}, {Rank: 2, Node: "c"}}
	require.Equal(t, api.Rank{Rank: 1, Node: "b", Address: "b:1", Unreachable: "refused"}, unheard(round, 1, 2, []api.Unreachable{dead}))
	require.Equal(t, api.Rank{Rank: 2, Node: "c", Unreachable: "its node does not answer"}, unheard(round, 2, 2, []api.Unreachable{dead}))
}

// An older node asks without naming a model.
func TestTheLedgerIsToldToOlderNodes(t *testing.T) {
	b := newBench(t, 1)
	defer b.close()
	b.connect()
	null, err := events.Marshal(nil)
	require.NoError(t, err)
	_, err = b.servers[0].answerLedger(t.Context(), null)
	require.NoError(t, err)
	_, err = b.servers[0].answerLedger(t.Context(), []byte{0xff})
	require.ErrorContains(t, err, "expected the name of a model")
}
