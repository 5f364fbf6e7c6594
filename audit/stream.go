package audit

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"github.com/esperd/esperd/events"
)

// streamed is an entry on its way: its record is checked against the chain.
type streamed struct {
	Record events.Record // Entry is good until the callback returns
	Entry  events.Entry  // likewise, but for its events' payloads; if decoded without an Err
	Err    error         // of decoding
}

// job is a batch between the stages.
type job struct {
	batch   *events.Batch
	entries []streamed    // their memory is used again
	ready   chan struct{} // told when decoded
}

var jobs = sync.Pool{New: func() any { return new(job) }}

// take takes over the first records of a batch.
func (j *job) take(b *events.Batch, whole int) {
	j.ready = make(chan struct{}, 1) // never one of before: it may be another synctest bubble's
	j.batch, j.entries = b, slices.Grow(j.entries[:0], whole)[:whole]
	for i := range whole {
		j.entries[i].Record, j.entries[i].Err = b.Records[i], nil
	}
}

const jobsAhead = 2 // batches between two stages: what is decoded stays in the caches

// stream reads the entries from..to of a place, checks each against the chain
// that begins with prev, decodes them if asked to, and calls fn in order.
// Reading, decoding and fn run beside each other. The error is fn's, or a
// *events.CorruptError with the index of the first entry that is not whole, or
// that of the place.
func stream(ctx context.Context, p Place, from, to uint64, prev events.Digest, decode bool, fn func(*streamed) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var stages sync.WaitGroup
	defer stages.Wait()
	defer cancel()

	ordered, work := make(chan *job, jobsAhead), make(chan *job, jobsAhead)
	var readErr error // set before ordered is closed
	stages.Go(func() {
		defer close(ordered)
		defer close(work)
		c := &chainCheck{place: p.About().Place, prev: prev}
		readErr = p.Records(ctx, from, to, func(b *events.Batch) error {
			whole, err := c.check(b.Records)
			j := jobs.Get().(*job)
			j.take(b, whole)
			for _, to := range []chan *job{work, ordered} {
				select {
				case to <- j:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return err
		})
	})
	for range max(1, runtime.GOMAXPROCS(0)-1) {
		stages.Go(func() {
			for j := range work {
				for i := range j.entries {
					if e := &j.entries[i]; decode {
						e.Err = events.DecodeInto(&e.Entry, e.Record.Entry)
					}
				}
				j.ready <- struct{}{}
			}
		})
	}
	for j := range ordered {
		<-j.ready
		for i := range j.entries {
			if err := fn(&j.entries[i]); err != nil {
				return err
			}
		}
		j.batch.Release()
		jobs.Put(j)
	}
	return readErr
}

// chainCheck follows the chain.
type chainCheck struct {
	place string
	prev  events.Digest
}

// check returns how many of the records fit.
func (c *chainCheck) check(records []events.Record) (int, error) {
	for i := range records {
		r := &records[i]
		if want := events.Chain(c.prev, r.Index, r.Entry); want != r.Chain {
			return i, &events.CorruptError{File: c.place, Index: r.Index, What: fmt.Sprintf("its bytes do not give its chain %s", r.Chain.Short())}
		}
		c.prev = r.Chain
	}
	return len(records), nil
}

// damageAt returns the index of the first entry that is not whole.
func damageAt(err error) (index uint64, ok bool) {
	c, ok := errors.AsType[*events.CorruptError](err)
	if !ok {
		return 0, false
	}
	return c.Index, true
}
