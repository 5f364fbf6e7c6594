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

	"github.com/esperd/esperd/api"
	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/internal/regular"
)

// An exported log is JSON, an object a line: what it is, the records as
// GET /v1/records has them, and where they end. The last line has the SHA-256 of
// all bytes before it, so that nothing is lost or changed unseen.
type exportHead struct {
	Format  string        `json:"format"` // exportName
	Version int           `json:"format_version"`
	Run     string        `json:"run"`
	Lineage string        `json:"lineage"`
	Node    events.NodeID `json:"node,omitempty"`
	Rank    *uint64       `json:"rank,omitempty"`
	From    uint64        `json:"from"`
	Before  events.Digest `json:"chain_before,omitzero"` // the link before From
	Esperd  string        `json:"esperd"`                // which wrote the file
	Entry   uint64        `json:"entry_version"`         // newest that it knows
}

type exportEnd struct {
	End     bool          `json:"end"`
	Entries uint64        `json:"entries"`
	Chain   events.Digest `json:"chain"`
	SHA256  events.Digest `json:"sha256"`
}

const (
	exportName     = "esperd-log"
	exportVersion  = 1
	exportLineMax  = events.MaxEntryBytes/3*4 + 4096
	exportTail     = 4096 // the end lies within the last bytes
	exportBatch    = 256
	exportProblems = "export it again"
)

// Export writes the entries from..to of a place, which are checked against the
// chain. A history that is damaged is written up to the damage, with its end,
// and the error says where.
func Export(ctx context.Context, w io.Writer, p Place, from, to uint64, version string) error {
	a := p.About()
	from, to = max(from, a.From, 1), min(to, a.Head)
	before, err := p.Link(ctx, from-1)
	if err != nil {
		return err
	}
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(w, sum), 1<<16)
	lines := json.NewEncoder(out)
	err = lines.Encode(exportHead{exportName, exportVersion, a.Run, a.Lineage, a.Node, a.Rank, from, before.Chain, version, events.Version})
	if err != nil {
		return err
	}
	end := exportEnd{End: true, Chain: before.Chain}
	damage := stream(ctx, p, from, to, before.Chain, false, func(e *streamed) error {
		end.Entries, end.Chain = end.Entries+1, e.Record.Chain
		return lines.Encode(api.RecordOf(&e.Record))
	})
	if err := out.Flush(); err != nil {
		return err
	}
	end.SHA256 = events.Digest(sum.Sum(nil))
	return errors.Join(damage, json.NewEncoder(w).Encode(end))
}

// exportPlace is an exported log.
type exportPlace struct {
	about About
	f     *os.File
	first int64 // where the records begin
	end   int64 // and end
	sum   events.Digest
}

func openFile(name string) (Place, error) {
	f, err := regular.Open(name)
	if err != nil {
		return nil, err
	}
	head := make([]byte, 24)
	n, _ := f.ReadAt(head, 0)
	if !bytes.HasPrefix(bytes.TrimLeft(head[:n], " \t"), []byte("{")) {
		f.Close()
		return openHistory(name, About{Place: name, Kind: "directory"})
	}
	p := &exportPlace{about: About{Place: name, Kind: "export"}, f: f}
	if err := p.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("exported log %s: %w", name, err), f.Close())
	}
	return p, nil
}

func (p *exportPlace) open() error {
	line, err := readLine(bufio.NewReader(io.NewSectionReader(p.f, 0, exportTail)))
	var head exportHead
	if err == nil {
		err = json.Unmarshal(line, &head)
	}
	switch {
	case err != nil || head.Format != exportName:
		return fmt.Errorf("its first line is not that of one: %w", ErrNoPlace)
	case head.Version > exportVersion:
		return &events.VersionError{Got: uint64(head.Version), Known: exportVersion}
	case head.From == 0:
		return errors.New("its first line says that it begins at entry 0, expected 1 or more; " + exportProblems)
	}
	p.first = int64(len(line))
	info, err := p.f.Stat()
	if err != nil {
		return err
	}
	tail := make([]byte, min(exportTail, info.Size()-p.first))
	if _, err := p.f.ReadAt(tail, info.Size()-int64(len(tail))); err != nil {
		return err
	}
	at := bytes.LastIndexByte(bytes.TrimSuffix(tail, []byte("\n")), '\n') + 1
	var end exportEnd
	if err := json.Unmarshal(tail[at:], &end); err != nil || !end.End {
		end = exportEnd{} // found by Records, after the last whole line
	}
	p.end, p.sum = info.Size()-int64(len(tail)-at), end.SHA256
	a := &p.about
	a.Node, a.Rank, a.Run, a.Lineage, a.Version = head.Node, head.Rank, head.Run, head.Lineage, head.Esperd
	a.From, a.Head, a.FirstChain, a.HeadChain = head.From, head.From+end.Entries-1, head.Before, end.Chain
	if !end.End {
		p.end = info.Size()
		a.Head, a.Problem = p.lastWhole(), "the export is cut off: its last line is missing"
	}
	return nil
}

// lastWhole is the index of the last whole record of an export that is cut off.
func (p *exportPlace) lastWhole() uint64 {
	last := p.about.From - 1
	_ = p.lines(context.Background(), p.first, func(r *api.Record, _ int64) error {
		if r.Index != last+1 {
			return io.EOF
		}
		last = r.Index
		return nil
	})
	return last
}

func (p *exportPlace) About() *About { return &p.about }
func (p *exportPlace) Close() error  { return p.f.Close() }

