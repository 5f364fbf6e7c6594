package replica

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/fsm"
)

// verifiedFileName is the file beside node.json that says which build replayed
// the history last. It is no part of node.json: an older build refuses fields
// that it does not know, and going back to it has to work.
const verifiedFileName = "verified.json"

const (
	verifiedFormat   = 1
	verifiedBytesMax = 1 << 16
)

// verifiedFile is verified.json. It is only ever a reason to replay less.
type verifiedFile struct {
	Format int    `json:"format"`
	Build  string `json:"build"`
	// Boots is node.json's count at that start. Where it is not that of the
	// start before this one, a build that does not know this file ran since.
	Boots uint64 `json:"boots"`
	Index uint64 `json:"index"` // last entry of the history then
	Chain string `json:"chain"` // at Index
}

// verifyProgress is how many entries lie between two lines about it in the log.
const verifyProgress = 100_000

// verifyHistory replays the whole history if another build did so last, and
// compares what it gives with what was recorded, entry by entry: a build that
// gives other states than the ones before it must not answer a trainer, nor
// write into the log. An image of the state would hide that, so it begins with
// entry 1.
func (n *Node) verifyHistory() error {
	if n.cfg.Build == "" {
		return nil
	}
	name := n.cfg.Dir.Path(verifiedFileName)
	was, err := readVerified(name)
	if err != nil {
		n.log.Warn("it is not known which build verified the history last: the whole history is replayed", "file", name, "error", err)
	}
	if !n.vouched(was) {
		doubted, err := doubtedFrom(n.cfg.Dir.Path(""))
		if err != nil {
			return err
		}
		v := verification{history: n.history, doubted: doubted, log: n.log, every: verifyProgress, dir: n.cfg.Dir.Path(""), build: n.cfg.Build, before: cmp.Or(was.Build, "not known")}
		if whole, err := v.run(); err != nil || !whole {
			return err // the next start looks again
		}
	}
	index, chain, _ := n.history.Head()
	b, err := json.MarshalIndent(verifiedFile{Format: verifiedFormat, Build: n.cfg.Build, Boots: n.cfg.Dir.Boots(), Index: index, Chain: chain.String()}, "", "  ")
	if err == nil {
		err = writeFileAtomic(name, append(b, '\n'), !n.cfg.Dir.opts.NoFsync)
	}
	if err != nil {
		n.log.Warn("it cannot be noted that this build verified the history: the next start replays it again", "error", err)
	}
	return nil
}

// readVerified returns the zero value where there is no such file.
func readVerified(name string) (f verifiedFile, err error) {
	info, err := os.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return f, nil
	case err != nil:
		return f, err
	case !info.Mode().IsRegular() || info.Size() > verifiedBytesMax:
		return f, fmt.Errorf("expected a file of at most %d bytes, got %d bytes, %s", verifiedBytesMax, info.Size(), info.Mode())
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return f, err
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return verifiedFile{}, fmt.Errorf("expected a JSON object, got something else: %w", err)
	}
	if f.Format != verifiedFormat {
		return verifiedFile{}, fmt.Errorf("expected format %d, got %d", verifiedFormat, f.Format)
	}
	return f, nil
}

// vouched reports whether this build, and no other since, had the history that
// is here.
func (n *Node) vouched(was verifiedFile) bool {
	if was.Build != n.cfg.Build || was.Boots+1 != n.cfg.Dir.Boots() {
		return false
	}
	if was.Index == 0 {
		return true
	}
	rec, err := n.history.Read(was.Index)
	return err == nil && rec.Chain.String() == was.Chain
}

// A verification replays a history.
type verification struct {
	history *events.History
	log     *slog.Logger
	every   uint64 // entries between two lines of progress
	dir     string
	build   string // this one
	before  string // that verified it last, for people
	doubted uint64 // what was recorded of states from this entry on is evidence; 0: all of it counts

	state  *fsm.State
	images map[uint64][]byte // newest ones, by entry
	head   uint64
	count  uint64
	began  time.Time
}

// run reports whether the whole history was replayed: not where entries are
// missing that come from the other ranks later, nor that of a replica which had
// diverged.
func (v *verification) run() (whole bool, err error) {
	v.head, _, _ = v.history.Head()
	if v.head == 0 {
		return true, nil
	}
	v.began, v.state, v.images = time.Now(), fsm.New(), map[uint64][]byte{}
	v.log.Info("this build has not verified the history of this node: replaying it before anybody is served", "entries", v.head, "build", v.build, "verified_by", v.before)
	if err := v.collectImages(); err != nil {
		return false, err
	}
	err = v.history.Range(1, v.head, v.entry)
	if errors.Is(err, events.ErrNotFound) {
		v.log.Info("entries are missing here that the other ranks have: what follows them is verified from the state there, and the next start verifies them too", "verified", v.count, "error", err)
		return false, v.aboveGap()
	}
	var known knownDivergence
	if errors.As(err, &known) {
		v.log.Warn("this replica had diverged before: its history is verified until then", "index", uint64(known))
		return false, nil
	}
	if err != nil {
		return false, err
	}
	took := time.Since(v.began)
	v.log.Info("the history is verified", "entries", v.count, "took", took.Round(time.Millisecond).String())
	return true, nil
}

