package events

import (
	"cmp"
	"fmt"
	"slices"
)

// An Event is one fact: exactly one of its fields is set. The number of a field
// is the event's type in the log and never changes.
type Event struct {
	Founded        *Founded        `cbor:"1,keyasint,omitempty"`
	NodeJoined     *NodeJoined     `cbor:"2,keyasint,omitempty"`
	NodeLeft       *NodeLeft       `cbor:"3,keyasint,omitempty"`
	RoundOpened    *RoundOpened    `cbor:"4,keyasint,omitempty"`
	RoundFaulted   *RoundFaulted   `cbor:"5,keyasint,omitempty"`
	Configured     *Configured     `cbor:"6,keyasint,omitempty"`
	Observed       *Observed       `cbor:"7,keyasint,omitempty"`
	Germinated     *Germinated     `cbor:"8,keyasint,omitempty"`
	GateEvaluated  *GateEvaluated  `cbor:"9,keyasint,omitempty"`
	Decided        *Decided        `cbor:"10,keyasint,omitempty"`
	StageChanged   *StageChanged   `cbor:"11,keyasint,omitempty"`
	AmplitudeSet   *AmplitudeSet   `cbor:"12,keyasint,omitempty"`
	PruneScheduled *PruneScheduled `cbor:"13,keyasint,omitempty"`
	Pruned         *Pruned         `cbor:"14,keyasint,omitempty"`
	Fossilized     *Fossilized     `cbor:"15,keyasint,omitempty"`
	Dwelled        *Dwelled        `cbor:"16,keyasint,omitempty"`
	EpochStepped   *EpochStepped   `cbor:"17,keyasint,omitempty"`
	Fenced         *Fenced         `cbor:"18,keyasint,omitempty"`
	Refused        *Refused        `cbor:"19,keyasint,omitempty"`
	Reported       *Reported       `cbor:"20,keyasint,omitempty"`
	ShadowVerdict  *ShadowVerdict  `cbor:"21,keyasint,omitempty"`

	// Since version 2.
	Requested      *Requested      `cbor:"22,keyasint,omitempty"`
	RequestDone    *RequestDone    `cbor:"23,keyasint,omitempty"`
	Mismatched     *Mismatched     `cbor:"24,keyasint,omitempty"`
	Fact           *Fact           `cbor:"25,keyasint,omitempty"`
	OutcomeDiffers *OutcomeDiffers `cbor:"26,keyasint,omitempty"`
	TrainerEnded   *TrainerEnded   `cbor:"27,keyasint,omitempty"`

	// Since version 3.
	Rewound   *Rewound   `cbor:"28,keyasint,omitempty"`
	Recovered *Recovered `cbor:"29,keyasint,omitempty"`
	Residency *Residency `cbor:"30,keyasint,omitempty"`
	Voted     *Voted     `cbor:"31,keyasint,omitempty"`
	Resided   *Resided   `cbor:"32,keyasint,omitempty"`
	Attested  *Attested  `cbor:"33,keyasint,omitempty"`
}

// Founded gives the log its identity. It is the first event of entry 1.
type Founded struct {
	Run     string  `cbor:"1,keyasint" json:"run"`
	Lineage string  `cbor:"2,keyasint" json:"lineage"` // random, 32 hexadecimal digits
	Parent  *Parent `cbor:"3,keyasint,omitempty" json:"parent,omitempty"`
}

// Parent says from which other log this one continues.
type Parent struct {
	Run       string `cbor:"1,keyasint" json:"run"`
	Lineage   string `cbor:"2,keyasint" json:"lineage"`
	Index     uint64 `cbor:"3,keyasint" json:"index"`
	Chain     Digest `cbor:"4,keyasint" json:"chain"`
	Lifecycle Digest `cbor:"5,keyasint" json:"lifecycle"`
	Image     []byte `cbor:"6,keyasint" json:"image"` // the state continued from, as package fsm encodes it
}

// NodeJoined says that a node takes part, and which entry version it knows.
type NodeJoined struct {
	Node    NodeID `cbor:"1,keyasint" json:"node"`
	Version uint64 `cbor:"2,keyasint" json:"version"`
	Host    string `cbor:"3,keyasint,omitempty" json:"host,omitempty"`
}

// NodeLeft says that a node takes part no longer.
type NodeLeft struct {
	Node   NodeID `cbor:"1,keyasint" json:"node"`
	Reason string `cbor:"2,keyasint" json:"reason"`
}

