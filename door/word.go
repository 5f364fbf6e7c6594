package door

import (
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
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
	round uint64         // the last one that was seen
	over  bool           // and that it was faulted
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
	w.path = path
}

// mapFile maps a file that is zeros then. It is never cut, and has its blocks on
// the disk: whoever has it mapped, esperd included, would be killed by a signal.
func mapFile(path string, size int) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Mode().Type() != 0 {
		return nil, fmt.Errorf("expected a file of esperd's own, got %s", info.Mode())
	}
	if !private(info) { // its owner could cut it
		f.Close()
		if err := os.Remove(path); err != nil {
			return nil, err
		}
		if f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_CLOEXEC, 0o600); err != nil {
			return nil, err
		}
	}
	if _, err := f.WriteAt(make([]byte, size), 0); err != nil {
		return nil, err
	}
	return unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// begin says from which state on there is news. That its round is over is news.
func (w *words) begin(at *fsm.State) { w.seen, w.round = at.Index, at.Round.Number }

// private reports whether nobody else can change a file.
func private(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Getuid() && st.Nlink == 1 && info.Mode().Perm()&0o022 == 0
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
		w.put(i, index)
	}
}

func (w *words) put(i int, index uint64) {
	word := (*uint64)(unsafe.Pointer(&w.mem[i*wordBytes]))
	atomic.StoreUint64(word, max(index, *word)) // nobody else writes
}

// concern moves the words that an entry concerns.
func (w *words) concern(e *events.Entry, index uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e.Key != nil {
		w.set(e.Key.Model, index)
	}
	for i := range e.Events {
		switch ev := &e.Events[i]; {
		case ev.Requested != nil:
			w.set(ev.Requested.Model, index)
		case ev.RoundOpened != nil:
			w.turn(ev.RoundOpened.Round, false, index)
		case ev.RoundFaulted != nil:
			w.turn(ev.RoundFaulted.Round, true, index)
		}
	}
}

// passed is for a round that began or ended in entries that were not looked at.
func (w *words) passed(state *fsm.State) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.turn(state.Round.Number, state.Round.Fault != nil, state.Index)
}

// turn moves all words, of models that are not known here yet, too, when a round
// begins or ends.
func (w *words) turn(round uint64, over bool, index uint64) {
	if round == w.round && over == w.over {
		return
	}
	w.round, w.over = round, over
	for i := range wordsMax {
		w.put(i, index)
	}
}

// alarm moves all words because of something that is no entry.
func (w *words) alarm(index uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mem == nil {
		return
	}
	for i := range wordsMax {
		w.put(i, index)
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
		state := s.replica.State()
		head := state.Index
		if head > w.seen+wordsCatchUp {
			w.seen = head - wordsCatchUp
		}
		for w.seen < head {
			w.seen++
			if e, _, err := s.replica.Entry(w.seen); err == nil {
				w.concern(e, w.seen)
			}
		}
		w.passed(state)
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