// aboveGap verifies what follows the last entry that is missing, if the state
// there is kept.
func (v *verification) aboveGap() error {
	from := v.history.CompleteFrom()
	image, ok := v.images[from-1]
	if !ok {
		return nil
	}
	state, err := fsm.FromImage(image)
	if err != nil {
		return nil // newMachine says what that means
	}
	v.state = state
	err = v.history.Range(from, v.head, v.entry)
	var known knownDivergence
	if errors.As(err, &known) {
		return nil
	}
	return err
}

// collectImages keeps the images that can be read: a start takes a damaged one
// for none.
func (v *verification) collectImages() error {
	for at := v.head; at > 0; {
		index, image, ok, err := v.history.LatestImage(at)
		var damaged *events.CorruptError
		switch {
		case errors.As(err, &damaged) && damaged.Index > 0:
			index = damaged.Index
		case err != nil:
			return err
		case !ok:
			return nil
		default:
			v.images[index] = image
		}
		if index == 0 {
			return nil
		}
		at = index - 1
	}
	return nil
}

// knownDivergence is the entry at which a replica diverged, under the build that
// recorded it.
type knownDivergence uint64

func (k knownDivergence) Error() string {
	return fmt.Sprintf("this replica diverged at entry %d", uint64(k))
}

func (v *verification) isDoubted(index uint64) bool { return v.doubted > 0 && index >= v.doubted }

// entry replays one entry.
func (v *verification) entry(r events.Record) error {
	e, err := events.Decode(r.Entry)
	if err != nil {
		return v.differs(r.Index, "an entry that this build can read", err.Error())
	}
	next, _, err := fsm.Apply(v.state, e)
	var diverged *fsm.DivergedError
	switch {
	case errors.As(err, &diverged) && (r.Bookkeeping == events.Digest{} || v.isDoubted(r.Index)):
		return knownDivergence(r.Index)
	case err != nil:
		return v.differs(r.Index, "bookkeeping digest "+r.Bookkeeping.Short()+" after it, as recorded", err.Error())
	case v.isDoubted(r.Index): // only what the entries say counts
	case next.Bookkeeping() != r.Bookkeeping:
		return v.differs(r.Index, "bookkeeping digest "+r.Bookkeeping.Short()+" after it, as recorded", next.Bookkeeping().Short())
	case e.Key != nil && next.Lifecycle(e.Key.Model) != r.Lifecycle:
		return v.differs(r.Index, fmt.Sprintf("lifecycle digest %s of model %s after it, as recorded", r.Lifecycle.Short(), e.Key.Model), next.Lifecycle(e.Key.Model).Short())
	}
	v.state = next
	if err := v.image(r.Index); err != nil {
		return err
	}
	if v.count++; v.count%v.every == 0 {
		v.log.Info("verifying the history", "index", r.Index, "of", v.head)
	}
	return nil
}

// image compares a kept state with the replayed one: a start goes on from it.
func (v *verification) image(index uint64) error {
	b, ok := v.images[index]
	if !ok || v.isDoubted(index) {
		return nil
	}
	kept, err := fsm.FromImage(b)
	if err != nil {
		return nil // a start goes on from the one before
	}
	if kept.Bookkeeping() != v.state.Bookkeeping() || len(kept.Models) != len(v.state.Models) {
		return v.differs(index, "a kept state with bookkeeping digest "+v.state.Bookkeeping().Short()+", as replayed", kept.Bookkeeping().Short())
	}
	for i, m := range v.state.Models {
		if kept.Models[i].Digest() != m.Digest() {
			return v.differs(index, fmt.Sprintf("a kept state with lifecycle digest %s of model %s, as replayed", m.Digest().Short(), m.Name), kept.Models[i].Digest().Short())
		}
	}
	return nil
}

func (v *verification) differs(index uint64, want, got string) error {
	return errorf(events.CodeDiverged, "data directory %s: this build (%s) does not get the state out of the history that was recorded in it (verified last by: %s): "+
		"entry %d is the first that differs: expected %s, got %s; nothing was changed and this node does not start: start this rank with the build that it had before. "+
		"If the other ranks start with this build, the directory is damaged: move it aside as evidence and start with an empty one, which is a new node and fetches the history from the others. If they do not, keep to the other build and report both",
		v.dir, v.build, v.before, index, want, got)
}
