// Package clock plants clocks.
package clock

import "time"

func Apply(since time.Time) int64 {
	t := time.Now()                      // want "the clock: time.Now"
	d := time.Since(since)               // want "the clock: time.Since"
	time.Sleep(1)                        // want "the clock: time.Sleep"
	n := t.UnixNano()                    // want "the clock: (time.Time).UnixNano"
	return n + int64(d) + tick(time.Now) // want "the clock: time.Now"
}

func tick(now func() time.Time) int64 { return int64(now().Second()) } // want "the clock: (time.Time).Second"
