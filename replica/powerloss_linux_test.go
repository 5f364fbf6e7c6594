package replica

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// tracedDir is the variable by which TestTracedNode knows that it is traced.
const tracedDir = "ESPERD_TRACED_DIR"

// TestPowerLoss runs a node on its real stores under strace, and takes from its
// system calls what is on the disk at every moment: all that was written, as
// after a kill; only what was synced, as after a power cut on the worst disk that
// POSIX allows; and that with any part of the rest. On each a node has to find
// every decision that was acknowledged until then, and not go back in its term.
// With -short every eleventh moment.
func TestPowerLoss(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		if strings.Contains(os.Getenv("ESPERD_REQUIRE"), "strace") {
			t.Fatal("ESPERD_REQUIRE asks for strace: ", err)
		}
		t.Skip("no strace here: ", err)
	}
	for _, kind := range []string{logStoreWAL, logStoreBolt} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			trace := filepath.Join(t.TempDir(), "trace")
			cmd := exec.Command(strace, "-f", "-qq", "-y", "-xx", "-s", "16777216", "--seccomp-bpf", "-o", trace,
				"-e", "trace=openat,write,pwrite64,fsync,fdatasync,ftruncate,fallocate,renameat,renameat2,rename,linkat,unlinkat,mkdirat",
				os.Args[0], "-test.run=^TestTracedNode$")
			cmd.Env = append(os.Environ(), tracedDir+"="+root, "ESPERD_TRACED_STORE="+kind)
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
			d := readTrace(t, trace, root, kind)
			t.Logf("%d changes and syncs, %d moments looked at, %d nodes started there", d.calls, d.looked, d.started)
			require.Contains(t, d.root.names["rank0"].names["raft"].names, "snapshots")
			require.NotEmpty(t, d.root.names["rank0"].names["raft"].names["snapshots"].names)
			require.Greater(t, len(d.acks), 15)
		})
	}
}

// TestTracedNode is what is traced: two starts of a lone node, with decisions and
// snapshots. It notes what was acknowledged in a file, so that this has a place
// among the writes.
func TestTracedNode(t *testing.T) {
	root := os.Getenv(tracedDir)
	if root == "" {
		t.Skip("TestPowerLoss runs it")
	}
	acks, err := os.Create(filepath.Join(root, "acks"))
	require.NoError(t, err)
	for range 2 {
		d, err := OpenDataDir(filepath.Join(root, "rank0"), DataDirOptions{})
		require.NoError(t, err)
		n := openLone(t, d, os.Getenv("ESPERD_TRACED_STORE"))
		for i := range 3 {
			decideSome(t, n, fmt.Sprint(i), func(index uint64) {
				_, err := fmt.Fprintf(acks, "%d %s\n", index, n.raft.Stats()["term"])
				require.NoError(t, err)
			})
			require.NoError(t, n.raft.Snapshot().Error())
		}
		require.NoError(t, errors.Join(n.Close(context.Background()), d.Close()))
	}
}

func openLone(t *testing.T, d *DataDir, kind string) *Node {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	nw, err := NewNetwork(ListenOptions{Listen: "127.0.0.1:0", Node: d.Node(), Log: log})
	require.NoError(t, err)
	n, err := Open(Config{World: 1, Dir: d, Network: nw, Logger: log, LogStore: kind, Build: "x", SnapshotEvery: 3,
		Timing: Timing{Hello: 10 * time.Millisecond, Election: 50 * time.Millisecond}})
	require.NoError(t, err)
	return n
}

// decideSome opens a round and makes a few calls in it.
func decideSome(t *testing.T, n *Node, round string, acked func(index uint64)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for n.State().Lineage == "" {
		select {
		case <-n.Changed():
		case <-ctx.Done():
			t.Fatal("no log was founded")
		}
	}
	_, err := n.Register(ctx, Registration{World: 1, Incarnation: incarnation(n.cfg.Dir.Boots(), uint64(len(round)+int(round[0]))), Fingerprint: fmt.Sprint(n.cfg.Dir.Boots(), round), Mode: "keyed"})
	require.NoError(t, err)
	for range 3 {
		s := n.State()
		var args fsm.Args = fsm.Configure{Slots: slots("a", "b")}
		if m := s.Model("main"); m != nil && s.Cursor("main").Calls > 0 {
			args = fsm.StepEpoch{Epoch: m.Epoch + 1}
		}
		index, err := n.Decide(ctx, fsm.Call{Key: fsm.NextKey(s, "main", "", args), Args: args})
		require.NoError(t, err)
		acked(index)
	}
}

