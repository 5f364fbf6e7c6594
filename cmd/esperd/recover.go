package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/client"
	"github.com/esperd/esperd/recovery"
	"github.com/esperd/esperd/replica"
)

type recoverCmd struct {
	Dirs  []string `arg:"" optional:"" name:"dir" help:"Data directories that are left; absent: this rank's."`
	Yes   bool     `help:"Do it; without, nothing is changed."`
	From  string   `placeholder:"DIR" help:"Go on with this one of the directories, where they contradict each other."`
	Force bool     `help:"Go on although a reachable node has more of the log, or does not let this one ask, or nobody is known to ask, or the end of the log would be dropped. A healthy world is left alone all the same."`
	URL   []string `name:"url" placeholder:"http://HOST:PORT" help:"Admin door of another esperd of the run, to be looked at too; repeatable."`
	JSON  bool     `name:"json" help:"Print JSON."`

	Rank       *string `source:"ESPERD_RANK" group:"who" placeholder:"N" help:"Rank whose directory is meant."`
	WorldSize  *string `source:"ESPERD_WORLD_SIZE" group:"who" placeholder:"N" help:"Number of ranks."`
	RunID      *string `source:"ESPERD_RUN_ID" group:"who" name:"run-id" placeholder:"ID" help:"Run whose directory is meant."`
	DataDir    *string `source:"ESPERD_DATA_DIR" group:"where" placeholder:"DIR" help:"As for esperd run."`
	Join       *string `source:"ESPERD_JOIN" group:"peers" placeholder:"HOST:PORT,..." help:"Further peers to ask."`
	SecretFile *string `source:"ESPERD_SECRET_FILE" group:"peers" placeholder:"FILE" help:"Job secret, to ask the peers."`
	PeerCert   *string `source:"ESPERD_PEER_CERT" group:"peers" placeholder:"FILE" help:"Certificate to show to peers, instead of a secret."`
	PeerKey    *string `source:"ESPERD_PEER_KEY" group:"peers" placeholder:"FILE" help:"Its key."`
	PeerCA     *string `source:"ESPERD_PEER_CA" group:"peers" name:"peer-ca" placeholder:"FILE" help:"CA of the peers' certificates."`
}

// Help says more than the flags do.
func (*recoverCmd) Help() string {
	return `For a run that has lost its quorum: the disks of so many voters are gone that the rest can decide nothing. What is left is verified, and the run goes on from the best of it, under a new lineage.

Stop the esperds of the directories that are left. "esperd recover DIR..." then says what would be kept and lost, and changes nothing; "esperd recover --yes DIR..." does it.

Then start the job as always. The recovered directory's node leads; all others, also those with an old directory, join it as new nodes.

Name all directories that this machine can read (those beside a named one, as rankN of the same run, are looked at too): the most complete one is chosen. The old directory is kept as it was, as DIR.evidence-N. A run of which a majority of the voters can answer, or start, is refused: it needs no recovery. It is also for a log behind a rank 0 whose state was wrong, which no replica that is right can apply any further: the entries from there on are dropped, and named before; --force says that you know that rank 0 was wrong, and not this build.

Where no directory is left, start all ranks with empty ones and resume a checkpoint's mark; the files of the job's --archive-dir, if it had one, tell what was before (esperd audit, replay).`
}

// recoverReport is what esperd recover prints.
type recoverReport struct {
	DryRun    bool              `json:"dry_run"`
	Settled   []string          `json:"interrupted,omitempty"` // what an earlier recovery had left
	Plan      *recovery.Plan    `json:"-"`
	Found     []foundDir        `json:"directories"`
	Peers     []foundPeer       `json:"peers"`
	Continues string            `json:"continues,omitempty"`
	Against   []recovery.Reason `json:"against"`
	Done      *recovery.Done    `json:"done,omitempty"`
}

