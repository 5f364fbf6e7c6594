package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/door"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/gates"
	"github.com/esperd/esperd/replica"
)

const (
	startMax    = time.Minute
	slot        = "r0c0"
	directModel = "direct" // beside the clients' model, whose calls are numbered apart
)

// world is one node for each rank, with its doors and a client, in this
// process.
type world struct {
	dirs    []*replica.DataDir
	nodes   []*replica.Node
	doors   []*door.Server
	clients []*client.Client
	watches []chan events.CallID
	seen    chan time.Time
}

// openEsperd opens the nodes and a round of trainers.
func openEsperd(ctx context.Context, b setup) (system, error) {
	w := &world{clients: make([]*client.Client, b.Ranks), seen: make(chan time.Time, b.Ranks)}
	if err := w.openNodes(b); err != nil {
		return w, err
	}
	first, cancel := context.WithTimeout(ctx, startMax)
	defer cancel()
	err := w.onRanks(func(rank int) (err error) {
		w.clients[rank], err = client.Connect(first, w.doors[rank].Socket(), client.Options{Rank: uint64(rank), World: uint64(b.Ranks),
			Slots: []api.SlotRequest{{Name: slot}}})
		if err != nil {
			return err
		}
		if _, err := w.clients[rank].Germinate(first, slot, api.GerminateRequest{Blueprint: "conv"}); err != nil {
			return err
		}
		_, err = w.clients[rank].Advance(first, slot)
		return err
	})
	if err != nil {
		return w, err
	}
	for _, args := range []fsm.Args{
		fsm.Configure{Slots: []events.SlotConfig{{Name: slot, Gates: gates.Defaults()}}},
		fsm.Germinate{Blueprint: "conv", Blend: "sigmoid", Tempo: 5, Algorithm: events.AlgorithmAdd},
		fsm.Advance{},
	} {
		if _, err := w.nodes[0].Decide(first, w.call(args)); err != nil {
			return w, err
		}
	}
	for _, n := range w.nodes {
		watch := make(chan events.CallID)
		w.watches = append(w.watches, watch)
		go watchNode(ctx, n, watch, w.seen)
	}
	return w, nil
}

func (w *world) openNodes(b setup) error {
	logFile, err := os.Create(filepath.Join(b.Dir, "log"))
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(logFile, &slog.HandlerOptions{Level: slog.LevelWarn}))
	secret := filepath.Join(b.Dir, "secret")
	if err := os.WriteFile(secret, []byte(rand.Text()+rand.Text()), 0o600); err != nil {
		return err
	}
	security, err := replica.SecretSecurity(secret)
	if err != nil {
		return err
	}
	var join []string
	for rank := range b.Ranks {
		home := filepath.Join(b.Dir, fmt.Sprint(rank))
		dir, err := replica.OpenDataDir(home, replica.DataDirOptions{})
		if err != nil {
			return err
		}
		w.dirs = append(w.dirs, dir)
		network, err := replica.NewNetwork(replica.ListenOptions{Listen: "127.0.0.1:0", Security: security, Node: dir.Node(), Log: log})
		if err != nil {
			return err
		}
		if rank == 0 {
			host, _, _ := strings.Cut(network.Addr(), "#") // without the node
			join = []string{host}
		}
		n, err := replica.Open(replica.Config{Rank: uint64(rank), World: uint64(b.Ranks), Run: "bench", Host: "bench",
			Join: join, Dir: dir, LogStore: b.Store, Network: network, Logger: log})
		if err != nil {
			return err
		}
		w.nodes = append(w.nodes, n)
		d, err := door.Open(door.Options{Replica: n, Socket: filepath.Join(home, "sock"), Version: "bench", Logger: log})
		if err != nil {
			return err
		}
		w.doors = append(w.doors, d)
	}
	return nil
}

func (w *world) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, c := range w.clients {
		if c != nil {
			_ = c.Close()
		}
	}
	var err error
	for _, d := range w.doors {
		err = errors.Join(err, d.Close(ctx))
	}
	var all sync.WaitGroup
	for _, n := range w.nodes {
		all.Go(func() { _ = n.Close(ctx) }) // nobody reads these directories again
	}
	all.Wait()
	for _, d := range w.dirs {
		err = errors.Join(err, d.Close())
	}
	return err
}

// onRanks calls fn for every rank at once.
func (w *world) onRanks(fn func(rank int) error) error {
	errs := make(chan error)
	for rank := range w.nodes {
		go func() { errs <- fn(rank) }()
	}
	var err error
	for range w.nodes {
		err = errors.Join(err, <-errs)
	}
	return err
}

// call is rank 0's next call of directModel, as its door would make it.
func (w *world) call(args fsm.Args, observations ...fsm.Observation) fsm.Call {
	on := slot
	if _, ok := args.(fsm.Configure); ok {
		on = ""
	}
	return fsm.Call{Key: fsm.NextKey(w.nodes[0].State(), directModel, on, args), Site: "bench.go:1", Observations: observations, Args: args}
}

// direct is an observation and an advance whose gate fails, decided by rank 0's
// node: from there to the last node that has it applied.
func (w *world) direct(ctx context.Context, i int) (visible, answered time.Duration, err error) {
	observed := api.Observation{Slot: slot, Readings: readings(i)}
	c := w.call(fsm.Advance{}, observed.FSM())
	for _, watch := range w.watches {
		watch <- events.CallID{Round: c.Key.Round, Model: c.Key.Model, Call: c.Key.Call}
	}
	began := time.Now()
	if _, err = w.nodes[0].Decide(ctx, c); err != nil {
		return 0, 0, err
	}
	answered = time.Since(began)
	for range w.watches {
		select {
		case at := <-w.seen:
			visible = max(visible, at.Sub(began))
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		}
	}
	return visible, answered, nil
}

// watchNode tells when a node has the entry of a call.
func watchNode(ctx context.Context, n *replica.Node, watch chan events.CallID, seen chan time.Time) {
	for {
		var id events.CallID
		select {
		case id = <-watch:
		case <-ctx.Done():
			return
		}
		for {
			changed := n.Changed()
			if _, found, _ := n.Find(id); found {
				seen <- time.Now()
				break
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}
}

func readings(i int) api.Readings {
	return api.Readings{Accuracy: api.Value(events.Num(50 + float64(i%7)/10)), GradientRatio: api.Value(events.Num(0.0137)),
		GradientNorm: api.Value(events.Num(1.883)), Health: api.Value(events.Num(0.94))}
}

// through is the same call made by the clients of all ranks at once: from rank
// 0's call to the last rank's answer.
func (w *world) through(ctx context.Context, i int) (time.Duration, error) {
	var began time.Time
	err := w.onRanks(func(rank int) error {
		if rank == 0 {
			began = time.Now()
		}
		w.clients[rank].Observe(slot, readings(i))
		_, err := w.clients[rank].Advance(ctx, slot)
		return err
	})
	return time.Since(began), err
}
