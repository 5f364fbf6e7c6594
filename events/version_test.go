package events

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDecodeNewerVersion(t *testing.T) {
	e := &Entry{Version: Version + 1, Kind: KindReport, Node: "n"}
	b, err := encMode.Marshal(e)
	require.NoError(t, err)
	newer := append(b[:len(b):len(b)], 0xff) // nothing after the version is looked at
	for _, b := range [][]byte{b, newer} {
		_, err = Decode(b)
		var version *VersionError
		require.ErrorAs(t, err, &version)
		require.Equal(t, VersionError{Got: Version + 1, Known: Version}, *version)
		require.ErrorContains(t, err, "upgrade esperd")
	}
	_, err = Encode(e)
	require.Error(t, err)
}

// An older build is written only what it can read: whatever is not of version 1
// says so.
func TestVersionOf(t *testing.T) {
	since2 := []string{"requested", "request_done", "mismatched", "fact", "outcome_differs", "trainer_ended"}
	since3 := []string{"rewound", "recovered", "residency", "voted", "resided", "attested"}
	for i, name := range payloadNames {
		ev := inOrder().event(i)
		asOfVersion1(&ev)
		want := uint64(1)
		if slices.Contains(since3, name) {
			want = 3
		}
		if slices.Contains(since2, name) {
			want = 2
		}
		if name == "configured" {
			want = 3 // its tensors say how they are filled
		}
		require.Equal(t, want, VersionOf(&Entry{Kind: KindCall, Events: []Event{{Fenced: &Fenced{}}, ev}}), name)
	}
	reset, resume := Key{Op: OpReset}, Key{Op: OpResume}
	mode := func(m TrainerMode) []Event {
		return []Event{{RoundOpened: &RoundOpened{Members: []Member{{Mode: m}, {Mode: m}}}}}
	}
	for name, c := range map[string]struct {
		e    Entry
		want uint64
	}{
		"a call":                     {Entry{Kind: KindCall, Key: &Key{Op: OpFence}}, 1},
		"a fault":                    {Entry{Kind: KindFault, Events: []Event{{RoundFaulted: &RoundFaulted{}}}}, 1},
		"a keyed round":              {Entry{Kind: KindRound, Events: mode(ModeKeyed)}, 1},
		"a round of an older esperd": {Entry{Kind: KindRound, Events: mode("")}, 1},
		"a following round":          {Entry{Kind: KindRound, Events: mode(ModeFollow)}, 2},
		"an observed round":          {Entry{Kind: KindRound, Events: mode(ModeObserve)}, 2},
		"a reset":                    {Entry{Kind: KindCall, Key: &reset}, 2},
		"a seed without room":        {Entry{Kind: KindCall, Events: []Event{{Germinated: &Germinated{Absent: true}}}}, 3},
		"a plain configuration": {Entry{Kind: KindCall, Events: []Event{{Configured: &Configured{Slots: []SlotConfig{{
			Blueprints: []Blueprint{{Tensors: []Tensor{{Name: "w"}}}}}}}}}}, 1},
		"a request":                 {Entry{Kind: KindRequest}, 2},
		"a trainer that is gone":    {Entry{Kind: KindFault, Events: []Event{{RoundFaulted: &RoundFaulted{Reason: "killed"}}}}, 2},
		"a resume that was refused": {Entry{Kind: KindCall, Key: &resume}, 3},
		"a recovered log":           {Entry{Kind: KindRecover}, 3},
		"a resume out of order":     {Entry{Kind: KindFault, Events: []Event{{RoundFaulted: &RoundFaulted{Got: resume}}}}, 3},
		"a resume out of place":     {Entry{Kind: KindReport, Events: []Event{{Mismatched: &Mismatched{Want: resume}}}}, 3},
		"a reset out of order":      {Entry{Kind: KindFault, Events: []Event{{RoundFaulted: &RoundFaulted{Got: reset}}}}, 2},
		"a reset that was missed":   {Entry{Kind: KindFault, Events: []Event{{RoundFaulted: &RoundFaulted{Want: reset}}}}, 2},
	} {
		require.Equal(t, c.want, VersionOf(&c.e), name)
	}
}
