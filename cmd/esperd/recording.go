package main

import (
	"bufio"
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"reflect"
	"slices"
	"strconv"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/gates"
)

//go:embed recordings/digits-ddp4/*.jsonl
var embeddedRecordings embed.FS

const (
	defaultRecording   = "recordings/digits-ddp4"
	recordingRanksMax  = 64 // the demo starts a process for each
	recordingLineMax   = 1 << 20
	recordingLinesMax  = 1 << 20 // of one file
	recordingStepEpoch = "step_epoch"
)

// Recording is what the trainers of one run did, rank by rank.
// recordings/digits-ddp4/README.md describes the format.
type Recording struct {
	Header
	Steps [][]Step // by rank, in program order
}

// Header is the first line of every rank's file.
type Header struct {
	Kind        string                                `json:"kind"`
	Rank        int                                   `json:"rank"`
	World       int                                   `json:"world"`
	Slots       []string                              `json:"slots"`
	Gates       events.GateConfig                     `json:"gates"`
	AutoForward []events.Gate                         `json:"auto_forward"`
	Dataset     string                                `json:"dataset"`
	Blueprints  map[string]map[string][]events.Tensor `json:"blueprints"`
}

// Step is one thing that one rank's trainer did: an observation or a call.
type Step struct {
	Line int // in the rank's file

	Kind  string `json:"kind"`
	Rank  int    `json:"rank"`
	Epoch int64  `json:"epoch"`
	Seq   *int   `json:"seq"` // nil: an observation
	Slot  string `json:"slot"`

	Readings api.Readings `json:"-"` // observe

	Blueprint string          `json:"blueprint"` // germinate, with the next two
	Blend     string          `json:"blend"`
	Tempo     int64           `json:"tempo"`
	Target    *events.Stage   `json:"target"` // advance, with the next two
	Local     *events.Verdict `json:"local"`
	Decided   *Outcome        `json:"decided"`

	Reason    string        `json:"reason"` // prune and schedule_prune, with the rest but one
	Initiator *string       `json:"initiator"`
	Ticks     int64         `json:"ticks"`
	Curve     *events.Curve `json:"curve"`
	Steepness *events.Num   `json:"steepness"`
	OK        *bool         `json:"ok"`

	Slots map[string]SlotState `json:"slots"` // step_epoch
}

// Outcome is what rank 0 decided in the recorded run.
type Outcome struct {
	Passed bool         `json:"passed"`
	Stage  events.Stage `json:"stage"`
}

// SlotState is a slot after a tick.
type SlotState struct {
	Stage events.Stage `json:"stage"`
	Alpha float64      `json:"alpha"`
}

// Call reports whether the step is a numbered call.
func (s *Step) Call() bool { return s.Kind != "observe" }

// Epochs is how many epochs the recording steps.
func (r *Recording) Epochs() int {
	n := 0
	for _, s := range r.Steps[0] {
		if s.Kind == recordingStepEpoch {
			n++
		}
	}
	return n
}

// SlotConfig is the recording's slots as a session asks for them.
func (r *Recording) SlotConfig() []api.SlotRequest {
	out := make([]api.SlotRequest, len(r.Slots))
	for i, name := range r.Slots {
		out[i].Name = name
		for _, b := range slices.Sorted(maps.Keys(r.Blueprints[name])) {
			out[i].Blueprints = append(out[i].Blueprints, events.Blueprint{Name: b, Tensors: r.Blueprints[name][b]})
		}
	}
	return out
}

// loadRecording reads rank0.jsonl, rank1.jsonl, ... of fsys. Errors name the
// file, under dir, and the line.
func loadRecording(fsys fs.FS, dir string) (*Recording, error) {
	first, steps, err := loadRank(fsys, dir, 0)
	if err != nil {
		return nil, err
	}
	rec := &Recording{Header: first, Steps: [][]Step{steps}}
	for rank := 1; rank < first.World; rank++ {
		header, steps, err := loadRank(fsys, dir, rank)
		if err != nil {
			return nil, err
		}
		if err := rec.sameRun(header, path.Join(dir, rankFile(rank))); err != nil {
			return nil, err
		}
		rec.Steps = append(rec.Steps, steps)
	}
	if _, err := fs.Stat(fsys, rankFile(first.World)); err == nil {
		return nil, fmt.Errorf("%s is there, but %s:1 says that the world has %d ranks: remove the file, or correct the world", path.Join(dir, rankFile(first.World)), path.Join(dir, rankFile(0)), first.World)
	}
	return rec, rec.sameCalls(dir)
}

func rankFile(rank int) string { return "rank" + strconv.Itoa(rank) + ".jsonl" }

