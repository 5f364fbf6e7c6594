package door

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/gpuexec/element"
)

const (
	askAttested = "attested" // a rank tells rank 0's node what its device holds
	askTensors  = "tensors"  // which asks, where ranks differ, for the tensors one by one

	attestedMax = 4 // that are kept for such a question

	kindReplicated, kindSharded, kindLocal = "replicated", "sharded", "local"
)

// attested is what one rank's device holds of a model at one fence. What travels
// is a digest for each shard; the tensors are asked for where those differ.
type attested struct {
	attestedAt
	Rank   uint64                   `json:"rank"`
	Shards map[string]events.Digest `json:"shards"` // "": what all ranks hold

	// Partial says that this rank does not have all of that: a seed has no memory
	// here, or its contents are lost, which is said elsewhere. It is not compared.
	Partial bool `json:"partial,omitempty"`

	tensors map[string][]tensorPrint // by shard; by name
}

// attestedAt is what is compared with each other.
type attestedAt struct {
	Round      uint64 `json:"round"`
	Model      string `json:"model"`
	Generation uint64 `json:"generation"`
	Index      uint64 `json:"index"` // of the fence's entry
}

type tensorPrint struct {
	Name  string              `json:"name"`
	Print element.Fingerprint `json:"print"`
}

func (s *Server) attestCall(a huma.API) {
	huma.Register(a, post("attest", "/v1/attest", "Hand in fingerprints of this rank's tensors, to be compared with those of the ranks that hold the same"),
		func(_ context.Context, in *struct{ Body api.AttestRequest }) (*output[api.OK], error) {
			return result[api.OK](s.attest(&in.Body))
		})
}

// attest takes what a trainer's tensors are at its last fence, adds those in its
// arena, and has them compared. It waits for no other rank.
func (s *Server) attest(in *api.AttestRequest) (any, error) {
	t, p := s.stands(in.Session, in.Model, "attest", "ranks have no fence in common")
	if p != nil {
		return nil, p
	}
	m := &t.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.exec == nil {
		return nil, problemf(events.CodeUnavailable, "attest: the session of model %s has ended", t.model)
	}
	at := m.exec.Index()
	if in.Index != 0 && in.Index != at {
		return nil, problemf(events.CodeInvalidInput, "attest: expected the index of this trainer's last fence, %d, got %d: attest after a fence and before the next one", at, in.Index)
	}
	a := &attested{attestedAt: attestedAt{t.round, t.model, m.exec.Generation(), at}, Rank: s.rank}
	if p := a.fill(in.Tensors); p != nil {
		return nil, p
	}
	if m.device != nil {
		prints, partial, err := m.exec.Attest()
		if err != nil {
			return nil, problemf(events.CodeConfigMismatch, "attest: %v; the log goes on", err)
		}
		a.Partial = partial
		for _, p := range prints {
			a.tensors[""] = append(a.tensors[""], tensorPrint{p.Slot + "/" + p.Tensor, p.Fingerprint})
		}
	}
	if p := a.sum(); p != nil {
		return nil, p
	}
	if len(m.attested) == attestedMax {
		m.attested = slices.Delete(m.attested, 0, 1)
	}
	m.attested = append(m.attested, a)
	s.handIn(t, a)
	return &api.OK{OK: true}, nil
}

// fill takes the trainer's own tensors.
func (a *attested) fill(list []api.AttestedTensor) *api.Problem {
	a.tensors = map[string][]tensorPrint{}
	for i := range list {
		x := &list[i]
		var print element.Fingerprint
		if err := print.UnmarshalText([]byte(x.Fingerprint)); err != nil {
			return problemf(events.CodeInvalidInput, "attest: tensor %.64q: %v", x.Name, err)
		}
		kind := cmp.Or(x.Kind, kindReplicated)
		if (kind == kindSharded) != (x.Shard != "") {
			return problemf(events.CodeInvalidInput, "attest: tensor %.64q of kind %s: expected a shard with the kind sharded, and none else, got %.64q", x.Name, kind, x.Shard)
		}
		if kind != kindLocal {
			a.tensors[x.Shard] = append(a.tensors[x.Shard], tensorPrint{x.Name, print})
		}
	}
	return nil
}

