package e2e

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestRelaxed: what was never synced outlives the process. A world of one has
// nobody to fetch its log from.
func TestRelaxed(t *testing.T) {
	plain(t)
	t.Parallel()
	for _, store := range []string{"boltdb", "wal"} {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 1)
			n := w.nodes[0]
			n.args = append(n.args, "--durability", "relaxed", "--log-store", store)
			w.startAll()
			w.settled()
			awaitLog(t, n.logFile, `"level":"WARN"`, "relaxed durability: a machine that crashes or loses power may lose decisions")
			require.Equal(t, "relaxed", n.mustState().Durability)
			says(t, n.types("status"), "RELAXED")

			l := w.train()
			l.progress(answersBetween)
			n.kill()
			n.start()
			l.progress(answersBetween)
			l.finish()
			log := w.verify(l)

			n.kill()
			n.args = with(n.args, "--durability", "durable")
			n.start()
			w.settled()
			n.holds(log)
			require.Equal(t, "durable", n.mustState().Durability, "the files are the same")
		})
	}
}