func (c *recoverCmd) Run(a *app) error {
	r := &resolver{surroundings: a.surroundings, from: map[string]string{}}
	cfg, dirs, err := c.resolve(r)
	if err != nil {
		return usageError{err}
	}
	security, err := peerSecurity(&cfg)
	if err != nil {
		return err
	}
	log := slog.New(slog.DiscardHandler) // what goes wrong is an error, or in the report
	ctx, cancel := a.stopped()
	defer cancel()
	report := &recoverReport{DryRun: !c.Yes, Against: []recovery.Reason{}}
	survivors, err := c.inspect(ctx, r, dirs, report, log)
	if err != nil {
		return err
	}
	if report.Done == nil {
		plan := recovery.Choose(survivors, c.from(r))
		peers := replica.Inquire(ctx, security, addresses(plan, cfg.Join), log)
		plan.Heard(append(peers, c.doors(ctx)...))
		report.fill(plan, c.Force)
		if c.Yes && len(report.Against) == 0 {
			if report.Done, err = recovery.Recover(plan.Chosen, log); err != nil {
				return err
			}
		}
	}
	if c.JSON {
		err = writeJSON(a.stdout, report)
	} else {
		err = report.write(a.stdout, c.again(dirs, c.Force), c.again(dirs, true))
	}
	if err == nil && len(report.Against) > 0 {
		err = fmt.Errorf("nothing was changed: %s", report.Against[0].Why)
	}
	return err
}

// resolve names the directories, in full, and how to ask peers.
func (c *recoverCmd) resolve(r *resolver) (Config, []string, error) {
	f := RunFlags{Rank: c.Rank, WorldSize: c.WorldSize, RunID: c.RunID, DataDir: c.DataDir, SecretFile: c.SecretFile, PeerCert: c.PeerCert, PeerKey: c.PeerKey, PeerCA: c.PeerCA}
	var cfg Config
	for _, step := range []func(RunFlags, *Config) error{r.identity, r.run, r.security} {
		if err := step(f, &cfg); err != nil {
			return cfg, nil, err
		}
	}
	base, err := r.basePort("")
	if err == nil {
		cfg.Join, err = r.joinAddresses(r.pick("join", c.Join), base)
	}
	if err != nil {
		return cfg, nil, err
	}
	list := c.Dirs
	if len(list) == 0 {
		dir := r.pick("data_dir", c.DataDir)
		if dir == "" {
			if dir, err = r.defaultDataDir(cfg.Run, cfg.Rank); err != nil {
				return cfg, nil, err
			}
		}
		list = []string{forRank(dir, cfg.Rank)}
	}
	var dirs []string
	for _, dir := range list {
		dirs = append(dirs, r.place(dir))
	}
	return cfg, withSiblings(dirs), nil
}

var rankDir = regexp.MustCompile(`^rank[0-9]+$`)

// withSiblings adds the directories of the same run that lie beside the named
// ones: voters that could simply be started are no reason to recover.
func withSiblings(dirs []string) []string {
	all := slices.Clone(dirs)
	for _, dir := range dirs {
		mine, err := replica.ReadIdentity(dir)
		if err != nil || mine.Run == "" || !rankDir.MatchString(filepath.Base(dir)) {
			continue
		}
		beside, err := os.ReadDir(filepath.Dir(dir))
		if err != nil {
			continue // it can be read, and no other can
		}
		for _, entry := range beside {
			other := filepath.Join(filepath.Dir(dir), entry.Name())
			if !entry.IsDir() || !rankDir.MatchString(entry.Name()) || slices.Contains(all, other) {
				continue
			}
			if id, err := replica.ReadIdentity(other); err == nil && id.Run == mine.Run {
				all = append(all, other)
			}
		}
	}
	return all
}

// place is a directory behind symbolic links; they stay as they are.
func (r *resolver) place(dir string) string {
	dir = r.abs(dir)
	if at, err := filepath.EvalSymlinks(dir); err == nil {
		return at
	}
	return dir
}

func (c *recoverCmd) from(r *resolver) string {
	if c.From == "" {
		return ""
	}
	return r.place(c.From)
}