// sum makes the digests.
func (a *attested) sum() *api.Problem {
	a.Shards = make(map[string]events.Digest, len(a.tensors))
	for shard, list := range a.tensors {
		slices.SortFunc(list, func(x, y tensorPrint) int { return cmp.Compare(x.Name, y.Name) })
		h := sha256.New()
		for i, x := range list {
			if i > 0 && list[i-1].Name == x.Name {
				return problemf(events.CodeInvalidInput, "attest: tensor %.64q is there twice: give each its own name (in the arena they are slot/tensor)", x.Name)
			}
			h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(x.Name))))
			h.Write([]byte(x.Name))
			h.Write(x.Print[:])
		}
		a.Shards[shard] = events.Digest(h.Sum(nil))
	}
	return nil
}

// handIn brings it to rank 0's node, behind the trainer's back.
func (s *Server) handIn(t *track, a *attested) {
	if s.rank == 0 {
		s.gatherings.take(s, a)
		return
	}
	node := s.replica.State().Round.Members[0].Node
	body, err := json.Marshal(a)
	if err != nil {
		s.log.Error("what this rank's device holds cannot be told; this is a bug in esperd", "error", err)
		return
	}
	s.work.Go(func() {
		ctx, done := context.WithTimeout(t.ctx, attestMax)
		defer done()
		for {
			err := s.replica.AskNode(ctx, node, askAttested, body).Err
			if err == nil {
				return
			}
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
				s.log.Warn("rank 0's esperd was not told what this rank's device holds", "model", a.Model, "index", a.Index, "error", err)
				return
			}
		}
	})
}

// tensorsQuestion asks a rank for the tensors of a shard.
type tensorsQuestion struct {
	attestedAt
	Shard string `json:"shard"`
}

func (s *Server) answerTensors(_ context.Context, question []byte) (any, error) {
	var q tensorsQuestion
	if err := fromPeer(question, &q); err != nil {
		return nil, err
	}
	return json.Marshal(s.tensorsOf(&q))
}

// tensorsOf returns what this rank's trainer has handed in; nil: it is forgotten.
func (s *Server) tensorsOf(q *tensorsQuestion) []tensorPrint {
	ses := s.sessions.served()
	if ses == nil {
		return nil
	}
	t, p := ses.opened(q.Model)
	if p != nil {
		return nil
	}
	t.memory.mu.Lock()
	defer t.memory.mu.Unlock()
	for _, a := range t.memory.attested {
		if a.attestedAt == q.attestedAt {
			return a.tensors[q.Shard]
		}
	}
	return nil
}

// found returns how often ranks of a round have been found to hold something
// else than most.
func found(r *fsm.Round) (n uint64) {
	for _, k := range r.Attesting {
		n += k
	}
	return n
}

// differs returns what was found of the model between its last fence and this
// one, the same on every rank. The history is looked at only if there is
// something.
func (s *Server) differs(t *track, m *matched) []api.Difference {
	if found(&m.after.Round) <= t.attested {
		return nil
	}
	var out []api.Difference
	for i := t.fencedAt + 1; i < m.index; i++ {
		e, _, err := s.replica.Entry(i)
		if err != nil {
			s.log.Warn("what devices were found to hold cannot be read from the history", "index", i, "error", err)
			return out
		}
		for k := range e.Events {
			a := e.Events[k].Attested
			if a == nil || a.Model != t.model || a.Round != t.round {
				continue
			}
			for _, o := range a.Others {
				out = append(out, api.Difference{Index: a.Index, What: a.What, Shard: a.Shard, Ranks: o.Ranks, Tensors: o.Tensors})
			}
		}
	}
	if len(out) > 0 {
		s.log.Error("devices do not hold the same", "model", t.model, "index", out[0].Index, "differs", differsText(out))
	}
	return out
}

// differsText is for this node's own log: the first few, of bounded length.
func differsText(list []api.Difference) string {
	var out []string
	for _, d := range list[:min(len(list), 8)] {
		what := d.What
		if d.Shard != "" {
			what += " of shard " + d.Shard
		}
		text := fmt.Sprintf("ranks %v differ (%s)", d.Ranks[:min(len(d.Ranks), 16)], what)
		if len(d.Tensors) > 0 {
			text = fmt.Sprintf("ranks %v differ in %s (%s)", d.Ranks[:min(len(d.Ranks), 16)], strings.Join(d.Tensors[:min(len(d.Tensors), 8)], ", "), what)
		}
		out = append(out, text)
	}
	return strings.Join(out, "; ")
}
