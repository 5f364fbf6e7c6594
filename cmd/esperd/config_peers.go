package main

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// peers decides where this node listens for the others, and whom it asks first.
func (r *resolver) peers(f RunFlags, c *Config) error {
	master := r.env["MASTER_ADDR"]
	joins := r.pick("join", f.Join, "torchrun MASTER_ADDR")
	if c.World == 1 && r.from["join"] == "torchrun MASTER_ADDR" {
		joins = "" // a world of one has nobody to ask
		delete(r.from, "join")
	}
	if c.World > 1 && strings.Trim(joins, ", ") == "" {
		return fmt.Errorf("the world size is %d (%s) and nothing says where rank 0 is: give its host with --join (ESPERD_JOIN), or set MASTER_ADDR", c.World, r.from["world_size"])
	}
	listen := r.pick("listen", f.Listen)
	base, err := r.basePort(listen)
	if err != nil {
		return err
	}
	if c.Join, err = r.joinAddresses(joins, base); err != nil {
		return err
	}
	switch {
	case listen != "" || f.Listen != nil:
		if c.Listen, err = r.listenAddress("listen", listen, c.Rank); err != nil {
			return err
		}
	case c.World == 1: // nobody has to find it
		c.Listen, r.from["listen"] = "127.0.0.1:0", "default"
	default:
		port, err := r.peerPort(base, c.Rank)
		if err != nil {
			return err
		}
		c.Listen = net.JoinHostPort(r.listenHost(c), port)
		r.from["listen"] = "default"
		if r.env["MASTER_PORT"] != "" {
			r.from["listen"] = "default, from torchrun MASTER_PORT"
		}
	}
	return r.advertise(f.Advertise, master, c)
}

// advertise is the host that peers dial. Where the doors are open on every
// address, only rank 0 has a name that is known to work.
func (r *resolver) advertise(flag *string, master string, c *Config) error {
	c.Advertise = r.pick("advertise", flag)
	if c.Advertise == "" {
		host, _, _ := net.SplitHostPort(c.Listen)
		ip := net.ParseIP(host)
		if c.Rank == 0 && c.World > 1 && (host == "" || ip != nil && ip.IsUnspecified()) && r.from["join"] == "torchrun MASTER_ADDR" {
			c.Advertise, r.from["advertise"] = strings.TrimSpace(master), "torchrun MASTER_ADDR"
		}
		return nil
	}
	if _, _, err := net.SplitHostPort(c.Advertise); err == nil {
		return fmt.Errorf("%s is %q, expected a host without a port: peers use the port of --listen", r.from["advertise"], c.Advertise)
	}
	c.Advertise = strings.Trim(c.Advertise, "[]")
	return nil
}

// basePort is the port of rank 0's peer door on its host.
func (r *resolver) basePort(listen string) (uint64, error) {
	if _, port, err := net.SplitHostPort(listen); err == nil {
		if base, ok := strings.CutSuffix(port, "+rank"); ok {
			return parsePort(r.from["listen"], base)
		}
	}
	master, err := r.masterPort()
	if err != nil || master == 0 {
		return basePort, err
	}
	return wrapPort(master + masterPortGap), nil
}

// masterPort is the trainers' rendezvous, 0 where there is none. Nothing of
// esperd may listen there.
func (r *resolver) masterPort() (uint64, error) {
	if r.env["MASTER_PORT"] == "" {
		return 0, nil
	}
	return parsePort("MASTER_PORT", r.env["MASTER_PORT"])
}

func parsePort(name, text string) (uint64, error) {
	n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%s has port %.40q, expected a number from 1 to 65535", name, text)
	}
	return n, nil
}

// wrapPort keeps a port inside 1024 to 65535.
func wrapPort(p uint64) uint64 {
	const low, span = 1024, 65536 - 1024
	if p >= low {
		p -= low
	}
	return low + p%span
}

// peerPort differs between the ranks of a host, and is never MASTER_PORT.
func (r *resolver) peerPort(base, rank uint64) (string, error) {
	port := wrapPort(base + rank)
	if master, err := r.masterPort(); err != nil || port == master {
		return "", errors.Join(err, fmt.Errorf("the default peer port of rank %d is MASTER_PORT %d, which is the trainers': choose another with --listen (ESPERD_LISTEN)", rank, master))
	}
	return strconv.FormatUint(port, 10), nil
}

// listenHost is loopback where every rank is on this host.
func (r *resolver) listenHost(c *Config) string {
	host, _, _ := net.SplitHostPort(c.Join[0])
	ip := net.ParseIP(host)
	v6 := ip != nil && ip.To4() == nil
	switch local := loopback(host); {
	case local && v6:
		return "::1"
	case local:
		return "127.0.0.1"
	case v6:
		return "::"
	}
	return "0.0.0.0"
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}

// joinAddresses completes each address with rank 0's port.
func (r *resolver) joinAddresses(list string, base uint64) ([]string, error) {
	var out []string
	for a := range strings.SplitSeq(list, ",") {
		a = strings.TrimSpace(a)
		if a == "" {
			continue
		}
		host, port := a, strconv.FormatUint(base, 10)
		if h, p, err := net.SplitHostPort(a); err == nil {
			n, err := parsePort(r.from["join"], p)
			if err != nil {
				return nil, err
			}
			host, port = h, strconv.FormatUint(n, 10)
		}
		host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
		if host == "" || strings.ContainsAny(host, "[]/ \t\n") || strings.Contains(host, ":") && net.ParseIP(host) == nil {
			return nil, fmt.Errorf("%s has the address %.200q, expected HOST or HOST:PORT, several separated by commas", r.from["join"], a)
		}
		out = append(out, net.JoinHostPort(host, port))
	}
	return out, nil
}

// listenAddress checks HOST:PORT and adds the rank to PORT+rank.
func (r *resolver) listenAddress(setting, address string, rank uint64) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", fmt.Errorf("%s is %.200q, expected HOST:PORT", r.from[setting], address)
	}
	base, perRank := strings.CutSuffix(port, "+rank")
	if base == "0" && !perRank {
		return address, nil
	}
	n, err := parsePort(r.from[setting], base)
	if err != nil {
		return "", err
	}
	if perRank {
		n += rank
	}
	if n > 65535 {
		return "", fmt.Errorf("%s is %s, which is port %d for rank %d, expected at most 65535: choose a lower one", r.from[setting], address, n, rank)
	}
	if master, err := r.masterPort(); setting == "listen" && err == nil && n == master && master != 0 {
		return "", fmt.Errorf("%s is %s, but port %d is MASTER_PORT, the trainers' rendezvous: choose another", r.from[setting], address, master)
	}
	return net.JoinHostPort(host, strconv.FormatUint(n, 10)), nil
}
