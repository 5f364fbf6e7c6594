package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"time"
)

type runCmd struct {
	RunFlags
}

// Run serves until a signal or a failure. The first signal drains, which waits
// for the other ranks to have the whole log; the second one does not wait.
func (c *runCmd) Run(a *app) error {
	cfg, err := resolve(c.RunFlags, a.surroundings)
	if err != nil {
		return usageError{err}
	}
	limitProcs(a.env)
	d, err := openDaemon(cfg, newLogger(a.stderr, &cfg))
	if err != nil {
		return err
	}
	d.announce()
	select {
	case s := <-a.signals:
		d.log.Info("stopping: waiting until every rank has the whole log; a second signal does not wait", "signal", s.String())
	case <-d.failed():
		err = d.failure()
	}
	return errors.Join(err, d.drain(a.signals))
}

// announce is the one line that says what this process is.
func (d *daemon) announce() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.node == nil {
		return // it is being opened again
	}
	c := &d.cfg
	attrs := []any{"world_size", c.World, "run_id", d.run(), "node", d.node.ID(), "version", thisVersion().Esperd,
		"data_dir", c.DataDir, "socket", c.Socket, "admin", d.adminURL, "peers", d.node.Status().Address, "join", c.Join,
		"log_store", d.node.Status().LogStore, "durability", c.Durability, "device", c.Device, "decision_timeout", c.Timeout.String(), "processors", runtime.GOMAXPROCS(0), "pid", os.Getpid()}
	if c.LocalRank != "" {
		attrs = append(attrs, "local_rank", c.LocalRank)
	}
	if d.archiver != nil {
		attrs = append(attrs, "archive_dir", c.ArchiveDir)
	}
	if c.TokenFile != "" {
		attrs = append(attrs, "token_file", c.TokenFile)
	}
	if c.Round != "" {
		attrs = append(attrs, "round", c.Round)
	}
	if c.Restart != "" {
		attrs = append(attrs, "restart", c.Restart)
	}
	d.log.Info("esperd is up", append(attrs, "from", c.From)...)
	if c.Durability == relaxed {
		d.log.Warn("relaxed durability: " + relaxedMeans + "; a process that is killed loses none; --durability=durable makes every decision wait for the disks")
	}
	for _, w := range d.dir.Warnings() {
		d.log.Warn(w)
	}
	if host, _, err := net.SplitHostPort(c.AdminListen); err == nil && host != "localhost" && !net.ParseIP(host).IsLoopback() {
		warning := "the admin door answers anybody who reaches it: it is read-only and asks for no credentials"
		if d.token != "" {
			warning = "the admin door answers anybody who reaches it, and takes the requests of who has the token, which is not encrypted on its way"
		}
		d.log.Warn(warning, "admin_listen", c.AdminListen)
	}
}

// drainMax bounds how long stopping may take.
const drainMax = 30 * time.Second

// drain closes the daemon, at once when a signal comes meanwhile.
func (d *daemon) drain(signals <-chan os.Signal) error {
	ctx, cancel := context.WithTimeout(context.Background(), drainMax)
	defer cancel()
	go func() {
		select {
		case s := <-signals:
			d.log.Warn("stopping at once: other ranks may lack the last entries until this one is back", "signal", s.String())
			cancel()
		case <-ctx.Done():
		}
	}()
	err := d.close(ctx)
	if err != nil {
		return fmt.Errorf("while stopping: %w", err)
	}
	d.log.LogAttrs(ctx, slog.LevelInfo, "stopped")
	return nil
}
