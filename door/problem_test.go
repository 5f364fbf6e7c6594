package door

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/danielgtaylor/huma/v2"
	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/replica"
)

func TestErrorsBecomeProblems(t *testing.T) {
	for _, tc := range []struct {
		err    error
		code   events.Code
		status int
	}{
		{&replica.Error{Code: events.CodeNotAuthority, Reason: "r"}, events.CodeNotAuthority, 409},
		{fmt.Errorf("wrapped: %w", &replica.Error{Code: events.CodeDiverged, Reason: "r"}), events.CodeDiverged, 500},
		{&fsm.KeyError{Code: events.CodeOrderMismatch, Want: events.Key{Call: 2}, Reason: "r"}, events.CodeOrderMismatch, 409},
		{&fsm.DivergedError{Index: 3, Which: "lifecycle"}, events.CodeDiverged, 500},
		{api.NewProblem(events.CodeUnknownSlot, "d"), events.CodeUnknownSlot, 404},
		{errors.New("disk"), events.CodeUnavailable, 503},
	} {
		p := problemOf(tc.err)
		require.Equal(t, tc.code, p.Code(), tc.err)
		require.Equal(t, tc.status, p.Status)
		require.NotEmpty(t, p.Detail)
		require.NotEmpty(t, p.Title)
	}
	require.Equal(t, uint64(2), problemOf(&fsm.KeyError{Want: events.Key{Call: 2}}).Want.Call)
}

func TestEveryCodeIsAKindOfProblem(t *testing.T) {
	for _, code := range []events.Code{events.CodeOrderMismatch, events.CodeMissingCall, events.CodeRoundFaulted, events.CodeDecisionTimeout,
		events.CodeNotAuthority, events.CodeIllegalTransition, events.CodeUnknownSlot, events.CodeConfigMismatch, events.CodeMarkMismatch,
		events.CodeNoRoom, events.CodeInvalidInput, events.CodeDiverged, events.CodeUnavailable} {
		p := api.NewProblem(code, "d")
		require.NotZero(t, p.Status, code)
		require.NotEmpty(t, p.Title, code)
		require.Equal(t, code, p.Code())
	}
}

func TestManyErrorsOfOneRequestAreCutShort(t *testing.T) {
	var errs []error
	for i := range 20 {
		errs = append(errs, &huma.ErrorDetail{Location: fmt.Sprintf("body.f%d", i), Message: "unexpected property", Value: make([]byte, 1<<20)})
	}
	p := newError(422, "validation failed", errs...).(*api.Problem)
	require.Contains(t, p.Detail, "body.f7: unexpected property; and 12 more")
	require.Less(t, len(p.Detail), 1000)
	require.Equal(t, events.CodeUnavailable, newError(500, "x").(*api.Problem).Code())
}

func TestWhyACallEnded(t *testing.T) {
	timeout := func() *api.Problem { return problemf(events.CodeDecisionTimeout, "late") }
	for cause, code := range map[error]events.Code{
		errWaitedOut: events.CodeDecisionTimeout,
		errClosing:   events.CodeUnavailable,
		&replacedError{problemf(events.CodeNotAuthority, "another")}: events.CodeNotAuthority,
		context.Canceled: events.CodeUnavailable,
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(cause)
		require.Equal(t, code, ended(ctx, timeout).Code(), cause)
	}
}
