package replica

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/internal/regular"
)

// The names inside a data directory that OpenDataDir itself reads or writes.
const (
	nodeFileName = "node.json"
	lockFileName = "lock"
)

// nodeFormat is the newest format of node.json that this build reads.
const nodeFormat = 1

// nodeFile is node.json: whose directory this is.
type nodeFile struct {
	Format  int           `json:"format"`
	Node    events.NodeID `json:"node"`
	Created time.Time     `json:"created"`
	Boots   uint64        `json:"boots"` // opens so far, this one counted
	Run     string        `json:"run,omitempty"`
	Lineage string        `json:"lineage,omitempty"`
}

// DataDirOptions are what tests vary. The zero value is what production wants.
type DataDirOptions struct {
	NoFsync bool      // simulated clusters: no durability, no waiting for a disk
	Rand    io.Reader // source of a new node's id; nil: crypto/rand
}

// A DataDir is an open, locked data directory: the identity of one node.
//
// The id belongs to the directory and never to a rank or an address: a voter
// that came back empty under its old id could vote twice in a term.
type DataDir struct {
	path     string
	opts     DataDirOptions
	lock     *os.File
	warnings []string

	mu   sync.Mutex
	file nodeFile
}

// RunMismatchError says that a data directory belongs to another run or
// lineage than the one it was asked to join.
type RunMismatchError struct {
	Dir  string
	What string // "run" or "lineage"
	Have string // as node.json records it
	Got  string
}

// Error names both values and what to do.
func (e *RunMismatchError) Error() string {
	return fmt.Sprintf("data directory %s belongs to %s %q, expected it to belong to %q: "+
		"use another --data-dir for the other %[2]s, or move this one aside to start empty", e.Dir, e.What, e.Have, e.Got)
}

// OpenDataDir opens path, creating it if it is not there, and locks it until
// Close. It counts the boot before it returns, so that no two processes ever
// number their reports from the same base.
func OpenDataDir(path string, opts DataDirOptions) (*DataDir, error) {
	if opts.Rand == nil {
		opts.Rand = rand.Reader
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", path, err)
	}
	if err := makeDir(path); err != nil {
		return nil, err
	}
	d := &DataDir{path: path, opts: opts}
	if d.lock, err = lockDir(path); err != nil {
		return nil, err
	}
	if err := d.load(); err != nil {
		_ = d.Close() // the first error is the one to act on
		return nil, err
	}
	d.warnings = fsWarnings(path)
	return d, nil
}

func makeDir(path string) error {
	_, err := os.Stat(path)
	if err == nil {
		return nil // what is not a directory fails at the lock, with its name
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("cannot create the data directory %s: %w: choose a writable --data-dir (ESPERD_DATA_DIR)", path, err)
	}
	return syncDir(filepath.Dir(path))
}

func (d *DataDir) load() error {
	name := d.Path(nodeFileName)
	b, err := regular.ReadFile(name)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if d.file, err = d.newNode(); err != nil {
			return err
		}
	case err != nil:
		return fmt.Errorf("cannot read %s: %w", name, err)
	default:
		if d.file, err = parseNodeFile(b); err != nil {
			return fmt.Errorf("%s: %w: restore the file from a backup, or move %s aside to start as a new node", name, err, d.path)
		}
	}
	d.file.Boots++
	return d.save(d.file)
}

// newNode makes an identity, but only where nothing shows that there was one.
func (d *DataDir) newNode() (nodeFile, error) {
	for _, name := range []string{"raft", "history.db"} {
		if _, err := os.Lstat(d.Path(name)); err == nil {
			return nodeFile{}, fmt.Errorf("%s is missing although %s is there, expected both or neither: "+
				"restore the file from a backup, or move %s aside to start as a new node", d.Path(nodeFileName), d.Path(name), d.path)
		}
	}
	id, err := drawID(d.opts.Rand)
	if err != nil {
		return nodeFile{}, err
	}
	return nodeFile{Format: nodeFormat, Node: events.NodeID(id), Created: time.Now().UTC()}, nil
}

// drawID is a new node's id, or a new log's lineage.
func drawID(r io.Reader) (string, error) {
	var id [16]byte
	if _, err := io.ReadFull(r, id[:]); err != nil {
		return "", fmt.Errorf("cannot draw a random id: %w", err)
	}
	return hex.EncodeToString(id[:]), nil
}

// save replaces node.json in one step: a crash leaves the old or the new one.
func (d *DataDir) save(f nodeFile) error { return saveNodeFile(d.path, f, !d.opts.NoFsync) }

func saveNodeFile(dir string, f nodeFile, fsync bool) error {
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	name := filepath.Join(dir, nodeFileName)
	if err := writeFileAtomic(name, append(b, '\n'), fsync); err != nil {
		return fmt.Errorf("cannot write %s: %w: make the data directory writable, or choose another --data-dir", name, err)
	}
	return nil
}

// Node is the id of this directory's node.
func (d *DataDir) Node() events.NodeID { return d.now().Node }

// Boots is how often the directory was opened, this time counted.
func (d *DataDir) Boots() uint64 { return d.now().Boots }

// Path is where name lies in the directory.
func (d *DataDir) Path(name string) string { return filepath.Join(d.path, name) }

