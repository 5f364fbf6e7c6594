package api

import (
	"github.com/esperd/esperd/events"
)

// The bodies of the numbered calls. A field that may be absent is a pointer
// where its zero value means something else than its default.

// GerminateRequest is the body of POST /v1/slots/{slot}/germinate.
type GerminateRequest struct {
	Call
	Blueprint string            `json:"blueprint"`
	SeedID    string            `json:"seed_id,omitempty" doc:"absent: slot-blueprint"`
	Blend     *string           `json:"blend,omitempty" doc:"linear, sigmoid or gated; absent: sigmoid"`
	Tempo     *int64            `json:"tempo,omitempty" doc:"epochs of the blending ramp; absent: 5"`
	Algorithm *events.Algorithm `json:"algorithm,omitempty" doc:"absent: ADD; gated needs GATE"`
	Target    *events.Num       `json:"target,omitempty" doc:"alpha to blend to, above 0 and at most 1; absent: 1"`
}

// AdvanceRequest is the body of POST /v1/slots/{slot}/advance.
type AdvanceRequest struct {
	Call
	Target *events.Stage `json:"target,omitempty" doc:"absent: the next stage; FOSSILIZED is for good and has to be named"`
}

// VerdictRequest is the body of POST /v1/slots/{slot}/verdict: the trainer's
// own gate result. Rank 0's is the decision.
type VerdictRequest struct {
	Call
	Gate         events.Gate `json:"gate" doc:"G0, G1, G2, G3 or G5"`
	Passed       bool        `json:"passed"`
	Score        events.Num  `json:"score,omitempty"`
	ChecksPassed []string    `json:"checks_passed,omitempty"`
	ChecksFailed []string    `json:"checks_failed,omitempty"`
	Message      string      `json:"message,omitempty"`
}

// PruneRequest is the body of POST /v1/slots/{slot}/prune.
type PruneRequest struct {
	Call
	Reason    string  `json:"reason,omitempty"`
	Initiator *string `json:"initiator,omitempty" doc:"absent: policy"`
}

// SchedulePruneRequest is the body of POST /v1/slots/{slot}/schedule_prune.
type SchedulePruneRequest struct {
	Call
	Ticks     int64         `json:"ticks" doc:"epochs until alpha is 0; 0 or less: prune now"`
	Curve     *events.Curve `json:"curve,omitempty" doc:"LINEAR, COSINE or SIGMOID; absent: as before"`
	Steepness *events.Num   `json:"steepness,omitempty" doc:"of SIGMOID; absent: 12"`
	Reason    string        `json:"reason,omitempty"`
	Initiator *string       `json:"initiator,omitempty" doc:"absent: policy"`
}

// AlphaTargetRequest is the body of POST /v1/slots/{slot}/alpha_target.
type AlphaTargetRequest struct {
	Call
	Target    events.Num        `json:"target"`
	Ticks     int64             `json:"ticks" doc:"epochs until alpha is target"`
	Curve     *events.Curve     `json:"curve,omitempty" doc:"LINEAR, COSINE or SIGMOID; absent: as before"`
	Steepness *events.Num       `json:"steepness,omitempty" doc:"of SIGMOID; absent: 12"`
	Algorithm *events.Algorithm `json:"algorithm,omitempty" doc:"ADD, MULTIPLY or GATE; absent: as before"`
}

// StepRequest is the body of POST /v1/epochs/{epoch}/step.
type StepRequest struct {
	Call
}

// FenceRequest is the body of POST /v1/fence.
type FenceRequest struct {
	Call
	N int64 `json:"n" doc:"number of the fence, above the last one's"`
}

// ObserveRequest is the body of POST /v1/slots/{slot}/observe, which is no
// numbered call: it is kept until the model's next one. A later field of the same
// slot replaces the earlier one.
type ObserveRequest struct {
	Session string `json:"session" doc:"as POST /v1/session returned it"`
	Model   string `json:"model,omitempty" default:"main"`
	Readings
}