// sameRun checks that a rank's header is rank 0's.
func (r *Recording) sameRun(h Header, file string) error {
	want, got := reflect.ValueOf(r.Header), reflect.ValueOf(h)
	for i := range want.NumField() {
		field := want.Type().Field(i)
		if field.Name == "Rank" || reflect.DeepEqual(want.Field(i).Interface(), got.Field(i).Interface()) {
			continue
		}
		return fmt.Errorf("%s:1: %q is %.200v, expected that of rank 0, %.200v: the files are of different runs", file, field.Tag.Get("json"), got.Field(i), want.Field(i))
	}
	return nil
}

// sameCalls finds a file that ends early. That ranks made other calls in the
// same number is for esperd to find.
func (r *Recording) sameCalls(dir string) error {
	count := func(rank int) (n int) {
		for _, s := range r.Steps[rank] {
			if s.Call() {
				n++
			}
		}
		return n
	}
	for rank := 1; rank < r.World; rank++ {
		if want, got := count(0), count(rank); want != got {
			steps := r.Steps[rank]
			line := 1
			if len(steps) > 0 {
				line = steps[len(steps)-1].Line
			}
			return fmt.Errorf("%s:%d: the file ends after %d calls, expected %d as in %s: is one of them truncated?", path.Join(dir, rankFile(rank)), line, got, want, path.Join(dir, rankFile(0)))
		}
	}
	return nil
}

// loadRank reads one rank's file.
func loadRank(fsys fs.FS, dir string, rank int) (Header, []Step, error) {
	name := path.Join(dir, rankFile(rank))
	f, err := fsys.Open(rankFile(rank))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return Header{}, nil, fmt.Errorf("%s is missing: expected one file a rank, rank0.jsonl to rankN.jsonl", name)
		}
		return Header{}, nil, fmt.Errorf("%s: %w", name, err)
	}
	defer f.Close()
	header, steps, line, err := parseRank(f, rank)
	if err != nil {
		return Header{}, nil, fmt.Errorf("%s:%d: %w", name, line, err)
	}
	return header, steps, nil
}

// parseRank reads one rank's lines. Line is the one that err is about.
func parseRank(in io.Reader, rank int) (header Header, steps []Step, line int, err error) {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, recordingLineMax)
	p := rankParser{rank: rank, stepped: -1}
	for lines.Scan() {
		line++
		if line > recordingLinesMax {
			return header, nil, line, fmt.Errorf("expected at most %d lines", recordingLinesMax)
		}
		if line == 1 {
			if header, err = parseHeader(lines.Bytes(), rank); err != nil {
				return header, nil, line, err
			}
			p.slots = header.Slots
			continue
		}
		s, err := p.step(lines.Bytes())
		if err != nil {
			return header, nil, line, err
		}
		s.Line = line
		steps = append(steps, s)
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return header, nil, line + 1, fmt.Errorf("expected a line of at most %d bytes, got more", recordingLineMax)
	} else if err != nil {
		return header, nil, line + 1, err
	}
	if line == 0 {
		return header, nil, 1, errors.New(`the file is empty, expected a first line of kind "run"`)
	}
	if len(steps) == 0 || steps[len(steps)-1].Kind != recordingStepEpoch {
		return header, nil, line, errors.New("the file ends here, expected a step_epoch as the last line: is it truncated?")
	}
	return header, steps, line, nil
}

func parseHeader(b []byte, rank int) (Header, error) {
	h := Header{Gates: gates.Defaults()}
	var peek struct {
		Kind string `json:"kind"`
	}
	if err := parseObject(b, &peek); err != nil {
		return h, err
	}
	if peek.Kind != "run" {
		return h, fmt.Errorf(`the kind is %.40q, expected "run" on the first line`, peek.Kind)
	}
	if err := parseObject(b, &h); err != nil {
		return h, err
	}
	switch {
	case h.Rank != rank:
		return h, fmt.Errorf("the rank is %d, expected %d as in the file's name", h.Rank, rank)
	case h.World < 1 || h.World > recordingRanksMax:
		return h, fmt.Errorf("the world is %d, expected 1 to %d ranks", h.World, recordingRanksMax)
	case len(h.Slots) == 0:
		return h, errors.New(`"slots" is empty, expected the names of the slots`)
	}
	sorted := slices.Sorted(slices.Values(h.Slots))
	if len(slices.Compact(sorted)) != len(h.Slots) {
		return h, fmt.Errorf(`"slots" is %.200q, expected each name once`, h.Slots)
	}
	for slot := range h.Blueprints {
		if !slices.Contains(h.Slots, slot) {
			return h, fmt.Errorf(`"blueprints" names the slot %.40q, expected one of %.200q`, slot, h.Slots)
		}
	}
	return h, nil
}