// An inode is a file or a directory: as it is, and as it was synced last.
type inode struct {
	data, synced   []byte
	names, durable map[string]*inode // of a directory; else nil
	unsynced       []func([]byte) []byte
}

func newDir() *inode { return &inode{names: map[string]*inode{}, durable: map[string]*inode{}} }

func (i *inode) change(fn func([]byte) []byte) {
	i.data = fn(i.data)
	i.unsynced = append(i.unsynced, fn)
}

func (i *inode) sync() {
	if i.names != nil {
		i.durable = map[string]*inode{}
		for name, child := range i.names {
			i.durable[name] = child
		}
	}
	if len(i.unsynced) > 0 {
		i.synced, i.unsynced = bytes.Clone(i.data), nil
	}
}

func writeAt(b []byte, at int) func([]byte) []byte {
	return func(data []byte) []byte {
		data = resize(max(len(data), at+len(b)))(data)
		copy(data[at:], b)
		return data
	}
}

func resize(size int) func([]byte) []byte {
	return func(data []byte) []byte {
		if size <= len(data) {
			return data[:size:size]
		}
		return append(data, make([]byte, size-len(data))...)
	}
}

// A survival is what of a file or a directory is there after a crash.
type survival struct {
	names func(*inode) map[string]*inode
	data  func(*inode) []byte
}

var killed = survival{func(i *inode) map[string]*inode { return i.names }, func(i *inode) []byte { return i.data }}

var powerCut = survival{func(i *inode) map[string]*inode { return i.durable }, func(i *inode) []byte { return i.synced }}

// partly keeps any of the writes that were not synced, some by half, and all names.
func partly(r *rand.Rand) survival {
	return survival{killed.names, func(i *inode) []byte {
		data := bytes.Clone(i.synced)
		for _, change := range i.unsynced {
			switch before := bytes.Clone(data); r.IntN(4) {
			case 0, 1:
				data = change(data)
			case 2:
				data = change(data)
				for at := len(before) / 512 / 2 * 512; at < len(before) && at < len(data); at++ {
					data[at] = before[at]
				}
			}
		}
		return data
	}}
}

func (s survival) write(t *testing.T, dir *inode, path string) {
	t.Helper()
	require.NoError(t, os.Mkdir(path, 0o700))
	for name, child := range s.names(dir) {
		at := filepath.Join(path, name)
		if child.names != nil {
			s.write(t, child, at)
			continue
		}
		data := s.data(child)
		require.NoError(t, os.WriteFile(at, bytes.TrimRight(data, "\x00"), 0o600))
		require.NoError(t, os.Truncate(at, int64(len(data)))) // the rest is a hole
	}
}

// traced is a disk that follows a trace.
type traced struct {
	t       *testing.T
	kind    string
	path    string
	root    *inode
	at      map[string]int // write position, by file descriptor
	acks    []ack
	calls   int
	looked  int
	started int
	rand    *rand.Rand
	scratch string
}

type ack struct{ index, term uint64 }

// readTrace plays a trace, and looks at the disk after every call in it.
func readTrace(t *testing.T, file, root, kind string) *traced {
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	scratch, err := os.MkdirTemp("/dev/shm", "esperd-powerloss-")
	if err != nil {
		scratch = t.TempDir()
	}
	defer os.RemoveAll(scratch)
	d := &traced{t: t, kind: kind, path: root, root: newDir(), at: map[string]int{}, rand: rand.New(rand.NewPCG(1, 2)), scratch: scratch}
	begun := map[string]string{}
	for line := range strings.Lines(string(b)) {
		thread, call, _ := strings.Cut(strings.TrimSpace(line), " ")
		call = strings.TrimSpace(call)
		if head, ok := strings.CutSuffix(call, "<unfinished ...>"); ok {
			begun[thread] = head
			continue
		}
		if _, rest, ok := strings.Cut(call, " resumed>"); ok && strings.HasPrefix(call, "<...") {
			call = begun[thread] + rest
		}
		d.play(call)
	}
	return d
}

