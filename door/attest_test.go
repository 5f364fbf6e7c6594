package door_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

func tensor(name, print string, more ...string) api.AttestedTensor {
	a := api.AttestedTensor{Name: name, Fingerprint: strings.Repeat(print, 32)}
	if len(more) > 0 {
		a.Kind = more[0]
	}
	if len(more) > 1 {
		a.Shard = more[1]
	}
	return a
}

func (tr *trainer) attests(tensors ...api.AttestedTensor) reply {
	return tr.post("/v1/attest", members{"session": tr.req.Incarnation, "tensors": tensors})
}

// What ranks hold is compared among equal shards, and the next fence names rank
// and tensor, on every rank.
func TestTheNextFenceNamesWhoDiffers(t *testing.T) {
	j := newJob(t, 4)
	j.log.Record()
	all := j.trainers()
	n := int64(0)
	fence := func() []api.Difference {
		n++
		var out []*api.Fence
		for _, tr := range all {
			out = append(out, tr.fenceAt(n).fence(t))
		}
		for _, f := range out {
			require.Equal(t, out[0], f)
		}
		return out[0].Differs
	}
	require.Empty(t, fence())
	at := all[0].fenced
	for rank, tr := range all {
		odd := "0"
		if rank == 2 {
			odd = "1"
		}
		tr.attests(tensor("r0c0/weight", odd), tensor("r0c0/bias", "2"), tensor("backbone", "3"),
			tensor("bn.mean", fmt.Sprint(rank), "local"), tensor("flat", fmt.Sprint(rank/2), "sharded", fmt.Sprint("half", rank/2)),
			tensor("own", fmt.Sprint(rank), "sharded", fmt.Sprint("own", rank))).ok(t)
	}
	require.Equal(t, []api.Difference{{Index: at, What: "tensors", Ranks: []uint64{2}, Tensors: []string{"r0c0/weight"}}}, fence())
	require.Empty(t, fence(), "said once")
	require.Equal(t, uint64(1), j.log.Node(3).State().Round.Tally(2).Attesting)

	var d api.Divergences
	require.NoError(t, j.admins(1)["socket"].Get(j.ctx(), "/v1/divergences", &d))
	require.Equal(t, []api.VerdictCount{{Rank: 2, Count: 1}}, d.Devices)
	require.Len(t, d.Attested, 1)
	minority := d.Attested[0]
	require.Equal(t, at, minority.Index)
	require.Greater(t, minority.Entry, at)
	require.Equal(t, "tensors", minority.What)
	require.EqualValues(t, 3, minority.Ranks)
	require.Len(t, minority.Others, 1)
	require.Equal(t, []uint64{2}, minority.Others[0].Ranks)
	require.Equal(t, []string{"r0c0/weight"}, minority.Others[0].Tensors)
	require.NotEqual(t, minority.Value, minority.Others[0].Value)
	var ranks api.Ranks
	require.NoError(t, j.admins(0)["admin door"].Get(j.ctx(), "/v1/ranks", &ranks))
	require.Equal(t, uint64(1), ranks.Ranks[2].Attesting)

	// A shard of its own kind, a tensor that one rank does not have, and a value
	// of two against two: the lowest rank's counts.
	for rank, tr := range all {
		list := []api.AttestedTensor{tensor("flat", fmt.Sprint(rank), "sharded", fmt.Sprint("half", rank/2)), tensor("w", fmt.Sprint(rank%2))}
		if rank == 3 {
			list = append(list, tensor("more", "f"))
		}
		tr.attests(list...).ok(t)
	}
	found := fence()
	require.Len(t, found, 4)
	seen := map[string]string{}
	for _, f := range found {
		seen[fmt.Sprint(f.Shard, f.Ranks)] = fmt.Sprint(f.Tensors)
	}
	require.Equal(t, map[string]string{"[1]": "[w]", "[3]": "[more w]", "half0[1]": "[flat]", "half1[3]": "[flat]"}, seen)
	for _, door := range []string{"socket", "admin door"} { // an answer goes on from the one before, or not
		d, err := j.admins(1)[door].Divergences(j.ctx())
		require.NoError(t, err)
		var shards []string
		for _, a := range d.Attested {
			shards = append(shards, a.Shard)
		}
		require.Equal(t, []string{"", "", "half0", "half1"}, shards)
	}
	last, err := j.admins(3)["socket"].Divergences(j.ctx())
	require.NoError(t, err)
	require.Len(t, last.Attested, 4, "of a node that was not asked before")
}

// However soon the next fence is: also between the end of a comparison and its
// report.
func TestADifferenceIsNeverAFenceLate(t *testing.T) {
	j := newJob(t, 2)
	j.log.Record()
	all := j.trainers()
	for n := range int64(100) {
		for _, tr := range all {
			differs := tr.fenceAt(n).fence(t).Differs
			require.Equal(t, n > 0, len(differs) == 1, "fence %d: %v", n, differs)
		}
		for i := range all {
			rank := len(all) - 1 - i // so that the comparison begins as the fence comes
			all[rank].attests(tensor("w", fmt.Sprint(rank))).ok(t)
		}
	}
}

