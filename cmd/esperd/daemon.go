package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/esperd/esperd/door"
	"github.com/esperd/esperd/gpuexec"
	"github.com/esperd/esperd/gpuexec/device"
	"github.com/esperd/esperd/recovery"
	"github.com/esperd/esperd/replica"
)

// adminAddrName is the file, in the data directory, that says where the admin
// door is: its port is a free one.
const adminAddrName = "admin.addr"

// daemon is a running esperd: its data directory, its node and its doors.
type daemon struct {
	cfg  Config
	base *slog.Logger // for those who add the rank themselves
	log  *slog.Logger

	watching sync.WaitGroup
	stopping chan struct{} // closed when close begins
	over     chan struct{} // closed when the node has failed for good
	cause    error         // why, after over

	mu       sync.Mutex // what follows is replaced by rejoin
	dir      *replica.DataDir
	node     *replica.Node
	doors    *door.Server
	archiver *archiver // nil: nothing is archived
	adminURL string
	token    string // for requests at the admin door; "": nobody's
}

// openDaemon starts everything, in the order in which one needs the other. What
// it started is closed again when a later step fails.
func openDaemon(cfg Config, base *slog.Logger) (_ *daemon, err error) {
	d := &daemon{cfg: cfg, base: base, log: base.With("rank", cfg.Rank), stopping: make(chan struct{}), over: make(chan struct{})}
	defer func() {
		if err != nil {
			at, cancel := context.WithCancel(context.Background())
			cancel() // nothing has happened that others could lack
			err = errors.Join(err, d.close(at))
		}
	}()
	security, err := peerSecurity(&cfg)
	if err != nil {
		return d, err
	}
	if err := replica.CheckExposure(cfg.Listen, security != nil, cfg.Insecure); err != nil {
		return d, err
	}
	if cfg.Insecure && security == nil {
		d.log.Warn("--insecure: whoever can reach the peers' address can write into the log", "listen", cfg.Listen)
	}
	if d.token, err = readToken(cfg.TokenFile); err != nil {
		return d, err
	}
	if err := recovery.Pending(d.cfg.DataDir); err != nil {
		return d, err
	}
	adopt(&d.cfg, d.log)
	if err := d.open(security); err != nil {
		return d, err
	}
	d.watching.Go(func() { d.watch(security) })
	return d, nil
}

// open opens the data directory, the node and its doors.
func (d *daemon) open(security *replica.PeerSecurity) (err error) {
	if d.cfg.SocketDir {
		if err := ownSocketDir(filepath.Dir(d.cfg.Socket)); err != nil {
			return err
		}
	}
	if d.dir, err = replica.OpenDataDir(d.cfg.DataDir, replica.DataDirOptions{}); err != nil {
		return d.ownRun(err)
	}
	if d.cfg.World == 1 {
		if security, err = d.alone(security); err != nil {
			return err
		}
	}
	if err := d.openNode(security); err != nil {
		return err
	}
	return d.openDoors()
}

// ownRun says what jobs without a run id share.
func (d *daemon) ownRun(err error) error {
	if d.cfg.Run == "" && strings.HasPrefix(d.cfg.From["data_dir"], "default") {
		return fmt.Errorf("%w. Jobs without a run id share this place: give each one of its own (--run-id, ESPERD_RUN_ID)", err)
	}
	return err
}

// peerSecurity is nil where peers need not prove anything.
func peerSecurity(c *Config) (*replica.PeerSecurity, error) {
	switch {
	case c.SecretFile != "":
		return replica.SecretSecurity(c.SecretFile)
	case c.PeerCert != "":
		return replica.FileSecurity(c.PeerCert, c.PeerKey, c.PeerCA)
	}
	return nil, nil
}

// alone settles what the ranks of a world agree on and a world of one makes up:
// the run's id, and, unless the user opened a peers' door, a secret that nobody
// else has. It has no peers, but every process of this machine could reach its
// door, and end the trainer's round.
func (d *daemon) alone(security *replica.PeerSecurity) (*replica.PeerSecurity, error) {
	c := &d.cfg
	if c.Run == "" && d.dir.Run() == "" {
		c.Run, c.From["run_id"] = "run-"+strings.ToLower(rand.Text()[:8]), "made here"
	}
	if security != nil || c.From["listen"] != "default" {
		return security, nil
	}
	c.From["secret_file"] = "made here, for this process alone"
	return replica.LoneSecurity()
}

func (d *daemon) openNode(security *replica.PeerSecurity) error {
	c := &d.cfg
	if c.Advertise == "" {
		if c.Advertise = outwardHost(c); c.Advertise != "" {
			c.From["advertise"] = "found here: " + c.Advertise
		}
	}
	network, err := replica.NewNetwork(replica.ListenOptions{Listen: c.Listen, Advertise: c.Advertise, Security: security, Node: d.dir.Node(), Log: d.log})
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "" // for people only
	}
	d.node, err = replica.Open(replica.Config{Rank: c.Rank, World: c.World, Start: c.Round, Run: c.Run, Host: host, Join: c.Join,
		Dir: d.dir, LogStore: c.LogStore, Durability: c.Durability, Build: thisVersion().build(), Network: network, Logger: d.base})
	return err // a node that does not open closes its network
}