// RoundOpened starts a round: one run of the trainers of all ranks.
type RoundOpened struct {
	Round       uint64   `cbor:"1,keyasint" json:"round"`
	Fingerprint string   `cbor:"2,keyasint" json:"fingerprint"` // tells rendezvous apart, e.g. "10.0.0.1:29500/4/0"
	Members     []Member `cbor:"3,keyasint" json:"members"`     // in rank order, one a rank
}

// Member is one rank's trainer in a round.
type Member struct {
	Rank        uint64 `cbor:"1,keyasint,omitempty" json:"rank"`
	Node        NodeID `cbor:"2,keyasint" json:"node"`
	Incarnation string `cbor:"3,keyasint" json:"incarnation"` // random, chosen by the trainer when it connected
	Mode        string `cbor:"4,keyasint" json:"mode"`        // a TrainerMode; "" is keyed
}

// RoundFaulted ends a round: some rank did not make rank 0's calls, or its
// trainer is gone. Every later call of the round is refused on every rank.
type RoundFaulted struct {
	Round    uint64 `cbor:"1,keyasint" json:"round"`
	Code     Code   `cbor:"2,keyasint" json:"code"` // order-mismatch, missing-call, config-mismatch; unavailable: the trainer is gone; diverged: a replica's state is not the log's
	Rank     uint64 `cbor:"3,keyasint,omitempty" json:"rank"`
	Node     NodeID `cbor:"4,keyasint" json:"node"`  // with diverged: whose state is wrong; empty: that is not decided
	Index    uint64 `cbor:"5,keyasint" json:"index"` // of the entry that the rank's call, or its state, did not fit
	Got      Key    `cbor:"6,keyasint" json:"got"`
	GotSite  string `cbor:"7,keyasint,omitempty" json:"got_site,omitempty"`
	Want     Key    `cbor:"8,keyasint" json:"want"`
	WantSite string `cbor:"9,keyasint,omitempty" json:"want_site,omitempty"`

	// Reason says how the trainer went, with unavailable, and what was found, with
	// diverged. Got is the rank's last call then, and Want is rank 0's.
	Reason string `cbor:"10,keyasint,omitempty" json:"reason,omitempty"`
}

// TouchesAll reports whether no rank may trust the states that it was told: rank
// 0's replica decided on a wrong one, or it is not known whose is wrong.
func (f *RoundFaulted) TouchesAll() bool {
	return f.Code == CodeDiverged && (f.Node == "" || f.Rank == 0)
}

// What says in a sentence's middle what the rank did.
func (f *RoundFaulted) What() string {
	if f.Code == CodeUnavailable {
		return fmt.Sprintf("the trainer of rank %d is gone: %s; its last call was %s", f.Rank, cmp.Or(f.Reason, "it is not known why"), f.Got.At(f.GotSite))
	}
	if f.Code == CodeDiverged {
		return fmt.Sprintf("the replica of rank %d differs from the log: %s", f.Rank, cmp.Or(f.Reason, "it is not known why"))
	}
	what := fmt.Sprintf("rank %d called %s where rank 0 called %s", f.Rank, f.Got.At(f.GotSite), f.Want.At(f.WantSite))
	if f.Got != f.Want && f.Got.Same(f.Want) {
		what += ", the same with other arguments"
	}
	return what
}

// GateConfig holds the thresholds of the gates (lifecycle contract, section 5).
type GateConfig struct {
	Permissive                   bool    `cbor:"1,keyasint,omitempty" json:"permissive"`
	MinTrainingImprovement       float64 `cbor:"2,keyasint,omitempty" json:"min_training_improvement"`         // percentage points
	MinBlendingEpochs            int64   `cbor:"3,keyasint,omitempty" json:"min_blending_epochs"`              // epochs
	MinSeedGradientRatio         float64 `cbor:"4,keyasint,omitempty" json:"min_seed_gradient_ratio"`          // seed norm over host norm
	MinGradientHealthForBlending float64 `cbor:"5,keyasint,omitempty" json:"min_gradient_health_for_blending"` // 0 to 1
	MinProbationStability        float64 `cbor:"6,keyasint,omitempty" json:"min_probation_stability"`          // kept for compatibility; no gate reads it
}

