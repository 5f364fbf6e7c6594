package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/esperd/esperd/door"
)

// RunFlags are the flags of run and exec, as text: a flag and its variable are
// read by the same code. Nil: not given.
type RunFlags struct {
	Rank        *string `source:"ESPERD_RANK" group:"who" placeholder:"N" help:"Rank of the trainer beside this esperd, from 0."`
	WorldSize   *string `source:"ESPERD_WORLD_SIZE" group:"who" placeholder:"N" help:"Number of ranks."`
	RunID       *string `source:"ESPERD_RUN_ID" group:"who" name:"run-id" placeholder:"ID" help:"Run to belong to, the same on all ranks."`
	Round       *string `source:"ESPERD_ROUND" group:"who" placeholder:"TEXT" help:"What tells this start of the trainers from another, the same on all ranks."`
	DataDir     *string `source:"ESPERD_DATA_DIR" group:"where" placeholder:"DIR" help:"This node's own directory; {rank} in it becomes the rank."`
	ArchiveDir  *string `source:"ESPERD_ARCHIVE_DIR" group:"where" placeholder:"DIR" help:"Where rank 0's esperd keeps a copy of the log, as esperd events --export writes it: at each checkpoint and at its end."`
	Socket      *string `source:"ESPERD_SOCKET" group:"where" placeholder:"PATH" help:"Unix socket for the trainer; {rank} as above."`
	AdminListen *string `source:"ESPERD_ADMIN_LISTEN" group:"where" placeholder:"HOST:PORT" help:"Address of the admin HTTP door; PORT+rank gives each rank its own."`
	TokenFile   *string `source:"ESPERD_TOKEN_FILE" group:"where" placeholder:"FILE" help:"Token that lets who has it make requests at the admin door; without one, the door only reads."`
	Join        *string `source:"ESPERD_JOIN" group:"peers" placeholder:"HOST[:PORT],..." help:"Peers to ask for the log: rank 0's."`
	Listen      *string `source:"ESPERD_LISTEN" group:"peers" placeholder:"HOST:PORT" help:"Address for peers; PORT+rank gives each rank its own. A world of one has no peers: by default nobody gets in."`
	Advertise   *string `source:"ESPERD_ADVERTISE" group:"peers" placeholder:"HOST" help:"Host under which peers reach this one."`
	SecretFile  *string `source:"ESPERD_SECRET_FILE" group:"peers" placeholder:"FILE" help:"Job secret that peers prove to each other, the same on all ranks."`
	PeerCert    *string `source:"ESPERD_PEER_CERT" group:"peers" placeholder:"FILE" help:"Certificate to show to peers, instead of a secret."`
	PeerKey     *string `source:"ESPERD_PEER_KEY" group:"peers" placeholder:"FILE" help:"Its key."`
	PeerCA      *string `source:"ESPERD_PEER_CA" group:"peers" name:"peer-ca" placeholder:"FILE" help:"CA of the peers' certificates."`
	Insecure    *bool   `source:"ESPERD_INSECURE" group:"peers" help:"Listen beyond loopback without a secret."`
	LogStore    *string `source:"ESPERD_LOG_STORE" group:"tuning" placeholder:"auto|boltdb|wal" help:"How the log is kept on disk; auto: as it is there, and in a directory without one in the wal, which takes half of boltdb's time."`
	Durability  *string `source:"ESPERD_DURABILITY" group:"tuning" placeholder:"durable|relaxed" help:"Whether a decision waits for the disks of a majority of the voters, or for none: relaxed, a machine that crashes or loses power may lose decisions."`
	Device      *string `source:"ESPERD_DEVICE" group:"tuning" placeholder:"auto|host|cuda:N|none" help:"Where seeds' parameters lie, for a trainer that asks for an arena; auto: the trainer's GPU, or the host's memory where there is none."`
	DeviceMax   *string `source:"ESPERD_DEVICE_MEMORY" group:"tuning" name:"device-memory" placeholder:"SIZE" help:"How much memory arenas take at most on this rank, such as 4GiB; a seed for which there is none left is pruned on all ranks."`
	Timeout     *string `source:"ESPERD_DECISION_TIMEOUT" group:"tuning" name:"decision-timeout" placeholder:"DURATION" help:"How long a call waits at most, such as 15m; longer only for a rank that says it is busy."`
	LogLevel    *string `source:"ESPERD_LOG_LEVEL" group:"tuning" placeholder:"debug|info|warn|error" help:"What is logged, to stderr."`
	LogFormat   *string `source:"ESPERD_LOG_FORMAT" group:"tuning" placeholder:"json|text" help:"Form of the log; json unless stderr is a terminal."`
}

