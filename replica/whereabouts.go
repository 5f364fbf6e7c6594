package replica

import (
	"encoding/json"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/esperd/esperd/events"
	"github.com/esperd/esperd/internal/regular"
)

// whereabouts tells a network where nodes are now: ranks move, and in raft's
// configuration nodes have the addresses at which they were admitted.
type whereabouts struct {
	of atomic.Pointer[func(events.NodeID) string]
}

func (w *whereabouts) set(of func(events.NodeID) string) { w.of.Store(&of) }

// now returns the address at which to look for the node of a given one: the
// given one itself where nothing newer is known, or any node will do.
func (w *whereabouts) now(address string) string {
	_, id := splitAddress(address)
	of := w.of.Load()
	if id == "" || of == nil {
		return address
	}
	if at := (*of)(id); at != "" {
		return at
	}
	return address
}

// peersFileName holds where the other nodes of the log were last heard of. It is
// a hint for the next start, in which rank 0's node may be missing.
const (
	peersFileName  = "peers.json"
	peersBytesMax  = 1 << 20
	seekEveryHello = 20 // so that every node's list is nearly of now
)

// servers is raft's membership with the addresses of now.
func (n *Node) servers() []raft.Server {
	out := slices.Clone(n.members().Servers)
	for i, s := range out {
		if at := n.roster.where(events.NodeID(s.ID)); at != "" {
			out[i].Address = raft.ServerAddress(at)
		}
	}
	return out
}

// readPeers reads where the others were, as HOST:PORT#NODE.
func readPeers(name string) (list []string, err error) {
	b, err := regular.ReadFile(name)
	if err == nil && len(b) <= peersBytesMax {
		err = json.Unmarshal(b, &list)
	}
	return list, err
}

// PeersOf is where the node of a stopped data directory last heard of the others,
// as HOST:PORT. It is a hint: none where that cannot be read.
func PeersOf(dir string) []string {
	list, err := readPeers(filepath.Join(dir, peersFileName))
	if err != nil {
		return nil
	}
	var out []string
	for _, address := range list[:min(len(list), knownMax)] {
		if host, _ := splitAddress(address); host != "" && len(host) <= helloBytesMax {
			out = append(out, host)
		}
	}
	return out
}

// recallPeers reads where the others were.
func (n *Node) recallPeers() {
	name := n.cfg.Dir.Path(peersFileName)
	list, err := readPeers(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.log.Warn("where the other nodes were is not known; they have to be found by --join", "file", name, "error", err)
	}
	n.roster.recall(list)
	n.remembered = list
}

// rememberPeers writes it, when it has changed.
func (n *Node) rememberPeers() {
	var list []string
	for _, s := range n.servers() {
		if s.ID != raft.ServerID(n.id) {
			list = append(list, string(s.Address))
		}
	}
	slices.Sort(list)
	if len(list) == 0 || slices.Equal(list, n.remembered) {
		return
	}
	b, err := json.Marshal(list)
	if err == nil {
		err = writeFileAtomic(n.cfg.Dir.Path(peersFileName), append(b, '\n'), false)
	}
	if err != nil {
		n.log.Warn("where the other nodes are cannot be written; the next start finds them by --join", "error", err)
	}
	n.remembered = list // also after an error: one warning is enough
}

// seeks reports whether this node should ask for the places of others: of one it
// has none, or they are of a while ago.
func (n *Node) seeks() bool {
	n.hellos++
	return n.hellos%seekEveryHello == 0 || slices.ContainsFunc(n.members().Servers, func(s raft.Server) bool {
		return n.roster.where(events.NodeID(s.ID)) == ""
	})
}