// SlotConfig is one slot of a model: what guards it and what moves by itself.
type SlotConfig struct {
	Name        string      `cbor:"1,keyasint" json:"name"`
	Gates       GateConfig  `cbor:"2,keyasint" json:"gates"`
	AutoForward []Gate      `cbor:"3,keyasint,omitempty" json:"auto_forward"` // gates that a tick tries by itself, ascending
	Blueprints  []Blueprint `cbor:"4,keyasint,omitempty" json:"blueprints,omitempty"`
}

// Blueprint names the tensors of a kind of seed. A slot that lists any accepts
// no other.
type Blueprint struct {
	Name    string   `cbor:"1,keyasint" json:"name"`
	Tensors []Tensor `cbor:"2,keyasint,omitempty" json:"tensors,omitempty"`
}

// Tensor is one parameter of a blueprint. What follows its type is read where
// esperd lays out the memory itself (package gpuexec).
type Tensor struct {
	Name   string   `cbor:"1,keyasint" json:"name"`
	Shape  []uint64 `cbor:"2,keyasint,omitempty" json:"shape"`
	DType  string   `cbor:"3,keyasint" json:"dtype"`
	Init   *Init    `cbor:"4,keyasint,omitempty" json:"init,omitempty"`   // nil: zeros
	Master bool     `cbor:"5,keyasint,omitempty" json:"master,omitempty"` // a float32 copy is kept beside it
}

// Init is how a parameter is filled when its seed germinates.
type Init struct {
	Rule  InitRule `cbor:"1,keyasint" json:"rule"`
	Value float64  `cbor:"2,keyasint,omitempty" json:"value"` // finite; for uniform above 0
}

// Configured starts a generation of a model: all slots DORMANT, no epoch
// stepped.
type Configured struct {
	Generation uint64       `cbor:"1,keyasint" json:"generation"`
	Slots      []SlotConfig `cbor:"2,keyasint" json:"slots"` // in slot order
}

// fills reports whether a tensor says how it is filled or kept.
func (c *Configured) fills() bool {
	for i := range c.Slots {
		for _, b := range c.Slots[i].Blueprints {
			if slices.ContainsFunc(b.Tensors, func(t Tensor) bool { return t.Init != nil || t.Master }) {
				return true
			}
		}
	}
	return false
}

// Metrics is what is known about a seed's training: the readings and the
// counters that recording an accuracy advances. Nil is "not measured".
type Metrics struct {
	Epochs        int64  `cbor:"1,keyasint,omitempty" json:"epochs"`
	EpochsInStage int64  `cbor:"2,keyasint,omitempty" json:"epochs_in_stage"`
	Accuracy      Num    `cbor:"3,keyasint,omitempty" json:"accuracy"`       // percent, as all accuracies
	AccuracyBest  Num    `cbor:"4,keyasint,omitempty" json:"accuracy_best"`  // at least 0
	AccuracyFirst Num    `cbor:"5,keyasint,omitempty" json:"accuracy_first"` // the first one recorded
	AccuracyStage Num    `cbor:"6,keyasint,omitempty" json:"accuracy_stage"` // when the stage began
	GradientRatio *Num   `cbor:"7,keyasint,omitempty" json:"gradient_ratio"`
	GradientNorm  *Num   `cbor:"8,keyasint,omitempty" json:"gradient_norm"`
	Health        *Num   `cbor:"9,keyasint,omitempty" json:"gradient_health"`
	Exploding     *bool  `cbor:"10,keyasint,omitempty" json:"has_exploding"`
	Vanishing     *bool  `cbor:"11,keyasint,omitempty" json:"has_vanishing"`
	Contribution  *Num   `cbor:"12,keyasint,omitempty" json:"contribution"` // accuracy minus accuracy with alpha 0
	Unhealthy     bool   `cbor:"13,keyasint,omitempty" json:"unhealthy"`
	Tick          uint64 `cbor:"14,keyasint,omitempty" json:"tick"` // 1 + the model's tick in which the accuracy was recorded; 0: none was
}

// Observed assigns a seed's metrics: the values after rank 0's observation.
type Observed struct {
	Slot    string  `cbor:"1,keyasint" json:"slot"`
	Seed    uint64  `cbor:"2,keyasint" json:"seed"`
	Metrics Metrics `cbor:"3,keyasint" json:"metrics"`
}