// inspect looks at each directory, after what an interrupted recovery has left.
// One that is recovered by that is all there is to do.
func (c *recoverCmd) inspect(ctx context.Context, r *resolver, dirs []string, report *recoverReport, log *slog.Logger) ([]*recovery.Survivor, error) {
	var survivors []*recovery.Survivor
	for _, dir := range dirs {
		left, err := recovery.Leftover(dir)
		if err != nil {
			return nil, err
		}
		if left != "" {
			report.Settled = append(report.Settled, left)
		}
		if left != "" && c.Yes {
			done, err := recovery.Settle(dir)
			if err != nil {
				return nil, c.inUse(ctx, r, dir, err)
			}
			if done {
				report.Done = &recovery.Done{Dir: dir}
				return nil, nil
			}
		}
		s, err := recovery.Inspect(dir, log)
		if err != nil {
			return nil, c.inUse(ctx, r, dir, err)
		}
		survivors = append(survivors, s)
	}
	return survivors, nil
}

// inUse asks the esperd that has a directory open what to do about it.
func (c *recoverCmd) inUse(ctx context.Context, r *resolver, dir string, err error) error {
	used, ok := errors.AsType[*recovery.InUseError](err)
	if !ok {
		return err
	}
	t, terr := r.inDataDir(dir)
	if terr != nil {
		return err
	}
	admin := client.NewAdmin(t.address)
	defer admin.Close()
	ctx, cancel := context.WithTimeout(ctx, answerMax)
	defer cancel()
	s, aerr := admin.State(ctx)
	switch {
	case aerr != nil:
		return fmt.Errorf("%w; its esperd does not answer at %s", used, t.address)
	case s.Quorum:
		return fmt.Errorf("%s is in use, and the world is healthy: its esperd (rank %d) follows a leader, node %s, and is at entry %d of log %s: nothing needs to be recovered", dir, s.Rank, s.Leader, s.Index, s.Lineage)
	}
	return fmt.Errorf("%w; its esperd (rank %d) knows no leader and is at entry %d: if the missing voters come back, it goes on by itself", used, s.Rank, s.Index)
}

// addresses are where to ask: where the members were, and where the
// configuration says that peers are.
func addresses(plan *recovery.Plan, join []string) []string {
	out := plan.Addresses()
	for _, address := range join {
		known := false
		for _, other := range out {
			known = known || other == address
		}
		if !known {
			out = append(out, address)
		}
	}
	return out
}

// doors asks the admin doors that --url names.
func (c *recoverCmd) doors(ctx context.Context) []replica.PeerStatus {
	var out []replica.PeerStatus
	for _, u := range c.URL {
		if !strings.Contains(u, "://") {
			u = "http://" + u
		}
		out = append(out, askDoor(ctx, u))
	}
	return out
}

func askDoor(ctx context.Context, u string) replica.PeerStatus {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	admin := client.NewAdmin(u)
	defer admin.Close()
	s, err := admin.State(ctx)
	if err != nil {
		return replica.PeerStatus{Address: u, Err: err}
	}
	return statusOf(u, s)
}

func statusOf(address string, s *api.State) replica.PeerStatus {
	return replica.PeerStatus{Address: address, Node: s.Node, Rank: s.Rank, Index: s.Index, Run: s.Run, Lineage: s.Lineage, Leader: s.Leader}
}

// again is the command that does what a dry run has told.
func (c *recoverCmd) again(dirs []string, force bool) string {
	words := []string{"esperd recover --yes"}
	if c.From != "" {
		words = append(words, "--from", shellWord(c.From))
	}
	if force {
		words = append(words, "--force")
	}
	for _, url := range c.URL {
		words = append(words, "--url", shellWord(url))
	}
	for _, flag := range []struct {
		name  string
		value *string
	}{{"--join", c.Join}, {"--secret-file", c.SecretFile}, {"--peer-cert", c.PeerCert}, {"--peer-key", c.PeerKey}, {"--peer-ca", c.PeerCA}} {
		if flag.value != nil {
			words = append(words, flag.name, shellWord(*flag.value))
		}
	}
	for _, dir := range dirs {
		words = append(words, shellWord(dir))
	}
	return strings.Join(words, " ")
}

// shellWord quotes what a shell would not take as one word.
func shellWord(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+:@=,") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
