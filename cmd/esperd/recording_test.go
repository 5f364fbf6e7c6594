package main

import (
	"bytes"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
)

func embedded(t testing.TB) fs.FS {
	sub, err := fs.Sub(embeddedRecordings, defaultRecording)
	require.NoError(t, err)
	return sub
}

func TestEmbeddedRecording(t *testing.T) {
	rec, err := loadRecording(embedded(t), defaultRecording)
	require.NoError(t, err)
	require.Equal(t, 4, rec.World)
	require.Equal(t, []string{"r0c0", "r0c1", "r0c2"}, rec.Slots)
	require.Equal(t, 60, rec.Epochs())
	require.Equal(t, int64(3), rec.Gates.MinBlendingEpochs)
	slots := rec.SlotConfig()
	require.Len(t, slots, 3)
	require.Equal(t, "attention", slots[0].Blueprints[0].Name)
	require.NotEmpty(t, slots[0].Blueprints[0].Tensors)
	differ := 0
	for rank, steps := range rec.Steps {
		calls := 0
		for _, s := range steps {
			if s.Call() {
				calls++
			}
			if s.Kind == "advance" && s.Local.Passed != s.Decided.Passed {
				require.NotZero(t, rank)
				differ++
			}
			if s.Kind == "observe" {
				require.True(t, s.Readings.Accuracy.Given)
			}
		}
		require.Equal(t, 111, calls)
	}
	require.Equal(t, 15, differ)
}

const (
	header0   = `{"kind":"run","rank":0,"world":2,"slots":["a","b"],"gates":{"permissive":true},"auto_forward":[]}`
	header1   = `{"kind":"run","rank":1,"world":2,"slots":["a","b"],"gates":{"permissive":true},"auto_forward":[]}`
	slotsText = `"slots":{"a":{"stage":"DORMANT","alpha":0},"b":{"stage":"DORMANT","alpha":0}}`
	step0     = `{"kind":"step_epoch","rank":0,"epoch":0,"seq":0,` + slotsText + `}`
	step1     = `{"kind":"step_epoch","rank":1,"epoch":0,"seq":0,` + slotsText + `}`
)

func lines(l ...string) *fstest.MapFile {
	return &fstest.MapFile{Data: []byte(strings.Join(l, "\n") + "\n")}
}

func swap(old, replacement string) string { return strings.Replace(step1, old, replacement, 1) }