// Germinated puts a new seed into a slot.
type Germinated struct {
	Slot      string    `cbor:"1,keyasint" json:"slot"`
	Seed      uint64    `cbor:"2,keyasint" json:"seed"` // the slot's germination count, from 1
	ID        string    `cbor:"3,keyasint" json:"id"`
	Blueprint string    `cbor:"4,keyasint" json:"blueprint"`
	Blend     string    `cbor:"5,keyasint" json:"blend"` // "linear", "sigmoid" or "gated"
	Tempo     int64     `cbor:"6,keyasint" json:"tempo"` // ticks of the blending ramp, at least 1
	Algorithm Algorithm `cbor:"7,keyasint" json:"algorithm"`
	Target    float64   `cbor:"8,keyasint" json:"target"`                     // alpha to blend to, in (1e-6, 1]
	Absent    bool      `cbor:"9,keyasint,omitempty" json:"absent,omitempty"` // it has no room yet on every device
}

// Verdict is one gate result.
type Verdict struct {
	Gate         Gate     `cbor:"1,keyasint" json:"gate"`
	Passed       bool     `cbor:"2,keyasint,omitempty" json:"passed"`
	Score        float64  `cbor:"3,keyasint,omitempty" json:"score"`
	ChecksPassed []string `cbor:"4,keyasint,omitempty" json:"checks_passed"`
	ChecksFailed []string `cbor:"5,keyasint,omitempty" json:"checks_failed"`
	Message      string   `cbor:"6,keyasint,omitempty" json:"message"`
}

// GateEvaluated records what a gate said. It changes no state: if the stage
// changed, a StageChanged follows.
type GateEvaluated struct {
	Slot    string  `cbor:"1,keyasint" json:"slot"`
	Seed    uint64  `cbor:"2,keyasint" json:"seed"`
	Target  Stage   `cbor:"3,keyasint" json:"target"`
	Verdict Verdict `cbor:"4,keyasint" json:"verdict"`
	Own     bool    `cbor:"5,keyasint,omitempty" json:"own,omitempty"` // the trainer's own verdict, not package gates'
}

// Decided is the answer to advance or verdict where it is not the evaluated
// verdict: no active seed, no next stage, or a passed gate on an illegal edge.
type Decided struct {
	Slot    string  `cbor:"1,keyasint" json:"slot"`
	Seed    uint64  `cbor:"2,keyasint,omitempty" json:"seed"`
	Verdict Verdict `cbor:"3,keyasint" json:"verdict"`
}

// StageChanged moves a seed along one edge. RESETTING to DORMANT empties the
// slot.
type StageChanged struct {
	Slot          string  `cbor:"1,keyasint" json:"slot"`
	Seed          uint64  `cbor:"2,keyasint" json:"seed"`
	From          Stage   `cbor:"3,keyasint" json:"from"`
	To            Stage   `cbor:"4,keyasint" json:"to"`
	Alpha         float64 `cbor:"5,keyasint,omitempty" json:"alpha"`           // when the edge was taken
	AccuracyDelta Num     `cbor:"6,keyasint,omitempty" json:"accuracy_delta"`  // current minus first accuracy; 0 in cooldown
	EpochsInStage int64   `cbor:"7,keyasint,omitempty" json:"epochs_in_stage"` // in the stage that was left
}

// Controller is the state of an alpha ramp (lifecycle contract, section 4).
type Controller struct {
	Alpha     float64 `cbor:"1,keyasint,omitempty" json:"alpha"` // 0 to 1, as start and target
	Start     float64 `cbor:"2,keyasint,omitempty" json:"start"`
	Target    float64 `cbor:"3,keyasint,omitempty" json:"target"`
	Mode      Mode    `cbor:"4,keyasint,omitempty" json:"mode"`
	Curve     Curve   `cbor:"5,keyasint" json:"curve"`
	Steepness float64 `cbor:"6,keyasint" json:"steepness"`       // of SIGMOID, at least 0.1
	Total     int64   `cbor:"7,keyasint,omitempty" json:"total"` // ticks
	Done      int64   `cbor:"8,keyasint,omitempty" json:"done"`  // ticks, at most Total
}

// Amplitude is how strongly a seed is blended in, and where that is going.
type Amplitude struct {
	Alpha      float64    `cbor:"1,keyasint,omitempty" json:"alpha"` // the seed's own; the controller's may run ahead of it by a tick
	Algorithm  Algorithm  `cbor:"2,keyasint" json:"algorithm"`
	Controller Controller `cbor:"3,keyasint" json:"controller"`
}