// Observed answers ObserveRequest.
type Observed struct {
	Pending int `json:"pending" doc:"observations that ride with the model's next numbered call"`
}

// ResetRequest is the body of POST /v1/reset: a fence that starts the model's
// next generation.
type ResetRequest struct {
	Call
}

// ResumeRequest is the body of POST /v1/resume: a fence that takes the model back
// to a mark, once every rank has brought the same one.
type ResumeRequest struct {
	Call
	Mark MarkBytes `json:"mark" doc:"as POST /v1/checkpoint returned it"`
}

// ReadyRequest is the body of POST /v1/slots/{slot}/ready, which is no numbered
// call: this rank has room for the slot's seed.
type ReadyRequest struct {
	Session string `json:"session" doc:"as POST /v1/session returned it"`
	Model   string `json:"model,omitempty" default:"main"`
	Seed    uint64 `json:"seed,omitempty" doc:"germination count of the seed that is meant; absent: the one that this trainer sees"`
}

// FailedRequest is the body of POST /v1/slots/{slot}/failed: this rank has no
// room for the slot's seed, which is pruned for all ranks.
type FailedRequest struct {
	ReadyRequest
	Reason string `json:"reason,omitempty" doc:"for the log, up to 1,024 bytes"`
}

// AttachRequest is the body of POST /v1/slots/{slot}/attach, which is no numbered
// call: what the module is made of that is to be bound to the slot's seed.
type AttachRequest struct {
	Session string          `json:"session" doc:"as POST /v1/session returned it"`
	Model   string          `json:"model,omitempty" default:"main"`
	Tensors []events.Tensor `json:"tensors" maxItems:"10000" doc:"name, shape and dtype of every parameter, in order"`
}

// LoadedRequest is the body of POST /v1/slots/{slot}/loaded: the contents of a
// seed whose memory was lost are there again.
type LoadedRequest struct {
	Session string `json:"session" doc:"as POST /v1/session returned it"`
	Model   string `json:"model,omitempty" default:"main"`
}

// View answers AttachRequest: where a seed lies in the arena. Offsets are in
// bytes.
type View struct {
	Slot      string       `json:"slot"`
	Seed      uint64       `json:"seed"`
	Blueprint string       `json:"blueprint"`
	Tensors   []ViewTensor `json:"tensors"`
	Entry     uint64       `json:"entry" doc:"of the slot's entry in the table: offset, elements (8 bytes each), alpha (float32), flags (4), generation (8)"`
	Lost      bool         `json:"lost,omitempty" doc:"the contents have to be loaded again (arena-lost)"`
	Trainable bool         `json:"trainable" doc:"its parameters learn"`
}

// ViewTensor is one parameter in the arena.
type ViewTensor struct {
	Name      string   `json:"name"`
	DType     string   `json:"dtype"`
	Shape     []uint64 `json:"shape"`
	Elements  uint64   `json:"elements"`
	Parameter uint64   `json:"parameter"`
	Gradient  uint64   `json:"gradient"`
	Master    *uint64  `json:"master,omitempty" doc:"of the float32 copy, where one is declared"`
}

// ArenaRequest is the body of POST /v1/arena, on which the connection changes to
// the arena's protocol (Upgrade: esperd-arena).
type ArenaRequest struct {
	Session string `json:"session"`
	Model   string `json:"model,omitempty"`

	// Tensors of a memfd that is sent next, to be fingerprinted. Absent: the arena
	// is handed over.
	Tensors []HostTensor `json:"tensors,omitempty"`
}

// HostTensor is a tensor in a file that is handed over.
type HostTensor struct {
	DType  string   `json:"dtype"`
	Shape  []uint64 `json:"shape"`
	Offset uint64   `json:"offset"` // bytes
	Bytes  uint64   `json:"bytes"`
}

