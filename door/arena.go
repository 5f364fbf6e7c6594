package door

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/gpuexec"
	"github.com/esperd/esperd/gpuexec/device"
	"github.com/esperd/esperd/gpuexec/element"
)

const (
	arenaPath     = "/v1/arena"
	arenaProtocol = "esperd-arena"
	arenaSendMax  = 30 * time.Second
)

// arenaCalls registers how a trainer binds a module to a seed in the arena.
func (s *Server) arenaCalls(a huma.API) {
	huma.Register(a, post("attach", "/v1/slots/{slot}/attach", "Compare a module with the log's blueprint, and say where its parameters lie in the arena"),
		func(_ context.Context, in *slotInput[api.AttachRequest]) (*output[api.View], error) {
			return result[api.View](s.attach(in.Slot, &in.Body))
		})
	huma.Register(a, post("loaded", "/v1/slots/{slot}/loaded", "Say that the contents of a seed whose memory was lost are there again"),
		func(_ context.Context, in *slotInput[api.LoadedRequest]) (*output[api.OK], error) {
			t, p := s.withMemory(in.Body.Session, in.Body.Model)
			if p != nil {
				return nil, p
			}
			defer t.memory.mu.Unlock()
			t.memory.exec.Loaded(in.Slot)
			return &output[api.OK]{Body: &api.OK{OK: true}}, nil
		})
}

// withMemory returns a track that has an executor, with its memory's mu held.
func (s *Server) withMemory(session, model string) (*track, *api.Problem) {
	_, t, p := s.track(session, model)
	if p != nil {
		return nil, p
	}
	t.memory.mu.Lock()
	switch {
	case t.memory.exec == nil:
		p = problemf(events.CodeConfigMismatch, "model %s has no memory here: its session has ended, or the round is in the mode observe", t.model)
	case t.memory.device == nil:
		p = problemf(events.CodeConfigMismatch, "model %s has no arena: the trainer connected without asking for one (arena)", t.model)
	default:
		return t, nil
	}
	t.memory.mu.Unlock()
	return nil, p
}

func (s *Server) attach(slot string, in *api.AttachRequest) (any, error) {
	t, p := s.withMemory(in.Session, in.Model)
	if p != nil {
		return nil, p
	}
	defer t.memory.mu.Unlock()
	v, err := t.memory.exec.View(slot, in.Tensors)
	if errors.Is(err, gpuexec.ErrNoRoom) {
		return nil, problemf(events.CodeNoRoom, "attach: rank %d: %v; this rank has voted so: go on without its module, the next fence that finds the vote in the log prunes the seed on all ranks", s.rank, err)
	}
	if err != nil {
		return nil, problemf(events.CodeConfigMismatch, "attach: rank %d: %v", s.rank, err)
	}
	out := &api.View{Slot: v.Slot, Seed: v.Seed, Blueprint: v.Blueprint, Entry: v.Entry, Lost: v.Lost, Trainable: v.Flags&element.Trainable != 0}
	for i := range v.Tensors {
		x := &v.Tensors[i]
		out.Tensors = append(out.Tensors, api.ViewTensor{Name: x.Name, DType: x.Type, Shape: x.Shape, Elements: x.Elements,
			Parameter: x.Parameter, Gradient: x.Gradient, Master: x.Master})
	}
	return out, nil
}

// serveArena changes the protocol of a connection of the trainer's door: what
// HTTP cannot carry are file descriptors. It gives the arena to the process whose
// session it is, and to no other.
func (s *Server) serveArena(w http.ResponseWriter, r *http.Request) {
	var body bytes.Buffer
	if p := readBody(&body, r.Body, api.BodyBytesMax); p != nil {
		w.Header().Set("Connection", "close")
		writeProblem(w, p)
		return
	}
	var in api.ArenaRequest
	if err := json.Unmarshal(body.Bytes(), &in); err != nil || r.Header.Get("Upgrade") != arenaProtocol {
		writeProblem(w, problemf(events.CodeInvalidInput, "arena: expected JSON with a session, and the header Upgrade: %s (%v)", arenaProtocol, err))
		return
	}
	if in.Model == "" {
		in.Model = api.DefaultModel
	}
	ses, p := s.sessions.find(in.Session)
	if p == nil {
		pid, _ := r.Context().Value(pidKey{}).(int)
		if own := ses.process(); own != nil && pid > 0 && own.pid != pid {
			p = problemf(events.CodeNotAuthority, "arena: this is process %d, and the session is process %d's: a second process would write into its parameters", pid, own.pid)
		}
	}
	if p != nil {
		writeProblem(w, p)
		return
	}
	if in.Tensors != nil {
		s.upgraded(w, func(c *net.UnixConn) error { return fingerprintFile(c, in.Tensors) })
		return
	}
	t, p := s.withMemory(in.Session, in.Model)
	if p != nil {
		writeProblem(w, p)
		return
	}
	defer t.memory.mu.Unlock() // no chunk goes while it is handed over
	o, err := t.memory.exec.Attach(in.Session)
	if err != nil {
		writeProblem(w, problemf(events.CodeConfigMismatch, "rank %d: %v", s.rank, err))
		return
	}
	s.upgraded(w, func(c *net.UnixConn) error { return device.Send(c, o) })
}

// upgraded runs the rest of a connection in the arena's protocol.
func (s *Server) upgraded(w http.ResponseWriter, serve func(*net.UnixConn) error) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		writeProblem(w, problemf(events.CodeUnavailable, "arena: this connection cannot change its protocol: %v", err))
		return
	}
	defer conn.Close()
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return
	}
	_ = c.SetDeadline(time.Now().Add(arenaSendMax)) // a trainer that reads nothing holds nobody up
	_, err = c.Write([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + arenaProtocol + "\r\n\r\n"))
	if err == nil {
		err = serve(c)
	}
	if err != nil {
		s.log.Warn("what the trainer asked of the arena did not reach it", "error", err)
	}
}

// fingerprintFile takes a file from a trainer and answers with the fingerprints
// of the tensors in it, or why there are none: length (4 bytes, little-endian)
// and JSON.
func fingerprintFile(c *net.UnixConn, list []api.HostTensor) error {
	var out struct {
		Fingerprints []element.Fingerprint `json:"fingerprints,omitempty"`
		Error        string                `json:"error,omitempty"`
	}
	prints, err := fingerprints(c, list)
	if out.Fingerprints = prints; err != nil {
		out.Error = err.Error()
	}
	text, err := json.Marshal(out)
	if err != nil {
		return err
	}
	_, err = c.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(text))), text...))
	return err
}

func fingerprints(c *net.UnixConn, list []api.HostTensor) ([]element.Fingerprint, error) {
	f, err := device.ReceiveFile(c)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := make([]element.Fingerprint, len(list))
	for i := range list {
		x := &list[i]
		if out[i], err = gpuexec.FingerprintOf(f, x.DType, x.Shape, x.Offset, x.Bytes); err != nil {
			return nil, err
		}
	}
	return out, nil
}
