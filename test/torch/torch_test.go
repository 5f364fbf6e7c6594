package torch

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
)

// soon is how many seconds every rank may take to learn that the round is over,
// from when both of the calls that do not fit have been made.
const soon = 1.0

// TestBUG030 lets ranks judge by their own metrics, of which rank 1's are bad.
func TestBUG030(t *testing.T) {
	python := needTorch(t)
	t.Parallel()
	t.Run("local verdicts", func(t *testing.T) {
		t.Parallel()
		got := ranks(t, python, 2, "bug030", "local_verdicts")
		parted := got.last(t, 0, "epoch")
		require.Equal(t, "BLENDING", parted.Stage)
		require.Equal(t, "TRAINING", got.all(1, "epoch")[parted.Epoch].Stage, "the same epoch, another stage")
		for rank := range 2 { // the next reductions do not fit each other
			require.Empty(t, got.all(rank, "done"), "rank %d has come to the end", rank)
		}
	})
	t.Run("with esperd", func(t *testing.T) {
		t.Parallel()
		j := startJob(t, 2)
		got := j.with(python, "bug030", "with_esperd")
		one, other := got.all(0, "epoch"), got.all(1, "epoch")
		require.Len(t, one, 4)
		disagreed := 0
		for i := range one {
			require.Equal(t, [3]any{one[i].Stage, one[i].Alpha, one[i].Passed}, [3]any{other[i].Stage, other[i].Alpha, other[i].Passed}, "epoch %d", i)
			require.NotEqual(t, one[i].Accuracy, other[i].Accuracy)
			if !*other[i].Agreed {
				disagreed++
			}
		}
		require.Equal(t, "HOLDING", one[3].Stage)
		require.Positive(t, disagreed)
		require.Equal(t, got.last(t, 0, "weights").Digest, got.last(t, 1, "weights").Digest)
		require.Equal(t, disagreed, shadowVerdicts(j, 1), "the log has every disagreement")
	})
}

func shadowVerdicts(j *job, rank uint64) int {
	n := 0
	for _, e := range j.entries() {
		for _, ev := range e.Events {
			if v := ev.ShadowVerdict; v != nil && v.Rank == rank {
				n++
			}
		}
	}
	return n
}

// TestJANK003 lets rank 1 skip a gate call, or make one more.
func TestJANK003(t *testing.T) {
	python := needTorch(t)
	for _, way := range []string{"skip", "extra"} {
		t.Run(way+", with esperd", func(t *testing.T) { // alone: its time is measured
			got := startJob(t, 3).with(python, "jank003", way+"_with_esperd")
			code, slot := events.CodeMissingCall, ""
			if way == "extra" {
				code, slot = events.CodeOrderMismatch, "r0c0"
			}
			odd := got.last(t, 1, "raised")
			require.Equal(t, string(code), odd.Code, odd.Text)
			for _, word := range []string{"rank 1 is at call", "rank 0 made call", "verdict r0c1#1", "jank003.py:"} {
				require.Contains(t, odd.Text, word)
			}
			require.Equal(t, slot, got.last(t, 1, "call").Slot)
			evidence := max(got.last(t, 1, "call").At, lastCallOf(t, got, 0, "r0c1").At)
			require.Less(t, odd.At-evidence, soon)
			for _, rank := range []int{0, 2} {
				told := got.told(t, rank)
				require.Less(t, told.At-evidence, soon, "rank %d", rank)
				require.Equal(t, 1, *told.Culprit)
				require.Contains(t, told.Text, "rank 1 was at call")
			}
			t.Logf("rank 1 knew after %.0f ms, ranks 0 and 2 after %.0f and %.0f ms", 1e3*(odd.At-evidence),
				1e3*(got.told(t, 0).At-evidence), 1e3*(got.told(t, 2).At-evidence))
		})
	}
	t.Run("broadcasts", func(t *testing.T) {
		for _, way := range []string{"skip", "extra"} {
			t.Run(way, func(t *testing.T) {
				t.Parallel()
				got := ranks(t, python, 2, "jank003", way+"_today")
				timeouts := 0
				for rank := range 2 {
					raised := got.last(t, rank, "raised")
					before := got[rank][len(got[rank])-2]
					require.Greater(t, raised.At-before.At, 2.9, "rank %d sat out the collective's timeout, 3 s here", rank)
					require.NotContains(t, raised.Text, "r0c", "which slot it was, or which rank, it does not say")
					timeouts += strings.Count(raised.Text, "Timed out") // or that the other one went away
				}
				require.Positive(t, timeouts)
				wrong := 0
				for _, l := range got.all(1, "decided") {
					if l.Epoch == 2 && l.Message != l.Slot+" in epoch 2" {
						wrong++
					}
				}
				require.Equal(t, way == "extra", wrong > 0, "a verdict for another slot, without an error")
			})
		}
	})
}

