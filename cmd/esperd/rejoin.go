package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/esperd/esperd/replica"
)

// watch waits for the node to fail. One whose run goes on as another log is
// opened again, as a new one; what else fails is for people.
func (d *daemon) watch(security *replica.PeerSecurity) {
	for {
		select {
		case <-d.node.Failed():
		case <-d.stopping:
			return
		}
		err := d.node.Failure()
		if other, ok := errors.AsType[*replica.OtherLogError](err); ok {
			if err = d.rejoin(other, security); err == nil {
				d.announce()
				continue
			}
		}
		d.cause = err
		close(d.over)
		return
	}
}

// rejoin closes the doors and the node, keeps the data directory aside, whole,
// and opens all of them again, empty. Trainers that call meanwhile do not get
// through and try again.
func (d *daemon) rejoin(other *replica.OtherLogError, security *replica.PeerSecurity) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	at, cancel := context.WithCancel(context.Background())
	cancel() // nobody is there who could lack what this node has
	if err := d.shut(at); err != nil {
		d.log.Warn("while closing a node whose run goes on as another log", "error", err)
	}
	d.doors, d.node, d.dir = nil, nil, nil
	kept, err := replica.SetAside(d.cfg.DataDir)
	if err != nil {
		return fmt.Errorf("%w; that failed: %w", other, err)
	}
	d.log.Warn("THE RUN GOES ON AS ANOTHER LOG: this node's history was moved aside, whole, and the node joins as a new one",
		"evidence", kept, "mine", other.Mine, "other", other.Other, "leader", other.Leader)
	if err := d.open(security); err != nil {
		return fmt.Errorf("opening an empty data directory in the place of the one that is at %s now: %w", kept, err)
	}
	return nil
}
