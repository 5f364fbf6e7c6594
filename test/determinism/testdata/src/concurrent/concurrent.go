// Package concurrent plants everything that runs beside Apply.
package concurrent

import (
	"sync"
	"sync/atomic"
)

var (
	mu sync.Mutex
	n  atomic.Int64
)

func Apply(in chan int) int {
	for _, f := range roots {
		f(in)
	}
	out := make(chan int, 1) // want "a channel"
	go func() { out <- 1 }() // want "a goroutine" "a channel send"
	select {                 // want "a select"
	case v := <-in:
		return v
	case v := <-out:
		return v
	}
}

func init() { roots = append(roots, receive, locked) }

var roots []func(chan int) int

func receive(in chan int) int {
	s := <-in           // want "a channel receive"
	for v := range in { // want "a channel receive"
		s += v
	}
	close(in) // want "a channel close"
	return s
}

func locked(chan int) int {
	mu.Lock()            // want "shared memory: (*sync.Mutex).Lock"
	defer mu.Unlock()    // want "shared memory: (*sync.Mutex).Unlock"
	return int(n.Add(1)) // want "shared memory: (*sync/atomic.Int64).Add"
}