// told returns the line with which a rank learns that the round is over, by the
// callback or by a call of its own.
func (s said) told(t *testing.T, rank int) line {
	t.Helper()
	for _, l := range s[rank] {
		if l.Error != "" {
			require.Equal(t, "RoundFaulted", l.Error, l.Text)
			return l
		}
	}
	t.Fatalf("rank %d does not know", rank)
	return line{}
}

func lastCallOf(t *testing.T, got said, rank int, slot string) line {
	t.Helper()
	var found line
	for _, l := range got.all(rank, "call") {
		if l.Slot == slot && l.Epoch == 2 {
			found = l
		}
	}
	require.NotZero(t, found.At)
	return found
}

// TestB2CR03 lets rank 1 go through the slots in another order.
func TestB2CR03(t *testing.T) {
	python := needTorch(t)
	t.Parallel()
	for _, debug := range []string{"OFF", "DETAIL"} {
		t.Run("broadcasts, TORCH_DISTRIBUTED_DEBUG="+debug, func(t *testing.T) {
			t.Parallel()
			got := ranks(t, python, 2, "b2cr03", "broadcasts", "TORCH_DISTRIBUTED_DEBUG="+debug)
			for rank := range 2 {
				require.NotEmpty(t, got.all(rank, "done"), "no error on rank %d", rank)
			}
			for _, l := range got.all(1, "decided") {
				require.NotEqual(t, l.Slot, l.About, "rank 1 applied the verdict of another slot")
				require.Equal(t, l.Slot == "r0c1", l.Passed)
			}
			for _, l := range got.all(0, "decided") {
				require.Equal(t, l.Slot == "r0c0", l.Passed)
			}
		})
	}
	t.Run("with esperd", func(t *testing.T) {
		t.Parallel()
		got := startJob(t, 3).with(python, "b2cr03", "with_esperd")
		odd := got.last(t, 1, "raised")
		require.Equal(t, "OrderMismatch", odd.Error, odd.Text)
		require.Equal(t, "call 5, verdict r0c1#1 epoch -1", odd.Got)
		require.Equal(t, "call 5, verdict r0c0#1 epoch -1", odd.Want)
		require.Regexp(t, `^b2cr03.py:\d+$`, odd.GotSite)
		require.Regexp(t, `^b2cr03.py:\d+$`, odd.WantSite)
		require.Contains(t, odd.Text, "last of rank 0: call")
		require.Empty(t, got.all(1, "decided"), "nothing was applied")
		for _, rank := range []int{0, 2} {
			raised := got.last(t, rank, "raised")
			require.Equal(t, "RoundFaulted", raised.Error, raised.Text)
			require.Equal(t, 1, *raised.Culprit)
			for _, l := range got.all(rank, "decided") {
				require.Equal(t, l.Slot, l.About)
			}
		}
	})
}

