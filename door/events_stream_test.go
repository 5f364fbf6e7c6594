package door

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/esperd/esperd/door/doortest"
	"github.com/esperd/esperd/events"
)

// longEntries says that every entry is long.
type longEntries struct {
	*doortest.Node
	bytes int
	read  atomic.Int64
}

func (l *longEntries) Entry(index uint64) (*events.Entry, events.Record, error) {
	l.read.Add(1)
	e, rec, err := l.Node.Entry(index)
	rec.Entry = make([]byte, l.bytes)
	return e, rec, err
}

// longLog is a bench of one rank whose log has 10 entries of a size.
func longLog(t *testing.T, bytes int) (*bench, *longEntries) {
	var long *longEntries
	b := newBench(t, 1, func(o *Options) {
		long = &longEntries{Node: o.Replica.(*doortest.Node), bytes: bytes}
		o.Replica = long
	})
	t.Cleanup(b.close)
	b.connect()
	for n := uint64(1); b.log.Node(0).State().Index < 10; n++ {
		status, body := b.step(t.Context(), 0, n, n-1, int64(n))
		require.Equal(t, 200, status, body)
	}
	long.read.Store(0)
	return b, long
}

func TestAPageHasALimitInBytes(t *testing.T) {
	for bytes, want := range map[int][]int{
		1000:               {10},
		pageBytesMax / 4:   {4, 4, 2},
		pageBytesMax/4 + 1: {3, 3, 3, 1},
		pageBytesMax * 2:   {1, 1, 1, 1, 1, 1, 1, 1, 1, 1},
	} {
		b, long := longLog(t, bytes)
		var pages []int
		next := uint64(1)
		for seen := uint64(1); next > 0; {
			page, err := b.servers[0].page(next, 10_000)
			require.NoError(t, err)
			for _, e := range page.Entries {
				require.Equal(t, seen, e.Index)
				seen++
			}
			pages = append(pages, len(page.Entries))
			next = page.Next
		}
		require.Equal(t, want, pages)
		require.LessOrEqual(t, long.read.Load(), int64(10+len(pages)))
	}
	b, _ := longLog(t, 10)
	page, err := b.servers[0].page(3, 4)
	require.NoError(t, err)
	require.Len(t, page.Entries, 4)
	require.Equal(t, uint64(7), page.Next)
	page, err = b.servers[0].page(7, 4)
	require.NoError(t, err)
	require.Zero(t, page.Next)
}

// slowReader takes a line when it is told to.
type slowReader struct {
	*httptest.ResponseRecorder
	line chan struct{}
}

func (s *slowReader) Write(b []byte) (int, error) {
	<-s.line
	return s.ResponseRecorder.Write(b)
}

func TestFollowingHoldsOneEntry(t *testing.T) {
	b, long := longLog(t, 10)
	ctx, cancel := context.WithCancel(t.Context())
	slow := &slowReader{httptest.NewRecorder(), make(chan struct{})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.muxes[0].ServeHTTP(slow, httptest.NewRequestWithContext(ctx, http.MethodGet, "/v1/events?follow=true&from=1", nil))
	}()
	for line := range int64(10) {
		slow.line <- struct{}{} // it waits with this line, and has read no further
		require.LessOrEqual(t, long.read.Load(), line+2, "the next one may be on its way already")
	}
	cancel()
	<-done
	require.Equal(t, int64(10), long.read.Load())
	require.Equal(t, 10, strings.Count(slow.Body.String(), "\n"))
}