// play takes one system call, as strace writes it.
func (d *traced) play(call string) {
	name, rest, ok := strings.Cut(call, "(")
	end := strings.LastIndex(rest, ") ")
	if !ok || end < 0 {
		return
	}
	args, result := strings.Split(strings.TrimSpace(rest[:end]), ", "), strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(rest[end+2:]), "="))
	if strings.HasPrefix(result, "-") || strings.HasPrefix(result, "?") {
		return // it failed, or the process ended
	}
	ours := false
	switch name {
	case "openat":
		ours = d.open(args, result)
	case "mkdirat":
		ours = d.link(text(args[1]), newDir())
	case "write", "pwrite64":
		ours = d.written(name, args)
	case "fsync", "fdatasync":
		if i := d.find(fdPath(args[0])); i != nil {
			i.sync()
			ours = true
		}
	case "ftruncate":
		if i := d.find(fdPath(args[0])); i != nil {
			i.change(resize(number(d.t, args[1])))
			ours = true
		}
	case "fallocate":
		if i := d.find(fdPath(args[0])); i != nil {
			require.Equal(d.t, "0", args[1], call)
			size := number(d.t, args[2]) + number(d.t, args[3])
			i.change(func(data []byte) []byte { return resize(max(size, len(data)))(data) })
			ours = true
		}
	case "rename", "renameat", "renameat2", "linkat":
		at := []int{1, 3}
		if name == "rename" {
			at = []int{0, 1}
		}
		from, to := text(args[at[0]]), text(args[at[1]])
		if i := d.find(from); i != nil {
			ours = d.link(to, i)
			if name != "linkat" {
				d.link(from, nil)
			}
		}
	case "unlinkat":
		ours = d.link(text(args[1]), nil)
	}
	if ours {
		d.calls++
		if !testing.Short() || d.calls%11 == 0 {
			d.look(call)
		}
	}
}

// open is of interest where it makes or empties a file.
func (d *traced) open(args []string, result string) bool {
	name := text(args[1])
	fd, _, _ := strings.Cut(result, "<")
	d.at[fd] = 0
	i := d.find(name)
	if i == nil {
		return strings.Contains(args[2], "O_CREAT") && d.link(name, &inode{})
	}
	if strings.Contains(args[2], "O_TRUNC") && len(i.data) > 0 {
		i.change(resize(0))
		return true
	}
	return false
}

func (d *traced) written(name string, args []string) bool {
	path := fdPath(args[0])
	i := d.find(path)
	if i == nil {
		return false
	}
	b := []byte(text(args[1]))
	require.Len(d.t, b, number(d.t, args[2]))
	fd, _, _ := strings.Cut(args[0], "<")
	at := d.at[fd]
	if name == "pwrite64" {
		at = number(d.t, args[3])
	} else {
		d.at[fd] = at + len(b)
	}
	if filepath.Base(path) == "acks" {
		var a ack
		_, err := fmt.Sscan(string(b), &a.index, &a.term)
		require.NoError(d.t, err)
		d.acks = append(d.acks, a)
		return false
	}
	i.change(writeAt(b, at))
	return true
}

// find returns the file or directory of a path; nil: not one of the node's.
func (d *traced) find(path string) *inode {
	rel, err := filepath.Rel(d.path, path)
	if err != nil || strings.HasPrefix(rel, "..") {
		return nil
	}
	i := d.root
	for _, name := range strings.Split(rel, "/") {
		if name != "." && i != nil {
			i = i.names[name]
		}
	}
	return i
}

// link gives a name to an inode, nil takes it away.
func (d *traced) link(path string, i *inode) bool {
	dir := d.find(filepath.Dir(path))
	if dir == nil || dir.names == nil {
		return false
	}
	if i == nil {
		delete(dir.names, filepath.Base(path))
	} else {
		dir.names[filepath.Base(path)] = i
	}
	return true
}

// text is a string as -xx writes it, fdPath the path of a descriptor.
func text(arg string) string { return unescape(strings.Trim(arg, `"`)) }

