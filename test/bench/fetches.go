package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/gates"
	"github.com/esperd/esperd/recovery"
	"github.com/esperd/esperd/replica"
)

// fetches measures a node with an empty disk that joins a long log.
func fetches(entries uint64) func(context.Context, string, func(string, ...any)) error {
	return func(ctx context.Context, dir string, row func(string, ...any)) (err error) {
		log := slog.New(slog.DiscardHandler)
		homes := []string{filepath.Join(dir, "long"), filepath.Join(dir, "empty")}
		bytes, err := longLog(homes[0], entries, log)
		if err != nil {
			return fmt.Errorf("making a log of %d entries: %w", entries, err)
		}
		security, err := replica.LoneSecurity()
		if err != nil {
			return err
		}
		w := &world{}
		defer func() { err = errors.Join(err, w.close()) }()
		var join []string
		var began time.Time
		for rank, home := range homes {
			d, err := replica.OpenDataDir(home, replica.DataDirOptions{})
			if err != nil {
				return err
			}
			w.dirs = append(w.dirs, d)
			network, err := replica.NewNetwork(replica.ListenOptions{Listen: "127.0.0.1:0", Security: security, Node: d.Node(), Log: log})
			if err != nil {
				return err
			}
			if rank == 0 {
				host, _, _ := strings.Cut(network.Addr(), "#") // without the node
				join = []string{host}
			}
			began = time.Now()
			n, err := replica.Open(replica.Config{Rank: uint64(rank), World: 2, Run: "bench", Host: "bench", Join: join, Dir: d, Network: network, Logger: log})
			if err != nil {
				return err
			}
			w.nodes = append(w.nodes, n)
		}
		n := w.nodes[1]
		var joined time.Time
		for n.Status().Index < entries || n.Status().CompleteFrom != 1 {
			if joined.IsZero() && n.Status().Index >= entries {
				joined = time.Now()
			}
			if time.Since(began) > 15*time.Minute {
				return fmt.Errorf("after %s the node has entries %d to %d", time.Since(began), n.Status().CompleteFrom, n.Status().Index)
			}
			time.Sleep(10 * time.Millisecond)
		}
		done := time.Now()
		if joined.IsZero() {
			joined = began
		}
		row("a node with an empty disk has the state of a log of %d entries (%d MB) | after %.1f s", entries, bytes>>20, joined.Sub(began).Seconds())
		row("and its whole history | after %.1f s more, %.0f entries/s", done.Sub(joined).Seconds(), float64(entries)/done.Sub(joined).Seconds())
		return nil
	}
}

// longLog makes the data directory of a node whose log has so many entries, by
// recovering a history that a trainer with 4 slots wrote.
func longLog(home string, entries uint64, log *slog.Logger) (size int64, err error) {
	d, err := replica.OpenDataDir(home, replica.DataDirOptions{})
	if err != nil {
		return 0, err
	}
	t := &trainer{node: d.Node(), state: fsm.New()}
	if err := d.Close(); err != nil {
		return 0, err
	}
	if t.h, err = events.OpenHistory(filepath.Join(home, "history.db"), events.HistoryOptions{Logger: log, NoSync: true}); err != nil {
		return 0, err
	}
	if err := errors.Join(t.train(entries), t.h.Close()); err != nil {
		return 0, err
	}
	if err := replica.WriteIdentity(home, replica.DirIdentity{Node: t.node, Run: t.state.Run, Lineage: t.state.Lineage}); err != nil {
		return 0, err
	}
	s, err := recovery.Inspect(home, log)
	if err != nil {
		return 0, err
	}
	_, err = recovery.Recover(s, log)
	return t.size, err
}

// trainer is rank 0 with a log in a file.
type trainer struct {
	h     *events.History
	node  events.NodeID
	state *fsm.State
	chain events.Digest
	size  int64
}

func (t *trainer) train(entries uint64) error {
	found := events.Event{Founded: &events.Founded{Run: "bench", Lineage: strings.Repeat("0b", 16)}}
	member := events.Member{Node: t.node, Incarnation: "1", Mode: events.ModeKeyed}
	err := errors.Join(t.write(events.Entry{Kind: events.KindFound, Events: []events.Event{found}}),
		t.write(events.Entry{Kind: events.KindRound, Events: []events.Event{{RoundOpened: &events.RoundOpened{Round: 1, Members: []events.Member{member}}}}}))
	var configure fsm.Configure
	for _, name := range []string{"r0c0", "r0c1", "r1c0", "r1c1"} {
		configure.Slots = append(configure.Slots, events.SlotConfig{Name: name, Gates: gates.Defaults()})
	}
	err = errors.Join(err, t.call("", configure))
	for epoch := int64(0); err == nil && t.state.Index < entries; epoch++ {
		for _, s := range configure.Slots {
			switch seed := t.state.Model(directModel).Slot(s.Name).Seed; {
			case seed == nil:
				err = errors.Join(err, t.call(s.Name, fsm.Germinate{Blueprint: "conv", Blend: "sigmoid", Tempo: 5, Algorithm: events.AlgorithmAdd}))
			case !seed.Stage.Cooldown():
				o := api.Observation{Slot: s.Name, Readings: readings(int(epoch))}
				err = errors.Join(err, t.call(s.Name, fsm.Advance{}, o.FSM()))
			}
		}
		err = errors.Join(err, t.call("", fsm.StepEpoch{Epoch: epoch}))
	}
	return err
}

func (t *trainer) call(slot string, args fsm.Args, observations ...fsm.Observation) error {
	key := fsm.NextKey(t.state, directModel, slot, args)
	evs, err := fsm.Decide(t.state, fsm.Call{Key: key, Args: args, Observations: observations})
	if err != nil {
		return err
	}
	return t.write(events.Entry{Kind: events.KindCall, Key: &key, Site: "train.py:188", Events: evs})
}

func (t *trainer) write(e events.Entry) error {
	e.Node, e.Round, e.Predecessor, e.Bookkeeping = t.node, t.state.Round.Number, t.state.Index, t.state.Bookkeeping()
	e.Version, e.Time = events.VersionOf(&e), 1_790_000_000_123_456_789+int64(t.state.Index)*2_345_678
	var id *events.CallID
	if e.Key != nil {
		e.Lifecycle = t.state.Lifecycle(e.Key.Model)
		id = &events.CallID{Round: e.Key.Round, Model: e.Key.Model, Call: e.Key.Call}
	}
	raw, err := events.Encode(&e)
	if err != nil {
		return err
	}
	next, out, err := fsm.Apply(t.state, &e)
	if err != nil || out.Refused != "" {
		return fmt.Errorf("entry %d: %s: %w", next.Index, out.Refused, err)
	}
	t.state, t.chain, t.size = next, events.Chain(t.chain, next.Index, raw), t.size+int64(len(raw))
	r := events.Record{Index: next.Index, Chain: t.chain, RaftIndex: next.Index, Bookkeeping: next.Bookkeeping(), Entry: raw}
	if e.Key != nil {
		r.Lifecycle = next.Lifecycle(e.Key.Model)
	}
	return t.h.Append(r, id)
}