func (d *daemon) openDoors() error {
	var err error
	o := door.Options{Replica: d.node, Socket: d.cfg.Socket, Admin: d.cfg.AdminListen, Version: thisVersion().Esperd,
		Fingerprint: d.cfg.Round, WaitMax: d.cfg.Timeout, Token: d.token, OpenDevice: d.openDevice, Logger: d.base}
	if d.cfg.ArchiveDir != "" && d.cfg.Rank == 0 {
		d.archiver = startArchiver(d.cfg.ArchiveDir, d.node, d.log)
		o.Archive = d.archiver
	}
	if d.doors, err = door.Open(o); err != nil {
		return err
	}
	d.adminURL = "http://" + d.doors.AdminAddr()
	if err := os.WriteFile(d.dir.Path(adminAddrName), []byte(d.adminURL+"\n"), 0o600); err != nil {
		return fmt.Errorf("cannot say where the admin door is: %w", err)
	}
	return nil
}

// openDevice opens what arenas lie on, for the first trainer that asks for one.
func (d *daemon) openDevice(uuid string) (device.Device, error) {
	opened, why, err := gpuexec.OpenDevice(d.cfg.Device, uuid)
	switch {
	case err != nil:
		return nil, fmt.Errorf("--device %s (%s): %w", d.cfg.Device, d.cfg.From["device"], err)
	case opened == nil:
		return nil, nil
	}
	d.log.Info("arenas lie on a device", "device", opened.Name(), "kind", opened.Kind(), "uuid", opened.UUID(), "why_no_gpu", why, "bytes_max", d.cfg.DeviceMax)
	if d.cfg.DeviceMax > 0 {
		return device.Limited(opened, d.cfg.DeviceMax), nil
	}
	return opened, nil
}

// outwardHost is under which address other hosts reach this one: the one from
// which it would talk to rank 0. "" leaves it to the listen address.
func outwardHost(c *Config) string {
	host, _, err := net.SplitHostPort(c.Listen)
	if ip := net.ParseIP(host); err != nil || host != "" && (ip == nil || !ip.IsUnspecified()) {
		return ""
	}
	for _, join := range c.Join {
		conn, err := net.Dial("udp", join) // sends nothing
		if err != nil {
			continue
		}
		local, _, err := net.SplitHostPort(conn.LocalAddr().String())
		conn.Close()
		if err == nil && !loopback(local) {
			return local
		}
	}
	// Rank 0 on this host, under a name that means loopback here, or no route.
	name, err := os.Hostname()
	if err != nil {
		return "127.0.0.1"
	}
	return name
}

// runID is the run's, as far as it is known: the log's own is known once the
// node is part of it.
func (d *daemon) runID() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.run()
}

// run is runID with d.mu held.
func (d *daemon) run() string {
	if d.node != nil {
		if run := d.node.Status().Run; run != "" {
			return run
		}
	}
	return d.cfg.Run
}

// failed is closed when the daemon cannot go on.
func (d *daemon) failed() <-chan struct{} { return d.over }

func (d *daemon) failure() error { return fmt.Errorf("this node cannot go on: %w", d.cause) }

// failureMax is how long the log may take to hear that the trainer failed.
const failureMax = 2 * time.Second

// trainerFailed tells the other ranks, which would wait for this one's trainer.
func (d *daemon) trainerFailed(how string) {
	ctx, cancel := context.WithTimeout(context.Background(), failureMax)
	defer cancel()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.doors != nil {
		d.doors.TrainerFailed(ctx, how)
	}
}

// close stops taking calls, lets every live node catch up for as long as ctx
// lasts, and leaves everything on disk. It closes what openDaemon got to.
func (d *daemon) close(ctx context.Context) error {
	close(d.stopping)
	d.watching.Wait()
	return d.shut(ctx)
}

// shut is the opposite of open.
func (d *daemon) shut(ctx context.Context) error {
	var errs []error
	if d.doors != nil {
		if err := d.doors.Close(ctx); err != nil && !errors.Is(err, context.Canceled) {
			errs = append(errs, err)
		}
		if err := os.Remove(d.dir.Path(adminAddrName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if d.archiver != nil { // after the last call, before the node's log closes
		d.archiver.close(ctx)
		d.archiver = nil
	}
	if d.cfg.SocketDir { // outside the data directory nothing stays
		_ = os.Remove(d.cfg.Socket + door.WordSuffix)
		_ = os.Remove(d.cfg.Socket + door.TrainerSuffix)
		_ = os.Remove(filepath.Dir(d.cfg.Socket)) // only an empty one goes
	}
	if d.node != nil {
		errs = append(errs, d.node.Close(ctx))
	}
	if d.dir != nil {
		errs = append(errs, d.dir.Close())
	}
	return errors.Join(errs...)
}
