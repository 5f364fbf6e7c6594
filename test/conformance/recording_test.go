package conformance

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/gates"
)

const recording = "../../cmd/esperd/recordings/digits-ddp4/rank0.jsonl"

// recordedLine is one line of a recorded rank (cmd/esperd/recordings/digits-ddp4).
type recordedLine struct {
	Kind  string `json:"kind"`
	Epoch int64  `json:"epoch"`
	Seq   uint64 `json:"seq"`

	Gates       json.RawMessage                       `json:"gates"`
	AutoForward []events.Gate                         `json:"auto_forward"`
	Blueprints  map[string]map[string][]events.Tensor `json:"blueprints"`

	Slot         string      `json:"slot"`
	Accuracy     *events.Num `json:"accuracy"`
	Ratio        *events.Num `json:"gradient_ratio"`
	Norm         *events.Num `json:"gradient_norm"`
	Health       *events.Num `json:"gradient_health"`
	Exploding    *bool       `json:"has_exploding"`
	Vanishing    *bool       `json:"has_vanishing"`
	Contribution *events.Num `json:"contribution"`

	Blueprint string          `json:"blueprint"`
	Blend     string          `json:"blend"`
	Tempo     int64           `json:"tempo"`
	Target    *events.Stage   `json:"target"`
	Local     *events.Verdict `json:"local"`
	Decided   struct {
		Passed bool         `json:"passed"`
		Stage  events.Stage `json:"stage"`
	} `json:"decided"`
	Reason string          `json:"reason"`
	OK     bool            `json:"ok"`
	Slots  json.RawMessage `json:"slots"` // names in "run", stages and alphas in "step_epoch"
}

// TestRecordedRun makes rank 0's calls of a recorded data-parallel run and
// expects its decisions, stages and alphas.
func TestRecordedRun(t *testing.T) {
	file, err := os.Open(recording)
	require.NoError(t, err)
	defer file.Close()
	p := &playback{t: t}
	in := bufio.NewScanner(file)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var line recordedLine
		require.NoError(t, json.Unmarshal(in.Bytes(), &line))
		p.play(&line)
	}
	require.NoError(t, in.Err())
	t.Logf("%d epochs, %d decisions, %d calls", p.steps, p.decisions, p.calls)
	require.Equal(t, 60, p.steps)
	require.Equal(t, 46, p.decisions)
}

type playback struct {
	t                       *testing.T
	run                     *run
	pending                 []fsm.Observation // of the next call
	calls, steps, decisions int
}

func (p *playback) play(l *recordedLine) {
	switch l.Kind {
	case "run":
		p.configure(l)
	case "observe":
		p.pending = append(p.pending, fsm.Observation{Slot: l.Slot, Accuracy: given(l.Accuracy),
			GradientRatio: given(l.Ratio), GradientNorm: given(l.Norm), Health: given(l.Health),
			Exploding: given(l.Exploding), Vanishing: given(l.Vanishing), Contribution: given(l.Contribution), Replace: true})
	case "germinate":
		r := p.call(l, l.Slot, fsm.Germinate{Blueprint: l.Blueprint, Blend: l.Blend, Tempo: l.Tempo, Algorithm: events.AlgorithmAdd})
		require.Nil(p.t, refusal(r))
	case "advance":
		p.advance(l)
	case "prune":
		require.Equal(p.t, l.OK, refusal(p.call(l, l.Slot, fsm.Prune{Reason: l.Reason})) == nil)
	case "step_epoch":
		p.step(l)
	default:
		require.Fail(p.t, "unknown kind", l.Kind)
	}
}

func (p *playback) configure(l *recordedLine) {
	cfg := gates.Defaults()
	require.NoError(p.t, json.Unmarshal(l.Gates, &cfg))
	var names []string
	require.NoError(p.t, json.Unmarshal(l.Slots, &names))
	var slots []events.SlotConfig
	for _, name := range names {
		s := events.SlotConfig{Name: name, Gates: cfg, AutoForward: l.AutoForward}
		for _, b := range blueprints {
			if tensors, ok := l.Blueprints[name][b]; ok {
				s.Blueprints = append(s.Blueprints, events.Blueprint{Name: b, Tensors: tensors})
			}
		}
		slots = append(slots, s)
	}
	var err error
	p.run, err = newRun(slots)
	require.NoError(p.t, err)
}

func (p *playback) call(l *recordedLine, slot string, args fsm.Args) []events.Event {
	require.Equal(p.t, l.Seq+1, fsm.NextKey(p.run.state, model, slot, args).Call, "call 0 configures")
	evs, err := p.run.call(slot, args, p.pending...)
	require.NoError(p.t, err)
	p.pending = nil
	p.calls++
	return evs
}

func (p *playback) advance(l *recordedLine) {
	evs := p.call(l, l.Slot, fsm.Advance{Target: l.Target})
	where := fmt.Sprintf("epoch %d, call %d, %s to %s", l.Epoch, l.Seq, l.Slot, l.Target)
	var got *events.Verdict
	for i := range evs {
		if g := evs[i].GateEvaluated; g != nil {
			got = &g.Verdict
		}
	}
	require.NotNil(p.t, got, where)
	require.Equal(p.t, l.Decided.Passed, got.Passed, where)
	require.Equal(p.t, l.Decided.Stage, p.run.model().Slot(l.Slot).Stage(), where)
	require.Equal(p.t, l.Local.Gate, got.Gate, where)
	p.sameChecks(l.Local.ChecksPassed, got.ChecksPassed, where)
	p.sameChecks(l.Local.ChecksFailed, got.ChecksFailed, where)
	p.decisions++
}

// sameChecks allows for the last digit: the recording rounds accuracies.
func (p *playback) sameChecks(want, got []string, where string) {
	require.Len(p.t, got, len(want), where)
	for i := range want {
		require.True(p.t, sameButLastDigit(want[i], got[i]), "%s: want %s, got %s", where, want[i], got[i])
	}
}

func (p *playback) step(l *recordedLine) {
	require.Nil(p.t, refusal(p.call(l, "", fsm.StepEpoch{Epoch: l.Epoch})))
	var want map[string]struct {
		Stage events.Stage `json:"stage"`
		Alpha float64      `json:"alpha"`
	}
	require.NoError(p.t, json.Unmarshal(l.Slots, &want))
	m := p.run.model()
	require.Len(p.t, want, m.Slots.Len())
	for name, w := range want {
		s := m.Slot(name)
		require.Equal(p.t, w.Stage, s.Stage(), "epoch %d, slot %s", l.Epoch, name)
		alpha := 0.0
		if s.Seed != nil {
			alpha = s.Seed.Amplitude.Alpha
		}
		require.False(p.t, math.Abs(w.Alpha-alpha) > tolerance, "epoch %d, slot %s: alpha %v, want %v", l.Epoch, name, alpha, w.Alpha)
	}
	p.steps++
}
