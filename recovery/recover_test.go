package recovery

import (
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
	"github.com/esperd/esperd/gates"
	"github.com/esperd/esperd/replica"
)

var discard = slog.New(slog.DiscardHandler)

// open starts the node of a world of one in a directory.
func open(t *testing.T, dir string) (n *replica.Node, stop func(abort bool)) {
	t.Helper()
	data, err := replica.OpenDataDir(dir, replica.DataDirOptions{})
	require.NoError(t, err)
	network := replica.NewMemNetwork().Join("here:1#" + string(data.Node()))
	n, err = replica.Open(replica.Config{World: 1, Run: "r", Dir: data, Network: network, Logger: discard})
	require.NoError(t, err)
	return n, func(abort bool) {
		if abort {
			require.NoError(t, n.Abort())
		} else {
			require.NoError(t, n.Close(context.Background()))
		}
		require.NoError(t, data.Close())
	}
}

// train opens a round and makes so many calls in it.
func train(t *testing.T, n *replica.Node, incarnation string, calls uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	round, err := n.Register(ctx, replica.Registration{World: 1, Incarnation: strings.Repeat(incarnation, 32), Mode: "keyed"})
	require.NoError(t, err)
	for k := range calls {
		var args fsm.Args = fsm.Configure{Slots: []events.SlotConfig{{Name: "a", Gates: gates.Defaults()}}}
		key := events.Key{Round: round, Model: "main", Call: k, Epoch: -1}
		if m := n.State().Model("main"); m != nil {
			key.Generation, key.Epoch = m.Generation, m.Epoch
		}
		if k > 0 {
			args, key.Fence = fsm.StepEpoch{Epoch: key.Epoch + 1}, k-1
		}
		key.Op, key.Args = args.Op(), fsm.ArgsHash(args)
		_, err := n.Decide(ctx, fsm.Call{Key: key, Args: args})
		require.NoError(t, err)
	}
}

// tempDir is in memory where the system has such a place: nothing here is about
// a disk's speed.
func tempDir(t *testing.T) string {
	t.Helper()
	base := "/dev/shm"
	if _, err := os.Stat(base); err != nil {
		base = ""
	}
	dir, err := os.MkdirTemp(base, "esperd-recovery-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// trained is a directory with a log, and that log.
func trained(t *testing.T, calls uint64, abort bool) (string, *fsm.State) {
	t.Helper()
	dir := filepath.Join(tempDir(t), "rank0")
	n, stop := open(t, dir)
	train(t, n, "a", calls)
	state := n.State()
	stop(abort)
	return dir, state
}

// sums are the checksums of everything in a directory.
func sums(t *testing.T, dir string) map[string][32]byte {
	t.Helper()
	out := map[string][32]byte{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		out[name] = sha256.Sum256(b)
		return err
	}))
	return out
}

func inspect(t *testing.T, dir string) *Survivor {
	t.Helper()
	s, err := Inspect(dir, discard)
	require.NoError(t, err)
	require.NoError(t, s.Problem)
	return s
}

// goesOn checks that a recovered directory has everything, and takes calls.
func goesOn(t *testing.T, dir string, before *fsm.State) {
	t.Helper()
	n, stop := open(t, dir)
	defer stop(false)
	require.Equal(t, before.Lifecycle("main"), n.State().Lifecycle("main"))
	require.NotEqual(t, before.Lineage, n.State().Lineage)
	require.Equal(t, before.Run, n.State().Run)
	require.Equal(t, before.Lineage, n.State().Ancestors[len(n.State().Ancestors)-1].Lineage)
	e, _, err := n.Entry(before.Index + 1)
	require.NoError(t, err)
	require.Equal(t, events.KindRecover, e.Kind)
	first, _, err := n.Entry(1)
	require.NoError(t, err)
	require.Equal(t, events.KindFound, first.Kind)
	train(t, n, "b", 4)
	require.Equal(t, before.Model("main").Epoch+3, n.State().Model("main").Epoch)
}