// Warnings are what an operator should know about the directory.
func (d *DataDir) Warnings() []string { return d.warnings }

// Run is the run the directory belongs to; empty: not known yet.
func (d *DataDir) Run() string { return d.now().Run }

// Lineage is the lineage the directory belongs to; empty: not known yet.
func (d *DataDir) Lineage() string { return d.now().Lineage }

func (d *DataDir) now() nodeFile {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.file
}

// SetRun records what the directory belongs to, for good. An empty argument
// says nothing; a value other than the recorded one is a *RunMismatchError.
func (d *DataDir) SetRun(run, lineage string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := d.file
	for _, v := range []struct {
		what string
		have *string
		got  string
	}{{"run", &next.Run, run}, {"lineage", &next.Lineage, lineage}} {
		switch {
		case v.got == "":
		case *v.have == "":
			*v.have = v.got
		case *v.have != v.got:
			return &RunMismatchError{Dir: d.path, What: v.what, Have: *v.have, Got: v.got}
		}
	}
	if next == d.file {
		return nil
	}
	if err := d.save(next); err != nil {
		return err
	}
	d.file = next
	return nil
}

// Close releases the lock. The lock file stays: removing it would let two
// processes lock two files of one name.
func (d *DataDir) Close() error { return d.lock.Close() }

var nodeIDPattern = regexp.MustCompile(`^[0-9a-f]{32}$`)

// parseNodeFile reads node.json strictly: a guess about identity is worse than
// a node that does not start.
func parseNodeFile(b []byte) (nodeFile, error) {
	var head struct {
		Format *int `json:"format"`
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return nodeFile{}, errors.New("the file is empty, expected a JSON object: it was truncated")
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return nodeFile{}, fmt.Errorf("expected one JSON object, got something garbled or truncated (%w)", err)
	}
	if head.Format == nil {
		return nodeFile{}, errors.New(`the field "format" is missing, expected 1`)
	}
	if *head.Format > nodeFormat {
		return nodeFile{}, fmt.Errorf("format %d is newer than the %d this esperd knows: start the esperd that wrote it, or a newer one", *head.Format, nodeFormat)
	}
	var f nodeFile
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return nodeFile{}, fmt.Errorf("expected the fields of format %d, got something else (%w)", nodeFormat, err)
	}
	switch {
	case f.Format != nodeFormat:
		return nodeFile{}, fmt.Errorf("expected format %d, got %d", nodeFormat, f.Format)
	case !nodeIDPattern.MatchString(string(f.Node)):
		return nodeFile{}, fmt.Errorf("expected a node id of 32 hexadecimal digits, got %.80q", f.Node)
	case f.Boots == 0 || f.Boots == ^uint64(0):
		return nodeFile{}, fmt.Errorf("expected a count of boots from 1, got %d", f.Boots)
	case f.Created.IsZero():
		return nodeFile{}, errors.New(`the field "created" is missing, expected a time`)
	}
	return f, nil
}

// lockDir takes the directory for this process. The kernel drops the lock when
// the process dies, however it dies.
func lockDir(dir string) (*os.File, error) {
	name := filepath.Join(dir, lockFileName)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot write in the data directory %s: %w: make it writable, or choose another --data-dir (ESPERD_DATA_DIR)", dir, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder := lockHolder(f)
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("the data directory %s is in use by %s, which holds the lock %s: stop it, or choose another --data-dir", dir, holder, name)
		}
		return nil, fmt.Errorf("cannot lock %s: %w: choose a --data-dir on a local file system", name, err)
	}
	// The pid is only for people; the lock holds without it.
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return f, nil
}

func lockHolder(f *os.File) string {
	b := make([]byte, 32)
	n, _ := f.ReadAt(b, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil {
		return "another process"
	}
	return fmt.Sprintf("process %d", pid)
}

// writeFileAtomic puts b into name by way of a temporary file in the same
// directory, and makes both the bytes and the name durable.
func writeFileAtomic(name string, b []byte, fsync bool) error {
	tmp := name + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil && fsync {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, name); err != nil || !fsync {
		return err
	}
	return syncDir(filepath.Dir(name))
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// networkFS names the file systems, by statfs(2) magic number, on which locks
// and fsync often mean less than a log of votes needs.
var networkFS = map[uint32]string{
	0x6969:     "NFS",
	0x517b:     "SMB",
	0xff534d42: "CIFS",
	0xfe534d42: "SMB2",
	0x00c36400: "Ceph",
	0x65735546: "FUSE",
	0x01021997: "9p",
	0x0bd00bd0: "Lustre",
	0x47504653: "GPFS",
	0x19830326: "BeeGFS",
}

// classifyFS says whether a statfs magic number is that of a network file
// system, and of which.
func classifyFS(magic uint32) (name string, network bool) {
	name, network = networkFS[magic]
	return name, network
}

func fsWarnings(path string) []string {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return nil // only a warning is lost
	}
	name, network := classifyFS(uint32(st.Type)) // its Go type varies by platform
	if !network {
		return nil
	}
	return []string{fmt.Sprintf("the data directory %s is on %s: locks and fsync may be weaker there than a vote in the log needs, "+
		"and commits slower; a --data-dir on a local disk is better", path, name)}
}