// spoiled are recordings with one thing wrong, and what the error has to say.
var spoiled = map[string]struct {
	change func(fstest.MapFS)
	err    []string
}{
	"missing file":   {func(m fstest.MapFS) { delete(m, "rank1.jsonl") }, []string{"dir/rank1.jsonl is missing"}},
	"no file at all": {func(m fstest.MapFS) { clear(m) }, []string{"dir/rank0.jsonl is missing"}},
	"one too many":   {func(m fstest.MapFS) { m["rank2.jsonl"] = m["rank1.jsonl"] }, []string{"dir/rank2.jsonl", "2 ranks"}},
	"empty file":     {func(m fstest.MapFS) { m["rank1.jsonl"] = &fstest.MapFile{} }, []string{"dir/rank1.jsonl:1:", "empty"}},
	"header only":    {func(m fstest.MapFS) { m["rank1.jsonl"] = lines(header1) }, []string{"dir/rank1.jsonl:1:", "truncated"}},
	"not JSON":       {func(m fstest.MapFS) { m["rank0.jsonl"] = lines(header0, "hello") }, []string{"dir/rank0.jsonl:2:", `"hello"`}},
	"binary":         {func(m fstest.MapFS) { m["rank0.jsonl"] = lines("\x1f\x8b\x00") }, []string{"dir/rank0.jsonl:1:", "JSON object"}},
	"blank line":     {func(m fstest.MapFS) { m["rank0.jsonl"] = lines(header0, "", step0) }, []string{"dir/rank0.jsonl:2:"}},
	"cut line":       {func(m fstest.MapFS) { m["rank1.jsonl"] = lines(header1, step1[:len(step1)-30]) }, []string{"dir/rank1.jsonl:2:", "truncated"}},
	"not an object":  {func(m fstest.MapFS) { m["rank1.jsonl"] = lines(header1, "[1]") }, []string{"dir/rank1.jsonl:2:"}},
	"wrong type":     {func(m fstest.MapFS) { m["rank1.jsonl"] = lines(header1, swap(`"epoch":0`, `"epoch":"x"`)) }, []string{"dir/rank1.jsonl:2:"}},
	"too long":       {func(m fstest.MapFS) { m["rank1.jsonl"] = lines(header1, strings.Repeat("x", recordingLineMax+1)) }, []string{"dir/rank1.jsonl:2:", "at most"}},
	"no header":      {func(m fstest.MapFS) { m["rank0.jsonl"] = lines(step0) }, []string{"dir/rank0.jsonl:1:", `"run"`}},
	"wrong rank":     {func(m fstest.MapFS) { m["rank1.jsonl"] = m["rank0.jsonl"] }, []string{"dir/rank1.jsonl:1:", "expected 1"}},
	"no world": {func(m fstest.MapFS) {
		m["rank0.jsonl"] = lines(strings.Replace(header0, `"world":2`, `"world":0`, 1), step0)
	}, []string{"dir/rank0.jsonl:1:", "world"}},
	"huge world": {func(m fstest.MapFS) {
		m["rank0.jsonl"] = lines(strings.Replace(header0, `"world":2`, `"world":9999`, 1), step0)
	}, []string{"dir/rank0.jsonl:1:", "64"}},
	"unequal slots": {func(m fstest.MapFS) {
		m["rank1.jsonl"] = lines(strings.Replace(header1, `"b"]`, `"c"]`, 1), strings.Replace(step1, `"b"`, `"c"`, 1))
	}, []string{"dir/rank1.jsonl:1:", `"slots"`, "rank 0"}},
	"double slot":   {func(m fstest.MapFS) { m["rank0.jsonl"] = lines(strings.Replace(header0, `"b"]`, `"a"]`, 1), step0) }, []string{"dir/rank0.jsonl:1:", "once"}},
	"slot missing":  {func(m fstest.MapFS) { m["rank1.jsonl"] = lines(header1, swap(`"b":`, `"c":`)) }, []string{"dir/rank1.jsonl:2:", `lacks "b"`}},
	"slot too many": {func(m fstest.MapFS) { m["rank1.jsonl"] = lines(header1, swap(`"b":`, `"c":{},"b":`)) }, []string{"dir/rank1.jsonl:2:", "3 slots"}},
	"bad stage":     {func(m fstest.MapFS) { m["rank1.jsonl"] = lines(header1, swap("DORMANT", "ASLEEP")) }, []string{"dir/rank1.jsonl:2:", "ASLEEP"}},
	"bad alpha":     {func(m fstest.MapFS) { m["rank1.jsonl"] = lines(header1, swap(`"alpha":0`, `"alpha":2`)) }, []string{"dir/rank1.jsonl:2:", "alpha"}},
	"unknown kind":  {func(m fstest.MapFS) { m["rank1.jsonl"] = lines(header1, swap(`"step_epoch"`, `"dance"`)+"\n"+step1) }, []string{"dir/rank1.jsonl:2:"}},
	"unknown slot": {func(m fstest.MapFS) {
		m["rank1.jsonl"] = lines(header1, `{"kind":"observe","rank":1,"epoch":0,"slot":"z"}`, step1)
	}, []string{"dir/rank1.jsonl:2:", `"z"`}},
	"bad accuracy": {func(m fstest.MapFS) {
		m["rank1.jsonl"] = lines(header1, `{"kind":"observe","rank":1,"epoch":0,"slot":"a","accuracy":"x"}`, step1)
	}, []string{"dir/rank1.jsonl:2:"}},
	"gap":        {func(m fstest.MapFS) { m["rank1.jsonl"] = lines(header1, swap(`"seq":0`, `"seq":3`)) }, []string{"dir/rank1.jsonl:2:", "expected 0"}},
	"no seq":     {func(m fstest.MapFS) { m["rank1.jsonl"] = lines(header1, swap(`"seq":0,`, ``)) }, []string{"dir/rank1.jsonl:2:", "absent"}},
	"epoch back": {func(m fstest.MapFS) { m["rank1.jsonl"] = lines(header1, step1, swap(`"seq":0`, `"seq":1`)) }, []string{"dir/rank1.jsonl:3:", "epoch"}},
	"ends early": {func(m fstest.MapFS) {
		m["rank0.jsonl"] = lines(header0, step0, strings.NewReplacer(`"seq":0`, `"seq":1`, `"epoch":0`, `"epoch":1`).Replace(step0))
	}, []string{"dir/rank1.jsonl:2:", "1 calls, expected 2"}},
	"no decision": {func(m fstest.MapFS) {
		m["rank1.jsonl"] = lines(header1, `{"kind":"advance","rank":1,"epoch":0,"seq":0,"slot":"a"}`, step1)
	}, []string{"dir/rank1.jsonl:2:", "decided"}},
	"no ok": {func(m fstest.MapFS) {
		m["rank1.jsonl"] = lines(header1, `{"kind":"prune","rank":1,"epoch":0,"seq":0,"slot":"a"}`, step1)
	}, []string{"dir/rank1.jsonl:2:", `"ok"`}},
	"no tempo": {func(m fstest.MapFS) {
		m["rank1.jsonl"] = lines(header1, `{"kind":"germinate","rank":1,"epoch":0,"seq":0,"slot":"a","blueprint":"x","blend":"y"}`, step1)
	}, []string{"dir/rank1.jsonl:2:", "tempo"}},
}