// A recovered directory has all that was there, of the history and of raft's
// log, the old one is as it was, and it can be recovered again.
func TestRecover(t *testing.T) {
	for name, abort := range map[string]bool{"stopped": false, "crashed": true} {
		t.Run(name, func(t *testing.T) {
			dir, before := trained(t, 12, abort)
			was := sums(t, dir)
			s := inspect(t, dir)
			require.Equal(t, was, sums(t, dir), "looking changes nothing")
			require.Equal(t, before.Index, s.Kept.State.Index)
			require.Equal(t, uint64(1), s.Kept.First)
			if abort {
				require.Less(t, s.Kept.Committed, before.Index, "the history was written in full: nothing is left to raft's log")
			}
			done, err := Recover(s, discard)
			require.NoError(t, err)
			require.Equal(t, was, sums(t, done.Evidence))
			require.NoDirExists(t, dir+workSuffix)
			require.NoFileExists(t, filepath.Join(dir, noteName))
			require.Equal(t, before.Index+1, done.Index)
			goesOn(t, dir, before)

			again, err := Recover(inspect(t, dir), discard)
			require.NoError(t, err)
			require.Equal(t, dir+".evidence-2", again.Evidence)
		})
	}
}

// Whatever raft had is not needed, if the history is whole.
func TestRecoverWithoutRaft(t *testing.T) {
	for name, spoil := range map[string]func(dir string) error{
		"gone":    func(dir string) error { return os.RemoveAll(filepath.Join(dir, "raft")) },
		"damaged": func(dir string) error { return os.Truncate(filepath.Join(dir, "raft", "wal", "wal-meta.db"), 100) },
		"relaxed": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "raft", "relaxed"), []byte("another boot\n"), 0o600)
		},
		"without identity": func(dir string) error { return os.Remove(filepath.Join(dir, "node.json")) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, before := trained(t, 5, false)
			require.NoError(t, spoil(dir))
			s := inspect(t, dir)
			require.Equal(t, before.Index, s.Kept.State.Index)
			if name != "without identity" {
				require.Error(t, s.Kept.RaftProblem)
				p := Choose([]*Survivor{s}, "")
				p.Heard(nil)
				require.Empty(t, p.Against, "this voter cannot start, so its log needs to be recovered")
			} else {
				require.Error(t, s.Identity)
			}
			_, err := Recover(s, discard)
			require.NoError(t, err)
			goesOn(t, dir, before)
		})
	}
}

// A crash at any step leaves the old directory, or the new one, and the next
// recovery says which and goes on from there.
func TestRecoverCrashes(t *testing.T) {
	crash := errors.New("crash")
	for _, point := range []string{"copy", "build", "identity", "complete", "exchange", "keep", "unmark"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			dir, before := trained(t, 5, false)
			was := sums(t, dir)
			reached := false
			_, err := recoverDir(inspect(t, dir), discard, func(step string) error {
				if step != point {
					return nil
				}
				reached = true
				return crash
			})
			require.True(t, reached)
			require.ErrorIs(t, err, crash)

			left, err := Leftover(dir)
			require.NoError(t, err)
			require.Contains(t, left, "an earlier recovery was interrupted")
			_, err = Inspect(dir, discard)
			require.ErrorContains(t, err, "give --yes to complete that", "a dry run changes nothing")
			swapped := point == "keep" || point == "unmark"
			if !swapped {
				require.Equal(t, was, sums(t, dir))
			}
			done, err := Settle(dir)
			require.NoError(t, err)
			require.Equal(t, swapped, done)
			if !done {
				_, err = Recover(inspect(t, dir), discard)
				require.NoError(t, err)
			}
			require.Equal(t, was, sums(t, dir+".evidence-1"))
			require.NoDirExists(t, dir+workSuffix)
			goesOn(t, dir, before)
		})
	}
}

// Where directories cannot be exchanged, a crash may come between two renames.
func TestRecoverBetweenTwoRenames(t *testing.T) {
	dir, before := trained(t, 3, false)
	_, err := recoverDir(inspect(t, dir), discard, func(step string) error {
		if step == "exchange" {
			return errors.New("crash")
		}
		return nil
	})
	require.Error(t, err)
	require.NoError(t, os.Rename(dir, dir+".evidence-1"))
	done, err := Settle(dir)
	require.NoError(t, err)
	require.True(t, done)
	goesOn(t, dir, before)
}

// What nothing explains is left alone.
func TestUnknownLeftover(t *testing.T) {
	dir, _ := trained(t, 1, false)
	require.NoError(t, os.Mkdir(dir+workSuffix, 0o700))
	mine := filepath.Join(dir+workSuffix, "mine")
	require.NoError(t, os.WriteFile(mine, nil, 0o600))
	_, err := Inspect(dir, discard)
	require.ErrorContains(t, err, "nothing tells which is which")
	_, err = Settle(dir)
	require.ErrorContains(t, err, "move the second one aside")
	require.FileExists(t, mine)
}

