package replica

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft-wal/segment"
	waltypes "github.com/hashicorp/raft-wal/types"

	"github.com/esperd/esperd/internal/regular"
)

// A segment of raft-wal is a header and batches: frames of entries, perhaps the
// index that seals the segment, and a commit frame with the checksum of all
// since the one before. README.md of raft-wal has the format.
const (
	walHeader = 32
	walFrame  = 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// mendTail readies the last segment for wal.Open, which of v0.4.2
//
//   - checks the last batch alone, and not even that one if frames follow it:
//     here every batch is checked;
//   - leaves behind the last batch what a torn or failed write left there. A
//     shorter one would later end in the middle of it, and the rest be taken for
//     entries: here it is no longer seen;
//   - refuses every append for ever to a segment whose seal is on disk, but not
//     in the list of segments, as after a crash in between: here the list is
//     brought up to date.
//
// Entries after keep go too: their write failed, and nobody was told of them.
func mendTail(dir string, meta waltypes.MetaStore, keep uint64) (torn tornTail, err error) {
	list, err := meta.Load(dir)
	if err != nil || len(list.Segments) == 0 {
		return torn, err // it is new
	}
	info := &list.Segments[len(list.Segments)-1]
	name := segment.FileName(*info)
	if !info.SealTime.IsZero() {
		return torn, fmt.Errorf("segment %s is sealed, expected one to append to after it", name)
	}
	b, err := regular.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return torn, nil // listed and not made yet: wal.Open makes it
	}
	if err != nil {
		return torn, err
	}
	t := readTail(b, info.BaseIndex, keep)
	if len(bytes.TrimLeft(b[t.end:], "\x00")) > 0 {
		if wholeBatchIn(b[t.end:]) {
			return torn, fmt.Errorf("%s: what follows byte %d does not match its checksum, and was not written last", filepath.Join(dir, name), t.end)
		}
		torn = tornTail{name, int64(t.end)}
	}
	if t.index == 0 {
		return torn, nil
	}
	info.SealTime, info.MaxIndex, info.IndexStart = time.Now(), info.BaseIndex+t.entries-1, t.index
	list.Segments = append(list.Segments, waltypes.SegmentInfo{ID: list.NextSegmentID, BaseIndex: info.MaxIndex + 1, MinIndex: info.MaxIndex + 1,
		Codec: info.Codec, SizeLimit: info.SizeLimit, CreateTime: time.Now()})
	list.NextSegmentID++
	return torn, meta.CommitState(list)
}

// walTail is how much of a segment is whole.
type walTail struct {
	end     int    // of its last whole batch
	entries uint64 // until there
	index   uint64 // offset of the index; 0: not sealed
}

// readTail finds the whole batches of an unsealed segment, up to the entry keep.
func readTail(b []byte, base, keep uint64) walTail {
	var whole, at walTail
	from := 0 // where the batch's checksum begins
	for pos := walHeader; whole.index == 0; pos = at.end {
		typ, size := frameAt(b, pos)
		at.end = pos + size
		switch typ {
		case segment.FrameEntry:
			at.entries++
		case segment.FrameIndex:
			at.index = uint64(pos + walFrame)
		case segment.FrameCommit:
			if !isBatch(b, from, pos) || at.entries > 0 && base+at.entries-1 > keep {
				return whole
			}
			whole, from = at, at.end
		default:
			return whole
		}
	}
	return whole
}

// isBatch tells whether the commit frame at end is of the batch that begins at from.
func isBatch(b []byte, from, end int) bool {
	return end > from && crc32.Checksum(b[from:end], castagnoli) == binary.LittleEndian.Uint32(b[end+4:])
}

// wholeBatchIn tells whether a whole batch lies in b behind the end of another:
// then what is at the beginning of b was not torn, for it was the last one once
// and is not now.
func wholeBatchIn(b []byte) bool {
	from := len(b)
	for pos := 0; pos+walFrame <= len(b); pos += walFrame {
		if b[pos] != segment.FrameCommit || b[pos+1]|b[pos+2]|b[pos+3] != 0 {
			continue
		}
		if isBatch(b, from, pos) {
			return true
		}
		from = pos + walFrame
	}
	return false
}

// frameAt returns the kind and size of the frame at pos, segment.FrameInvalid if
// there is none.
func frameAt(b []byte, pos int) (typ uint8, size int) {
	if pos+walFrame > len(b) {
		return segment.FrameInvalid, 0
	}
	size = walFrame
	if b[pos] != segment.FrameCommit {
		payload := int(binary.LittleEndian.Uint32(b[pos+4:]))
		size += (payload + walFrame - 1) / walFrame * walFrame
	}
	if size > len(b)-pos {
		return segment.FrameInvalid, 0
	}
	return b[pos], size
}

// tornTail is a segment with bytes from end on that are not part of the log.
type tornTail struct {
	name string // empty: there is none
	end  int64
}

// tornFile hides them, and removes them when something is written in their
// place: a node that does not start leaves its files as they are.
type tornFile struct {
	waltypes.WritableFile
	path string
	end  int64
	cut  atomic.Bool
}

func (f *tornFile) ReadAt(b []byte, at int64) (int, error) {
	room := max(f.end-at, 0)
	if f.cut.Load() || room >= int64(len(b)) {
		return f.WritableFile.ReadAt(b, at)
	}
	n, err := f.WritableFile.ReadAt(b[:room], at)
	return n, cmp.Or(err, io.EOF)
}

func (f *tornFile) WriteAt(b []byte, at int64) (int, error) {
	if !f.cut.Load() {
		if err := os.Truncate(f.path, f.end); err != nil {
			return 0, err
		}
		f.cut.Store(true)
	}
	return f.WritableFile.WriteAt(b, at)
}
