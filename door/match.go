package door

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// differs names the fields in which two keys differ, in the key's order.
func differs(got, want events.Key) []string {
	if got == want {
		return nil
	}
	var out []string
	add := func(name string, same bool) {
		if !same {
			out = append(out, name)
		}
	}
	add("round", got.Round == want.Round)
	add("model", got.Model == want.Model)
	add("generation", got.Generation == want.Generation)
	add("call", got.Call == want.Call)
	add("fence", got.Fence == want.Fence)
	add("op", got.Op == want.Op)
	add("slot", got.Slot == want.Slot)
	add("seed", got.Seed == want.Seed)
	add("epoch", got.Epoch == want.Epoch)
	add("args", got.Args == want.Args)
	return out
}

// mismatch answers a call that is not the one that rank 0 made under its
// number, and ends the round for all ranks.
func (s *Server) mismatch(ctx context.Context, got events.Key, site string, e *events.Entry, index uint64) *api.Problem {
	code := events.CodeOrderMismatch
	if got.Op.Fence() && !e.Key.Op.Fence() {
		code = events.CodeMissingCall
	}
	fields := differs(got, *e.Key)
	p := api.NewProblem(code, mismatchText(s.rank, got, site, *e.Key, e.Site, fields))
	s.misfit(ctx, code, got, site, e, index)
	p.Got, p.GotSite, p.Want, p.WantSite, p.Differs = &got, site, e.Key, e.Site, fields
	p.Last, p.Recent = s.lastOfRanks(ctx, got.Model), s.ledger.recent(got.Model)
	return p
}

func mismatchText(rank uint64, got events.Key, site string, want events.Key, wantSite string, fields []string) string {
	what := "they differ in " + strings.Join(fields, ", ")
	switch {
	case slices.Equal(fields, []string{"args"}):
		what = "it is the same call with other arguments"
	case got.Op.Fence() && !want.Op.Fence():
		what = fmt.Sprintf("rank %d did not make that call", rank)
	case want.Op.Fence() && !got.Op.Fence():
		what = fmt.Sprintf("rank %d made a call more than rank 0 before that one", rank)
	}
	who := "rank 0"
	if rank == 0 {
		who = "it" // repeated a number with another call
	}
	return fmt.Sprintf("rank %d is at %s, but %s made %s: %s; %s",
		rank, describe(got, site), who, describe(want, wantSite), what, connectAgain)
}
