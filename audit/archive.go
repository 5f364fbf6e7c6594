package audit

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"syscall"

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
)

// An Archive is an exported log that grows with a node's own: a file for each
// lineage of a run, in a directory that outlives the nodes' disks. It is for one
// goroutine; other processes, also of other machines, are kept out by a lock
// while it is written, and what they wrote is read before it is added to.
type Archive struct {
	Dir  string // made if it is missing
	left *archived
}

// A Source is a node's own log. *replica.Node is one.
type Source interface {
	Records(from, to uint64, fn func(events.Record) error) error
	ChainAt(index uint64) (events.Digest, error)
}

// archived is what a file holds.
type archived struct {
	path  string
	info  os.FileInfo // as it was then
	sum   hash.Hash   // of the bytes before at
	at    int64       // behind the last whole record: what comes there is written anew
	last  uint64
	chain events.Digest
	whole bool // its last line is there
}

var archiveNames = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:@+=-]{0,127}$`)

// Path is where the log of a run and lineage is kept.
func (a *Archive) Path(run, lineage string) (string, error) {
	for _, part := range []string{run, lineage} {
		if !archiveNames.MatchString(part) {
			return "", fmt.Errorf("the archive's file cannot be named after run %.140q and lineage %.140q: expected letters, digits or any of . _ : @ + = -", run, lineage)
		}
	}
	return filepath.Join(a.Dir, run+"-"+lineage+".jsonl"), nil
}

// Update adds the entries of src that the file does not have, up to of.Head, and
// returns the last one that is in it, on disk. A line that a crash tore is written
// again. A file that is damaged, or holds anything but this log, stays as it is,
// and the error says why. of is what src is: run, lineage, node, rank, version.
func (a *Archive) Update(ctx context.Context, src Source, of *About) (last uint64, err error) {
	path, err := a.Path(of.Run, of.Lineage)
	if err != nil {
		return 0, err
	}
	if err := os.MkdirAll(a.Dir, 0o700); err != nil {
		return 0, fmt.Errorf("the archive's directory: %w", err)
	}
	f, info, err := openArchive(path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }() // which unlocks it
	has := a.left
	a.left = nil // until all is well
	if has == nil || !has.is(path, info) {
		if has, err = readArchive(ctx, f, info, of); err != nil {
			return 0, fmt.Errorf("archive %s: %w", path, err)
		}
	}
	if err := has.extend(ctx, f, src, of); err != nil {
		return 0, fmt.Errorf("archive %s: %w", path, err)
	}
	if has.info, err = f.Stat(); err != nil {
		return 0, err
	}
	has.path, a.left = path, has
	return has.last, nil
}

func openArchive(path string) (*os.File, os.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if errors.Is(err, syscall.ELOOP) {
		return nil, nil, fmt.Errorf("archive %s is a link, expected a file: move it aside, and one is written", path)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("archive: %w", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("archive %s is no file: move it aside, and one is written", path)
	}
	if err == nil {
		if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); errors.Is(err, syscall.EWOULDBLOCK) {
			err = fmt.Errorf("archive %s is being written by another process", path)
		}
	}
	if err == nil {
		info, err = f.Stat() // what it is under the lock
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, info, nil
}

// is reports whether nobody has written to the file since.
func (h *archived) is(path string, now os.FileInfo) bool {
	return h.path == path && os.SameFile(h.info, now) && h.info.Size() == now.Size() && h.info.ModTime().Equal(now.ModTime())
}

// moveAside is what to do about a file that is not to be written to.
const moveAside = "move it aside, and the log is written to a new one"

var (
	headBegins = []byte(`{"format":"` + exportName + `"`)
	endBegins  = []byte(`{"end":true,`)
)

// readArchive reads a file to its end and checks all of it.
func readArchive(ctx context.Context, f *os.File, info os.FileInfo, of *About) (*archived, error) {
	h := &archived{sum: sha256.New()}
	in := bufio.NewReaderSize(io.NewSectionReader(f, 0, info.Size()), 1<<16)
	line, err := readLine(in)
	switch {
	case len(line) == 0 && errors.Is(err, io.EOF): // new
		return h, nil
	case errors.Is(err, io.ErrUnexpectedEOF) && (bytes.HasPrefix(line, headBegins) || bytes.HasPrefix(headBegins, line)): // torn
		return h, nil
	case err != nil || !bytes.HasPrefix(line, headBegins):
		return nil, errors.New("it is no exported log: " + moveAside)
	}
	if err := checkHead(line, of); err != nil {
		return nil, err
	}
	h.keep(line)
	for !h.whole {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		line, err := readLine(in)
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return h, nil
		}
		if err == nil {
			err = h.read(line)
		}
		if err == nil {
			continue
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return h, nil // the last line, torn
		}
		return nil, fmt.Errorf("it is damaged after entry %d: %w: %s", h.last, err, moveAside)
	}
	if _, err := in.Peek(1); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("something follows its last line, which ends it at entry %d: %s", h.last, moveAside)
	}
	return h, nil
}

func checkHead(line []byte, of *About) error {
	var head exportHead
	err := json.Unmarshal(line, &head)
	switch {
	case err != nil:
		return fmt.Errorf("its first line: %w: %s", err, moveAside)
	case head.Version > exportVersion:
		return fmt.Errorf("%w: %s", &events.VersionError{Got: uint64(head.Version), Known: exportVersion}, moveAside)
	case head.Run != of.Run || head.Lineage != of.Lineage:
		return fmt.Errorf("it says to be of run %.140q, log %.40q, expected run %s, log %s: %s", head.Run, head.Lineage, of.Run, of.Lineage, moveAside)
	case head.From != 1:
		return fmt.Errorf("it begins at entry %d, expected 1: %s", head.From, moveAside)
	}
	return nil
}

// keep counts a line as one that stays.
func (h *archived) keep(line []byte) {
	h.sum.Write(line)
	h.at += int64(len(line))
}

// read takes a record, or the last line.
func (h *archived) read(line []byte) error {
	if bytes.HasPrefix(line, endBegins) {
		var end exportEnd
		if err := unmarshalStrict(line, &end); err != nil {
			return err
		}
		if end.Entries != h.last || end.Chain != h.chain || end.SHA256 != events.Digest(h.sum.Sum(nil)) {
			return fmt.Errorf("its last line is about other bytes: %d entries, chain %s", end.Entries, end.Chain.Short())
		}
		h.whole = true
		return nil
	}
	var r api.Record
	if err := unmarshalStrict(line, &r); err != nil {
		return fmt.Errorf("not a record: %w", err)
	}
	if r.Index != h.last+1 {
		return fmt.Errorf("entry %d where entry %d is expected", r.Index, h.last+1)
	}
	if r.Chain != events.Chain(h.chain, r.Index, r.Entry) {
		return fmt.Errorf("entry %d is not the one that its chain is of", r.Index)
	}
	h.last, h.chain = r.Index, r.Chain
	h.keep(line)
	return nil
}

// extend writes what is missing, and the last line behind it.
func (h *archived) extend(ctx context.Context, f *os.File, src Source, of *About) error {
	switch {
	case h.last > of.Head: // by a node that was ahead of this one
		if h.whole {
			return nil
		}
	case h.last > 0 || of.From > 1:
		if of.From > h.last+1 {
			return fmt.Errorf("entries %d to %d are not on this node yet: it is still fetching them from the others", h.last+1, of.From-1)
		}
		chain, err := src.ChainAt(h.last)
		if err != nil {
			return err
		}
		if chain != h.chain {
			return fmt.Errorf("it holds another log: the chain at entry %d is %s there and %s here: %s", h.last, h.chain.Short(), chain.Short(), moveAside)
		}
	}
	if h.whole && h.last >= of.Head {
		return nil
	}
	h.whole = false
	if err := f.Truncate(h.at); err != nil {
		return err
	}
	failed := h.append(ctx, io.NewOffsetWriter(f, h.at), src, of)
	if err := f.Sync(); err != nil { // before the line that vouches for it
		return errors.Join(failed, err)
	}
	end, err := json.Marshal(exportEnd{true, h.last, h.chain, events.Digest(h.sum.Sum(nil))})
	if err == nil && h.at > 0 {
		_, err = f.WriteAt(append(end, '\n'), h.at)
	}
	if err = errors.Join(failed, err, f.Sync()); err == nil {
		h.whole = true
	}
	return err
}

// append writes the head, if it is missing, and records. Only what it could write
// counts.
func (h *archived) append(ctx context.Context, w io.Writer, src Source, of *About) error {
	out := bufio.NewWriterSize(w, 1<<16)
	put := func(v any) error {
		line, err := json.Marshal(v)
		if err != nil {
			return err
		}
		line = append(line, '\n')
		if _, err := out.Write(line); err != nil {
			return err
		}
		h.keep(line)
		return nil
	}
	if h.at == 0 {
		if err := put(exportHead{exportName, exportVersion, of.Run, of.Lineage, of.Node, of.Rank, 1, events.Digest{}, of.Version, events.Version}); err != nil {
			return err
		}
	}
	var failed error
	if h.last < of.Head {
		failed = src.Records(h.last+1, of.Head, func(r events.Record) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := put(api.RecordOf(&r)); err != nil {
				return err
			}
			h.last, h.chain = r.Index, r.Chain
			return nil
		})
	}
	return errors.Join(failed, out.Flush())
}
