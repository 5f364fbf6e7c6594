package events

import (
	"io"
	"os"
)

// A pager reads a file, and reads ahead where that is asked for from front to
// back: a system call for each page would be a sixth of an audit.
//
// What was read ahead is as old as when it was read. Whoever relies on that
// forgets it in time.
type pager struct {
	f     *os.File
	last  int64 // where the last read began
	at    int64 // of ahead in the file
	ahead []byte
	buf   []byte // of ahead
}

const (
	pagerAhead = 128 << 10 // bytes read at once
	pagerNear  = 64 << 10  // a read that begins within so many bytes after the last one goes on from it
)

// ReadAt reads len(b) bytes or fails, like the file's.
func (p *pager) ReadAt(b []byte, at int64) (int, error) {
	near := at > p.last && at-p.last <= pagerNear
	p.last = at
	if in := at - p.at; in >= 0 && in+int64(len(b)) <= int64(len(p.ahead)) {
		return copy(b, p.ahead[in:]), nil
	}
	if !near || len(b) > pagerAhead {
		return p.f.ReadAt(b, at)
	}
	if p.buf == nil {
		p.buf = make([]byte, pagerAhead)
	}
	n, err := p.f.ReadAt(p.buf, at)
	p.at, p.ahead = at, p.buf[:n]
	if n >= len(b) { // the file may end where reading ahead does
		return copy(b, p.ahead), nil
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return copy(b, p.ahead), err
}

// forget drops what was read ahead.
func (p *pager) forget() { p.ahead = p.ahead[:0] }
