package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
)

const (
	etcdMembers = 3
	valueBytes  = 400 // as an entry of esperd
)

// cluster is 3 members of etcd in this process.
type cluster struct {
	members         []*embed.Etcd
	inside, outside *watched
}

// openEtcd starts the members, durable and with etcd's defaults, and watchers
// spread over them: inside the members, and over gRPC.
func openEtcd(ctx context.Context, b setup) (system, error) {
	c := &cluster{}
	first, cancel := context.WithTimeout(ctx, startMax)
	defer cancel()
	if err := c.start(first, b); err != nil {
		return c, err
	}
	leader, err := leaderOf(first, c.members)
	if err != nil {
		return c, err
	}
	c.inside, err = c.watch(ctx, "inside", b.Ranks, leader, func(e *embed.Etcd) (*clientv3.Client, error) { return v3client.New(e.Server), nil })
	if err != nil {
		return c, err
	}
	c.outside, err = c.watch(ctx, "outside", b.Ranks, leader, func(e *embed.Etcd) (*clientv3.Client, error) {
		return clientv3.New(clientv3.Config{Endpoints: []string{e.Clients[0].Addr().String()}, DialTimeout: startMax})
	})
	return c, err
}

func (c *cluster) start(ctx context.Context, b setup) error {
	var configs []*embed.Config
	var initial []string
	for i := range etcdMembers {
		cfg := embed.NewConfig()
		cfg.Name, cfg.Dir = fmt.Sprintf("m%d", i), filepath.Join(b.Dir, fmt.Sprintf("m%d", i))
		cfg.LogOutputs, cfg.LogLevel = []string{filepath.Join(b.Dir, "log")}, "error"
		scheme := "http"
		if b.TLS {
			scheme, cfg.PeerAutoTLS, cfg.SelfSignedCertValidity = "https", true, 1
		}
		peer, err := freeURL(scheme)
		if err != nil {
			return err
		}
		door, err := freeURL("http")
		if err != nil {
			return err
		}
		cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
		cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{door}, []url.URL{door}
		initial = append(initial, cfg.Name+"="+peer.String())
		configs = append(configs, cfg)
	}
	for _, cfg := range configs {
		cfg.InitialCluster = strings.Join(initial, ",")
		e, err := embed.StartEtcd(cfg)
		if err != nil {
			return err
		}
		c.members = append(c.members, e)
	}
	for _, e := range c.members {
		select {
		case <-e.Server.ReadyNotify():
		case err := <-e.Err():
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (c *cluster) close() error {
	for _, w := range []*watched{c.inside, c.outside} {
		if w != nil {
			for _, client := range w.clients {
				_ = client.Close() // it only goes away
			}
		}
	}
	for _, e := range c.members {
		e.Close()
	}
	return nil
}

func (c *cluster) direct(ctx context.Context, i int) (visible, answered time.Duration, err error) {
	return c.inside.put(ctx, i)
}

func (c *cluster) through(ctx context.Context, i int) (time.Duration, error) {
	visible, _, err := c.outside.put(ctx, i)
	return visible, err
}

func freeURL(scheme string) (url.URL, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return url.URL{}, err
	}
	defer l.Close()
	return url.URL{Scheme: scheme, Host: l.Addr().String()}, nil
}

func leaderOf(ctx context.Context, members []*embed.Etcd) (*embed.Etcd, error) {
	for ctx.Err() == nil {
		for _, e := range members {
			if e.Server.Leader() == e.Server.MemberID() {
				return e, nil
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, ctx.Err()
}

// watched is a key with its watchers.
type watched struct {
	key     string
	clients []*clientv3.Client // the first one, at the leader, puts
	seen    chan sighting
	ranks   int
}

// sighting is a put that a watcher has.
type sighting struct {
	number uint64
	at     time.Time
	err    error
}

// watch returns when all watchers watch.
func (c *cluster) watch(ctx context.Context, key string, ranks int, leader *embed.Etcd, open func(*embed.Etcd) (*clientv3.Client, error)) (*watched, error) {
	w := &watched{key: key, seen: make(chan sighting, ranks), ranks: ranks}
	for i := -1; i < ranks; i++ {
		at := leader
		if i >= 0 {
			at = c.members[i%len(c.members)]
		}
		client, err := open(at)
		if err != nil {
			return w, err
		}
		w.clients = append(w.clients, client)
		if i >= 0 {
			go w.follow(client.Watch(ctx, key, clientv3.WithCreatedNotify()))
		}
	}
	for range ranks {
		if s := <-w.seen; s.err != nil {
			return w, s.err
		}
	}
	return w, nil
}

func (w *watched) follow(responses clientv3.WatchChan) {
	for r := range responses {
		now := time.Now()
		if r.Created || r.Err() != nil {
			w.seen <- sighting{err: r.Err()}
		}
		for _, ev := range r.Events {
			w.seen <- sighting{number: binary.BigEndian.Uint64(ev.Kv.Value), at: now}
		}
	}
}

// put takes the time until the last watcher has it.
func (w *watched) put(ctx context.Context, i int) (visible, answered time.Duration, err error) {
	value := make([]byte, valueBytes)
	binary.BigEndian.PutUint64(value, uint64(i))
	began := time.Now()
	if _, err := w.clients[0].Put(ctx, w.key, string(value)); err != nil {
		return 0, 0, err
	}
	answered = time.Since(began)
	for range w.ranks {
		select {
		case s := <-w.seen:
			if s.err != nil || s.number != uint64(i) {
				return 0, 0, errors.Join(s.err, fmt.Errorf("a watcher has put %d instead of %d", s.number, i))
			}
			visible = max(visible, s.at.Sub(began))
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		}
	}
	return visible, answered, nil
}
