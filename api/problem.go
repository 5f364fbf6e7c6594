package api

import (
	"path"

	"github.com/esperd/esperd/events"
)

// Problem is an RFC 9457 problem document. The last element of Type is one of
// the codes in package events.
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail" doc:"expected, got, what to do next"`

	// Evidence, where there is any.
	Index    uint64               `json:"index,omitempty" doc:"of the log entry that says so; absent: the call is not in the log and its number is free"`
	Fault    *events.RoundFaulted `json:"fault,omitempty"`
	Want     *events.Key          `json:"want,omitempty"`
	WantSite string               `json:"want_site,omitempty"`
	Got      *events.Key          `json:"got,omitempty"`
	GotSite  string               `json:"got_site,omitempty"`
	Differs  []string             `json:"differs,omitempty" doc:"fields in which got is not want"`
	Marks    []OfferedMark        `json:"marks,omitempty" doc:"which ranks brought which mark, where they differ"`
	Last     []LastCall           `json:"last,omitempty" doc:"last call of each rank, of this model"`
	Recent   []LastCall           `json:"recent,omitempty" doc:"last calls of this rank that were answered, of this model, newest first"`
}

// OfferedMark is a mark that ranks brought to a resume.
type OfferedMark struct {
	Ranks   []uint64       `json:"ranks"`
	Index   uint64         `json:"index,omitempty" doc:"of the mark's entry"`
	Epoch   int64          `json:"epoch" doc:"-1: none, or it is not readable"`
	Lineage string         `json:"lineage,omitempty"`
	Sum     *events.Digest `json:"sum,omitempty" doc:"SHA-256 of its bytes"`
	Reason  string         `json:"reason,omitempty" doc:"why it is not readable"`
}

// LastCall is what a rank did last.
type LastCall struct {
	Rank uint64     `json:"rank"`
	Key  events.Key `json:"key"`
	Site string     `json:"site,omitempty"`
}

// NewProblem makes a problem with its code's title and status.
func NewProblem(code events.Code, detail string) *Problem {
	kind := problemKinds[code]
	return &Problem{Type: ProblemType(code), Title: kind.title, Status: kind.status, Detail: detail}
}

var problemKinds = map[events.Code]struct {
	status int
	title  string
}{
	events.CodeOrderMismatch:     {409, "This rank's call is not rank 0's call"},
	events.CodeMissingCall:       {409, "This rank skipped a call that rank 0 made"},
	events.CodeRoundFaulted:      {409, "The round is over: ranks did not make the same calls"},
	events.CodeDecisionTimeout:   {504, "Rank 0 did not make the call in time"},
	events.CodeNotAuthority:      {409, "The caller may not make this call"},
	events.CodeIllegalTransition: {409, "The seed's stage does not allow this"},
	events.CodeUnknownSlot:       {404, "No such slot"},
	events.CodeConfigMismatch:    {409, "The configuration is not the log's"},
	events.CodeMarkMismatch:      {409, "The marks of the ranks differ"},
	events.CodeNoRoom:            {409, "This rank has no room for the seed"},
	events.CodeInvalidInput:      {422, "The request is not valid"},
	events.CodeDiverged:          {500, "This replica's state is not the log's"},
	events.CodeUnavailable:       {503, "Not now"},
}

// ProblemType makes a problem's type from its code.
func ProblemType(code events.Code) string { return "https://esperd.dev/problems/" + string(code) }

// Code returns what scripts match on.
func (p *Problem) Code() events.Code { return events.Code(path.Base(p.Type)) }

// Error returns the detail, which is written for people.
func (p *Problem) Error() string { return p.Detail }

// GetStatus returns the HTTP status (huma.StatusError).
func (p *Problem) GetStatus() int { return p.Status }

// ContentType returns RFC 9457's type for JSON (huma.ContentTypeFilter).
func (p *Problem) ContentType(string) string { return "application/problem+json" }
