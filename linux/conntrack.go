// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"fmt"
	"net/netip"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ConntrackCount returns how many connections the current namespace tracks.
func ConntrackCount() (int, error) {
	text, err := ReadSysctl("net/netfilter/nf_conntrack_count")
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("count conntrack entries: %w", err)
	}
	return n, nil
}

// Translation is what connection tracking has made of a connection's addresses.
type Translation struct {
	// Server is where the packets really go, and Client is the address that the
	// server sees them come from.
	Server, Client netip.AddrPort
}

// Tracked looks a connection up by what its client knows of it, in the current
// namespace. It reads the whole table: it is for questions that people ask. ok is
// false if the connection is not tracked (any more).
func Tracked(proto uint8, client, server netip.AddrPort) (t Translation, ok bool, err error) {
	table := netlink.InetFamily(unix.AF_INET)
	if client.Addr().Is6() {
		table = unix.AF_INET6
	}
	flows, err := Dump(func() ([]*netlink.ConntrackFlow, error) {
		return netlink.ConntrackTableList(netlink.ConntrackTable, table)
	})
	if err != nil {
		return t, false, fmt.Errorf("list conntrack entries: %w", err)
	}
	for _, f := range flows {
		if f.Forward.Protocol == proto && addrPort(f.Forward.SrcIP, f.Forward.SrcPort) == client && addrPort(f.Forward.DstIP, f.Forward.DstPort) == server {
			return Translation{
				Server: addrPort(f.Reverse.SrcIP, f.Reverse.SrcPort),
				Client: addrPort(f.Reverse.DstIP, f.Reverse.DstPort),
			}, true, nil
		}
	}
	return t, false, nil
}

func addrPort(ip []byte, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), port)
}