func TestAttestationsThatCannotBeTaken(t *testing.T) {
	j := newJob(t, 2)
	all := j.trainers()
	tr := all[1]
	require.Contains(t, tr.post("/v1/attest", members{"session": tr.req.Incarnation, "index": 99}).refused(t, events.CodeInvalidInput).Detail, "last fence")
	require.Contains(t, tr.attests(tensor("a", "0"), tensor("a", "1")).refused(t, events.CodeInvalidInput).Detail, "twice")
	tr.attests(tensor("a", "x")).refused(t, events.CodeInvalidInput)
	tr.attests(tensor("", "0")).refused(t, events.CodeInvalidInput)
	tr.attests(tensor("a", "0", "sharded")).refused(t, events.CodeInvalidInput)
	tr.attests(tensor("a", "0", "local", "x")).refused(t, events.CodeInvalidInput)
	tr.attests(tensor("a", "0", "strange")).refused(t, events.CodeInvalidInput)
	o := newJob(t, 1)
	o.trainers(inMode(events.ModeObserve))[0].attests().refused(t, events.CodeNotAuthority)
}

// The arena's own parameters are attested without being named.
func TestTheArenaIsAttested(t *testing.T) {
	j := newJob(t, 2, onHost(100))
	j.log.Record()
	all := j.trainers(arena)
	for epoch := range int64(3) {
		for _, tr := range all {
			if epoch == 0 {
				tr.germinate("r0c0").ok(t)
			}
			require.Empty(t, tr.step(epoch).fence(t).Differs)
		}
		for _, tr := range all {
			tr.attests(tensor("host", "0")).ok(t)
		}
	}
	require.Contains(t, all[0].attests(tensor("r0c0/weight", "0")).refused(t, events.CodeInvalidInput).Detail, "twice")
	var last *events.Attested
	for _, ev := range j.log.Node(0).Reports() {
		if ev.Attested != nil {
			last = ev.Attested
		}
	}
	require.NotNil(t, last)
	require.Equal(t, uint64(2), last.Ranks)
	require.Empty(t, last.Missing)
}

// Who has not handed in what the others have can be seen while they wait.
func TestWhoHasNotAttestedIsSeen(t *testing.T) {
	j := newJob(t, 3)
	all := j.trainers()
	look := func(rank int) (a api.Arrivals) {
		require.NoError(t, j.admins(rank)["admin door"].Get(j.ctx(), "/v1/arrivals", &a))
		return a
	}
	for _, tr := range all {
		tr.fenceAt(1).ok(t)
	}
	require.Empty(t, look(1).Unattested)
	all[0].attests(tensor("w", "0")).ok(t)
	for rank := range all { // on every node, though rank 0's knows it
		u := look(rank).Unattested
		require.Len(t, u, 1)
		require.Equal(t, []any{"main", all[0].fenced, []uint64{1, 2}, false}, []any{u[0].Model, u[0].Index, u[0].Missing, u[0].Over})
	}
	for _, tr := range all[1:] {
		tr.attests(tensor("w", "0")).ok(t)
	}
	tr := all[0]
	tr.fenceAt(2).ok(t) // waits for the comparison
	require.Empty(t, look(2).Unattested)
}

// A seed that waits for room is compared on no rank: that one has none for it is
// no difference of devices.
func TestASeedWithoutRoomIsNoDifference(t *testing.T) {
	j := newJob(t, 2)
	j.log.Record()
	j.stop(1)
	j.start(1, onHost(1)) // the table alone
	j.stop(0)
	j.start(0, onHost(100))
	all := j.trainers(arena)
	for rank, tr := range all {
		tr.germinate("r0c0").ok(t)
		require.Equal(t, events.StageGerminated, tr.step(0).fence(t).Slots[0].Stage)
		bind := tr.post("/v1/slots/r0c0/attach", members{"session": tr.req.Incarnation, "tensors": []members{{"name": "weight", "dtype": "float32", "shape": []int{4, 3}}}})
		if rank == 0 {
			bind.ok(t)
		} else {
			require.Contains(t, bind.refused(t, events.CodeNoRoom).Detail, "the next fence that finds the vote in the log prunes the seed on all ranks")
		}
		tr.attests(tensor("host", "0"), tensor("own", fmt.Sprint(rank))).ok(t)
	}
	for _, tr := range all {
		f := tr.step(1).fence(t)
		require.Equal(t, events.StagePruned, f.Slots[0].Stage)
		require.Len(t, f.Differs, 1, "what else differs is still found")
		require.Equal(t, []string{"own"}, f.Differs[0].Tensors)
	}
}
