//go:build !linux

package door

import "net"

// checkPeer relies on the socket's mode: this system says in no portable way who
// connected.
func checkPeer(net.Conn) (pid int, err error) { return 0, nil }
