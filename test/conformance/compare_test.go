package conformance

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
)

// tolerance of doubles, absolute.
const tolerance = 1e-12

// Mismatch is the first difference in a record.
type Mismatch struct {
	Record string // its id
	Op     int    // from 0; -1 for what stands before the first operation
	Name   string // of the operation
	Path   string // of the value, below the operation
	Want   any
	Got    any
}

func (m *Mismatch) Error() string {
	return fmt.Sprintf("record %s, op %d (%s): %s: want %v, got %v", m.Record, m.Op, m.Name, m.Path, m.Want, m.Got)
}

// comparer compares decoded JSON (numbers as json.Number) with values of this
// side: nil, bool, string, int64, float64, []any and map[string]any.
type comparer struct {
	record string
	op     int
	name   string
	loose  bool // two-decimal numbers inside strings may differ in the last digit

	numbers *[]place // if set, collects where numbers were compared
}

// place is where a number stands in a record.
type place struct {
	op   int
	path string
}

func (c *comparer) fail(path string, want, got any) error {
	return &Mismatch{Record: c.record, Op: c.op, Name: c.name, Path: path, Want: want, Got: got}
}

// value compares one value; path is its place below the operation.
func (c *comparer) value(path string, want, got any) error {
	switch got := got.(type) {
	case float64:
		return c.double(path, want, got)
	case int64:
		n, ok := want.(json.Number)
		if !ok || n.String() != strconv.FormatInt(got, 10) {
			return c.fail(path, want, got)
		}
		c.compared(path)
		return nil
	case string:
		s, ok := want.(string)
		if !ok || s != got && !(c.loose && sameButLastDigit(s, got)) {
			return c.fail(path, want, got)
		}
		return nil
	case []any:
		return c.list(path, want, got)
	case map[string]any:
		return c.object(path, want, got)
	case nil, bool:
		if want != got {
			return c.fail(path, want, got)
		}
		return nil
	default:
		return c.fail(path, want, fmt.Sprintf("unexpected %T", got))
	}
}

// object compares all keys; both sides must have the same ones.
func (c *comparer) object(path string, want any, got map[string]any) error {
	w, ok := want.(map[string]any)
	if !ok {
		return c.fail(path, want, got)
	}
	for _, k := range slices.Sorted(maps.Keys(w)) {
		g, ok := got[k]
		if !ok {
			return c.fail(path+"."+k, w[k], "no such key")
		}
		if err := c.value(path+"."+k, w[k], g); err != nil {
			return err
		}
	}
	for _, k := range slices.Sorted(maps.Keys(got)) {
		if _, ok := w[k]; !ok {
			return c.fail(path+"."+k, "no such key", got[k])
		}
	}
	return nil
}

func (c *comparer) list(path string, want any, got []any) error {
	w, ok := want.([]any)
	if !ok || len(w) != len(got) {
		return c.fail(path, want, got)
	}
	for i := range w {
		if err := c.value(fmt.Sprintf("%s.%d", path, i), w[i], got[i]); err != nil {
			return err
		}
	}
	return nil
}

func (c *comparer) double(path string, want any, got float64) error {
	w, ok := double(want)
	switch {
	case !ok:
		return c.fail(path, want, got)
	case math.IsNaN(w) || math.IsInf(w, 0):
		if w != got && !(math.IsNaN(w) && math.IsNaN(got)) {
			return c.fail(path, want, got)
		}
	case !(math.Abs(w-got) <= tolerance):
		return c.fail(path, want, got)
	}
	c.compared(path)
	return nil
}

func (c *comparer) compared(path string) {
	if c.numbers != nil {
		*c.numbers = append(*c.numbers, place{c.op, path})
	}
}

// double reads a JSON number, or one of the three strings for what JSON has no
// number for.
func double(v any) (float64, bool) {
	switch v := v.(type) {
	case json.Number:
		f, err := v.Float64()
		return f, err == nil
	case string:
		switch v {
		case "NaN":
			return math.NaN(), true
		case "Infinity":
			return math.Inf(1), true
		case "-Infinity":
			return math.Inf(-1), true
		}
	}
	return 0, false
}

var twoDecimals = regexp.MustCompile(`-?\d+\.\d\d`)

// sameButLastDigit reports whether two strings differ at most by 0.01 in
// numbers printed with two decimals (contract, section 1, fmt_tie).
func sameButLastDigit(a, b string) bool {
	if twoDecimals.ReplaceAllString(a, "#") != twoDecimals.ReplaceAllString(b, "#") {
		return false
	}
	as, bs := twoDecimals.FindAllString(a, -1), twoDecimals.FindAllString(b, -1)
	for i := range as {
		x, _ := strconv.ParseFloat(as[i], 64)
		y, _ := strconv.ParseFloat(bs[i], 64)
		if math.Abs(x-y) > 0.01+1e-9 {
			return false
		}
	}
	return true
}
