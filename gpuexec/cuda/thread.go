//go:build linux && !nocuda && (amd64 || arm64)

package cuda

import (
	"errors"
	"runtime"
	"sync"
)

// A thread runs functions one after the other on one thread of the operating
// system: a context is current on a thread, not in a goroutine.
type thread struct {
	mu   sync.Mutex // of work, against a send after its end
	work chan func()
	end  bool
}

var errEnded = errors.New("CUDA: the device is closed")

func newThread() *thread {
	t := &thread{work: make(chan func())}
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		for f := range t.work {
			f()
		}
	}()
	return t
}

// do runs f there and waits for it.
func (t *thread) do(f func() error) (err error) {
	done := make(chan struct{})
	t.mu.Lock()
	if t.end {
		t.mu.Unlock()
		return errEnded
	}
	t.work <- func() {
		defer close(done)
		err = f()
	}
	t.mu.Unlock()
	<-done
	return err
}

// stop ends the thread after f.
func (t *thread) stop(f func() error) error {
	err := t.do(f)
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.end {
		t.end = true
		close(t.work)
	}
	return err
}