// AmplitudeSet assigns a seed's amplitude.
type AmplitudeSet struct {
	Slot      string    `cbor:"1,keyasint" json:"slot"`
	Seed      uint64    `cbor:"2,keyasint" json:"seed"`
	Amplitude Amplitude `cbor:"3,keyasint" json:"amplitude"`
}

// PruneScheduled remembers why the ramp that now runs to 0 was started.
type PruneScheduled struct {
	Slot      string `cbor:"1,keyasint" json:"slot"`
	Seed      uint64 `cbor:"2,keyasint" json:"seed"`
	Reason    string `cbor:"3,keyasint,omitempty" json:"reason"`
	Initiator string `cbor:"4,keyasint,omitempty" json:"initiator"`
}

// Pruned removes a seed's module; its record stays through the cooldown.
type Pruned struct {
	Slot         string `cbor:"1,keyasint" json:"slot"`
	Seed         uint64 `cbor:"2,keyasint" json:"seed"`
	Reason       string `cbor:"3,keyasint,omitempty" json:"reason"`
	Initiator    string `cbor:"4,keyasint,omitempty" json:"initiator"`
	Auto         bool   `cbor:"5,keyasint,omitempty" json:"auto"` // a governor's reason
	Blueprint    string `cbor:"6,keyasint" json:"blueprint"`
	Improvement  Num    `cbor:"7,keyasint,omitempty" json:"improvement"` // current minus first accuracy
	Epochs       int64  `cbor:"8,keyasint,omitempty" json:"epochs"`
	Contribution *Num   `cbor:"9,keyasint,omitempty" json:"contribution"`
	BlendDelta   Num    `cbor:"10,keyasint,omitempty" json:"blend_delta"` // current accuracy minus that at the start of blending
}

// Fossilized makes a seed permanent.
type Fossilized struct {
	Slot         string  `cbor:"1,keyasint" json:"slot"`
	Seed         uint64  `cbor:"2,keyasint" json:"seed"`
	Blueprint    string  `cbor:"3,keyasint" json:"blueprint"`
	Improvement  Num     `cbor:"4,keyasint,omitempty" json:"improvement"`
	Alpha        float64 `cbor:"5,keyasint,omitempty" json:"alpha"`
	Epochs       int64   `cbor:"6,keyasint,omitempty" json:"epochs"`
	Contribution *Num    `cbor:"7,keyasint,omitempty" json:"contribution"`
	BlendDelta   Num     `cbor:"8,keyasint,omitempty" json:"blend_delta"`
}

// Dwelled assigns the epoch counters of a seed in cooldown.
type Dwelled struct {
	Slot          string `cbor:"1,keyasint" json:"slot"`
	Seed          uint64 `cbor:"2,keyasint" json:"seed"`
	Epochs        int64  `cbor:"3,keyasint,omitempty" json:"epochs"`
	EpochsInStage int64  `cbor:"4,keyasint,omitempty" json:"epochs_in_stage"`
}

// EpochStepped closes an epoch: the events before it in the entry are the tick.
type EpochStepped struct {
	Epoch int64  `cbor:"1,keyasint,omitempty" json:"epoch"`
	Tick  uint64 `cbor:"2,keyasint" json:"tick"` // ticks of the model so far, this one counted
}

// Fenced closes a stretch of calls without a tick.
type Fenced struct {
	N int64 `cbor:"1,keyasint,omitempty" json:"n"`
}

// Refused says why a call changed nothing but observations.
type Refused struct {
	Code   Code   `cbor:"1,keyasint" json:"code"`
	Reason string `cbor:"2,keyasint" json:"reason"`
}

// Reported acknowledges a node's reports up to a sequence number.
type Reported struct {
	Node     NodeID `cbor:"1,keyasint" json:"node"`
	Sequence uint64 `cbor:"2,keyasint" json:"sequence"`
}

// ShadowVerdict is what a rank other than 0 would have decided on its own
// metrics, recorded where it differs from the decision.
type ShadowVerdict struct {
	Rank    uint64  `cbor:"1,keyasint" json:"rank"`
	Index   uint64  `cbor:"2,keyasint" json:"index"` // of the decision
	Key     Key     `cbor:"3,keyasint" json:"key"`
	Site    string  `cbor:"4,keyasint,omitempty" json:"site,omitempty"`
	Verdict Verdict `cbor:"5,keyasint" json:"verdict"`
}

