package door

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// WordSuffix makes the word file's path of the socket's. The file outlives the
// server.
const WordSuffix = ".word"

const (
	wordBytes    = 8
	wordsMax     = modelsMax
	wordsCatchUp = 1024 // entries that are looked at one by one
)

// words is a file that trainers map: for each model the index of the newest
// entry that concerns it. Looking there costs a read of memory. It is a hint,
// behind the log by the time that a goroutine takes to wake up.
type words struct {
	path string
	mem  []byte // nil: there is no file
	log  *slog.Logger

	mu    sync.Mutex
	model map[string]int // its word
	seen  uint64         // index up to which entries were looked at
}

func newWords(log *slog.Logger) *words { return &words{log: log, model: map[string]int{}} }

// open makes the file, or takes the one that is there: trainers of an earlier
// esperd process have it mapped. Without it they have no hint.
func (w *words) open(path string) {
	path, err := filepath.Abs(path)
	if err == nil {
		w.mem, err = mapFile(path, wordsMax*wordBytes)
	}
	if err != nil {
		w.log.Warn("trainers have no word to look at: their check() says nothing", "path", path, "error", err)
		return
	}
	clear(w.mem)
	w.path = path
}

func mapFile(path string, size int) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Mode().Type() != 0 {
		return nil, fmt.Errorf("expected a file of esperd's own, got %s", info.Mode())
	}
	// Never shorter: whoever has it mapped would be killed by a signal.
	if info.Size() < int64(size) {
		if err := f.Truncate(int64(size)); err != nil {
			return nil, err
		}
	}
	return unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// watch gives a model a word.
func (w *words) watch(model string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.model[model]; !ok && len(w.model) < wordsMax {
		w.model[model] = len(w.model)
	}
}

// of says where a model's word is; nil: it has none.
func (w *words) of(model string) *api.Word {
	w.mu.Lock()
	defer w.mu.Unlock()
	i, ok := w.model[model]
	if !ok || w.mem == nil {
		return nil
	}
	return &api.Word{Path: w.path, Offset: int64(i) * wordBytes}
}

func (w *words) set(model string, index uint64) {
	if i, ok := w.model[model]; ok {
		atomic.StoreUint64((*uint64)(unsafe.Pointer(&w.mem[i*wordBytes])), index)
	}
}

// concern moves the words that an entry concerns.
func (w *words) concern(e *events.Entry, index uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case e.Key != nil:
		w.set(e.Key.Model, index)
	case e.Kind == events.KindRequest:
		for i := range e.Events {
			if r := e.Events[i].Requested; r != nil {
				w.set(r.Model, index)
			}
		}
	case e.Kind == events.KindFault || e.Kind == events.KindRound:
		for model := range w.model {
			w.set(model, index)
		}
	}
}

// moveWords follows the log until the server closes.
func (s *Server) moveWords() {
	w := s.words
	if w.mem == nil {
		return
	}
	for {
		changed := s.replica.Changed()
		head := s.replica.State().Index
		if head > w.seen+wordsCatchUp {
			w.seen = head - wordsCatchUp
		}
		for w.seen < head {
			w.seen++
			if e, _, err := s.replica.Entry(w.seen); err == nil {
				w.concern(e, w.seen)
			}
		}
		select {
		case <-changed:
		case <-s.ctx.Done():
			return
		}
	}
}

// close unmaps the file, which stays: the next esperd takes it.
func (w *words) close() error {
	if w.mem == nil {
		return nil
	}
	return unix.Munmap(w.mem)
}