// Config is what esperd run does, after precedence.
type Config struct {
	Rank, World uint64
	LocalRank   string // "": nobody said
	Restart     string // torchrun's restart count; "": nobody said
	Run         string // "": the log knows, or one is made when it is founded
	Round       string // the trainers' rendezvous, for those that do not name theirs; "": nobody said
	DataDir     string
	HostRanks   hostRanks // of this host, where the data directory is the default; none: nobody said
	ArchiveDir  string    // "": none
	Socket      string
	SocketDir   bool // the socket has a directory of its own, to be made
	AdminListen string
	TokenFile   string // "": the admin door takes no requests
	Join        []string
	Listen      string
	Advertise   string // "": found when the peers' door opens
	SecretFile  string
	PeerCert    string
	PeerKey     string
	PeerCA      string
	Insecure    bool
	LogStore    string
	Durability  string
	Device      string        // of arenas; opened when a trainer asks for one
	DeviceMax   uint64        // bytes of it; 0: what there is
	Timeout     time.Duration // of a call's wait
	LogLevel    slog.Level
	LogFormat   string // "": by the kind of stderr

	From map[string]string // by setting: the source that won
}

// surroundings is all that decides a Config beside the flags.
type surroundings struct {
	env   map[string]string
	dir   string            // working directory
	isDir func(string) bool // whether a directory is there
}

// launcher is a program that starts ranks and tells them who they are.
type launcher struct {
	name, rank, world, local string
}

