package replica

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/events"
)

func TestContradictions(t *testing.T) {
	id := func(c string) events.NodeID { return events.NodeID(strings.Repeat(c, 32)) }
	base := func(c string) hello {
		return hello{Node: id(c), Rank: 1, World: 3, Address: "h:1#" + string(id(c))}
	}
	for name, c := range map[string]struct {
		me, h func(*hello)
		code  events.Code // "": let in
		words string
	}{
		"two of one founding":                  {code: ""},
		"runs":                                 {me: func(h *hello) { h.Run = "a" }, h: func(h *hello) { h.Run = "b" }, code: events.CodeConfigMismatch, words: `has "a"`},
		"a run and none":                       {me: func(h *hello) { h.Run = "a" }, code: ""},
		"lineages, which is not here to judge": {me: func(h *hello) { h.Lineage = "x" }, h: func(h *hello) { h.Lineage = "y" }, code: ""},
		"worlds, at founding":                  {h: func(h *hello) { h.World = 4 }, code: events.CodeConfigMismatch, words: "world size"},
		"starts, at founding":                  {me: func(h *hello) { h.Start = "s" }, h: func(h *hello) { h.Start = "t" }, code: events.CodeUnavailable, words: `round "t"`},
		"a start and none":                     {me: func(h *hello) { h.Start = "s" }, code: ""},
		"a newcomer's world":                   {me: func(h *hello) { h.Lineage = "x" }, h: func(h *hello) { h.World = 4 }, code: events.CodeUnavailable, words: "rank 1 of 4"},
		"a newcomer's start":                   {me: func(h *hello) { h.Lineage, h.Start = "x", "s" }, h: func(h *hello) { h.Start = "t" }, code: events.CodeUnavailable, words: "MASTER_PORT"},
		"a newcomer":                           {me: func(h *hello) { h.Lineage, h.Start = "x", "s" }, h: func(h *hello) { h.Start = "s" }, code: ""},
		"one log, another world":               {me: func(h *hello) { h.Lineage = "x" }, h: func(h *hello) { h.Lineage, h.World = "x", 4 }, code: ""},
		"one log, another start":               {me: func(h *hello) { h.Lineage, h.Start = "x", "s" }, h: func(h *hello) { h.Lineage, h.Start = "x", "t" }, code: ""},
		"of a log, at a newcomer's":            {h: func(h *hello) { h.Lineage, h.World = "x", 4 }, code: ""},
	} {
		t.Run(name, func(t *testing.T) {
			me, h := base("a"), base("b")
			if c.me != nil {
				c.me(&me)
			}
			if c.h != nil {
				c.h(&h)
			}
			require.NoError(t, h.check())
			err := contradiction(me, h)
			if c.code == "" {
				require.NoError(t, err)
				return
			}
			e, ok := errors.AsType[*Error](err)
			require.True(t, ok, "%v", err)
			require.Equal(t, c.code, e.Code)
			require.Contains(t, e.Reason, c.words)
		})
	}
}

func TestBadHellos(t *testing.T) {
	id := events.NodeID(strings.Repeat("a", 32))
	for name, h := range map[string]hello{
		"no node":       {World: 1, Address: "h:1"},
		"no world":      {Node: id, Address: "h:1"},
		"no such rank":  {Node: id, Rank: 2, World: 2, Address: "h:1"},
		"a huge world":  {Node: id, World: 1 << 40, Address: "h:1"},
		"no address":    {Node: id, World: 1},
		"another's":     {Node: id, World: 1, Address: "h:1#" + strings.Repeat("b", 32)},
		"a long text":   {Node: id, World: 1, Address: "h:1", Host: strings.Repeat("x", helloBytesMax+1)},
		"a strange one": {Node: "../../x", World: 1, Address: "h:1"},
	} {
		err := h.check()
		require.Error(t, err, name)
		require.Equal(t, events.CodeInvalidInput, err.(*Error).Code, name)
	}
}

// What others heard of nodes counts as of when they heard it.
func TestWhereabouts(t *testing.T) {
	var r roster
	r.init()
	a, b := events.NodeID(strings.Repeat("a", 32)), events.NodeID(strings.Repeat("b", 32))
	r.note(hello{Node: a, Address: "here:1#" + string(a)})
	r.learn([]known{
		{Address: "old:1#" + string(a), Age: 60_000},
		{Address: "there:1#" + string(b), Age: 60_000},
		{Address: "older:1#" + string(b), Age: ^uint64(0)},
		{Address: "#" + string(b)}, {Address: "nobody:1"}, {Address: strings.Repeat("x", helloBytesMax+1) + "#" + string(b)},
	})
	require.Equal(t, "here:1#"+string(a), r.where(a))
	require.Equal(t, "there:1#"+string(b), r.where(b))
	require.Empty(t, r.where("c"))
	r.learn([]known{{Address: "moved:1#" + string(b), Age: 1000}})
	require.Equal(t, "moved:1#"+string(b), r.where(b))
	require.Len(t, r.known(), 2)
	c := events.NodeID(strings.Repeat("c", 32))
	r.recall([]string{"before:1#" + string(c), "nonsense", "#" + string(c), "x:1#../.."})
	require.Equal(t, "before:1#"+string(c), r.where(c))
	r.learn([]known{{Address: "heard:1#" + string(c), Age: ^uint64(0)}})
	require.Equal(t, "heard:1#"+string(c), r.where(c), "whatever is heard is newer")
	var w whereabouts
	require.Equal(t, "x:1#"+string(b), w.now("x:1#"+string(b)))
	w.set(r.where)
	require.Equal(t, "moved:1#"+string(b), w.now("x:1#"+string(b)))
	require.Equal(t, "x:1", w.now("x:1"))
}

// A directory that was copied while its node ran: whoever comes second, by the
// leader or by the original itself, ends, and says why.
func TestCopiedDirectory(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dirs := []string{t.TempDir(), t.TempDir()}
	first := openNode(t, dirs[0], 0, 2, "127.0.0.1:0")
	second := openNode(t, dirs[1], 1, 2, "127.0.0.1:0", first.net.Addr())
	for _, n := range []*Node{first, second} {
		require.Eventually(t, func() bool { return n.Status().Phase == PhaseMember }, 10*time.Second, time.Millisecond)
	}
	for i, of := range []*Node{second, first} {
		dir := filepath.Join(t.TempDir(), "copy")
		require.NoError(t, of.history.Flush())
		require.NoError(t, os.CopyFS(dir, os.DirFS(of.cfg.Dir.Path(""))))
		n := openNode(t, dir, of.cfg.Rank, 2, "127.0.0.1:0", hostOf(first.net.Addr()))
		select {
		case <-n.Failed():
		case <-ctx.Done():
			t.Fatalf("copy %d goes on", i)
		}
		problem := n.Status().Problem
		for _, part := range []string{string(of.id), hostOf(of.net.Addr()), hostOf(n.net.Addr()), "was copied", "aside"} {
			require.Contains(t, problem, part)
		}
		require.NotEqual(t, PhaseFailed, of.Status().Phase)
	}
}