func fdPath(arg string) string {
	_, path, _ := strings.Cut(arg, "<")
	return unescape(strings.TrimSuffix(path, ">"))
}

func unescape(s string) string {
	if !strings.HasPrefix(s, `\x`) {
		return s
	}
	b, err := hex.DecodeString(strings.ReplaceAll(s, `\x`, ""))
	if err != nil {
		return s
	}
	return string(b)
}

func number(t *testing.T, arg string) int {
	t.Helper()
	var n int
	_, err := fmt.Sscan(arg, &n)
	require.NoError(t, err)
	return n
}

// look starts from what each kind of crash leaves after a call.
func (d *traced) look(call string) {
	type moment struct {
		name string
		survival
	}
	moments := []moment{{"kill", killed}, {"power cut in between", partly(d.rand)}}
	if strings.HasPrefix(call, "f") && strings.Contains(call, "sync") { // then only what is surely there has changed
		moments = []moment{{"power cut", powerCut}}
	}
	for _, s := range moments {
		data := s.names(d.root)["rank0"]
		if data == nil {
			require.Empty(d.t, d.acks)
			continue
		}
		dir := filepath.Join(d.scratch, "at")
		s.write(d.t, data, dir)
		what := fmt.Sprintf("%s after call %d, %.200s", s.name, d.calls, call)
		d.looked++
		d.consistent(dir, what)
		if d.looked%150 == 0 {
			d.decides(dir, what)
		}
		require.NoError(d.t, os.RemoveAll(dir))
	}
}

// consistent opens the stores as a start does, and looks for what was
// acknowledged.
func (d *traced) consistent(path, what string) {
	t := d.t
	dir, err := OpenDataDir(path, DataDirOptions{NoFsync: true})
	require.NoError(t, err, what)
	n := &Node{cfg: Config{Dir: dir, LogStore: d.kind}, log: slog.New(slog.DiscardHandler), ctx: t.Context()}
	stores, err := n.openStores()
	require.NoError(t, err, what)
	n.machine, err = newMachine(n.log, stores.History, 0)
	require.NoError(t, err, what)
	require.NoError(t, n.lookForLog(stores), what)
	h, _ := n.machine.now()
	list, err := stores.Snapshots.List()
	require.NoError(t, err, what)
	if len(list) > 0 {
		require.LessOrEqual(t, list[0].Index, h.raftIndex, "%s: nobody else has what lies between", what)
	}
	first, err := stores.Log.FirstIndex()
	require.NoError(t, err)
	last, err := stores.Log.LastIndex()
	require.NoError(t, err)
	if first > 1 {
		require.NotEmpty(t, list, "%s: the log begins at %d and there is no snapshot", what, first)
		require.LessOrEqual(t, first, list[0].Index+1, what)
	}
	head := h.index
	for i := max(first, h.raftIndex+1); i > 0 && i <= last; i++ {
		var l raft.Log
		require.NoError(t, stores.Log.GetLog(i, &l), what)
		if l.Type == raft.LogCommand {
			head++
		}
	}
	if len(d.acks) > 0 {
		acked := slices.MaxFunc(d.acks, func(a, b ack) int { return int(a.index) - int(b.index) })
		require.GreaterOrEqual(t, head, acked.index, "%s: a decision that was acknowledged is lost", what)
		term, err := stores.Stable.GetUint64([]byte("CurrentTerm"))
		require.NoError(t, err, what)
		require.GreaterOrEqual(t, term, acked.term, "%s: the node went back in its term, and might vote twice", what)
	}
	require.NoError(t, stores.History.Range(1, h.index, func(events.Record) error { return nil }), what)
	closers := append([]io.Closer{dir, closer(stores.History.Abandon)}, n.closers...)
	for _, c := range closers {
		require.NoError(t, c.Close(), what)
	}
}

// decides starts a node there, which has to go on.
func (d *traced) decides(path, what string) {
	dir, err := OpenDataDir(path, DataDirOptions{NoFsync: true})
	require.NoError(d.t, err, what)
	n := openLone(d.t, dir, d.kind)
	decideSome(d.t, n, "after", func(uint64) {})
	require.NoError(d.t, errors.Join(n.Close(context.Background()), dir.Close()), what)
	d.started++
}
