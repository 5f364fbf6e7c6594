package door

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// TrainerSuffix makes the path of the file that says whose process is watched, of
// the socket's. It outlives the server: the next one has to know of a death in
// between.
const TrainerSuffix = ".trainer"

// note is what the file holds. A process is told from others that have had its
// number by its start, in one pid namespace.
type note struct {
	pid                int
	start              uint64
	space, incarnation string
}

const noteForm = "%d %d %s %s\n"

// note writes down the trainer of the round that is open, once.
func (s *Server) note(ses *session) {
	ses.noting.Do(func() {
		p := ses.process()
		if p == nil {
			return
		}
		start, space, err := identify(p.pid)
		if err == nil && !p.ended() { // else it may have been another one's
			_ = os.Remove(s.noted)
			var f *os.File
			if f, err = os.OpenFile(s.noted, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err == nil {
				_, err = fmt.Fprintf(f, noteForm, p.pid, start, space, ses.incarnation)
				err = errors.Join(err, f.Close())
			}
		}
		if err != nil {
			s.log.Warn("when esperd is started again, the trainer's death is noticed only if it has called since", "path", s.noted, "error", err)
		}
	})
}

func readNote(path string) (n note, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return n, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return n, err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Getuid() || !info.Mode().IsRegular() {
		return n, fmt.Errorf("expected a file of this user's, got %s", info.Mode())
	}
	_, err = fmt.Fscanf(f, noteForm, &n.pid, &n.start, &n.space, &n.incarnation)
	return n, err
}

// watchAgain watches the trainer that an earlier esperd process watched, if the
// open round lists it, or tells that it has died since.
func (s *Server) watchAgain() {
	n, err := readNote(s.noted)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("which trainer was watched cannot be read", "path", s.noted, "error", err)
		}
		return
	}
	_, space, err := identify(os.Getpid())
	if err != nil || space != n.space || !s.listed(s.ctx, n.incarnation) || s.replica.State().Round.Tally(s.rank).Ended > 0 {
		return
	}
	p, err := openProcess(n.pid)
	if err == nil {
		if start, _, e := identify(n.pid); e != nil || start != n.start {
			p.close()
			err = os.ErrProcessDone // another one has its number
		}
	}
	if err != nil {
		if errors.Is(err, os.ErrProcessDone) {
			s.gone(s.ctx, n.incarnation, fmt.Sprintf(unsaid+" while its esperd was not running", n.pid))
		}
		return
	}
	ses, problem := s.sessions.admit(s.ctx, n.incarnation)
	if problem != nil { // there is another round by now
		p.close()
		return
	}
	ses.returns(s.replica.State().Round.Number)
	s.attend(ses, p)
}