// launchers in order of precedence.
var launchers = []launcher{
	{"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"},
	{"SLURM", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"},
	{"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"},
	{"PMI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"},
}

// relaxed is the durability that people are told of, and relaxedMeans what.
const (
	relaxed      = "relaxed"
	relaxedMeans = "a machine that crashes or loses power may lose decisions which trainers have acted on"
)

const (
	basePort      = 7400 // of rank 0's peer door, where there is no MASTER_PORT
	masterPortGap = 100  // from MASTER_PORT to rank 0's peer door
	worldSizeMax  = 4096
	roundBytesMax = 512 // as in api.SessionRequest
)

var devicePattern = regexp.MustCompile(`^(auto|host|none|cuda(:[0-9]{1,3})?)$`)

var runIDPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:@+=-]{0,127}$`)

// resolve applies the precedence: flag, ESPERD_*, torchrun, SLURM, MPI, default.
func resolve(f RunFlags, s surroundings) (Config, error) {
	r := &resolver{surroundings: s, from: map[string]string{}}
	c := Config{From: r.from}
	steps := []func(RunFlags, *Config) error{r.identity, r.run, r.round, r.places, r.peers, r.security, r.tuning}
	for _, step := range steps {
		if err := step(f, &c); err != nil {
			return Config{}, err
		}
	}
	return c, nil
}

type resolver struct {
	surroundings
	from map[string]string
}

// pick returns the first value that is given, and remembers who gave it.
// Variables are named as in "torchrun MASTER_ADDR".
func (r *resolver) pick(setting string, flag *string, variables ...string) string {
	if flag != nil {
		r.from[setting] = "--" + strings.ReplaceAll(setting, "_", "-")
		return *flag
	}
	own := "ESPERD_" + strings.ToUpper(setting)
	for _, v := range append([]string{own}, variables...) {
		name := v[strings.LastIndex(v, " ")+1:]
		if r.env[name] != "" {
			r.from[setting] = v
			return r.env[name]
		}
	}
	return ""
}

func (r *resolver) pickOr(setting, preset string, flag *string) string {
	if v := r.pick(setting, flag); v != "" || flag != nil {
		return v
	}
	r.from[setting] = "default"
	return preset
}

// identity takes rank and world size from one source: halves of two of them
// would be a rank of some other world.
func (r *resolver) identity(f RunFlags, c *Config) error {
	type pair struct {
		source, rankName, worldName string
		rank, world, local          string
	}
	env := func(source, rank, world, local string) pair {
		return pair{source, rank, world, r.env[rank], r.env[world], r.env[local]}
	}
	pairs := []pair{
		{"", "--rank", "--world-size", deref(f.Rank), deref(f.WorldSize), ""},
		env("", "ESPERD_RANK", "ESPERD_WORLD_SIZE", ""),
	}
	for _, l := range launchers {
		pairs = append(pairs, env(l.name+" ", l.rank, l.world, l.local))
	}
	for _, p := range pairs {
		if p.rank == "" && p.world == "" {
			continue
		}
		if p.rank == "" || p.world == "" {
			given, missing := p.rankName, p.worldName
			if p.rank == "" {
				given, missing = missing, given
			}
			return fmt.Errorf("%s%s is set and %s is not, expected both from one source: set %[3]s too, unset %[2]s, or give --rank and --world-size", p.source, given, missing)
		}
		r.from["rank"], r.from["world_size"] = p.source+p.rankName, p.source+p.worldName
		if p.local != "" {
			c.LocalRank = p.local
		}
		return r.parseIdentity(p.rankName, p.rank, p.worldName, p.world, c)
	}
	c.Rank, c.World = 0, 1
	r.from["rank"], r.from["world_size"] = "default", "default"
	return nil
}

func (r *resolver) parseIdentity(rankName, rank, worldName, world string, c *Config) error {
	var err error
	if c.Rank, err = parseNumber(rankName, rank, worldSizeMax); err != nil {
		return err
	}
	if c.World, err = parseNumber(worldName, world, worldSizeMax); err != nil {
		return err
	}
	if c.World == 0 {
		return fmt.Errorf("%s is 0, expected the number of ranks, at least 1", worldName)
	}
	if c.Rank >= c.World {
		return fmt.Errorf("%s is %d and %s is %d, expected a rank from 0 to %d: ranks count from 0", rankName, c.Rank, worldName, c.World, c.World-1)
	}
	return nil
}

func (r *resolver) run(f RunFlags, c *Config) error {
	variables := []string{"SLURM SLURM_JOB_ID"}
	if id := r.env["TORCHELASTIC_RUN_ID"]; id != "none" { // plain torchrun's: no id
		variables = append([]string{"torchrun TORCHELASTIC_RUN_ID"}, variables...)
	}
	c.Run = r.pick("run_id", f.RunID, variables...)
	c.Restart = r.env["TORCHELASTIC_RESTART_COUNT"]
	if c.Run == "" && f.RunID == nil {
		return nil
	}
	if !runIDPattern.MatchString(c.Run) {
		return fmt.Errorf("%s is %.200q, expected 1 to 128 letters, digits or any of . _ : @ + = - (it becomes part of paths), beginning with a letter or digit: choose one with --run-id", r.from["run_id"], c.Run)
	}
	return nil
}

// round tells one rendezvous of the trainers from another, alike on all of its
// ranks, and as the Python client does: trainers that name theirs and trainers
// that leave it to esperd meet in one round.
func (r *resolver) round(f RunFlags, c *Config) error {
	address, port, restart, source := r.env["MASTER_ADDR"], r.env["MASTER_PORT"], r.env["TORCHELASTIC_RESTART_COUNT"], "torchrun MASTER_ADDR"
	if job := r.env["SLURM_JOB_ID"]; address == "" && port == "" && job != "" {
		address, port, restart, source = "slurm-"+job, r.env["SLURM_STEP_ID"], r.env["SLURM_RESTART_COUNT"], "SLURM SLURM_JOB_ID"
	}
	c.Round = r.pick("round", f.Round)
	if c.Round == "" && f.Round == nil && (address != "" || port != "") {
		c.Round = fmt.Sprintf("%s:%s/%d/%s", address, port, c.World, cmp.Or(restart, "0"))
		r.from["round"] = source
	}
	if len(c.Round) > roundBytesMax || f.Round != nil && c.Round == "" {
		return fmt.Errorf("%s is %.80q, which has %d bytes, expected 1 to %d: choose a name with --round", r.from["round"], c.Round, len(c.Round), roundBytesMax)
	}
	return nil
}

// places decides where this node's files and doors are.
func (r *resolver) places(f RunFlags, c *Config) error {
	dir := r.pick("data_dir", f.DataDir)
	if dir == "" {
		var err error
		if dir, err = r.defaultDataDir(c.Run, c.Rank); err != nil {
			return err
		}
		if r.from["rank"] == "torchrun RANK" {
			c.HostRanks = hostRanksOf(r.env, c.Rank, c.World)
		}
	}
	c.DataDir = r.abs(forRank(dir, c.Rank))
	if archive := r.pick("archive_dir", f.ArchiveDir); archive != "" {
		c.ArchiveDir = r.abs(forRank(archive, c.Rank))
	}
	if err := r.socket(f.Socket, c); err != nil {
		return err
	}
	var err error
	c.AdminListen, err = r.listenAddress("admin_listen", r.pickOr("admin_listen", "127.0.0.1:0", f.AdminListen), c.Rank)
	return err
}

// defaultDataDir is where a rank's data is unless told otherwise.
func (r *resolver) defaultDataDir(run string, rank uint64) (string, error) {
	base, from := r.env["XDG_STATE_HOME"], "default, under XDG_STATE_HOME"
	if !filepath.IsAbs(base) { // the specification says to ignore others
		home := r.env["HOME"]
		if !filepath.IsAbs(home) {
			return "", fmt.Errorf("HOME is %q and XDG_STATE_HOME %q, expected an absolute path in one of them to put the data directory under: give --data-dir (ESPERD_DATA_DIR)", home, base)
		}
		base, from = filepath.Join(home, ".local", "state"), "default, under HOME"
	}
	if run == "" {
		run = "default"
	}
	r.from["data_dir"] = from
	return filepath.Join(base, "esperd", run, "rank"+strconv.FormatUint(rank, 10)), nil
}

// forRank lets all ranks share one setting.
func forRank(path string, rank uint64) string {
	return strings.ReplaceAll(path, "{rank}", strconv.FormatUint(rank, 10))
}

func (r *resolver) abs(path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(r.dir, path)
}

func (r *resolver) security(f RunFlags, c *Config) error {
	c.SecretFile = r.pick("secret_file", f.SecretFile)
	c.TokenFile = r.pick("token_file", f.TokenFile)
	c.PeerCert = r.pick("peer_cert", f.PeerCert)
	c.PeerKey = r.pick("peer_key", f.PeerKey)
	c.PeerCA = r.pick("peer_ca", f.PeerCA)
	given := 0
	for _, v := range []string{c.PeerCert, c.PeerKey, c.PeerCA} {
		if v != "" {
			given++
		}
	}
	switch {
	case given != 0 && given != 3:
		return fmt.Errorf("--peer-cert is %q, --peer-key %q, --peer-ca %q, expected all three or none: give the missing ones, or one --secret-file instead", c.PeerCert, c.PeerKey, c.PeerCA)
	case given == 3 && c.SecretFile != "":
		return fmt.Errorf("both a secret (%s) and peer certificates (%s) are given, expected one way for peers to know each other: drop one", r.from["secret_file"], r.from["peer_cert"])
	}
	var flag *string
	if f.Insecure != nil {
		s := strconv.FormatBool(*f.Insecure)
		flag = &s
	}
	insecure := r.pick("insecure", flag)
	switch strings.ToLower(insecure) {
	case "", "0", "false", "no":
	case "1", "true", "yes":
		c.Insecure = true
	default:
		return fmt.Errorf("%s is %q, expected 1 or 0", r.from["insecure"], insecure)
	}
	return nil
}

func (r *resolver) tuning(f RunFlags, c *Config) error {
	c.LogStore = r.pickOr("log_store", "auto", f.LogStore)
	if !slices.Contains([]string{"auto", "boltdb", "wal"}, c.LogStore) {
		return fmt.Errorf("%s is %q, expected auto, boltdb or wal", r.from["log_store"], c.LogStore)
	}
	var err error
	if c.Durability, err = r.durability(f.Durability); err != nil {
		return err
	}
	if c.Device = r.pickOr("device", "auto", f.Device); !devicePattern.MatchString(c.Device) {
		return fmt.Errorf("%s is %.80q, expected auto, host, cuda, cuda:N or none", r.from["device"], c.Device)
	}
	if c.DeviceMax, err = r.size("device_memory", f.DeviceMax); err != nil {
		return err
	}
	if c.Timeout, err = r.timeout(f.Timeout); err != nil {
		return err
	}
	level := r.pickOr("log_level", "info", f.LogLevel)
	switch strings.ToLower(level) {
	case "debug":
		c.LogLevel = slog.LevelDebug
	case "info":
	case "warn":
		c.LogLevel = slog.LevelWarn
	case "error":
		c.LogLevel = slog.LevelError
	default:
		return fmt.Errorf("%s is %q, expected debug, info, warn or error", r.from["log_level"], level)
	}
	c.LogFormat = r.pick("log_format", f.LogFormat)
	switch c.LogFormat {
	case "", "json", "text":
		return nil
	}
	return fmt.Errorf("%s is %q, expected json or text", r.from["log_format"], c.LogFormat)
}

func (r *resolver) durability(flag *string) (string, error) {
	d := r.pickOr("durability", "durable", flag)
	if d != "durable" && d != relaxed {
		return "", fmt.Errorf("%s is %q, expected durable or relaxed", r.from["durability"], d)
	}
	return d, nil
}

// timeoutMin and timeoutMax bound --decision-timeout: ranks are apart by less
// than the one, and nobody waits for the other.
const (
	timeoutMin = time.Second
	timeoutMax = 7 * 24 * time.Hour
)

func (r *resolver) timeout(flag *string) (time.Duration, error) {
	text := r.pickOr("decision_timeout", door.DefaultWaitMax.String(), flag)
	d, err := time.ParseDuration(strings.TrimSpace(text))
	if err != nil || d < timeoutMin || d > timeoutMax {
		return 0, fmt.Errorf("%s is %.80q, expected a time from 1s to 168h, such as 90s or 15m", r.from["decision_timeout"], text)
	}
	return d, nil
}

var sizePattern = regexp.MustCompile(`^([0-9]{1,18}) *(|KiB|MiB|GiB|TiB)$`)

// size reads a number of bytes; 0: nobody said one.
func (r *resolver) size(setting string, flag *string) (uint64, error) {
	text := r.pickOr(setting, "", flag)
	if r.from[setting] == "default" {
		return 0, nil
	}
	var n uint64
	if m := sizePattern.FindStringSubmatch(strings.TrimSpace(text)); m != nil {
		n, _ = strconv.ParseUint(m[1], 10, 64) // which so few digits are
		unit := uint64(1) << (10 * slices.Index([]string{"", "KiB", "MiB", "GiB", "TiB"}, m[2]))
		if n > math.MaxInt64/unit {
			n = 0
		}
		n *= unit
	}
	if n == 0 {
		return 0, fmt.Errorf("%s is %.80q, expected a size such as 512MiB, 4GiB or a number of bytes", r.from[setting], text)
	}
	return n, nil
}

func parseNumber(name, text string, limit uint64) (uint64, error) {
	n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 64)
	if err != nil || n > limit {
		return 0, fmt.Errorf("%s is %.80q, expected a whole number from 0 to %d", name, text, limit)
	}
	return n, nil
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