// AttestRequest is the body of POST /v1/attest, which is no numbered call: what
// the trainer's tensors are at its last fence. Ranks with equal shards are
// compared; who differs is said by a later fence.
type AttestRequest struct {
	Session string           `json:"session" doc:"as POST /v1/session returned it"`
	Model   string           `json:"model,omitempty" default:"main"`
	Index   uint64           `json:"index,omitempty" doc:"of the answer of the trainer's last fence, at which the tensors are; absent: that one"`
	Tensors []AttestedTensor `json:"tensors,omitempty" maxItems:"100000" doc:"beside those in the arena, which esperd adds"`
}

// AttestedTensor is one tensor of a trainer.
type AttestedTensor struct {
	Name        string `json:"name" minLength:"1" maxLength:"256" doc:"the same on all ranks"`
	Kind        string `json:"kind,omitempty" enum:"replicated,sharded,local" default:"replicated" doc:"replicated: all ranks hold the same; sharded: the ranks with the same shard do; local: each rank its own, nothing is compared"`
	Shard       string `json:"shard,omitempty" maxLength:"64" doc:"of kind sharded: which one"`
	Fingerprint string `json:"fingerprint" pattern:"^[0-9a-f]{32}$" doc:"of element type, shape and contents; 32 hexadecimal digits"`
}

// CheckpointRequest is the body of POST /v1/checkpoint, which is no numbered
// call.
type CheckpointRequest struct {
	Session string  `json:"session" doc:"as POST /v1/session returned it"`
	Model   string  `json:"model,omitempty" default:"main"`
	Next    *uint64 `json:"call,omitempty" doc:"number of the client's next call, where it may have missed its last answer; absent: the one that this esperd expects"`
}

// Mark answers CheckpointRequest: the model where the caller is, in the mode
// follow at the last fence. It is the same on every rank that is there.
type Mark struct {
	Mark       MarkBytes     `json:"mark" doc:"to be stored with the weights, and brought to POST /v1/resume"`
	Run        string        `json:"run_id"`
	Lineage    string        `json:"lineage"`
	Model      string        `json:"model"`
	Index      uint64        `json:"index" doc:"of the entry at which it was taken"`
	Generation uint64        `json:"generation"`
	Epoch      int64         `json:"epoch" doc:"last stepped epoch, -1: none"`
	Lifecycle  events.Digest `json:"lifecycle" doc:"digest of the model there"`
	Sum        events.Digest `json:"sum" doc:"SHA-256 of the mark: what ranks are compared by"`
	Bytes      int           `json:"bytes" doc:"of the mark"`
}

// RequestRequest is the body of POST /v1/requests, which is no numbered call.
type RequestRequest struct {
	Session   string        `json:"session,omitempty" doc:"of the trainer that asks; absent: an operator does"`
	Model     string        `json:"model,omitempty" default:"main"`
	Action    events.Action `json:"action" enum:"prune"`
	Slot      string        `json:"slot"`
	Seed      uint64        `json:"seed,omitempty" doc:"germination count of the seed that is meant; absent: the one that the trainer sees, or else that is there now"`
	Reason    string        `json:"reason,omitempty" maxLength:"1024"`
	Initiator string        `json:"initiator,omitempty" doc:"who asks; absent: the trainer's rank, or operator" maxLength:"256"`
}

// Requested answers RequestRequest: the request is in the log.
type Requested struct {
	Index uint64 `json:"index" doc:"of the request's entry; the same as before for one that was pending already"`
}

// BusyRequest is the body of POST /v1/busy: this rank makes no call for a while,
// and the others wait for it without giving up.
type BusyRequest struct {
	Session string  `json:"session" doc:"as POST /v1/session returned it"`
	Reason  string  `json:"reason" maxLength:"256" doc:"such as evaluation"`
	Seconds float64 `json:"seconds" minimum:"0" maximum:"604800" doc:"from now; 0: not busy any more"`
}

// CloseRequest is the body of POST /v1/close: the trainer ends.
type CloseRequest struct {
	Session string `json:"session" doc:"as POST /v1/session returned it"`
	Failed  string `json:"failed,omitempty" maxLength:"1024" doc:"why, if it fails: the round is over for all ranks then"`
}

// OK answers what has nothing else to say.
type OK struct {
	OK bool `json:"ok"`
}