func TestRecordingErrorsNameFileAndLine(t *testing.T) {
	good := func() fstest.MapFS {
		return fstest.MapFS{"rank0.jsonl": lines(header0, step0), "rank1.jsonl": lines(header1, step1)}
	}
	_, err := loadRecording(good(), "dir")
	require.NoError(t, err)
	for name, c := range spoiled {
		t.Run(name, func(t *testing.T) {
			files := good()
			c.change(files)
			_, err := loadRecording(files, "dir")
			require.Error(t, err)
			for _, word := range c.err {
				require.ErrorContains(t, err, word)
			}
		})
	}
}

func TestRecordingReadings(t *testing.T) {
	_, steps, _, err := parseRank(strings.NewReader(header0+"\n"+
		`{"kind":"observe","rank":0,"epoch":0,"slot":"a","accuracy":"NaN","contribution":null}`+"\n"+
		`{"kind":"schedule_prune","rank":0,"epoch":0,"seq":0,"slot":"a","steps":4,"curve":"COSINE","ok":false}`+"\n"+
		strings.Replace(step0, `"seq":0`, `"seq":1`, 1)+"\n"), 0)
	require.NoError(t, err)
	o := steps[0].Readings
	require.False(t, o.Accuracy.Value.Finite())
	require.True(t, o.Contribution.Given && o.Contribution.Value == nil)
	require.False(t, o.Healthy.Given)
	require.Equal(t, int64(4), steps[1].Ticks)
	require.Equal(t, events.CurveCosine, *steps[1].Curve)
}

func FuzzRecording(f *testing.F) {
	f.Add([]byte(header0 + "\n" + step0 + "\n"))
	f.Add([]byte(header0 + "\n" + `{"kind":"observe","rank":0,"epoch":0,"slot":"a","accuracy":"NaN"}` + "\n" + step0))
	f.Add([]byte(`{"kind":"advance","local":{},"decided":{"stage":"TRAINING"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		header, steps, line, err := parseRank(bytes.NewReader(b), 0)
		require.Positive(t, line)
		if err != nil {
			require.NotEmpty(t, err.Error())
			return
		}
		calls := 0
		for _, s := range steps {
			if s.Call() {
				require.Equal(t, calls, *s.Seq)
				calls++
			}
			for _, name := range header.Slots {
				if s.Kind == recordingStepEpoch {
					require.Contains(t, s.Slots, name)
				}
			}
		}
		require.Equal(t, recordingStepEpoch, steps[len(steps)-1].Kind)
	})
}