// TestB2CR03GoesOn lets the same loop go on: with ordering "warn" every slot gets
// its own verdict, and beside a broadcast, the log says what went wrong.
func TestB2CR03GoesOn(t *testing.T) {
	python := needTorch(t)
	t.Parallel()
	t.Run("warn", func(t *testing.T) {
		t.Parallel()
		j := startJob(t, 3)
		got := j.with(python, "b2cr03", "with_esperd_warn")
		for rank := range 3 {
			require.NotEmpty(t, got.all(rank, "done"), "rank %d", rank)
			for _, l := range got.all(rank, "decided") {
				require.Equal(t, l.Slot, l.About, "rank %d has the verdict of its slot", rank)
				require.Equal(t, l.Slot == "r0c0", l.Passed)
			}
		}
		found := mismatches(j)
		require.Len(t, found, 1)
		require.Equal(t, uint64(1), found[0].Rank)
		require.Equal(t, events.CodeOrderMismatch, found[0].Code)
		require.Equal(t, [2]string{"r0c1", "r0c0"}, [2]string{found[0].Got.Slot, found[0].Want.Slot})
		require.Regexp(t, `^b2cr03.py:\d+$`, found[0].GotSite)
	})
	t.Run("observe", func(t *testing.T) {
		t.Parallel()
		j := startJob(t, 2)
		got := j.with(python, "b2cr03", "observed")
		for rank := range 2 {
			require.NotEmpty(t, got.all(rank, "done"), "rank %d", rank)
		}
		for _, l := range got.all(1, "decided") {
			require.NotEqual(t, l.Slot, l.About, "the broadcast is as wrong as before")
		}
		found := mismatches(j)
		require.Len(t, found, 2, "both calls got the verdict of the other slot")
		parted := 0
		for _, e := range j.entries() {
			for _, ev := range e.Events {
				if d := ev.OutcomeDiffers; d != nil {
					require.Equal(t, uint64(1), d.Rank)
					require.NotEqual(t, d.Want.Stage, d.Got.Stage)
					parted++
				}
			}
		}
		require.Equal(t, 2, parted, "the slots that have parted, at the step")
	})
}

// mismatches reads them from the log, when all reports are in it.
func mismatches(j *job) []*events.Mismatched {
	var out []*events.Mismatched
	for _, e := range j.settled() {
		for _, ev := range e.Events {
			if ev.Mismatched != nil {
				out = append(out, ev.Mismatched)
			}
		}
	}
	return out
}

// TestGone kills a rank in the middle of an epoch.
func TestGone(t *testing.T) {
	python := needTorch(t)
	got := startJob(t, 3).with(python, "gone", "with_esperd")
	died := got.last(t, 1, "dies")
	for _, rank := range []int{0, 2} {
		told := got.told(t, rank)
		require.Equal(t, 1, *told.Culprit)
		require.Contains(t, told.Text, "the trainer of rank 1 is gone: process")
		require.Less(t, told.At-died.At, soon, "rank %d", rank)
	}
}

// TestB2DRL05 lets the ranks' loaders be of unequal length.
func TestB2DRL05(t *testing.T) {
	python := needTorch(t)
	t.Parallel()
	t.Run("local ticks", func(t *testing.T) {
		t.Parallel()
		got := ranks(t, python, 2, "b2drl05", "local_ticks")
		one, other, apart := got.all(0, "step"), got.all(1, "step"), 0
		require.Len(t, other, len(one))
		for i := range one {
			if one[i].Alpha != other[i].Alpha {
				apart++
			}
		}
		require.GreaterOrEqual(t, apart, len(one)/2, "of %d steps that were made with different alphas", len(one))
		require.NotEqual(t, one[len(one)-1].Alpha, other[len(one)-1].Alpha)
	})
	t.Run("with esperd", func(t *testing.T) {
		t.Parallel()
		got := startJob(t, 2).with(python, "b2drl05", "with_esperd")
		sameFences(t, got, 5)
		one, other := got.all(0, "step"), got.all(1, "step")
		for i := range one {
			require.Equal(t, one[i].Alpha, other[i].Alpha, "step %d", i)
		}
		require.Equal(t, 1.0, one[len(one)-1].Alpha)
		require.Equal(t, got.last(t, 0, "weights").Digest, got.last(t, 1, "weights").Digest)
	})
	t.Run("each rank's own ends, with esperd", func(t *testing.T) {
		t.Parallel()
		got := startJob(t, 2).with(python, "b2drl05", "own_ends_with_esperd")
		sameFences(t, got, 4)
		require.NotEqual(t, got.all(0, "fence")[0].Step, got.all(1, "fence")[0].Step)
	})
}

