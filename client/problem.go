package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// Problem is an answer that is an error. errors.Is compares its code with the
// errors below.
type Problem struct{ api.Problem }

// Error returns the code and what esperd says.
func (p *Problem) Error() string { return string(p.Code()) + ": " + p.Detail }

// Is reports whether target is the error of the problem's code.
func (p *Problem) Is(target error) bool {
	code, ok := target.(codeError)
	return ok && events.Code(code) == p.Code()
}

type codeError events.Code

func (c codeError) Error() string { return string(c) }

// What a Problem can be.
var (
	ErrOrderMismatch     error = codeError(events.CodeOrderMismatch)
	ErrMissingCall       error = codeError(events.CodeMissingCall)
	ErrRoundFaulted      error = codeError(events.CodeRoundFaulted)
	ErrDecisionTimeout   error = codeError(events.CodeDecisionTimeout)
	ErrNotAuthority      error = codeError(events.CodeNotAuthority)
	ErrIllegalTransition error = codeError(events.CodeIllegalTransition)
	ErrUnknownSlot       error = codeError(events.CodeUnknownSlot)
	ErrConfigMismatch    error = codeError(events.CodeConfigMismatch)
	ErrMarkMismatch      error = codeError(events.CodeMarkMismatch)
	ErrInvalidInput      error = codeError(events.CodeInvalidInput)
	ErrDiverged          error = codeError(events.CodeDiverged)
	ErrUnavailable       error = codeError(events.CodeUnavailable)
)

// errUnreadable is an answer that this client does not understand.
var errUnreadable = errors.New("esperd's answer is not readable; use the same version of esperd and its client")

// encode writes a request. One that esperd would not take is a problem here: it
// would close the connection on a client that still writes.
func encode(request any, limit int) ([]byte, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	if len(body) > limit {
		p := api.NewProblem(events.CodeInvalidInput, fmt.Sprintf("the request has %d bytes, expected at most %d: shorten its arguments, and observe only slots that the model has; it was not sent, and its number is free",
			len(body), limit))
		p.Status = http.StatusRequestEntityTooLarge
		return nil, &Problem{*p}
	}
	return body, nil
}

// decode reads an answer into out, or returns the problem that it is.
func decode(status int, body []byte, out any) error {
	if status < 300 {
		if err := json.Unmarshal(body, out); err != nil {
			return fmt.Errorf("%w: %w", errUnreadable, err)
		}
		return nil
	}
	p := new(Problem)
	if err := json.Unmarshal(body, &p.Problem); err != nil || p.Type == "" {
		return fmt.Errorf("%w: HTTP status %d and no problem document, but %.200q", errUnreadable, status, body)
	}
	return p
}