// A crash before the note is written, or after all but it was removed, leaves
// nothing that anybody could miss.
func TestLeftoverWithoutNote(t *testing.T) {
	dir, _ := trained(t, 1, false)
	was := sums(t, dir)
	require.NoError(t, os.Mkdir(dir+workSuffix, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir+workSuffix, noteName+".tmp"), []byte("{"), 0o600))
	left, err := Leftover(dir)
	require.NoError(t, err)
	require.Contains(t, left, "is its copy")
	done, err := Settle(dir)
	require.NoError(t, err)
	require.False(t, done)
	require.NoDirExists(t, dir+workSuffix)
	require.Equal(t, was, sums(t, dir))
}

// A directory is gone for good only where no recovery is about to fill its place.
func TestPending(t *testing.T) {
	dir, _ := trained(t, 1, false)
	require.NoError(t, Pending(dir))
	_, err := recoverDir(inspect(t, dir), discard, func(step string) error {
		if step == "exchange" {
			return errors.New("crash")
		}
		return nil
	})
	require.Error(t, err)
	require.NoError(t, Pending(dir), "its esperd may start: only a copy is lost")
	require.NoError(t, os.Rename(dir, dir+".evidence-1"))
	require.ErrorContains(t, Pending(dir), "give --yes to complete that")
}

func TestDirectoryInUse(t *testing.T) {
	dir := filepath.Join(tempDir(t), "rank0")
	n, stop := open(t, dir)
	train(t, n, "a", 1)
	_, err := Inspect(dir, discard)
	var used *InUseError
	require.ErrorAs(t, err, &used)
	require.Equal(t, os.Getpid(), used.PID)
	stop(false)
	inspect(t, dir)
}

// A history that is not what it was is no candidate, and the entry is named.
func TestDamagedSurvivor(t *testing.T) {
	change := func(t *testing.T, dir string, fn func(*bbolt.Tx) error) {
		db, err := bbolt.Open(filepath.Join(dir, "history.db"), 0o600, nil)
		require.NoError(t, err)
		require.NoError(t, db.Update(fn))
		require.NoError(t, db.Close())
	}
	key := []byte{0, 0, 0, 0, 0, 0, 0, 4}
	for name, c := range map[string]struct {
		spoil func(t *testing.T, dir string)
		says  string
	}{
		"a changed record": {func(t *testing.T, dir string) {
			change(t, dir, func(tx *bbolt.Tx) error {
				v := append([]byte{}, tx.Bucket([]byte("records")).Get(key)...)
				v[120] ^= 1
				return tx.Bucket([]byte("records")).Put(key, v)
			})
		}, "history.db is damaged at entry 4"},
		"a lost record": {func(t *testing.T, dir string) {
			change(t, dir, func(tx *bbolt.Tx) error { return tx.Bucket([]byte("records")).Delete(key) })
		}, "history.db is damaged at entry 4"},
		"another digest": {func(t *testing.T, dir string) { forge(t, dir, 4) }, "entry 4: replaying it gives the digests"},
		"not a file": {func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "history.db"), []byte("no"), 0o600))
		}, "is damaged"},
		"nothing": {func(t *testing.T, dir string) {
			require.NoError(t, errors.Join(os.Remove(filepath.Join(dir, "history.db")), os.RemoveAll(filepath.Join(dir, "raft"))))
		}, "it holds no entry"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, _ := trained(t, 6, false)
			c.spoil(t, dir)
			was := sums(t, dir)
			s, err := Inspect(dir, discard)
			require.NoError(t, err)
			require.ErrorContains(t, s.Problem, c.says)
			require.NotContains(t, s.Problem.Error(), workSuffix)
			require.Nil(t, s.Kept)
			require.Equal(t, was, sums(t, dir))
			p := Choose([]*Survivor{s}, "")
			require.Nil(t, p.Chosen)
			require.True(t, p.Against[0].Final)
		})
	}
}

// forge writes a history anew in which one entry has another digest, which no
// checksum of the file tells.
func forge(t *testing.T, dir string, index uint64) {
	name := filepath.Join(dir, "history.db")
	require.NoError(t, os.Rename(name, name+".was"))
	old, err := events.OpenHistory(name+".was", events.HistoryOptions{Logger: discard})
	require.NoError(t, err)
	forged, err := events.OpenHistory(name, events.HistoryOptions{Logger: discard})
	require.NoError(t, err)
	head, _, _ := old.Head()
	require.NoError(t, old.Range(1, head, func(r events.Record) error {
		if r.Index == index {
			r.Bookkeeping[0]++
		}
		return forged.Append(r, nil)
	}))
	require.NoError(t, errors.Join(old.Close(), forged.Close(), os.Remove(name+".was")))
}
