package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/replica"
)

func TestHostRanks(t *testing.T) {
	for _, c := range []struct {
		local, count string
		rank, world  uint64
		want         hostRanks
	}{
		{"0", "4", 4, 8, hostRanks{4, 4}},
		{"3", "4", 7, 8, hostRanks{4, 4}},
		{"0", "1", 0, 1, hostRanks{0, 1}},
		{"", "", 0, 1, hostRanks{}},
		{"4", "4", 4, 8, hostRanks{}},
		{"3", "4", 2, 8, hostRanks{}},
		{"0", "4", 6, 8, hostRanks{}},
		{"0", "18446744073709551615", 0, 8, hostRanks{}},
		{"x", "4", 4, 8, hostRanks{}},
	} {
		require.Equal(t, c.want, hostRanksOf(map[string]string{"LOCAL_RANK": c.local, "LOCAL_WORLD_SIZE": c.count}, c.rank, c.world), "%+v", c)
	}
}

// A host that had ranks 0, 1 and 2 gets others.
func TestAdopt(t *testing.T) {
	for name, c := range map[string]struct {
		ranks hostRanks
		want  map[uint64]uint64 // rank -> whose directory before it has
	}{
		"all others":         {hostRanks{4, 3}, map[uint64]uint64{4: 0, 5: 1, 6: 2}},
		"some are as before": {hostRanks{2, 3}, map[uint64]uint64{2: 2, 3: 0, 4: 1}},
		"all as before":      {hostRanks{0, 3}, map[uint64]uint64{0: 0, 1: 1, 2: 2}},
		"fewer":              {hostRanks{7, 1}, map[uint64]uint64{7: 0}},
		"nobody said":        {hostRanks{}, map[uint64]uint64{}},
	} {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			dir := func(rank uint64) string { return filepath.Join(base, "rank"+string(rune('0'+rank))) }
			nodes := map[uint64]events.NodeID{}
			for rank := range uint64(3) {
				nodes[rank] = partOf(t, dir(rank), "lineage")
			}
			require.NoError(t, os.WriteFile(filepath.Join(base, "ranks.txt"), nil, 0o600))
			partOf(t, filepath.Join(base, "rank9"), "") // never part of a log
			for rank := range c.ranks.count {
				rank += c.ranks.first
				adopt(&Config{Rank: rank, DataDir: dir(rank), HostRanks: c.ranks}, slog.New(slog.DiscardHandler))
			}
			for rank, was := range c.want {
				d, err := replica.OpenDataDir(dir(rank), replica.DataDirOptions{})
				require.NoError(t, err)
				require.Equal(t, nodes[was], d.Node(), "rank %d", rank)
				require.NoError(t, d.Close())
			}
			left, err := filepath.Glob(filepath.Join(base, "rank?"))
			require.NoError(t, err)
			require.Len(t, left, 4)
		})
	}
	t.Run("in use", func(t *testing.T) {
		base := t.TempDir()
		from, to := filepath.Join(base, "rank0"), filepath.Join(base, "rank1")
		partOf(t, from, "lineage")
		d, err := replica.OpenDataDir(from, replica.DataDirOptions{})
		require.NoError(t, err)
		defer d.Close()
		adopt(&Config{Rank: 1, DataDir: to, HostRanks: hostRanks{1, 1}}, slog.New(slog.DiscardHandler))
		require.NoDirExists(t, to)
		require.DirExists(t, from)
	})
}

// partOf makes a data directory of a node that is part of a log, if there is one.
func partOf(t *testing.T, dir, lineage string) events.NodeID {
	t.Helper()
	d, err := replica.OpenDataDir(dir, replica.DataDirOptions{})
	require.NoError(t, err)
	require.NoError(t, d.SetRun("run", lineage))
	require.NoError(t, d.Close())
	return d.Node()
}
