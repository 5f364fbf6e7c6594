package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/esperd/esperd/audit"
)

// follow is audit --follow: a line for what changes, and the report.
func (c *auditCmd) follow(ctx context.Context, a *app, cfg audit.Config) error {
	for _, p := range c.Places {
		if strings.HasSuffix(p, ".jsonl") {
			return usageError{fmt.Errorf("--follow: expected data directories and admin URLs, got the exported log %s, which gets nothing: audit it without --follow", p)}
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var failed error // of writing
	r := audit.Follow(ctx, audit.FollowConfig{Config: cfg, Every: c.Every, Behind: c.Behind, EndAfter: c.EndAfter, SinceHead: c.Since.end,
		Tell: func(e *audit.Event) {
			if failed != nil {
				return
			}
			if c.JSON {
				failed = json.NewEncoder(a.stdout).Encode(e)
			} else if e.Report == nil {
				_, failed = fmt.Fprintln(a.stdout, oneLine(followLine(e)))
			}
			if failed != nil { // whoever read this has gone
				cancel(failed)
			}
		}})
	if failed == nil && !c.JSON {
		fmt.Fprintln(a.stdout)
		failed = auditText(a.stdout, r)
	}
	if failed == nil && !c.Since.end && onlyRecorded(r) {
		fmt.Fprintln(a.stderr, "The log itself records this: --since=end follows what comes after it.")
	}
	return endOfAudit(r, failed)
}

// onlyRecorded: following again would end at once with the same.
func onlyRecorded(r *audit.Report) bool {
	return len(r.Findings) > 0 && !slices.ContainsFunc(r.Findings, func(f audit.Finding) bool { return f.Source != audit.SourceRecorded })
}

// followLine is an event for people.
func followLine(e *audit.Event) string {
	text := e.What
	switch e.Event {
	case audit.EventDiverged:
		text = "DIVERGED: " + text
	case audit.EventPlace:
		p := audit.Checked{Place: e.Place, Rank: e.Rank}
		text = fmt.Sprintf("%s: %s: %s", p.Name(), strings.ToUpper(strings.ReplaceAll(e.State, "_", " ")), strings.TrimPrefix(text, e.Place+": "))
	}
	return e.Time.Local().Format("15:04:05") + "  " + text
}
