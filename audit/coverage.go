package audit

import (
	"context"
	"fmt"
	"runtime"
	"strings"

	"github.com/esperd/esperd/events"
)

// cover says how far each place was checked, and what the audit comes to.
func (a *auditor) cover(ctx context.Context, r *Report, one []*history) {
	if err := ctx.Err(); err != nil {
		for _, h := range a.hs {
			h.stop(fmt.Errorf("interrupted: %w", context.Cause(ctx)))
		}
	}
	furthest := uint64(0)
	for _, h := range one {
		furthest = max(furthest, h.limit())
	}
	incomplete := false
	for _, h := range a.hs {
		c, gone := h.checked(), ""
		if c.Problem == "" && h.limit() < furthest && !h.about.Live {
			gone = a.departed(ctx, h, one)
		}
		switch {
		case c.Problem != "":
			incomplete = true
		case h.left > 0 && h.left < h.good:
			c.Notes = append(c.Notes, fmt.Sprintf("the log goes on from entry %d under another lineage: its own entries %d to %d are a branch that was left", h.left, h.left+1, h.good))
		case h.left > 0 && h.limit() == h.good: // all that it has is part of the log, which others continue
		case gone != "":
			c.Notes = append(c.Notes, gone)
		case h.limit() < furthest && !h.about.Live:
			c.Problem = fmt.Sprintf("it ends with entry %d: entries %d to %d, which another place has, are not here", h.limit(), h.limit()+1, furthest)
			incomplete = true
		case h.limit() < furthest:
			when := "when it was opened"
			if h.followed {
				when = "when the audit ended"
			}
			c.Notes = append(c.Notes, fmt.Sprintf("it is in use and had %d entries %s; another place has %d", h.limit(), when, furthest))
		case len(one) > 1 && h.compared < h.limit():
			c.Notes = append(c.Notes, fmt.Sprintf("entries %d to %d are in no other place", h.compared+1, h.limit()))
		}
		c.Host = a.nodes[h.about.Node].host
		r.Places = append(r.Places, c)
		r.Coverage = append(r.Coverage, c.sentence())
	}
	switch {
	case len(r.Findings) > 0:
		r.Outcome, r.Status = Diverged, 1
	case incomplete:
		r.Outcome, r.Status = Incomplete, 2
	default:
		r.Outcome = Consistent
	}
}

func (h *history) checked() Checked {
	b := h.about
	c := Checked{Place: b.Place, Kind: b.Kind, Rank: b.Rank, Node: b.Node, Esperd: b.Version, Run: b.Run, Lineage: b.Lineage, Live: b.Live,
		From: b.From, Head: b.Head, Replayed: h.replayed, SameAs: h.sameAs, Compared: h.compared, Notes: h.notes}
	if h.good >= b.From && !h.asked {
		c.Chained, c.Chain = h.good, h.chain
	}
	switch {
	case h.opened != nil:
		c.Problem = h.opened.Error()
	case h.stopped != nil:
		c.Problem = h.stopped.Error()
	case b.Head == 0:
		c.Problem = "it holds no entry yet"
	case b.Problem != "":
		c.Notes = append(c.Notes, "it says of itself: "+b.Problem)
	}
	if h.adopted > 0 {
		c.ReplayedFrom = h.adopted + 1
		c.Notes = append(c.Notes, comparedBySum(b.From, h.adopted))
	}
	if b.Noted != "" {
		c.Notes = append(c.Notes, b.Noted)
		c.Evidence = b.Evidence
	}
	if h.asked && h.digested > 0 {
		c.Notes = append(c.Notes, comparedBySum(b.From, h.digested))
	}
	return c
}

func comparedBySum(from, to uint64) string {
	return fmt.Sprintf("entries %d to %d and the states after them were compared with another place by what they come to, without downloading them (--full does)", from, to)
}

// sentence is the coverage of one place, for people.
func (c *Checked) sentence() string {
	var parts []string
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	switch {
	case c.SameAs != "":
		add("entries %d to %d are byte for byte those of %s, and led to the same digests", c.From, c.Replayed, c.SameAs)
	case c.Replayed > 0:
		if from := max(c.From, c.ReplayedFrom); from <= c.Replayed {
			add("entries %d to %d replayed", from, c.Replayed)
		}
		if c.Chained > c.Replayed {
			add("%d to %d checked against the chain", c.Replayed+1, c.Chained)
		}
	case c.Chained > 0:
		add("entries %d to %d checked against the chain", c.From, c.Chained)
	}
	if c.Compared > 0 {
		add("compared up to %d", c.Compared)
	}
	if len(parts) == 0 && c.Head > 0 {
		add("nothing of it was read or compared")
	}
	if c.Problem != "" {
		add("%s", c.Problem)
	}
	return c.Name() + ": " + strings.Join(append(parts, c.Notes...), "; ")
}

// Name is what people call the place.
func (c *Checked) Name() string {
	if c.Rank != nil {
		return fmt.Sprintf("rank %d (%s)", *c.Rank, c.Place)
	}
	return c.Place
}

func thisBuild(version string) Build {
	return Build{Esperd: version, Entry: events.Version, Go: runtime.Version()}
}

// reproduce is the command that audits the same again.
func reproduce(cfg Config) string {
	words := []string{"esperd", "audit"}
	if cfg.Full {
		words = append(words, "--full")
	}
	if cfg.Since > 0 {
		words = append(words, fmt.Sprintf("--since=%d", cfg.Since))
	}
	for _, p := range cfg.Places {
		words = append(words, quote(p))
	}
	return strings.Join(words, " ")
}

// quote makes a word of a shell.
func quote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-:=@%+,", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
