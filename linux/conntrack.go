// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ConntrackMatch selects connection tracking entries. All fields that are set
// have to match; at least one address must be set, so that an empty value can
// never empty the table.
type ConntrackMatch struct {
	Proto    uint8          // IP protocol number (6 TCP, 17 UDP); 0: any
	OrigDst  netip.AddrPort // where the client sent to, before any rewriting; port 0: any port; zero value: any
	ReplySrc netip.AddrPort // who answers: the endpoint after DNAT; port 0: any port; zero value: any
}

var _ netlink.CustomConntrackFilter = ConntrackMatch{}

// MatchConntrackFlow reports whether m selects flow.
func (m ConntrackMatch) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	return (m.Proto == 0 || m.Proto == flow.Forward.Protocol) &&
		matchEnd(m.OrigDst, flow.Forward.DstIP, flow.Forward.DstPort) &&
		matchEnd(m.ReplySrc, flow.Reverse.SrcIP, flow.Reverse.SrcPort)
}

func matchEnd(want netip.AddrPort, ip net.IP, port uint16) bool {
	if !want.Addr().IsValid() {
		return true
	}
	addr, ok := netip.AddrFromSlice(ip)
	return ok && addr.Unmap() == want.Addr().Unmap() && (want.Port() == 0 || want.Port() == port)
}

// valid reports an error for a match without an address or with two families.
func (m ConntrackMatch) valid() error {
	orig, reply := m.OrigDst.Addr(), m.ReplySrc.Addr()
	switch {
	case !orig.IsValid() && !reply.IsValid():
		return errors.New("conntrack match without an address")
	case orig.IsValid() && reply.IsValid() && orig.Unmap().Is4() != reply.Unmap().Is4():
		return fmt.Errorf("conntrack match mixes %s and %s", orig, reply)
	}
	return nil
}

func (m ConntrackMatch) is4() bool {
	if addr := m.OrigDst.Addr(); addr.IsValid() {
		return addr.Unmap().Is4()
	}
	return m.ReplySrc.Addr().Unmap().Is4()
}

// DeleteConntrack removes the entries of the current namespace that any of the
// matches selects and returns how many there were. It reads the table once per
// address family in use, however many matches there are. Entries that end by
// themselves meanwhile are not an error.
func DeleteConntrack(matches ...ConntrackMatch) (int, error) {
	families := map[netlink.InetFamily][]netlink.CustomConntrackFilter{}
	for _, m := range matches {
		if err := m.valid(); err != nil {
			return 0, err
		}
		family := netlink.InetFamily(unix.AF_INET6)
		if m.is4() {
			family = unix.AF_INET
		}
		families[family] = append(families[family], m)
	}
	total := 0
	for family, filters := range families {
		n, err := deleteConntrack(family, filters)
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// deleteConntrack repeats an interrupted dump: what was deleted in the first
// pass is not found in the second one.
func deleteConntrack(family netlink.InetFamily, filters []netlink.CustomConntrackFilter) (int, error) {
	total := 0
	for try := 0; ; try++ {
		n, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, filters...)
		total += int(n)
		if err == nil {
			return total, nil
		}
		if try >= dumpTries || !errors.Is(err, netlink.ErrDumpInterrupted) {
			return total, fmt.Errorf("delete conntrack entries: %w", err)
		}
	}
}

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
