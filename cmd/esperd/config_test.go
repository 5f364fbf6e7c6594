package main

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func str(s string) *string { return &s }

func testSurroundings(env map[string]string) surroundings {
	all := map[string]string{"HOME": "/home/u"}
	for k, v := range env {
		all[k] = v
	}
	return surroundings{env: all, dir: "/cwd", isDir: func(d string) bool { return d == "/tmp" || d == "/run/user/7" }}
}

func TestResolveIdentity(t *testing.T) {
	for name, c := range map[string]struct {
		flags       RunFlags
		env         map[string]string
		rank, world uint64
		from        string
		err         []string // words of the error; nil: none
	}{
		"nothing":  {world: 1, from: "default"},
		"flags":    {flags: RunFlags{Rank: str("1"), WorldSize: str("2"), Join: str("h")}, rank: 1, world: 2, from: "--rank"},
		"own":      {env: map[string]string{"ESPERD_RANK": "2", "ESPERD_WORLD_SIZE": "3", "ESPERD_JOIN": "h"}, rank: 2, world: 3, from: "ESPERD_RANK"},
		"torchrun": {env: map[string]string{"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "h"}, rank: 3, world: 4, from: "torchrun RANK"},
		"SLURM":    {env: map[string]string{"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "ESPERD_JOIN": "h"}, rank: 3, world: 4, from: "SLURM SLURM_PROCID"},
		"Open MPI": {env: map[string]string{"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "4", "ESPERD_JOIN": "h"}, world: 4, from: "Open MPI OMPI_COMM_WORLD_RANK"},
		"PMI":      {env: map[string]string{"PMI_RANK": "1", "PMI_SIZE": "4", "ESPERD_JOIN": "h"}, rank: 1, world: 4, from: "PMI PMI_RANK"},
		"flag over all": {flags: RunFlags{Rank: str("0"), WorldSize: str("1")}, env: map[string]string{"ESPERD_RANK": "5", "ESPERD_WORLD_SIZE": "6", "RANK": "7", "WORLD_SIZE": "8"},
			world: 1, from: "--rank"},
		"own over torchrun":   {env: map[string]string{"ESPERD_RANK": "1", "ESPERD_WORLD_SIZE": "6", "RANK": "7", "WORLD_SIZE": "8", "MASTER_ADDR": "h"}, rank: 1, world: 6, from: "ESPERD_RANK"},
		"torchrun over SLURM": {env: map[string]string{"RANK": "7", "WORLD_SIZE": "8", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "MASTER_ADDR": "h"}, rank: 7, world: 8, from: "torchrun RANK"},
		"SLURM over MPI":      {env: map[string]string{"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "PMI_RANK": "1", "PMI_SIZE": "2"}, world: 1, from: "SLURM SLURM_PROCID"},
		"empty is unset":      {env: map[string]string{"RANK": "", "WORLD_SIZE": ""}, world: 1, from: "default"},

		"flag without world":     {flags: RunFlags{Rank: str("1")}, err: []string{"--rank", "--world-size"}},
		"flag without rank":      {flags: RunFlags{WorldSize: str("4")}, env: map[string]string{"RANK": "1"}, err: []string{"--rank", "--world-size"}},
		"own without world":      {env: map[string]string{"ESPERD_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"}, err: []string{"ESPERD_RANK", "ESPERD_WORLD_SIZE"}},
		"torchrun without world": {env: map[string]string{"RANK": "1"}, err: []string{"torchrun RANK", "WORLD_SIZE"}},
		"SLURM without rank":     {env: map[string]string{"SLURM_NTASKS": "4"}, err: []string{"SLURM_PROCID", "SLURM_NTASKS"}},
		"rank outside world":     {env: map[string]string{"RANK": "4", "WORLD_SIZE": "4", "MASTER_ADDR": "h"}, err: []string{"torchrun"}},
		"not a number":           {flags: RunFlags{Rank: str("one"), WorldSize: str("4")}, err: []string{"--rank", `"one"`, "whole number"}},
		"negative":               {env: map[string]string{"ESPERD_RANK": "-1", "ESPERD_WORLD_SIZE": "4"}, err: []string{"ESPERD_RANK", `"-1"`}},
		"no ranks":               {env: map[string]string{"RANK": "0", "WORLD_SIZE": "0"}, err: []string{"WORLD_SIZE", "at least 1"}},
		"too many":               {env: map[string]string{"RANK": "0", "WORLD_SIZE": "99999999"}, err: []string{"WORLD_SIZE", "4096"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := resolve(c.flags, testSurroundings(c.env))
			if c.err != nil {
				require.Error(t, err)
				if name == "rank outside world" {
					require.ErrorContains(t, err, "RANK is 4 and WORLD_SIZE is 4, expected a rank from 0 to 3")
					return
				}
				for _, word := range c.err {
					require.ErrorContains(t, err, word)
				}
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.rank, got.Rank)
			require.Equal(t, c.world, got.World)
			require.Equal(t, c.from, got.From["rank"])
		})
	}
}

func TestResolveRunID(t *testing.T) {
	for name, c := range map[string]struct {
		flag      *string
		env       map[string]string
		run, from string
		err       string
	}{
		"none":         {},
		"flag":         {flag: str("a"), env: map[string]string{"ESPERD_RUN_ID": "b"}, run: "a", from: "--run-id"},
		"own":          {env: map[string]string{"ESPERD_RUN_ID": "b", "TORCHELASTIC_RUN_ID": "c"}, run: "b", from: "ESPERD_RUN_ID"},
		"torchrun":     {env: map[string]string{"TORCHELASTIC_RUN_ID": "c", "SLURM_JOB_ID": "7"}, run: "c", from: "torchrun TORCHELASTIC_RUN_ID"},
		"no torchrun":  {env: map[string]string{"TORCHELASTIC_RUN_ID": "none", "SLURM_JOB_ID": "7"}, run: "7", from: "SLURM SLURM_JOB_ID"},
		"only none":    {env: map[string]string{"TORCHELASTIC_RUN_ID": "none"}},
		"a path":       {flag: str("../x"), err: "--run-id"},
		"hidden":       {env: map[string]string{"ESPERD_RUN_ID": ".x"}, err: "ESPERD_RUN_ID"},
		"given, empty": {flag: str(""), err: "--run-id"},
		"too long":     {flag: str(strings.Repeat("x", 129)), err: "--run-id"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := resolve(RunFlags{RunID: c.flag}, testSurroundings(c.env))
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.run, got.Run)
			require.Equal(t, c.from, got.From["run_id"])
			dir := "default"
			if c.run != "" {
				dir = c.run
			}
			require.Equal(t, "/home/u/.local/state/esperd/"+dir+"/rank0", got.DataDir)
		})
	}
}

func TestResolveRound(t *testing.T) {
	torchrun := map[string]string{"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "RANK": "1", "WORLD_SIZE": "4", "TORCHELASTIC_RESTART_COUNT": "2", "SLURM_JOB_ID": "7"}
	with := func(kv ...string) map[string]string {
		env := maps.Clone(torchrun)
		for i := 0; i < len(kv); i += 2 {
			env[kv[i]] = kv[i+1]
		}
		return env
	}
	for name, c := range map[string]struct {
		flag        *string
		env         map[string]string
		round, from string
		err         string
	}{
		"nothing":      {},
		"torchrun":     {env: torchrun, round: "10.0.0.1:29500/4/2", from: "torchrun MASTER_ADDR"},
		"no count":     {env: with("TORCHELASTIC_RESTART_COUNT", ""), round: "10.0.0.1:29500/4/0", from: "torchrun MASTER_ADDR"},
		"no port":      {env: map[string]string{"MASTER_ADDR": "h"}, round: "h:/1/0", from: "torchrun MASTER_ADDR"},
		"SLURM":        {env: map[string]string{"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "1", "SLURM_RESTART_COUNT": "3"}, round: "slurm-7:1/1/3", from: "SLURM SLURM_JOB_ID"},
		"own":          {env: with("ESPERD_ROUND", "mine"), round: "mine", from: "ESPERD_ROUND"},
		"flag":         {flag: str("again"), env: with("ESPERD_ROUND", "mine"), round: "again", from: "--round"},
		"given, empty": {flag: str(""), env: torchrun, err: "--round"},
		"too long":     {env: with("ESPERD_ROUND", strings.Repeat("x", 513)), err: "ESPERD_ROUND"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := resolve(RunFlags{Round: c.flag}, testSurroundings(c.env))
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.round, got.Round)
			require.Equal(t, c.from, got.From["round"])
		})
	}
}

func TestResolvePlaces(t *testing.T) {
	long := "/data/" + strings.Repeat("d", 90)
	for name, c := range map[string]struct {
		flags        RunFlags
		env          map[string]string
		dir, sock    string
		from, reason string // reason: words of the error
	}{
		"default":          {dir: "/home/u/.local/state/esperd/default/rank0", sock: "/home/u/.local/state/esperd/default/rank0/esperd.sock", from: "default, in the data directory"},
		"state home":       {env: map[string]string{"XDG_STATE_HOME": "/s"}, dir: "/s/esperd/default/rank0", sock: "/s/esperd/default/rank0/esperd.sock", from: "default, in the data directory"},
		"relative is none": {env: map[string]string{"XDG_STATE_HOME": "s"}, dir: "/home/u/.local/state/esperd/default/rank0", sock: "/home/u/.local/state/esperd/default/rank0/esperd.sock", from: "default, in the data directory"},
		"relative":         {flags: RunFlags{DataDir: str("d/../e"), Socket: str("s")}, dir: "/cwd/e", sock: "/cwd/s", from: "--socket"},
		"variables":        {env: map[string]string{"ESPERD_DATA_DIR": "/d", "ESPERD_SOCKET": "/s"}, dir: "/d", sock: "/s", from: "ESPERD_SOCKET"},
		"a directory for all": {env: map[string]string{"ESPERD_DATA_DIR": "/d/{rank}", "ESPERD_RANK": "3", "ESPERD_WORLD_SIZE": "4", "ESPERD_JOIN": "h"},
			dir: "/d/3", sock: "/d/3/esperd.sock", from: "default, in the data directory"},
		"no home":           {env: map[string]string{"HOME": ""}, reason: "--data-dir"},
		"long, tmp":         {flags: RunFlags{DataDir: &long}, dir: long, sock: "/tmp/esperd-82a034c332a66206/esperd.sock", from: "default, under /tmp: 108 bytes in the data directory would be too long"},
		"long, runtime dir": {flags: RunFlags{DataDir: &long}, env: map[string]string{"XDG_RUNTIME_DIR": "/run/user/7"}, dir: long, sock: "/run/user/7/esperd-82a034c332a66206/esperd.sock", from: "default, under XDG_RUNTIME_DIR: 108 bytes in the data directory would be too long"},
		"long, no such runtime dir": {flags: RunFlags{DataDir: &long}, env: map[string]string{"XDG_RUNTIME_DIR": "/run/user/8"}, dir: long, sock: "/tmp/esperd-82a034c332a66206/esperd.sock",
			from: "default, under /tmp: 108 bytes in the data directory would be too long"},
		"socket too long": {flags: RunFlags{Socket: str("/" + strings.Repeat("s", 120))}, reason: "--socket is a path of 121 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := resolve(c.flags, testSurroundings(c.env))
			if c.reason != "" {
				require.ErrorContains(t, err, c.reason)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.dir, got.DataDir)
			require.Equal(t, c.sock, got.Socket)
			require.Equal(t, c.from, got.From["socket"])
		})
	}
}

func TestResolvePeers(t *testing.T) {
	two := map[string]string{"RANK": "1", "WORLD_SIZE": "2"}
	with := func(kv ...string) map[string]string {
		env := map[string]string{}
		for k, v := range two {
			env[k] = v
		}
		for i := 0; i < len(kv); i += 2 {
			env[kv[i]] = kv[i+1]
		}
		return env
	}
	for name, c := range map[string]struct {
		flags     RunFlags
		env       map[string]string
		listen    string
		join      []string
		advertise string
		err       string
	}{
		"world of one":          {listen: "127.0.0.1:0"},
		"world of one, master":  {env: map[string]string{"MASTER_ADDR": "h", "MASTER_PORT": "29500"}, listen: "127.0.0.1:0"},
		"world of one, listen":  {flags: RunFlags{Listen: str("127.0.0.1:9000")}, listen: "127.0.0.1:9000"},
		"nobody to join":        {env: two, err: "--join (ESPERD_JOIN)"},
		"master":                {env: with("MASTER_ADDR", "node0", "MASTER_PORT", "29500"), listen: "0.0.0.0:29601", join: []string{"node0:29600"}},
		"rank 0 is the master":  {env: with("MASTER_ADDR", "node0", "MASTER_PORT", "29500", "RANK", "0"), listen: "0.0.0.0:29600", join: []string{"node0:29600"}, advertise: "node0"},
		"no port":               {env: with("MASTER_ADDR", "node0"), listen: "0.0.0.0:7401", join: []string{"node0:7400"}},
		"localhost":             {env: with("MASTER_ADDR", "localhost", "MASTER_PORT", "29500"), listen: "127.0.0.1:29601", join: []string{"localhost:29600"}},
		"loopback":              {env: with("MASTER_ADDR", "127.0.0.1", "RANK", "0"), listen: "127.0.0.1:7400", join: []string{"127.0.0.1:7400"}},
		"loopback, IPv6":        {env: with("MASTER_ADDR", "::1"), listen: "[::1]:7401", join: []string{"[::1]:7400"}},
		"IPv6":                  {env: with("MASTER_ADDR", "fd00::1"), listen: "[::]:7401", join: []string{"[fd00::1]:7400"}},
		"port wraps":            {env: with("MASTER_ADDR", "h", "MASTER_PORT", "65500"), listen: "0.0.0.0:1089", join: []string{"h:1088"}},
		"join, no port":         {flags: RunFlags{Join: str("a, b:9,[::1]:8 ,")}, env: two, listen: "0.0.0.0:7401", join: []string{"a:7400", "b:9", "[::1]:8"}},
		"join over master":      {flags: RunFlags{Join: str("a")}, env: with("MASTER_ADDR", "h", "MASTER_PORT", "29500"), listen: "0.0.0.0:29601", join: []string{"a:29600"}},
		"listen":                {flags: RunFlags{Listen: str("10.0.0.2:9000"), Join: str("a")}, env: two, listen: "10.0.0.2:9000", join: []string{"a:7400"}},
		"listen, port a rank":   {env: with("ESPERD_LISTEN", ":9000+rank", "ESPERD_JOIN", "a"), listen: ":9001", join: []string{"a:9000"}},
		"advertise":             {flags: RunFlags{Advertise: str("me"), Join: str("a")}, env: two, listen: "0.0.0.0:7401", join: []string{"a:7400"}, advertise: "me"},
		"advertise with a port": {flags: RunFlags{Advertise: str("me:1"), Join: str("a")}, env: two, err: "--advertise"},
		"listen on master port": {flags: RunFlags{Listen: str("0.0.0.0:29500")}, env: with("MASTER_ADDR", "h", "MASTER_PORT", "29500"), err: "MASTER_PORT"},
		"bad master port":       {env: with("MASTER_ADDR", "h", "MASTER_PORT", "x"), err: "MASTER_PORT"},
		"bad join":              {flags: RunFlags{Join: str("http://a:1")}, env: two, err: "--join"},
		"bad join port":         {flags: RunFlags{Join: str("a:x")}, env: two, err: "--join"},
		"no commas only":        {flags: RunFlags{Join: str(" , ")}, env: two, err: "--join (ESPERD_JOIN)"},
		"bad listen":            {flags: RunFlags{Listen: str("9000")}, err: "HOST:PORT"},
		"listen beyond":         {env: with("ESPERD_LISTEN", ":65535+rank", "ESPERD_JOIN", "a"), err: "65536"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := resolve(c.flags, testSurroundings(c.env))
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.listen, got.Listen)
			require.Equal(t, c.join, got.Join)
			require.Equal(t, c.advertise, got.Advertise)
		})
	}
}

// No two ranks of a host share a port, and none takes the trainers' own.
func TestDefaultPeerPortsDiffer(t *testing.T) {
	for _, master := range []string{"1", "80", "1023", "1024", "29500", "65435", "65436", "65535"} {
		r := &resolver{surroundings: surroundings{env: map[string]string{"MASTER_PORT": master}}}
		base, err := r.basePort("")
		require.NoError(t, err)
		seen := map[string]uint64{master: 0}
		for rank := range uint64(worldSizeMax) {
			port, err := r.peerPort(base, rank)
			require.NoError(t, err)
			other, taken := seen[port]
			require.Falsef(t, taken, "MASTER_PORT %s: ranks %d and %d share port %s", master, other, rank, port)
			seen[port] = rank
		}
	}
}

func TestResolveSecurityAndTuning(t *testing.T) {
	yes := true
	got, err := resolve(RunFlags{Insecure: &yes, LogStore: str("wal"), LogLevel: str("WARN"), LogFormat: str("text")}, testSurroundings(nil))
	require.NoError(t, err)
	require.True(t, got.Insecure)
	require.Equal(t, "wal", got.LogStore)
	require.Equal(t, "WARN", got.LogLevel.String())
	for name, c := range map[string]struct {
		flags RunFlags
		env   map[string]string
		err   string
	}{
		"half a certificate":      {flags: RunFlags{PeerCert: str("a")}, err: "all three or none"},
		"secret and certificate":  {flags: RunFlags{SecretFile: str("s"), PeerCert: str("a"), PeerKey: str("b"), PeerCA: str("c")}, err: "drop one"},
		"log store":               {flags: RunFlags{LogStore: str("lmdb")}, err: "expected auto, boltdb or wal"},
		"durability":              {env: map[string]string{"ESPERD_DURABILITY": "none"}, err: `ESPERD_DURABILITY is "none", expected durable or relaxed`},
		"device, unknown":         {flags: RunFlags{Device: str("tpu")}, err: `--device is "tpu", expected auto, host, cuda, cuda:N or none`},
		"device, no number":       {env: map[string]string{"ESPERD_DEVICE": "cuda:x"}, err: `ESPERD_DEVICE is "cuda:x", expected auto, host, cuda, cuda:N or none`},
		"durability, empty":       {flags: RunFlags{Durability: str("")}, err: `--durability is "", expected durable or relaxed`},
		"device memory":           {flags: RunFlags{DeviceMax: str("4 GB")}, err: `--device-memory is "4 GB", expected a size such as 512MiB, 4GiB or a number of bytes`},
		"device memory, none":     {env: map[string]string{"ESPERD_DEVICE_MEMORY": "0GiB"}, err: `ESPERD_DEVICE_MEMORY is "0GiB", expected a size`},
		"device memory, too much": {flags: RunFlags{DeviceMax: str("9999999TiB")}, err: "expected a size"},
		"timeout":                 {flags: RunFlags{Timeout: str("soon")}, err: `--decision-timeout is "soon", expected a time from 1s to 168h`},
		"timeout, no unit":        {env: map[string]string{"ESPERD_DECISION_TIMEOUT": "900"}, err: `ESPERD_DECISION_TIMEOUT is "900", expected a time from 1s to 168h, such as 90s`},
		"timeout, too short":      {flags: RunFlags{Timeout: str("999ms")}, err: "from 1s"},
		"timeout, too long":       {flags: RunFlags{Timeout: str("169h")}, err: "to 168h"},
		"log level":               {env: map[string]string{"ESPERD_LOG_LEVEL": "loud"}, err: "ESPERD_LOG_LEVEL"},
		"log format":              {flags: RunFlags{LogFormat: str("xml")}, err: "json or text"},
		"insecure":                {env: map[string]string{"ESPERD_INSECURE": "maybe"}, err: "ESPERD_INSECURE"},
		"admin":                   {flags: RunFlags{AdminListen: str("x")}, err: "--admin-listen"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := resolve(c.flags, testSurroundings(c.env))
			require.ErrorContains(t, err, c.err)
		})
	}
}

func TestResolveLogStore(t *testing.T) {
	env := map[string]string{"ESPERD_LOG_STORE": "boltdb"}
	for want, c := range map[string]struct {
		flag *string
		env  map[string]string
	}{"auto": {}, "boltdb": {env: env}, "wal": {flag: str("wal"), env: env}} {
		got, err := resolve(RunFlags{LogStore: c.flag}, testSurroundings(c.env))
		require.NoError(t, err)
		require.Equal(t, want, got.LogStore)
	}
}

func TestResolveDurability(t *testing.T) {
	for name, c := range map[string]struct {
		flag             *string
		env              map[string]string
		durability, from string
	}{
		"nothing":  {durability: "durable", from: "default"},
		"flag":     {flag: str("relaxed"), durability: "relaxed", from: "--durability"},
		"variable": {env: map[string]string{"ESPERD_DURABILITY": "relaxed"}, durability: "relaxed", from: "ESPERD_DURABILITY"},
		"both":     {flag: str("durable"), env: map[string]string{"ESPERD_DURABILITY": "relaxed"}, durability: "durable", from: "--durability"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := resolve(RunFlags{Durability: c.flag}, testSurroundings(c.env))
			require.NoError(t, err)
			require.Equal(t, []string{c.durability, c.from}, []string{got.Durability, got.From["durability"]})
		})
	}
}

func TestResolveDeviceMemory(t *testing.T) {
	for text, want := range map[string]uint64{"1": 1, "512MiB": 512 << 20, " 4 GiB ": 4 << 30, "100000KiB": 100_000 << 10, "2TiB": 2 << 40} {
		got, err := resolve(RunFlags{DeviceMax: str(text)}, testSurroundings(nil))
		require.NoError(t, err)
		require.Equal(t, want, got.DeviceMax, text)
	}
	got, err := resolve(RunFlags{}, testSurroundings(map[string]string{"ESPERD_DEVICE_MEMORY": "3MiB"}))
	require.NoError(t, err)
	require.Equal(t, []any{uint64(3 << 20), "ESPERD_DEVICE_MEMORY"}, []any{got.DeviceMax, got.From["device_memory"]})
	got, err = resolve(RunFlags{}, testSurroundings(nil))
	require.NoError(t, err)
	require.Zero(t, got.DeviceMax)
}

func TestResolveTokenAndTimeout(t *testing.T) {
	got, err := resolve(RunFlags{}, testSurroundings(nil))
	require.NoError(t, err)
	require.Equal(t, []any{"", "", 15 * time.Minute, "default"}, []any{got.TokenFile, got.From["token_file"], got.Timeout, got.From["decision_timeout"]})
	env := map[string]string{"ESPERD_TOKEN_FILE": "/t", "ESPERD_DECISION_TIMEOUT": "90s"}
	got, err = resolve(RunFlags{}, testSurroundings(env))
	require.NoError(t, err)
	require.Equal(t, []any{"/t", "ESPERD_TOKEN_FILE", 90 * time.Second, "ESPERD_DECISION_TIMEOUT"}, []any{got.TokenFile, got.From["token_file"], got.Timeout, got.From["decision_timeout"]})
	got, err = resolve(RunFlags{TokenFile: str("/f"), Timeout: str("1h")}, testSurroundings(env))
	require.NoError(t, err)
	require.Equal(t, []any{"/f", "--token-file", time.Hour, "--decision-timeout"}, []any{got.TokenFile, got.From["token_file"], got.Timeout, got.From["decision_timeout"]})
}

func TestReadToken(t *testing.T) {
	token, err := readToken("")
	require.NoError(t, err)
	require.Empty(t, token)
	for name, c := range map[string]struct {
		content string
		mode    os.FileMode
		err     string // "": it is good
	}{
		"a line":       {content: strings.Repeat("x", 16) + "\n", mode: 0o600},
		"the longest":  {content: strings.Repeat("x", tokenBytesMax), mode: 0o400},
		"open":         {content: strings.Repeat("x", 16), mode: 0o640, err: "has mode 0640, expected no access for group and others: chmod 600"},
		"short":        {content: " " + strings.Repeat("x", 15) + "\n", mode: 0o600, err: "holds 15 bytes, expected at least 16 random ones (`umask 077; openssl rand"},
		"empty":        {mode: 0o600, err: "holds 0 bytes"},
		"long":         {content: strings.Repeat("x", tokenBytesMax+1), mode: 0o600, err: "holds more than 4096 bytes"},
		"two lines":    {content: strings.Repeat("x\n", 20), mode: 0o600, err: "expected one line"},
		"no HTTP text": {content: strings.Repeat("\u00e4", 20), mode: 0o600, err: "printable ASCII"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "token")
			require.NoError(t, os.WriteFile(file, []byte(c.content), 0o600))
			require.NoError(t, os.Chmod(file, c.mode))
			token, err := readToken(file)
			if c.err == "" {
				require.NoError(t, err)
				require.Equal(t, strings.TrimSpace(c.content), token)
				return
			}
			require.ErrorContains(t, err, file)
			require.ErrorContains(t, err, c.err)
			require.NotContains(t, err.Error(), "xxxx", "it is nobody's business")
		})
	}
	_, err = readToken(filepath.Join(t.TempDir(), "none"))
	require.ErrorContains(t, err, "--token-file (ESPERD_TOKEN_FILE)")
}

func TestOwnSocketDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	require.NoError(t, ownSocketDir(dir))
	require.NoError(t, ownSocketDir(dir), "it may be there already")
	require.NoError(t, os.Chmod(dir, 0o755))
	require.ErrorContains(t, ownSocketDir(dir), "0700")
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(t.TempDir(), link))
	require.Error(t, ownSocketDir(link), "somebody else's choice of a place")
}