// parseObject reads one JSON object, with what tells a cut line from a bad one.
func parseObject(b []byte, v any) error {
	b = bytes.TrimSpace(b)
	if len(b) == 0 || b[0] != '{' {
		return fmt.Errorf("expected a JSON object, got %.60q", b)
	}
	err := json.Unmarshal(b, v)
	if _, ok := errors.AsType[*json.SyntaxError](err); ok && b[len(b)-1] != '}' {
		return fmt.Errorf("the line is truncated, it ends in %q (%w)", b[max(0, len(b)-30):], err)
	}
	if err != nil {
		return fmt.Errorf("expected the fields of the recording format, got %w", err)
	}
	return nil
}

// rankParser checks that the lines of a file follow each other.
type rankParser struct {
	rank    int
	slots   []string
	calls   int   // so far
	stepped int64 // last stepped epoch, -1: none
}

func (p *rankParser) step(b []byte) (Step, error) {
	var s Step
	if err := json.Unmarshal(b, &struct {
		Kind *string `json:"kind"`
	}{&s.Kind}); err == nil && s.Kind == "observe" {
		if err := parseObject(b, &s.Readings); err != nil {
			return s, err
		}
	}
	if err := parseObject(b, &s); err != nil {
		return s, err
	}
	if s.Rank != p.rank {
		return s, fmt.Errorf("the rank is %d, expected %d as in the file's name", s.Rank, p.rank)
	}
	if s.Epoch <= p.stepped {
		return s, fmt.Errorf("the epoch is %d, expected more than %d, which was stepped before", s.Epoch, p.stepped)
	}
	if s.Call() {
		if s.Seq == nil || *s.Seq != p.calls {
			return s, fmt.Errorf(`"seq" is %s, expected %d: is a line missing before?`, seqText(s.Seq), p.calls)
		}
		p.calls++
	}
	if s.Kind != recordingStepEpoch && !slices.Contains(p.slots, s.Slot) {
		return s, fmt.Errorf("the slot is %.40q, expected one of %.200q", s.Slot, p.slots)
	}
	return s, p.arguments(&s, b)
}

func seqText(seq *int) string {
	if seq == nil {
		return "absent"
	}
	return strconv.Itoa(*seq)
}

// arguments checks what each kind has beside the common fields.
func (p *rankParser) arguments(s *Step, b []byte) error {
	switch s.Kind {
	case "observe":
		return nil
	case "germinate":
		if s.Blueprint == "" || s.Blend == "" || s.Tempo < 1 {
			return fmt.Errorf(`"blueprint" is %.40q, "blend" %.40q, "tempo" %d, expected two names and at least 1`, s.Blueprint, s.Blend, s.Tempo)
		}
	case "advance":
		if s.Local == nil || s.Decided == nil || !s.Decided.Stage.Valid() || s.Decided.Stage == events.StageUnknown {
			return errors.New(`expected "local", the rank's own gate result, and "decided" with "passed" and "stage"`)
		}
	case "prune", "schedule_prune":
		if s.OK == nil {
			return errors.New(`"ok" is absent, expected true or false`)
		}
		if s.Kind == "schedule_prune" && s.Ticks == 0 {
			steps := struct { // esper-lite's own name for it
				Steps int64 `json:"steps"`
			}{}
			if err := parseObject(b, &steps); err != nil {
				return err
			}
			s.Ticks = steps.Steps
		}
	case recordingStepEpoch:
		p.stepped = s.Epoch
		return p.slotStates(s.Slots)
	default:
		return fmt.Errorf("the kind is %.40q, expected observe, germinate, advance, prune, schedule_prune or step_epoch", s.Kind)
	}
	return nil
}

func (p *rankParser) slotStates(slots map[string]SlotState) error {
	for _, name := range p.slots {
		s, ok := slots[name]
		if !ok {
			return fmt.Errorf(`"slots" lacks %.40q, expected each of %.200q`, name, p.slots)
		}
		if s.Stage == events.StageUnknown || !(s.Alpha >= 0 && s.Alpha <= 1) {
			return fmt.Errorf("slot %s has stage %s and alpha %v, expected a stage and an alpha from 0 to 1", name, s.Stage, s.Alpha)
		}
	}
	if len(slots) != len(p.slots) {
		return fmt.Errorf(`"slots" has %d slots, expected the %d of the first line`, len(slots), len(p.slots))
	}
	return nil
}
