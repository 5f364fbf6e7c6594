package replica

import (
	"log/slog"
	"time"

	"github.com/hashicorp/raft"
)

// patientStable waits for a disk that takes no write: raft v1.7.3 panics when it
// cannot store its term, and a full disk has space again some time. Until then
// this node votes for nobody and acknowledges nothing.
type patientStable struct {
	raft.StableStore
	log  *slog.Logger
	done <-chan struct{}
}

// Set implements raft.StableStore.
func (s *patientStable) Set(key, value []byte) error {
	return s.retry(func() error { return s.StableStore.Set(key, value) })
}

// SetUint64 implements raft.StableStore.
func (s *patientStable) SetUint64(key []byte, value uint64) error {
	return s.retry(func() error { return s.StableStore.SetUint64(key, value) })
}

func (s *patientStable) retry(write func() error) error {
	return patiently(s.log, s.done, "raft's vote or term cannot be written", write)
}

// patiently writes until it works, or done is closed.
func patiently(log *slog.Logger, done <-chan struct{}, problem string, write func() error) error {
	err := write()
	if err != nil {
		log.Error(problem+": this node stands still and tries every second", "error", err)
	}
	for err != nil {
		select {
		case <-done:
			return err
		case <-time.After(time.Second):
			err = write()
		}
	}
	return nil
}
