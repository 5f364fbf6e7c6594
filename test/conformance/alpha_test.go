package conformance

import (
	"encoding/json"
	"fmt"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// alphaState is STATE of section 2.1, and a constructor's arguments.
type alphaState struct {
	Alpha  events.Num   `json:"alpha"`
	Start  events.Num   `json:"start"`
	Target events.Num   `json:"target"`
	Mode   events.Mode  `json:"mode"`
	Curve  events.Curve `json:"curve"`
	Steep  events.Num   `json:"steep"`
	Total  int64        `json:"total"`
	Done   int64        `json:"done"`
}

func (s alphaState) controller() events.Controller {
	return fsm.NewController(events.Controller{Alpha: float64(s.Alpha), Start: float64(s.Start), Target: float64(s.Target),
		Mode: s.Mode, Curve: s.Curve, Steepness: float64(s.Steep), Total: s.Total, Done: s.Done})
}

type alphaRecord struct {
	ID   string           `json:"id"`
	Tag  string           `json:"tag"`
	Ctor alphaState       `json:"ctor"`
	Init map[string]any   `json:"init"`
	Ops  []map[string]any `json:"ops"`
}

type retargetArgs struct {
	Target events.Num    `json:"target"`
	Steps  int64         `json:"steps"`
	Curve  *events.Curve `json:"curve"`
	Steep  *events.Num   `json:"steep"`
}

func controllerValue(c events.Controller) map[string]any {
	return map[string]any{"alpha": c.Alpha, "start": c.Start, "target": c.Target, "mode": c.Mode.String(),
		"curve": c.Curve.String(), "steep": c.Steepness, "total": c.Total, "done": c.Done}
}

// replayAlpha replays one controller (section 2.1).
func replayAlpha(line []byte, numbers *[]place) (tally, error) {
	r := alphaRecord{Ctor: alphaState{Mode: events.ModeHold, Curve: events.CurveLinear, Steep: 12}}
	if err := decodeRecord(line, &r); err != nil {
		return tally{}, err
	}
	sum := tally{Records: 1}
	cmp := &comparer{record: r.ID, op: -1, name: "init", numbers: numbers}
	c := r.Ctor.controller()
	if err := cmp.value("init", r.Init, controllerValue(c)); err != nil {
		return sum, err
	}
	for i, op := range r.Ops {
		cmp.op, cmp.name = i, fmt.Sprint(op["op"])
		next, got, err := alphaOp(c, op)
		if err != nil {
			return sum, fmt.Errorf("record %s, op %d: %w", r.ID, i, err)
		}
		delete(op, "args") // the input
		if err := cmp.object("", op, got); err != nil {
			return sum, err
		}
		c = next
		sum.Ops++
	}
	sum.Complete = 1
	return sum, nil
}

// alphaOp runs one operation and returns it as it should have been recorded.
func alphaOp(c events.Controller, op map[string]any) (events.Controller, map[string]any, error) {
	var got map[string]any
	switch op["op"] {
	case "retarget":
		var args retargetArgs
		if err := redecode(op["args"], &args); err != nil {
			return c, nil, err
		}
		next, err := fsm.Retarget(c, float64(args.Target), args.Steps, args.Curve, (*float64)(args.Steep))
		c, got = next, controllerValue(next)
		got["err"] = nil
		if err != nil {
			got["err"] = "ValueError"
		}
	case "step":
		next, reached := fsm.Step(c)
		c, got = next, controllerValue(next)
		for _, k := range []string{"start", "target", "curve", "steep"} {
			delete(got, k)
		}
		got["ret"] = reached
	case "reload":
		c = fsm.NewController(c)
		got = controllerValue(c)
	default:
		return c, nil, fmt.Errorf("unknown operation %v", op["op"])
	}
	got["op"] = op["op"]
	return c, got, nil
}

// redecode reads generic JSON into a type.
func redecode(v, into any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return decode(b, into)
}
