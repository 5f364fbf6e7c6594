package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/internal/regular"
)

// dirPlace is a data directory, or its history.db alone.
type dirPlace struct {
	about  About
	path   string
	file   os.FileInfo // of path, when it was opened
	reader *events.Reader
	images []events.Image // read before the records, which they never precede on disk
	bad    error          // of the images
}

const historyName = "history.db"

// openDir reads a data directory and takes no lock there.
func openDir(dir string) (Place, error) {
	about := About{Place: dir, Kind: "directory"}
	node, err := regular.ReadFile(filepath.Join(dir, "node.json"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Stat(filepath.Join(dir, historyName)); err != nil {
			return nil, fmt.Errorf("%s is no data directory: it has neither node.json nor %s: %w", dir, historyName, ErrNoPlace)
		}
	case err != nil:
		return nil, err
	default:
		if err := about.readNode(node); err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(dir, "node.json"), err)
		}
	}
	about.readDivergence(dir)
	return openHistory(filepath.Join(dir, historyName), about)
}

// readDivergence notes what the node's replica found out about itself while it ran
// (diverged.json, which package replica writes).
func (a *About) readDivergence(dir string) {
	name := filepath.Join(dir, divergenceName)
	info, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil && (!info.Mode().IsRegular() || info.Size() > divergenceBytesMax) {
		err = fmt.Errorf("it is %s of %d bytes, expected a file of at most %d", info.Mode(), info.Size(), divergenceBytesMax)
	}
	var b []byte
	if err == nil {
		b, err = regular.ReadFile(name)
	}
	var d Evidence
	if err == nil {
		err = json.Unmarshal(b, &d)
	}
	if err != nil {
		a.Noted = fmt.Sprintf("what its esperd kept about a divergence (%s) cannot be read: %v", divergenceName, err)
		return
	}
	a.Evidence, a.Noted = &d, d.sentence()
}

const (
	divergenceName     = "diverged.json"
	divergenceBytesMax = 1 << 16
)

// Evidence is what a replica found out about its state while its esperd ran.
type Evidence struct {
	Index  uint64        `json:"index"`           // of the entry that did not fit its state
	First  uint64        `json:"first,omitempty"` // the first entry after which the state was wrong; 0: not known
	Which  string        `json:"which"`
	Model  string        `json:"model,omitempty"`
	Entry  events.Digest `json:"entry,omitzero"`
	Live   events.Digest `json:"live,omitzero"`
	Replay events.Digest `json:"replay,omitzero"`
	Fault  string        `json:"fault"` // self, writer or undecided
	Node   events.NodeID `json:"node,omitempty"`
	Rank   *uint64       `json:"rank,omitempty"`
	Reason string        `json:"reason"`

	Version       string    `json:"version,omitempty"`
	WriterVersion string    `json:"writer_version,omitempty"`
	Since         time.Time `json:"since"`
}

// sentence is the evidence, for people. The text is another process's.
func (e *Evidence) sentence() string {
	who := "fault " + e.Fault
	if e.Rank != nil {
		who += fmt.Sprintf(", rank %d", *e.Rank)
	}
	return fmt.Sprintf("its esperd noted on %s: diverged at entry %d (%s %s; entry %s, live %s, replay %s): %s: %.500s",
		e.Since.UTC().Format(time.DateTime), e.Index, e.Which, e.Model, e.Entry.Short(), e.Live.Short(), e.Replay.Short(), who, e.Reason)
}

// nodeFormat is the newest format of node.json that is read.
const nodeFormat = 1

func (a *About) readNode(b []byte) error {
	var f struct {
		Format  int           `json:"format"`
		Node    events.NodeID `json:"node"`
		Run     string        `json:"run"`
		Lineage string        `json:"lineage"`
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return fmt.Errorf("expected a JSON object: %w", err)
	}
	if f.Format > nodeFormat {
		return fmt.Errorf("format %d is newer than the %d that this esperd knows: audit with the esperd that wrote it, or a newer one", f.Format, nodeFormat)
	}
	a.Node, a.Run, a.Lineage = f.Node, f.Run, f.Lineage
	return nil
}

func openHistory(path string, about About) (Place, error) {
	about.Live = isOpen(path) // before the extent: what is appended then is seen
	file, _ := os.Stat(path)
	reader, err := events.OpenReader(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s has no %s: its esperd has not joined a log yet", about.Place, historyName)
	}
	if err != nil {
		return nil, err
	}
	p := &dirPlace{about: about, path: path, file: file, reader: reader}
	p.images, p.bad = reader.Images()
	if err := reader.Refresh(); err != nil {
		return nil, errors.Join(err, reader.Close())
	}
	p.measure()
	return p, nil
}

// measure notes where the file ends.
func (p *dirPlace) measure() {
	x := p.reader.Extent()
	p.about.From, p.about.Head, p.about.HeadChain = 1, x.Head, x.Chain
	if n := len(x.Missing); n > 0 {
		p.about.From, p.about.FirstChain = x.Missing[n-1].To+1, x.Missing[n-1].Chain
	}
}

// Refresh implements grower. A file that was replaced, as when the directory is
// set aside, is an error: open the place again.
func (p *dirPlace) Refresh(context.Context) error {
	now, err := os.Stat(p.path)
	if err != nil {
		return err
	}
	if !os.SameFile(now, p.file) {
		return fmt.Errorf("%s was replaced by another file", p.path)
	}
	p.about.Live = isOpen(p.path)
	if err := p.reader.Refresh(); err != nil {
		return err
	}
	p.measure()
	return nil
}

// isOpen reports whether a process has the history open for writing, by the lock
// that bbolt holds on it. It tries a shared one for a moment.
func isOpen(path string) bool {
	f, err := regular.Open(path)
	if err != nil {
		return false
	}
	defer f.Close() // drops the lock
	return errors.Is(syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB), syscall.EWOULDBLOCK)
}

func (p *dirPlace) About() *About { return &p.about }
func (p *dirPlace) Close() error  { return p.reader.Close() }

func (p *dirPlace) Records(ctx context.Context, from, to uint64, fn func(*events.Batch) error) error {
	return p.reader.Records(from, to, func(b *events.Batch) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return fn(b)
	})
}

func (p *dirPlace) Link(_ context.Context, index uint64) (Link, error) {
	switch {
	case index == 0:
		return Link{}, nil
	case index == p.about.From-1:
		return Link{Index: index, Chain: p.about.FirstChain}, nil
	}
	r, err := p.reader.Read(index)
	return linkOf(&r), err
}

func linkOf(r *events.Record) Link {
	return Link{Index: r.Index, Chain: r.Chain, Lifecycle: r.Lifecycle, Bookkeeping: r.Bookkeeping}
}
