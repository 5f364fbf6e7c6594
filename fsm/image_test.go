package fsm

import (
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
)

var update = flag.Bool("update", false, "write the golden files anew")

// imaged is a state that uses everything an image holds.
func imaged(t tester) *State {
	l := configured(t, "a", "b")
	l.call("a", plainGermination, Observation{Slot: "b", Accuracy: value(events.Num(1))})
	l.call("a", Advance{}, Observation{Slot: "a", Accuracy: value(events.Num(10)), Contribution: value(events.Num(2)), Exploding: value(false), Health: value(events.Num(1))})
	l.epoch(accuracy("a", 30))
	l.call("a", Prune{Reason: "manual", Initiator: "policy"})
	l.append(events.Entry{Kind: events.KindReport, Events: []events.Event{
		{ShadowVerdict: &events.ShadowVerdict{Index: 1, Key: events.Key{Round: 1, Op: events.OpAdvance}, Verdict: events.Verdict{Gate: events.G1}}},
		{Reported: &events.Reported{Node: testNode, Sequence: 1}}}})
	l.append(events.Entry{Kind: events.KindFault, Events: []events.Event{{RoundFaulted: &events.RoundFaulted{Round: 1, Code: events.CodeMissingCall, Node: testNode, Index: 3,
		Got: events.Key{Op: events.OpStepEpoch}, Want: events.Key{Op: events.OpAdvance}}}}})
	return l.state
}

// imagedNewer uses what images hold since version 2 of the log.
func imagedNewer(t tester) *State {
	l := configured(t, "a", "b")
	l.call("a", plainGermination)
	l.call("b", plainGermination)
	l.request(events.Requested{Slot: "b", Reason: "governor_nan", Initiator: "rank 2"})
	l.request(events.Requested{Slot: "a"})
	key := events.Key{Round: 1, Op: events.OpAdvance}
	l.append(events.Entry{Kind: events.KindReport, Events: []events.Event{
		{ShadowVerdict: &events.ShadowVerdict{Index: 1, Key: key, Verdict: events.Verdict{Gate: events.G1}}},
		{Mismatched: &events.Mismatched{Code: events.CodeOrderMismatch, Got: key, Want: key}},
		{Mismatched: &events.Mismatched{Code: events.CodeMissingCall, Got: key, Want: key}},
		{OutcomeDiffers: &events.OutcomeDiffers{Key: key, Got: events.Outcome{Stage: events.StageTraining}, Want: events.Outcome{Stage: events.StagePruned}}},
		{Reported: &events.Reported{Node: testNode, Sequence: 4}}}})
	l.append(events.Entry{Kind: events.KindFault, Events: []events.Event{{RoundFaulted: &events.RoundFaulted{Round: 1, Code: events.CodeUnavailable, Node: testNode, Index: 3,
		Got: key, Want: key, Reason: "killed"}}}})
	return l.state
}

// The bytes of an image are part of the log's format: marks and founded logs
// hold them for good.
func TestImageFormat(t *testing.T) {
	checkImage(t, imaged(t), "image.hex")
	checkImage(t, imagedNewer(t), "image2.hex")
}

func checkImage(t *testing.T, s *State, file string) {
	b, err := s.Image()
	require.NoError(t, err)
	golden := filepath.Join("testdata", file)
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(hex.EncodeToString(b)+"\n"), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, strings.TrimSpace(string(want)), hex.EncodeToString(b), "the encoding of images has changed")

	back, err := FromImage(b)
	require.NoError(t, err)
	require.Equal(t, s.Bookkeeping(), back.Bookkeeping())
	require.Equal(t, s.Lifecycle("main"), back.Lifecycle("main"))
	require.Equal(t, s.Requests, back.Requests)
	require.Equal(t, s.Round, back.Round)
	again, err := back.Image()
	require.NoError(t, err)
	require.Equal(t, b, again)
}

// FuzzFromImage: a damaged image is an error, never a panic and never another
// state under the same digests.
func FuzzFromImage(f *testing.F) {
	for _, s := range []*State{imaged(f), imagedNewer(f)} {
		b, err := s.Image()
		require.NoError(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := FromImage(b)
		if err != nil {
			return
		}
		again, err := s.Image()
		require.NoError(t, err)
		back, err := FromImage(again)
		require.NoError(t, err)
		require.Equal(t, s.Bookkeeping(), back.Bookkeeping())
	})
}
