package main

import (
	"cmp"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/esperd/esperd/replica"
)

// hostRanks are the ranks that this host has in this start, known of torchrun's.
type hostRanks struct{ first, count uint64 }

func (h hostRanks) has(rank uint64) bool { return rank >= h.first && rank-h.first < h.count }

// hostRanksOf reads them from torchrun's variables: it numbers a host's ranks in
// one piece.
func hostRanksOf(env map[string]string, rank, world uint64) hostRanks {
	local, err := strconv.ParseUint(env["LOCAL_RANK"], 10, 64)
	count, err2 := strconv.ParseUint(env["LOCAL_WORLD_SIZE"], 10, 64)
	if err != nil || err2 != nil || local >= count || local > rank || count > world || rank-local > world-count {
		return hostRanks{}
	}
	return hostRanks{rank - local, count}
}

// adopt gives this rank, if it has no data directory here yet, that of a rank
// which this host had in a start before and has not in this one: else a job whose
// ranks changed places would find all its directories empty, and begin anew.
func adopt(c *Config, log *slog.Logger) {
	if c.HostRanks.count == 0 {
		return
	}
	if _, err := os.Lstat(c.DataDir); !os.IsNotExist(err) {
		return
	}
	names, err := filepath.Glob(filepath.Join(filepath.Dir(c.DataDir), "rank*"))
	if err != nil {
		return
	}
	rankOf := func(name string) (uint64, error) {
		return strconv.ParseUint(strings.TrimPrefix(filepath.Base(name), "rank"), 10, 64)
	}
	names = slices.DeleteFunc(names, func(name string) bool {
		rank, err := rankOf(name)
		return err != nil || c.HostRanks.has(rank)
	})
	slices.SortFunc(names, func(a, b string) int {
		x, _ := rankOf(a)
		y, _ := rankOf(b)
		return cmp.Compare(x, y)
	})
	for _, name := range names {
		if replica.AdoptDataDir(name, c.DataDir) {
			log.Info("this host has other ranks than before: the data directory of one of those is this rank's now", "was", name, "is", c.DataDir)
			return
		}
	}
}
