package door

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/replica"
)

// huma keeps these two as variables of its package: there is one way in which
// a process reports errors and reads field names.
func init() {
	huma.NewError = newError
	huma.ValidateStrictCasing = true
}

const (
	errorsShown   = 8   // of one request's validation errors
	errorBytesMax = 256 // of one of them
)

// newError turns what huma finds wrong with a request into a problem.
func newError(status int, msg string, errs ...error) huma.StatusError {
	code := events.CodeInvalidInput
	if status >= http.StatusInternalServerError {
		code = events.CodeUnavailable
	}
	var b strings.Builder
	b.WriteString(msg)
	for i, err := range errs {
		if i == errorsShown {
			fmt.Fprintf(&b, "; and %d more", len(errs)-i)
			break
		}
		if err == nil {
			continue
		}
		var text string
		if detail, ok := errors.AsType[*huma.ErrorDetail](err); ok {
			text = detail.Location + ": " + detail.Message // without the value: it may be the whole body
		} else {
			text = err.Error()
		}
		if len(text) > errorBytesMax {
			text = text[:errorBytesMax] + "..."
		}
		b.WriteString("; " + strings.ToValidUTF8(text, "?"))
	}
	if code == events.CodeInvalidInput {
		b.WriteString("; GET /openapi.json describes what is expected")
	}
	p := api.NewProblem(code, b.String())
	p.Status = status
	return p
}

func problemf(code events.Code, format string, args ...any) *api.Problem {
	return api.NewProblem(code, fmt.Sprintf(format, args...))
}

// problemOf turns an error of the replica or the state machine into a problem.
func problemOf(err error) *api.Problem {
	var (
		p        *api.Problem
		failed   *replica.Error
		key      *fsm.KeyError
		diverged *fsm.DivergedError
	)
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &failed):
		return api.NewProblem(failed.Code, failed.Reason)
	case errors.As(err, &key):
		p = api.NewProblem(key.Code, key.Reason)
		p.Want, p.Got = &key.Want, &key.Got
		return p
	case errors.As(err, &diverged):
		return api.NewProblem(events.CodeDiverged, diverged.Error())
	default:
		return problemf(events.CodeUnavailable, "%v; try again", err)
	}
}

// Why a call ended before it was answered, as causes of its context.
var (
	errWaitedOut = errors.New("the longest wait is over")
	errClosing   = errors.New("this esperd is shutting down")
)

// replacedError says that another trainer took the place of the caller.
type replacedError struct{ problem *api.Problem }

func (e *replacedError) Error() string { return e.problem.Detail }

// ended says why a call's context ended. waitedOut describes what did not
// happen in time.
func ended(ctx context.Context, waitedOut func() *api.Problem) *api.Problem {
	cause := context.Cause(ctx)
	var (
		replaced  *replacedError
		concluded *concludedError
	)
	switch {
	case errors.As(cause, &concluded):
		return concluded.problem
	case errors.As(cause, &replaced):
		return replaced.problem
	case errors.Is(cause, errClosing):
		return problemf(events.CodeUnavailable, "%v; start it again and repeat the call under the same number", errClosing)
	case errors.Is(cause, errWaitedOut):
		return waitedOut()
	default: // nobody reads this answer
		return problemf(events.CodeUnavailable, "the caller went away")
	}
}

func roundFaulted(f *events.RoundFaulted) *api.Problem {
	if f.Code == events.CodeDiverged {
		return roundDiverged(f)
	}
	p := problemf(events.CodeRoundFaulted, "round %d is over: rank %d was at %s, where rank 0 made %s (entry %d); %s",
		f.Round, f.Rank, describe(f.Got, f.GotSite), describe(f.Want, f.WantSite), f.Index, connectAgain)
	if f.Got != f.Want && f.Got.Same(f.Want) {
		p.Detail = fmt.Sprintf("round %d is over: rank %d made %s with other arguments than rank 0%s (entry %d); %s",
			f.Round, f.Rank, describe(f.Got, f.GotSite), at(f.WantSite), f.Index, connectAgain)
	}
	if f.Code == events.CodeConfigMismatch {
		p.Detail = fmt.Sprintf("round %d is over: rank %d configured model %s%s otherwise than rank 0 did%s (entry %d); %s",
			f.Round, f.Rank, f.Got.Model, at(f.GotSite), at(f.WantSite), f.Index, connectAgain)
	}
	if f.Code == events.CodeUnavailable {
		p.Detail = fmt.Sprintf("round %d is over: the trainer of rank %d is gone: %s; its last call was %s (entry %d); start it again, and connect again on all ranks",
			f.Round, f.Rank, f.Reason, describe(f.Got, f.GotSite), f.Index)
	}
	p.Fault, p.Got, p.GotSite, p.Want, p.WantSite = f, &f.Got, f.GotSite, &f.Want, f.WantSite
	return p
}

// roundDiverged is the end of a round in which replicas differ. Where it is
// another rank's that is wrong, what this one was told is right.
func roundDiverged(f *events.RoundFaulted) *api.Problem {
	code, advice := events.CodeRoundFaulted, fmt.Sprintf("what this rank was told is right: restart the esperd of rank %d, and connect again on all ranks", f.Rank)
	if f.TouchesAll() {
		code, advice = events.CodeDiverged, "do not trust what was decided last: esperd audit says from which entry on, and README.md what to do"
	}
	p := problemf(code, "round %d is over: %s (entry %d); %s", f.Round, f.What(), f.Index, advice)
	p.Fault, p.Got, p.GotSite, p.Want, p.WantSite = f, &f.Got, f.GotSite, &f.Want, f.WantSite
	return p
}

// evidenceMax is how long the end of a round waits for what the others did last.
const evidenceMax = 300 * time.Millisecond

// evidence adds to the end of a round what each rank did last, as far as that can
// be known soon.
func (s *Server) evidence(ctx context.Context, p *api.Problem, model string) *api.Problem {
	if p.Code() != events.CodeRoundFaulted || p.Last != nil {
		return p
	}
	ctx, cancel := context.WithTimeout(ctx, evidenceMax)
	defer cancel()
	told := *p
	told.Last, told.Recent = s.lastOfRanks(ctx, model), s.ledger.recent(model)
	return &told
}

const connectAgain = "every rank has to make the same calls in the same order: mend the trainer and connect again on all ranks"

// describe names a call for people.
func describe(k events.Key, site string) string {
	s := fmt.Sprintf("call %d, %s", k.Call, k.Op)
	if k.Slot != "" {
		s += fmt.Sprintf(" %s#%d", k.Slot, k.Seed)
	}
	return fmt.Sprintf("%s epoch %d%s", s, k.Epoch, at(site))
}

func at(site string) string {
	if site == "" {
		return ""
	}
	return " at " + site
}
