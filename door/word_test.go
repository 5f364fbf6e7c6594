package door_test

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/door"
	"github.com/esperd/esperd/events"
)

// word reads what the trainer sees in its memory.
func (tr *trainer) word() uint64 {
	tr.j.t.Helper()
	require.NotNil(tr.j.t, tr.at.Word)
	b, err := os.ReadFile(tr.at.Word.Path)
	require.NoError(tr.j.t, err)
	return binary.NativeEndian.Uint64(b[tr.at.Word.Offset:])
}

// sees returns once the word is that of an entry: it is a hint, which may be
// late.
func (tr *trainer) sees(index uint64) {
	tr.j.t.Helper()
	require.Eventually(tr.j.t, func() bool { return tr.word() == index }, 10*time.Second, time.Millisecond, "entry %d", index)
}

func TestTheWordIsTheNewestEntrysThatConcernsTheModel(t *testing.T) {
	j := newJob(t, 2)
	all := j.trainers()
	critic := j.trainers(func(r *api.SessionRequest) { r.Model, r.Incarnation = "critic", all[r.Rank].req.Incarnation })
	for _, tr := range all {
		require.Equal(t, j.socket(tr.rank)+door.WordSuffix, tr.at.Word.Path)
		require.Equal(t, int64(8), critic[tr.rank].at.Word.Offset-tr.at.Word.Offset)
		require.Equal(t, tr.at.Word.Path, critic[tr.rank].at.Word.Path)
		require.Equal(t, tr.at.Word, decodeAs[api.SessionAnswer](t, tr.returns().ok(t).body).Word)
	}
	both := func(of []*trainer, index uint64) {
		t.Helper()
		for _, tr := range of {
			tr.sees(index)
		}
	}
	all[0].germinate("r0c0").ok(t)
	main := j.head(0)
	both(all, main) // rank 1 has not called yet: its node has the entry
	all[0].germinate("r0c0").refused(t, events.CodeIllegalTransition)
	both(all, main+1)
	critic[0].step(0).ok(t)
	both(critic, main+2)
	both(all, main+1) // it is no entry of theirs
	all[0].asks("r0c0").ok(t)
	both(all, main+3)
	both(critic, main+2)
	all[0].step(0).ok(t)
	both(all, main+4)

	all[1].germinate("r0c0").ok(t)
	all[1].germinate("r0c0").refused(t, events.CodeIllegalTransition)
	all[1].step(9).refused(t, events.CodeOrderMismatch)
	both(all, j.head(0)) // the round is over for all
	both(critic, j.head(0))

	all[0].step(1).refused(t, events.CodeRoundFaulted)
	again := j.trainers()
	both(critic, j.head(0)-1) // another round: theirs is over as well
	both(again, j.head(0))
	require.Equal(t, all[0].at.Word, again[0].at.Word, "a model keeps its word")
}

func TestReportsAreNoNewsForTrainers(t *testing.T) {
	j := newJob(t, 2)
	all := j.trainers()
	germinated(t, all...)
	for _, tr := range all {
		tr.verdict("r0c0", "G1", members{"passed": tr.rank == 0}).ok(t)
	}
	before := j.head(0)
	all[0].sees(before)
	require.NoError(t, j.log.Node(1).WriteReports())
	require.Equal(t, before+1, j.head(0))
	other := j.trainers(func(r *api.SessionRequest) { r.Model, r.Incarnation = "critic", all[r.Rank].req.Incarnation })
	other[0].step(0).ok(t)
	other[0].sees(j.head(0)) // so it has looked at the report, too
	require.Equal(t, before, all[0].word())
}

// left makes the word's file as one that an esperd which was killed has left.
func (j *job) left(size int) (path string) {
	j.stop(0)
	path = j.socket(0) + door.WordSuffix
	require.NoError(j.t, os.RemoveAll(path))
	require.NoError(j.t, os.WriteFile(path, bytes.Repeat([]byte{0xaa}, size), 0o600))
	return path
}

func TestTheWordOfAnEarlierEsperdIsTakenOver(t *testing.T) {
	j := newJob(t, 1)
	f, err := os.Open(j.left(4096 * 8))
	require.NoError(t, err)
	defer f.Close()
	mapped, err := syscall.Mmap(int(f.Fd()), 0, 4096*8, syscall.PROT_READ, syscall.MAP_SHARED)
	require.NoError(t, err)
	defer func() { require.NoError(t, syscall.Munmap(mapped)) }()
	j.start(0)
	tr := j.trainers()[0]
	require.Less(t, tr.word(), j.head(0)+1, "nothing of the earlier one's")
	tr.step(0).ok(t)
	tr.sees(j.head(0))
	require.Equal(t, j.head(0), binary.NativeEndian.Uint64(mapped), "it is the same file")
	require.Zero(t, mapped[4096*8-1])

	// A trainer may look as long as it likes, also when there is no esperd.
	j.stop(0)
	require.Equal(t, j.head(0), binary.NativeEndian.Uint64(mapped))
	require.Zero(t, mapped[4096*8-1])
	j.start(0)
	tr.at = decodeAs[api.SessionAnswer](t, tr.returns().ok(t).body)
	tr.step(1).ok(t)
	tr.sees(j.head(0))
}

// Whoever has mapped what is cut off would be killed by a signal.
func TestAWordsFileIsNeverMadeShorter(t *testing.T) {
	j := newJob(t, 1)
	for epoch, size := range []int{0, 1, 8, 4096, 4096 * 8, 4096*8 + 1, 1 << 20} {
		path := j.left(size)
		j.start(0)
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, max(size, 4096*8), int(info.Size()))
		require.Equal(t, os.FileMode(0o600), info.Mode())
		tr := j.trainers()[0]
		tr.step(int64(epoch)).ok(t)
		tr.sees(j.head(0))
	}
}

func TestWithoutAWordTrainersHaveNoHint(t *testing.T) {
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	require.NoError(t, os.WriteFile(elsewhere, []byte("precious"), 0o600))
	for name, put := range map[string]func(path string) error{
		"a directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"a symlink":   func(path string) error { return os.Symlink(elsewhere, path) },
		"a dangling symlink": func(path string) error {
			return os.Symlink(filepath.Join(filepath.Dir(elsewhere), "nothing"), path)
		},
		"a pipe":   func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"a socket": func(path string) error { return listen(t, path) },
	} {
		t.Run(name, func(t *testing.T) {
			j := newJob(t, 1)
			path := j.left(0)
			require.NoError(t, os.Remove(path))
			require.NoError(t, put(path))
			before, err := os.Lstat(path)
			require.NoError(t, err)
			j.start(0)
			require.Contains(t, j.logs[0].String(), "trainers have no word to look at: their check() says nothing")
			tr := j.trainers()[0]
			require.Nil(t, tr.at.Word)
			tr.germinate("r0c0").ok(t)
			tr.asks("r0c0").ok(t)
			tr.step(0).ok(t)
			after, err := os.Lstat(path)
			require.NoError(t, err)
			require.Equal(t, before.Mode(), after.Mode())
			b, err := os.ReadFile(elsewhere)
			require.NoError(t, err)
			require.Equal(t, "precious", string(b))
			require.NoFileExists(t, filepath.Join(filepath.Dir(elsewhere), "nothing"))
		})
	}
}

func listen(t *testing.T, path string) error {
	l, err := net.Listen("unix", path)
	if err == nil {
		t.Cleanup(func() { l.Close() })
	}
	return err
}
