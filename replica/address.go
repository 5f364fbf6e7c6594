package replica

import (
	"strings"

	"github.com/esperd/esperd/events"
)

// A peer's address is HOST:PORT#NODE: where it listens, and which node is
// wanted there. Raft's messages do not name their receiver, so without the
// second part a node with a new, empty disk would answer for the one that
// listened there before: it would vote a second time in its stead, and an
// acknowledged decision could be lost (found by test/sim). Addresses that users
// give are without it: any node will do.

func addressOf(host string, id events.NodeID) string {
	if id == "" {
		return host
	}
	return host + "#" + string(id)
}

func splitAddress(address string) (host string, id events.NodeID) {
	host, node, _ := strings.Cut(address, "#")
	return host, events.NodeID(node)
}

func hostOf(address string) string {
	host, _ := splitAddress(address)
	return host
}

func sameHost(a, b string) bool { return hostOf(a) == hostOf(b) }
