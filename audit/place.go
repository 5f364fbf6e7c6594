package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/esperd/esperd/events"
)

// About is what a place says about itself. Nothing of it is trusted.
type About struct {
	Place   string // as the user named it
	Kind    string // "directory", "export" or "esperd"
	Node    events.NodeID
	Rank    *uint64 // nil: not known from the place alone
	Run     string
	Lineage string
	Version string // of the esperd that wrote or serves it, where known
	Live    bool   // an esperd has it open: it may grow

	From       uint64        // first entry that is here
	Head       uint64        // last one, when it was opened; 0: none
	HeadChain  events.Digest // as stated
	FirstChain events.Digest // the link before From, as stated; zero for From 1
	Problem    string        // what the place itself complains about

	Evidence *Evidence // what the replica found out about its state while its esperd ran
	Noted    string    // the same, for people
}

// Link is the log's place and the replica's digests after an entry.
type Link struct {
	Index                         uint64
	Chain, Lifecycle, Bookkeeping events.Digest
}

// A Place holds one rank's log.
type Place interface {
	About() *About

	// Records calls fn with the records from..to in order, which releases them.
	// Errors are as of events.Reader.Records, or the connection's.
	Records(ctx context.Context, from, to uint64, fn func(*events.Batch) error) error
	// Link returns one link. That of index 0 is zero.
	Link(ctx context.Context, index uint64) (Link, error)

	Close() error
}

// A grower is a place that may grow: an esperd, or a directory that one has open.
type grower interface {
	Place
	// Refresh looks where it begins and ends now, which About then says.
	Refresh(ctx context.Context) error
}

// Options says how places are read.
type Options struct {
	Timeout time.Duration // of one answer of an esperd; 0: 15 s
}

const defaultTimeout = 15 * time.Second

// Errors of Open.
var ErrNoPlace = errors.New("expected a data directory, an exported log or an admin URL")

// Open opens a place. The error says what was expected there; it may wrap a
// *events.VersionError or *events.CorruptError.
func Open(ctx context.Context, name string, o Options) (Place, error) {
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if strings.HasPrefix(name, "http://") || strings.HasPrefix(name, "https://") {
		return openRemote(ctx, name, o.Timeout)
	}
	info, err := os.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s: there is nothing: %w; a URL begins with http://", name, ErrNoPlace)
	case err != nil:
		return nil, err
	case info.IsDir():
		return openDir(name)
	case info.Mode().IsRegular():
		return openFile(name)
	default:
		return nil, fmt.Errorf("%s is neither a file nor a directory: %w", name, ErrNoPlace)
	}
}
