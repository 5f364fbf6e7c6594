package replica

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// maybeFound starts the log of a world in which nobody has one: the first
// voters are the largest odd number up to 3 of the nodes, lowest ranks first.
func (n *Node) maybeFound(me hello) {
	peers := n.roster.fresh(n.freshness())
	if uint64(len(peers)) != me.World {
		return
	}
	var conf raft.Configuration
	for i, p := range peers {
		if p.Rank != uint64(i) || !p.Empty || p.Lineage != "" || !sameStart(me, p.hello) {
			return
		}
		s := raft.Server{Suffrage: raft.Nonvoter, ID: raft.ServerID(p.Node), Address: raft.ServerAddress(p.Address)}
		if i < voters(len(peers)) {
			s.Suffrage = raft.Voter
		}
		conf.Servers = append(conf.Servers, s)
	}
	err := n.raft.BootstrapCluster(conf).Error()
	if err != nil && !errors.Is(err, raft.ErrCantBootstrap) {
		n.log.Error("the log could not be founded; trying again", "error", err)
		return
	}
	n.log.Info("founding a log", "ranks", me.World)
}

// voters is the largest odd number up to 3 of so many nodes.
func voters(nodes int) int {
	if nodes >= 3 {
		return 3
	}
	return 1
}

// founding makes entry 1. The run id is the user's, or made here and logged.
func (n *Node) founding() (*events.Entry, error) {
	run, lineage := n.cfg.Run, make([]byte, 16)
	for _, p := range n.roster.fresh(n.freshness()) {
		if run == "" || p.Rank == 0 && p.Run != "" {
			run = p.Run
		}
	}
	if _, err := rand.Read(lineage); err != nil {
		return nil, fmt.Errorf("making a lineage: %w", err)
	}
	if run == "" {
		run = fsm.MadeRun(hex.EncodeToString(lineage))
	}
	evs := []events.Event{{Founded: &events.Founded{Run: run, Lineage: hex.EncodeToString(lineage)}}}
	for _, p := range n.roster.fresh(n.freshness()) {
		evs = append(evs, events.Event{NodeJoined: &events.NodeJoined{Node: p.Node, Version: p.Version, Host: p.Host}})
	}
	return &events.Entry{Kind: events.KindFound, Events: evs}, nil
}