// sameFences compares what the ranks got at each of at least n fences.
func sameFences(t *testing.T, got said, n int) {
	t.Helper()
	for rank := range got {
		require.NotEmpty(t, got.all(rank, "done"), "rank %d", rank)
		require.GreaterOrEqual(t, len(got.all(rank, "fence")), n)
	}
	one, other := got.all(0, "fence"), got.all(1, "fence")
	for i := range min(len(one), len(other)) {
		require.Equal(t, [3]any{one[i].Epoch, one[i].Index, one[i].Alpha}, [3]any{other[i].Epoch, other[i].Index, other[i].Alpha})
	}
}

// TestSkew lets three ranks make the same calls at times that have nothing to do
// with each other: ESPERD_SKEW_CALLS of them (3,400), with a random delay before
// each on every rank, and the ranks seconds apart from the beginning.
func TestSkew(t *testing.T) {
	python := needTorch(t)
	t.Parallel()
	calls := os.Getenv("ESPERD_SKEW_CALLS")
	if calls == "" {
		calls = "3400" // 10,200 delays
	}
	want, err := strconv.Atoi(calls)
	require.NoError(t, err)
	j := startJob(t, 3)
	limit := patience + time.Duration(want)*40*time.Millisecond
	got := ranksFor(t, limit, python, 3, "skew", "with_esperd", j.sockets(), "CALLS="+calls, "SEED=1")
	first := got.last(t, 0, "answers")
	require.Len(t, first.Digests, want)
	for _, rank := range []int{1, 2} {
		answers := got.last(t, rank, "answers")
		require.Len(t, answers.Digests, want)
		for k := range want {
			require.Equal(t, first.Digests[k], answers.Digests[k], "call %d of rank %d was answered otherwise than rank 0's", k+1, rank)
		}
		require.Positive(t, answers.HeadWasAnother, "the replica had run ahead of rank %d, or this shows nothing", rank)
		t.Logf("rank %d: %d delays, %d equal answers; at %d of %d calls its replica's head was another state", rank, want, want, answers.HeadWasAnother, answers.Polls)
	}
}

// TestLateSeeds trains a seed that was added after DDP wrapped the model.
func TestLateSeeds(t *testing.T) {
	python := needTorch(t)
	t.Parallel()
	t.Run("left to DDP", func(t *testing.T) {
		t.Parallel()
		got := ranks(t, python, 2, "drift", "left_to_ddp")
		one, other := got.last(t, 0, "weights"), got.last(t, 1, "weights")
		require.Equal(t, one.Host, other.Host)
		require.NotEqual(t, one.Seed, other.Seed, "no error, and the seed is another one on each rank")
		require.NotEmpty(t, got.all(1, "done"))
	})
	t.Run("reduced by the example's helper", func(t *testing.T) {
		t.Parallel()
		got := ranks(t, python, 2, "drift", "reduced")
		one, other := got.last(t, 0, "weights"), got.last(t, 1, "weights")
		require.Equal(t, [2]string{one.Host, one.Seed}, [2]string{other.Host, other.Seed})
		for rank := range 2 {
			require.Contains(t, got.last(t, rank, "moved").Text, "0.weight")
			require.Contains(t, got.last(t, rank, "unequal").Text, "do not hold the same parameters")
		}
	})
}