func (p *exportPlace) lines(ctx context.Context, from int64, fn func(r *api.Record, size int64) error) error {
	in := bufio.NewReaderSize(io.NewSectionReader(p.f, from, p.end-from), 1<<16)
	for {
		line, err := readLine(in)
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		r := new(api.Record)
		if err := unmarshalStrict(line, r); err != nil {
			return fmt.Errorf("not a record: %w", err)
		}
		if err := fn(r, int64(len(line))); err != nil {
			return err
		}
	}
}

// unmarshalStrict takes one object of known fields.
func unmarshalStrict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.More() {
		return errors.New("more than one object in a line")
	}
	return nil
}

// readLine reads a line with its end. A last one without is io.EOF, with what
// there is.
func readLine(in *bufio.Reader) ([]byte, error) {
	var out []byte
	for {
		part, err := in.ReadSlice('\n')
		out = append(out, part...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			if len(out) > exportLineMax {
				return nil, fmt.Errorf("a line of more than %d bytes", exportLineMax)
			}
		case err != nil:
			if len(out) > 0 && errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return out, err
		default:
			return out, nil
		}
	}
}

// errSeen ends a walk over lines.
var errSeen = errors.New("seen")

// Records reads the file. The whole of it also gives its sum.
func (p *exportPlace) Records(ctx context.Context, from, to uint64, fn func(*events.Batch) error) error {
	start := p.first
	if from > p.about.From {
		at, err := p.find(from)
		if err != nil {
			return err
		}
		start = at
	}
	next := max(from, p.about.From)
	batch := new(events.Batch)
	err := p.lines(ctx, start, func(r *api.Record, _ int64) error {
		if r.Index != next {
			return fmt.Errorf("entry %d where entry %d is expected", r.Index, next)
		}
		batch.Records = append(batch.Records, recordOf(r))
		next++
		if len(batch.Records) == exportBatch || next > to {
			full := batch
			batch = new(events.Batch)
			if err := fn(full); err != nil {
				return stopped{err}
			}
		}
		if next > to {
			return errSeen
		}
		return nil
	})
	if stop, ok := errors.AsType[stopped](err); ok {
		return stop.error
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if len(batch.Records) > 0 {
		if err := fn(batch); err != nil {
			return err
		}
	}
	switch {
	case err != nil && !errors.Is(err, errSeen):
		return &events.CorruptError{File: p.about.Place, Index: next, What: err.Error()}
	case next <= to:
		return &events.CorruptError{File: p.about.Place, Index: next, What: "the record is gone"}
	case from <= p.about.From && to >= p.about.Head && p.about.Problem == "":
		return p.checkSum()
	}
	return nil
}

// stopped is an error of who reads, not of the file.
type stopped struct{ error }

func recordOf(r *api.Record) events.Record {
	return events.Record{Index: r.Index, Chain: r.Chain, Lifecycle: r.Lifecycle, Bookkeeping: r.Bookkeeping, Entry: r.Entry}
}

func (p *exportPlace) checkSum() error {
	var h hash.Hash = sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(p.f, 0, p.end)); err != nil {
		return err
	}
	if events.Digest(h.Sum(nil)) != p.sum {
		return &events.CorruptError{File: p.about.Place, What: "its bytes do not give the SHA-256 in its last line"}
	}
	return nil
}

// find returns where the line of a record begins, by bisection over the file.
func (p *exportPlace) find(index uint64) (int64, error) {
	low, high := p.first, p.end // the line begins in low..high
	for {
		at, r, size, err := p.lineAfter(low + (high-low)/2)
		if err != nil || at >= high { // none begins in the upper half
			if at, r, size, err = p.lineAfter(low); err != nil {
				return 0, &events.CorruptError{File: p.about.Place, Index: index, What: err.Error()}
			}
		}
		switch {
		case r.Index == index:
			return at, nil
		case r.Index < index:
			if low = at + size; low >= high {
				return 0, &events.CorruptError{File: p.about.Place, Index: index, What: "the record is gone"}
			}
		default:
			if at == low || at >= high {
				return 0, &events.CorruptError{File: p.about.Place, Index: index, What: "the record is gone"}
			}
			high = at
		}
	}
}

// lineAfter returns the first record whose line begins at or after an offset.
func (p *exportPlace) lineAfter(from int64) (at int64, r *api.Record, size int64, err error) {
	at = from
	if from > p.first {
		in := bufio.NewReaderSize(io.NewSectionReader(p.f, from-1, p.end-from+1), 1<<12)
		skipped, err := readLine(in)
		if err != nil {
			return p.end, nil, 0, err
		}
		at = from - 1 + int64(len(skipped))
	}
	err = p.lines(context.Background(), at, func(found *api.Record, n int64) error {
		r, size = found, n
		return errSeen
	})
	if r == nil {
		return p.end, nil, 0, errors.Join(err, io.ErrUnexpectedEOF)
	}
	return at, r, size, nil
}

func (p *exportPlace) Link(ctx context.Context, index uint64) (Link, error) {
	switch {
	case index == 0:
		return Link{}, nil
	case index == p.about.From-1:
		return Link{Index: index, Chain: p.about.FirstChain}, nil
	}
	var out Link
	err := p.Records(ctx, index, index, func(b *events.Batch) error {
		out = linkOf(&b.Records[0])
		return nil
	})
	return out, err
}

// frozen reports a record of a replica that had stopped applying.
func frozen(r *events.Record) bool { return r.Bookkeeping.IsZero() && r.Lifecycle.IsZero() }
