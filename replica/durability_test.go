package replica

import (
	"log/slog"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"
)

func openWith(t *testing.T, change func(*Config)) (*Node, error) {
	t.Helper()
	d, err := OpenDataDir(t.TempDir(), DataDirOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	log := slog.New(slog.DiscardHandler)
	nw, err := NewNetwork(ListenOptions{Listen: "127.0.0.1:0", Node: d.Node(), Log: log})
	require.NoError(t, err)
	t.Cleanup(func() { _ = nw.Close() }) // a node closes it, unless its settings are refused
	cfg := Config{World: 1, Dir: d, Network: nw, Logger: log}
	change(&cfg)
	n, err := Open(cfg)
	if err == nil {
		t.Cleanup(func() { require.NoError(t, n.Close(t.Context())) })
	}
	return n, err
}

func TestStatusSaysDurability(t *testing.T) {
	for set, told := range map[string]string{"": "durable", "durable": "durable", "relaxed": "relaxed"} {
		n, err := openWith(t, func(c *Config) { c.Durability = set })
		require.NoError(t, err)
		require.Equal(t, told, n.Status().Durability)
	}
	_, err := openWith(t, func(c *Config) { c.Durability = "some" })
	require.EqualError(t, err, `unknown durability "some": expected one of ["durable" "relaxed"]`)
}

// A log with a gap, as the crash of a machine may leave one that was not synced.
func TestLogWithAGap(t *testing.T) {
	_, err := openWith(t, func(c *Config) {
		c.Durability, c.LogStore = durabilityRelaxed, logStoreBolt // the wal can't have one
		n := &Node{cfg: *c, log: c.Logger}
		stores, err := n.openStores()
		require.NoError(t, err)
		for i := uint64(1); i <= 9; i++ {
			require.NoError(t, stores.Log.StoreLog(&raft.Log{Index: i, Term: 1}))
		}
		require.NoError(t, stores.Log.DeleteRange(4, 6))
		require.NoError(t, stores.History.Close())
		require.NoError(t, n.closers[0].Close())
	})
	require.ErrorContains(t, err, "raft is damaged: log not found: stop this node, move its data directory aside")
}

// A page of the list of buckets where the log's is expected.
func TestLogWithABucketInIt(t *testing.T) {
	dir := t.TempDir()
	fillLogStore(t, logStoreBolt, dir)
	name := dir + "/raft.db"
	db, err := bbolt.Open(name, 0o600, nil)
	require.NoError(t, err)
	require.NoError(t, db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.Bucket([]byte("logs")).CreateBucket([]byte("conf"))
		return err
	}))
	require.NoError(t, db.Close())
	_, _, _, err = openLogStore(logStoreBolt, dir, true)
	require.ErrorContains(t, err, "raft.db is damaged: expected an entry, got a bucket")
}
