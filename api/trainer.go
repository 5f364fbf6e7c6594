package api

import (
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// ProtocolVersion of the trainer's door. A client sends the one it speaks.
const ProtocolVersion = 1

// BodyBytesMax is how long the body of a request may be. One with an observation
// of each of 10,000 slots is half of it.
const BodyBytesMax = 8 << 20

// MarkBodyBytesMax is how long the body of a request may be that brings a mark,
// which JSON has in base64.
const MarkBodyBytesMax = BodyBytesMax + (events.MarkBytesMax+2)/3*4

// DefaultModel is the model of clients that name none.
const DefaultModel = "main"

// SessionRequest opens a trainer's session, or returns to it after esperd or
// the connection was lost, and configures one model (its call 0). A trainer of
// several models sends one for each, with the same incarnation.
type SessionRequest struct {
	Protocol    int    `json:"protocol" doc:"version of the door's protocol that the client speaks" example:"1"`
	Rank        uint64 `json:"rank" doc:"rank of the trainer, 0 to world_size-1"`
	WorldSize   uint64 `json:"world_size" doc:"number of ranks" minimum:"1"`
	Run         string `json:"run_id,omitempty" doc:"run that the trainer believes to be in; empty: any"`
	Incarnation string `json:"incarnation" doc:"32 hexadecimal digits, random, chosen once per trainer process; kept when reconnecting" pattern:"^[0-9a-f]{32}$"`
	Fingerprint string `json:"fingerprint,omitempty" doc:"tells one rendezvous from another, the same on all ranks: MASTER_ADDR:MASTER_PORT/WORLD_SIZE/restart count" maxLength:"512"`
	Mode        string `json:"mode,omitempty" enum:"keyed,follow,observe" default:"keyed" doc:"the same on all ranks; keyed: every rank makes the same calls; follow: rank 0 makes them, the others only fence; observe: calls tell what the trainers did by themselves, and nothing is decided"`
	Ordering    string `json:"ordering,omitempty" enum:"strict,warn" default:"strict" doc:"strict: calls are matched by number; warn: by operation, slot and occurrence since the last fence, and what does not fit is recorded"`
	Model       string `json:"model,omitempty" default:"main" maxLength:"64"`

	Detached bool `json:"detached,omitempty" doc:"the process that sends this is not the trainer itself: that it ends says nothing; else the end of a process that has not closed its session ends the round for all ranks"`

	Slots       []SlotRequest      `json:"slots,omitempty" doc:"the model's slots, in slot order; absent: as the log has them"`
	Gates       *events.GateConfig `json:"gates,omitempty" doc:"thresholds of every slot that names none of its own; absent: the defaults"`
	AutoForward []events.Gate      `json:"auto_forward,omitempty" doc:"gates that a tick tries by itself"`

	Resume MarkBytes `json:"resume,omitempty" doc:"a mark: where no slots are named and the log does not know the model, it is configured as the mark's; POST /v1/resume is still to be called"`

	Residency bool `json:"residency,omitempty" doc:"germinated seeds wait, in this round, until every rank has said that it has room for them (POST /v1/slots/{slot}/ready); the same on all ranks"`

	Arena bool   `json:"arena,omitempty" doc:"the seeds' parameters are to lie in memory of esperd's (--device), which the trainer attaches"`
	GPU   string `json:"gpu,omitempty" doc:"UUID of the trainer's GPU, for --device=auto; absent: any" maxLength:"64"`

	Answered *uint64 `json:"answered,omitempty" doc:"reconnecting: number of the last call that was answered; with it go round and lineage"`
	Round    uint64  `json:"round,omitempty" doc:"reconnecting: the session's"`
	Lineage  string  `json:"lineage,omitempty" doc:"reconnecting: the session's"`

	FenceIndex uint64   `json:"fence_index,omitempty" doc:"reconnecting, unless keyed and strict: index of the entry of the last fence call that was answered, or of the session"`
	Fences     uint64   `json:"fences,omitempty" doc:"reconnecting in the mode observe: fences that were answered"`
	Matched    []uint64 `json:"matched,omitempty" doc:"reconnecting with ordering warn: indexes of the entries that answered the calls since then" maxItems:"100000"`

	Site string `json:"site,omitempty" doc:"where the trainer called from, as train.py:88" maxLength:"256"`
}

// SlotRequest is one slot of a model.
type SlotRequest struct {
	Name        string             `json:"name" maxLength:"64"`
	Gates       *events.GateConfig `json:"gates,omitempty"`
	AutoForward []events.Gate      `json:"auto_forward,omitempty"`
	Blueprints  []events.Blueprint `json:"blueprints,omitempty" doc:"blueprints the slot accepts; absent: any"`
}

// SessionAnswer says which round the session belongs to and where its cursor
// stands.
type SessionAnswer struct {
	Session    string        `json:"session" doc:"to be sent with every call"`
	Run        string        `json:"run_id"`
	Lineage    string        `json:"lineage"`
	Node       events.NodeID `json:"node"`
	Round      uint64        `json:"round"`
	Model      string        `json:"model"`
	Generation uint64        `json:"generation"`
	NextCall   uint64        `json:"next_call" doc:"number that the client's next call of this model carries"`
	NextFence  uint64        `json:"next_fence" doc:"fences before that call"`
	Epoch      int64         `json:"epoch" doc:"last stepped epoch, -1: none"`
	Index      uint64        `json:"index" doc:"log index of the cursor"`
	Slots      []Slot        `json:"slots"`
	Word       *Word         `json:"word,omitempty" doc:"absent where the file could not be made"`
}

// Word is where the trainer may look, at the cost of a memory read, whether the
// log has something new for it.
type Word struct {
	Path   string `json:"path" doc:"of a file to map for reading"`
	Offset int64  `json:"offset" doc:"of 8 bytes, an unsigned number in the machine's byte order: index of the newest entry that concerns the model, which are its calls, requests for it, and the end or the beginning of a round; 0: none since this esperd was started"`
}

// Call is what every numbered call carries beside its own arguments.
type Call struct {
	Session      string        `json:"session" doc:"as POST /v1/session returned it"`
	Model        string        `json:"model,omitempty" default:"main"`
	Call         uint64        `json:"call" doc:"number of the call, from 1 in each round and model (0 is the configuration)"`
	Fence        uint64        `json:"fence" doc:"fences among the calls before it"`
	Site         string        `json:"site,omitempty" maxLength:"256" doc:"where the trainer called from, as train.py:88"`
	Observations []Observation `json:"observations,omitempty" doc:"what was observed since the last answered call, oldest first; of a slot that is there twice, a later field replaces the earlier one"`

	Since uint64 `json:"since,omitempty" doc:"of a fence: index of the answer of the session's last one, whose slots the client has kept: this one's lists only those that have changed, if it says so; absent: all"`

	Outcomes []events.Outcome `json:"outcomes,omitempty" doc:"mode observe only: what the trainer did by itself, to the call's slot, or at a step to all slots"`
}

// Observation is what one rank measured of a slot's seed.
type Observation struct {
	Slot string `json:"slot"`
	Readings
}

// Readings are the fields of an observation. Each may be absent (leave what is
// known), null (not measured) or a value; non-finite values are the strings
// "NaN", "Infinity", "-Infinity".
type Readings struct {
	Accuracy      Reading[events.Num] `json:"accuracy,omitzero" doc:"percent; a second one between two epoch steps replaces the first"`
	GradientRatio Reading[events.Num] `json:"gradient_ratio,omitzero"`
	GradientNorm  Reading[events.Num] `json:"gradient_norm,omitzero"`
	Health        Reading[events.Num] `json:"gradient_health,omitzero"`
	Exploding     Reading[bool]       `json:"has_exploding,omitzero"`
	Vanishing     Reading[bool]       `json:"has_vanishing,omitzero"`
	Contribution  Reading[events.Num] `json:"contribution,omitzero"`
	Healthy       Reading[bool]       `json:"healthy,omitzero"`
}

// FSM returns the observation as Decide takes it: a second accuracy in one tick
// takes the first one's place.
func (o Observation) FSM() fsm.Observation {
	return fsm.Observation{Slot: o.Slot, Accuracy: o.Accuracy.Reading, GradientRatio: o.GradientRatio.Reading,
		GradientNorm: o.GradientNorm.Reading, Health: o.Health.Reading, Exploding: o.Exploding.Reading,
		Vanishing: o.Vanishing.Reading, Contribution: o.Contribution.Reading, Healthy: o.Healthy.Reading, Replace: true}
}

// Decision is the answer to advance and verdict: rank 0's gate result, as the
// log has it, and the caller's own.
type Decision struct {
	events.Verdict
	Slot   string          `json:"slot"`
	Seed   uint64          `json:"seed" doc:"germination count of the slot"`
	Stage  events.Stage    `json:"stage" doc:"after the decision"`
	Index  uint64          `json:"index"`
	Local  *events.Verdict `json:"local,omitempty" doc:"this rank's own verdict on its own metrics; absent where it cannot be known"`
	Agreed bool            `json:"agreed" doc:"own and decided verdict both passed or both failed; true where there is no own one"`
}

// Done is the answer to the other calls on a slot.
type Done struct {
	Slot  string       `json:"slot"`
	Seed  uint64       `json:"seed"`
	Stage events.Stage `json:"stage"`
	Alpha float64      `json:"alpha"`
	Index uint64       `json:"index"`
}

// Fence is the answer to an epoch step, a fence, a reset or a resume.
type Fence struct {
	Epoch      int64  `json:"epoch" doc:"last stepped epoch, -1: none"`
	Generation uint64 `json:"generation,omitempty" doc:"absent in the mode observe"`
	Index      uint64 `json:"index"`

	Plan      []Command     `json:"plan,omitempty" doc:"what the changes mean for the seeds' memory, in the order in which to do it; absent in the mode observe"`
	ActiveSet events.Digest `json:"active_set,omitzero" doc:"digest of what is active: slots, seeds, tensors, flags, alphas"`
	Arena     *Arena        `json:"arena,omitempty" doc:"what became of this rank's arena; absent without one"`
	Differs   []Difference  `json:"differs,omitempty" doc:"what devices have been found to hold since the last fence that is not what most ranks hold, or what the log says"`

	Changes []Change `json:"changes" doc:"slots whose seed, stage, alpha or frozen flag changed since the last fence, in slot order"`
	Slots   []Slot   `json:"slots" doc:"every slot at this fence, in slot order; with since, those whose record is not what it was then"`

	Since uint64 `json:"since,omitempty" doc:"index of the fence at which the slots that are not listed were what they are now; absent: all are listed"`
}

// Command is one step that a fence asks of a seed's memory: of esperd's own, in
// the arena, or of a trainer that owns it.
type Command struct {
	Op        string  `json:"op" enum:"reserve,initialise,activate,set_alpha,thaw,freeze,deactivate,zero,release"`
	Slot      string  `json:"slot"`
	Seed      uint64  `json:"seed"`
	Blueprint string  `json:"blueprint"`
	Alpha     float64 `json:"alpha,omitempty" doc:"of set_alpha"`
}

// Arena is what a fence did to one rank's arena.
type Arena struct {
	Remap  bool      `json:"remap,omitempty" doc:"memory came or went: attach again"`
	Lost   []SeedRef `json:"lost,omitempty" doc:"seeds whose contents have to be loaded again (arena-lost)"`
	Spans  []Span    `json:"spans,omitempty" doc:"gradients of all seeds that learn, a range for each element type"`
	Device string    `json:"device,omitempty" doc:"what is wrong with the device as a whole; the log and its answers are right all the same"`
}

// SeedRef names a seed.
type SeedRef struct {
	Slot string `json:"slot"`
	Seed uint64 `json:"seed"`
}

// Span is a range of the arena that one all-reduce serves.
type Span struct {
	DType    string `json:"dtype"`
	Offset   uint64 `json:"offset" doc:"in the arena, bytes"`
	Elements uint64 `json:"elements" doc:"from the first to the last; what belongs to no seed that learns is zero"`
	Learning uint64 `json:"learning" doc:"of them, in seeds that learn"`
}

// Difference is what some ranks hold that is not what most do.
type Difference struct {
	Index   uint64   `json:"index" doc:"of the fence at which they held it"`
	What    string   `json:"what" enum:"active,tensors"`
	Shard   string   `json:"shard,omitempty"`
	Ranks   []uint64 `json:"ranks"`
	Tensors []string `json:"tensors,omitempty" doc:"those that differ, as slot/tensor; of the active set, the slots of which the device's table said something else than the log"`
}

// Change is one slot's difference between two fences.
type Change struct {
	Slot      string       `json:"slot"`
	Seed      uint64       `json:"seed"`
	Blueprint string       `json:"blueprint,omitempty" doc:"of the seed, or of the one that is gone"`
	From      events.Stage `json:"from"`
	To        events.Stage `json:"to"`
	AlphaFrom float64      `json:"alpha_from"`
	Alpha     float64      `json:"alpha"`
	Frozen    bool         `json:"frozen"`
	Replaced  bool         `json:"replaced" doc:"of two seeds, one then and one now, they are not the same one"`
}

// SlotOf describes one slot of a model.
func SlotOf(m *fsm.Model, i int) Slot {
	slot := m.Slots.At(i)
	out := Slot{Name: m.Config.Slots[i].Name, Stage: slot.Stage(), Germinations: slot.Germinations}
	seed := slot.Seed
	if seed == nil {
		return out
	}
	out.Seed, out.SeedID, out.Blueprint = seed.Count, seed.ID, seed.Blueprint
	out.Alpha, out.Frozen = seed.Amplitude.Alpha, seed.Frozen()
	c := seed.Amplitude.Controller
	out.Controller, out.Algorithm, out.Metrics = &c, seed.Amplitude.Algorithm.String(), &seed.Metrics
	return out
}

// SlotsOf describes every slot of a model, in slot order.
func SlotsOf(m *fsm.Model) []Slot {
	out := make([]Slot, m.Slots.Len())
	for i := range out {
		out[i] = SlotOf(m, i)
	}
	return out
}