// Requested asks for an action at the model's next fence, from any rank or an
// operator. It stands in the bookkeeping until then.
type Requested struct {
	Node       NodeID `cbor:"1,keyasint" json:"node"`   // who took it
	Number     uint64 `cbor:"2,keyasint" json:"number"` // of the node's requests, ascending: one that is sent again is known by it
	Model      string `cbor:"3,keyasint" json:"model"`
	Generation uint64 `cbor:"4,keyasint" json:"generation"`
	Slot       string `cbor:"5,keyasint" json:"slot"`
	Seed       uint64 `cbor:"6,keyasint" json:"seed"` // which the action is for; another seed is left alone
	Action     Action `cbor:"7,keyasint" json:"action"`
	Reason     string `cbor:"8,keyasint,omitempty" json:"reason"`
	Initiator  string `cbor:"9,keyasint,omitempty" json:"initiator"` // "rank 2", or who the operator says to be
}

// RequestDone ends a request: the events before it are its effect.
type RequestDone struct {
	Request uint64 `cbor:"1,keyasint" json:"request"`                     // index of its entry
	Skipped string `cbor:"2,keyasint,omitempty" json:"skipped,omitempty"` // why nothing was to be done
}

// Mismatched is a call of a rank that is not rank 0's, in a round that goes on
// all the same: with ordering "warn", or in the mode "observe".
type Mismatched struct {
	Rank     uint64 `cbor:"1,keyasint" json:"rank"`
	Code     Code   `cbor:"2,keyasint" json:"code"`  // order-mismatch, or missing-call: made by one of the two alone
	Index    uint64 `cbor:"3,keyasint" json:"index"` // of the entry that the call was compared with
	Got      Key    `cbor:"4,keyasint" json:"got"`
	GotSite  string `cbor:"5,keyasint,omitempty" json:"got_site,omitempty"`
	Want     Key    `cbor:"6,keyasint" json:"want"`
	WantSite string `cbor:"7,keyasint,omitempty" json:"want_site,omitempty"`
}

// Fact assigns what a trainer did by itself to a slot, in the mode "observe".
type Fact struct {
	Slot       string    `cbor:"1,keyasint" json:"slot"`
	Seed       uint64    `cbor:"2,keyasint,omitempty" json:"seed"` // germination count; one that is not in the slot makes a new record
	Stage      Stage     `cbor:"3,keyasint" json:"stage"`          // DORMANT empties the slot
	Amplitude  Amplitude `cbor:"4,keyasint" json:"amplitude"`
	ID         string    `cbor:"5,keyasint,omitempty" json:"id,omitempty"`
	Blueprint  string    `cbor:"6,keyasint,omitempty" json:"blueprint,omitempty"`
	Passed     *bool     `cbor:"7,keyasint,omitempty" json:"passed,omitempty"`     // of a gate
	Reason     string    `cbor:"8,keyasint,omitempty" json:"reason,omitempty"`     // of a prune
	Unexpected string    `cbor:"9,keyasint,omitempty" json:"unexpected,omitempty"` // which rule of the lifecycle it does not follow
}

// Outcome is what became of one slot, by a trainer's own account.
type Outcome struct {
	Slot   string `cbor:"1,keyasint" json:"slot"`
	Stage  Stage  `cbor:"2,keyasint" json:"stage"`
	Alpha  Num    `cbor:"3,keyasint,omitempty" json:"alpha"`
	Passed *bool  `cbor:"4,keyasint,omitempty" json:"passed,omitempty"` // of a gate
}

// OutcomeDiffers is a rank's own outcome where it is not rank 0's.
type OutcomeDiffers struct {
	Rank  uint64  `cbor:"1,keyasint" json:"rank"`
	Index uint64  `cbor:"2,keyasint" json:"index"` // of rank 0's call
	Key   Key     `cbor:"3,keyasint" json:"key"`
	Site  string  `cbor:"4,keyasint,omitempty" json:"site,omitempty"`
	Got   Outcome `cbor:"5,keyasint" json:"got"`
	Want  Outcome `cbor:"6,keyasint" json:"want"` // rank 0's
}

// TrainerEnded says that a rank's trainer closed its session in order: it makes
// no further call in the round.
type TrainerEnded struct {
	Round uint64 `cbor:"1,keyasint" json:"round"`
	Rank  uint64 `cbor:"2,keyasint,omitempty" json:"rank"`
}
